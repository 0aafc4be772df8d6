"""A run whose processes were killed says RUNNING for ever, unless Slurm is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hyperadapter.core.events import SendState
from hyperadapter.tracking import run_status
from tests.slurm.machine import Machine
from tests.slurm.test_submit import jobs, status, submit, wait_for_state

pytestmark = pytest.mark.slurm

DIES = """
    config=${!#}
    echo '{"time_ms": 1000, "status": "RUNNING"}' >>"${config%/submit/*}/events.jsonl"
    echo "the last words"
    sleep 0.5 # srun drops what it has not read yet
    kill -KILL $$
"""


@pytest.mark.parametrize("tracked", [True, False])
def test_a_run_that_died_without_a_word_has_failed(
    tracked: bool, site: Callable[..., Path], machine: Machine, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    SendState("key", "run", "test", f"sqlite:///{tmp_path}/mlflow.db").save(run_dir)
    more = "--set", f"tracking.enabled={str(tracked).lower()}"
    job = submit(site(DIES), run_dir, *more).split()[0]
    wait_for_state(machine, job, "FAILED")
    [row] = status(run_dir)
    assert (row["state"], row["code"], row["run_status"]) == ("FAILED", 137, "FAILED")
    assert "n1: task 0: Killed; no sign of life for" in str(row["why"])
    assert (run_status(run_dir).unsent == 0) == tracked
    assert (tmp_path / "mlflow.db").exists() == tracked
    text = jobs("status", run_dir)
    assert f"{run_dir}, on n1: n1: task 0: Killed" in text
    assert "  the last words" in text
    assert "the last words" in jobs("logs", run_dir, "--lines", "9")
