"""A gradient that is not finite before there is a checkpoint: the run begins anew, exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyperadapter.core.events import read_metric

pytestmark = pytest.mark.distributed

PROGRAM = """
import sys
from pathlib import Path
from hyperadapter.config import RunConfig
from hyperadapter.core.schema import load_config
from hyperadapter.training.engine import Engine
from hyperadapter.training.trainer import train

bad_call, config, *changes = sys.argv[1:]
train_step, calls = Engine.train_step, []

def poisoned(engine, *arguments, **keys):
    calls.append(1)
    if len(calls) != int(bad_call):
        return train_step(engine, *arguments, **keys)
    parameter = next(p for p in engine._engine.module.parameters() if p.requires_grad)
    hook = parameter.register_hook(lambda gradient: gradient * float("nan"))
    try:
        return train_step(engine, *arguments, **keys)
    finally:
        hook.remove()

Engine.train_step = poisoned
train(load_config(RunConfig, Path(config), changes))
"""


@pytest.mark.parametrize(("stage", "precision"), [(3, "fp32"), (1, "bf16")])
def test_a_run_begins_anew_as_it_began(
    stage: int, precision: str, corpus: Path, tmp_path: Path
) -> None:
    losses = []
    for name, bad_call in (("whole", 0), ("poisoned", 2)):
        done = subprocess.run(
            [
                sys.executable, "-c", PROGRAM, str(bad_call), str(corpus / "run.yaml"),
                f"run_dir={tmp_path / name}", "training.max_steps=5",
                f"training.zero_stage={stage}", f"training.precision={precision}",
            ],
            capture_output=True, text=True, timeout=300, check=False,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append(read_metric(tmp_path / name, "train/loss"))
    assert read_metric(tmp_path / "poisoned", "train/rollbacks")[-1] == (5, 1.0)
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == [1, 2, 3, 4, 5]
