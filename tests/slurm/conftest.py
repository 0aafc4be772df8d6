"""A Slurm for the session, or a loud word about why there is none."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperadapter.core.files import write_json
from tests.slurm.machine import Machine, missing

_WHY_NOT: list[str] = []

HyperAdapter = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for why in _WHY_NOT:
        terminalreporter.section("NO SLURM: its tests did NOT run", red=True, bold=True)
        terminalreporter.line(why)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Three nodes with two GPUs that are none."""
    why = missing()
    if why:
        _WHY_NOT.append(why)
        pytest.skip(f"no Slurm: {why}")
    with Machine(tmp_path_factory.mktemp("slurm"), num_nodes=3) as started:
        os.environ["SLURM_CONF"] = str(started.conf)
        try:
            yield started
        finally:
            del os.environ["SLURM_CONF"]


@pytest.fixture
def site(tmp_path: Path, machine: Machine) -> Callable[..., Path]:
    """Writes a cluster's file; `script` stands for the interpreter, with training as its words."""

    def write(script: str = "", **values: object) -> Path:
        tree = {"partition": "main", "tasks_per_node": 1, "time_limit": "00:20:00"}
        if script:
            stub = tmp_path / f"stub{len(list(tmp_path.glob('stub*')))}"
            check = f'[[ "$*" == *cluster.node_check* ]] && exec {shlex.quote(sys.executable)} "$@"'
            lame = '[ "$SLURMD_NODENAME" = "${LAME:-}" ] && export CUDA_VISIBLE_DEVICES=0'
            packed = (
                f'[[ "$*" == *cluster.packed* ]] && exec {shlex.quote(sys.executable)} -c '
                "'import runpy, sys; sys.executable = sys.argv.pop(1); del sys.argv[1:3]; "
                'runpy.run_module("cluster.packed", run_name="__main__")\' "$0" "$@"'
            )
            stub.write_text(f"#!/bin/bash\n{lame}\n{check}\n{packed}\n" + textwrap.dedent(script))
            stub.chmod(0o755)
            tree["python"] = str(stub)
        else:
            tree["python"] = sys.executable
        write_json(tmp_path / "site.yaml", {**tree, "save_lead_s": 60, **values})
        return tmp_path / "site.yaml"

    return write
