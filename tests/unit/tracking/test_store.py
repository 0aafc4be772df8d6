"""What one run at MLflow is told, and in how many requests."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.tracking import sync
from hyperadapter.tracking.store import METRICS_PER_REQUEST, clean_key
from tests.unit.tracking.conftest import events, history, in_mlflow, open_tracker


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """The numbers of metrics, params and tags in every batch that is sent."""
    from mlflow import MlflowClient

    sent: list[dict[str, int]] = []
    log_batch = MlflowClient.log_batch

    def counted(self: Any, run_id: str, synchronous: bool, **items: Any) -> Any:
        sent.append({kind: len(values) for kind, values in items.items()})
        return log_batch(self, run_id, synchronous=synchronous, **items)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    return sent


def test_a_thousand_directions_go_in_chunks(run_dir: Path, requests: list[dict[str, int]]) -> None:
    metrics = {f"valid/aa{i:03}-en/{name}": 1.0 + i for i in range(1000) for name in "abc"}
    tracker = open_tracker(run_dir, enabled=False)
    tracker.log_metrics(metrics, 7)
    tracker.log_metrics({"train/loss": 1.0}, 8)
    tracker.finish()
    assert open_tracker(run_dir).finish() == 0
    assert requests == [{"metrics": METRICS_PER_REQUEST}] * 3 + [{"metrics": 1}]
    data = in_mlflow(run_dir).data
    assert len(data.metrics) == 3001
    assert data.metrics["valid/aa999-en/c"] == 1000.0


def test_small_events_travel_together(run_dir: Path, requests: list[dict[str, int]]) -> None:
    tracker = open_tracker(run_dir, enabled=False)
    for step in range(250):
        tracker.log_metrics({f"m{i}": 1.0 * step for i in range(5)}, step)
    tracker.finish()
    open_tracker(run_dir).finish()
    assert requests == [{"metrics": 1000}, {"metrics": 250}]
    assert history(run_dir, "m4") == [(step, 1.0 * step) for step in range(250)]


def test_one_bad_item_of_many_costs_few_requests(
    run_dir: Path, requests: list[dict[str, int]], caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(run_dir, enabled=False)
    for step in range(200):
        tracker.log_metrics({"a": 1.0, "b": 2.0}, step)
    tracker._events.write(step="not a number", metrics={"bad": 1.0})
    for step in range(200, 400):
        tracker.log_metrics({"a": 1.0, "b": 2.0}, step)
    tracker.finish()
    open_tracker(run_dir).finish()
    assert len(requests) <= 1 + 2 * math.ceil(math.log2(801))
    assert len(history(run_dir, "a")) == len(history(run_dir, "b")) == 400
    assert caplog.text.count("MLflow refuses one of the metrics, 'bad' = 1.0") == 1


def test_a_run_ends_when_its_event_says(run_dir: Path) -> None:
    tracker = open_tracker(run_dir, enabled=False)
    tracker._events.write(status="FAILED", reason="long ago", time_ms=1_600_000_000_123)
    tracker._events.close()
    open_tracker(run_dir, enabled=False)._events.close()
    sync(run_dir, dead_after_s=1000)
    found = in_mlflow(run_dir)
    # MLflow cannot forget an end: the run goes on with its former one.
    assert (found.info.status, found.info.end_time) == ("RUNNING", 1_600_000_000_123)
    assert found.info.start_time == events(run_dir)[0]["time_ms"]
    assert found.data.tags["hyperadapter.status_reason"] == ""


@pytest.mark.parametrize("key", ["/a//b/", "../a", "a/./b", "", "..", "a\nb", "a,b;c", "k" * 300])
def test_any_key_is_made_one_that_mlflow_takes(key: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(clean_key(key))
