"""Reading the runs of an experiment back, in bulk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.errors import TrackingError
from hyperadapter.tracking import TrackedRun, Tracker
from hyperadapter.tracking import runs as reader
from hyperadapter.tracking.runs import read_runs
from tests.unit.tracking.conftest import QUICK_S


def make(run_dir: Path, experiment: str, metrics: dict[str, float], **more: Any) -> Tracker:
    run = TrackedRun(run_dir.name, experiment=experiment, **more)
    tracker = Tracker(run_dir, run, send_every_s=QUICK_S)
    tracker.log_metrics({name: 2 * value for name, value in metrics.items()}, 1)
    tracker.log_metrics(metrics, 2)
    return tracker


def test_runs_come_in_pages_with_their_last_metrics(
    runs: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        place = run_dir / str(number)
        uri = f"sqlite:///{runs}/mlflow.db"
        params = {"model.d_model": str(number)}
        tracker = make(
            place, "paged", {"valid/macro/nll": 3.0 - number}, uri=uri, params=params,
            tags={"kind": "hyper"},
        )  # fmt: skip
        tracker.finish("FAILED" if number == 1 else "FINISHED", reason="x")
    monkeypatch.setattr(reader, "_RUNS_PER_REQUEST", 2)
    found = read_runs(uri, "paged", finished_only=False)
    assert [record.params for record in found] == [{"model.d_model": str(i)} for i in range(3)]
    assert [record.metrics for record in found] == [{"valid/macro/nll": 3.0 - i} for i in range(3)]
    assert [record.tags["mlflow.runName"] for record in found] == ["0", "1", "2"]
    assert found[0].tags["kind"] == "hyper"
    done = [record.params["model.d_model"] for record in read_runs(uri, "paged")]
    assert done == ["0", "2"]


def test_an_experiment_that_is_not_there(runs: Path) -> None:
    with pytest.raises(TrackingError, match=r"no experiment 'sizes'; it has Default, "):
        read_runs(f"sqlite:///{runs}/mlflow.db", "sizes")


def test_a_database_that_cannot_be_read(offline: str) -> None:
    with pytest.raises(TrackingError, match=r"cannot be read \(.*check --uri, or MLFLOW_TRACKING"):
        read_runs(offline, "sizes")
