"""The tracker against a real MLflow on SQLite."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.errors import DiskFullError, Interrupted, TrackingError
from hyperadapter.core.events import EVENTS_FILE, STATE_FILE, SendState, read_events
from hyperadapter.tracking import (
    NullTracker,
    TrackedRun,
    Tracker,
    pending_events,
    resolve_uri,
    sync,
)
from tests.unit.tracking.conftest import (
    QUICK_S,
    client,
    events,
    history,
    in_mlflow,
    open_tracker,
    run_id,
    wait_for,
)


def test_everything_of_a_run_is_in_mlflow(run_dir: Path) -> None:
    config = run_dir / "config.yaml"
    config.parent.mkdir()
    config.write_text("name: x\ntracking:\n  uri: https://me:secret@host/\n")
    run = TrackedRun(
        "a name",
        params={"model.d_model": 64, "data.pivot": "en", "empty": "", "key with = sign": None},
        tags={"fingerprint": "0123456789ab"},
    )
    with Tracker(run_dir, run, config, send_every_s=QUICK_S) as tracker:
        for step in range(3):
            tracker.log_metrics({"train/loss": 3.0 - step, "valid/en-is/loss": 4.0}, step)
        (run_dir / "hypotheses.txt").write_text("Halló")
        tracker.log_artifact(run_dir / "hypotheses.txt", folder="test")
    assert pending_events(run_dir) == 0

    found = in_mlflow(run_dir)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "a name"
    assert found.info.start_time == events(run_dir)[0]["time_ms"]
    assert found.data.params == {
        "model.d_model": "64",
        "data.pivot": "en",
        "empty": "",
        "key with _ sign": "None",
    }
    assert found.data.tags["fingerprint"] == "0123456789ab"
    assert found.data.tags["hyperadapter.run_dir"] == str(run_dir)
    assert history(run_dir, "train/loss") == [(0, 3.0), (1, 2.0), (2, 1.0)]
    assert history(run_dir, "valid/en-is/loss") == [(0, 4.0), (1, 4.0), (2, 4.0)]

    artifacts = run_dir.parent / "mlartifacts" / run_id(run_dir) / "artifacts"
    assert (artifacts / "test" / "hypotheses.txt").read_text() == "Halló"
    assert "secret" not in (artifacts / "config.yaml").read_text()
    assert "https://***@host/" in (artifacts / "config.yaml").read_text()


def test_resume_continues_the_same_run(run_dir: Path) -> None:
    def train_until_stopped() -> None:
        with open_tracker(run_dir) as tracker:
            tracker.log_metrics({"train/loss": 2.0}, 10)
            raise Interrupted("stopped by SIGTERM")

    with pytest.raises(Interrupted):
        train_until_stopped()
    first = run_id(run_dir)
    killed = in_mlflow(run_dir)
    assert killed.info.status == "KILLED"
    assert killed.info.end_time == events(run_dir)[-1]["time_ms"]
    assert killed.data.tags["hyperadapter.status_reason"] == "Interrupted: stopped by SIGTERM"

    with open_tracker(run_dir) as tracker:
        wait_for(lambda: pending_events(run_dir) == 0)
        assert client(run_dir).get_run(first).info.status == "RUNNING"
        tracker.log_metrics({"train/loss": 1.9}, 10)  # from an older checkpoint: step 10 again
        tracker.log_metrics({"train/loss": 1.0}, 20)
    assert run_id(run_dir) == first
    finished = in_mlflow(run_dir)
    assert finished.info.status == "FINISHED"
    assert finished.info.end_time == events(run_dir)[-1]["time_ms"]
    assert finished.data.tags["hyperadapter.status_reason"] == ""
    assert history(run_dir, "train/loss") == [(10, 1.9), (10, 2.0), (20, 1.0)]


def test_an_error_ends_the_run_as_failed(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="no"), open_tracker(run_dir):
        raise ValueError("no, not https://me:secret@host\nat all")
    found = in_mlflow(run_dir)
    assert found.info.status == "FAILED"
    assert found.info.end_time == events(run_dir)[-1]["time_ms"]
    reason = found.data.tags["hyperadapter.status_reason"]
    assert reason == "ValueError: no, not https://***@host"


def test_numbers_that_are_not_finite(run_dir: Path) -> None:
    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1}, 1)
    assert events(run_dir)[1]["metrics"] == {"a": "nan", "b": "inf", "c": "-inf", "d": 1.0}
    assert math.isnan(history(run_dir, "a")[0][1])
    assert history(run_dir, "b")[0][1] > 1e300
    assert history(run_dir, "c")[0][1] < -1e300
    assert history(run_dir, "d") == [(1, 1.0)]


def test_more_metrics_and_params_than_mlflow_takes_at_once(run_dir: Path) -> None:
    params = {f"p{i}": i for i in range(201)} | {"long": "x" * 7000, "k" * 300: "long key"}
    with open_tracker(run_dir, params=params) as tracker:
        tracker.log_metrics({f"valid/{i}": i for i in range(1001)}, 1)
        tracker.log_metrics({"k" * 300: 1.0, "odd=key/../é": 2.0}, 1)
    data = in_mlflow(run_dir).data
    assert len(data.metrics) == 1003
    assert data.metrics["k" * 250] == 1.0
    assert data.metrics["odd_key/é"] == 2.0
    assert len(data.params) == 203
    assert len(data.params["long"]) == 6000
    assert data.params["long"].endswith(
        "(shortened from 7000 characters; the whole is in config.yaml)"
    )


def test_a_changed_parameter_is_told_and_the_rest_is_kept(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_tracker(run_dir, params={"lr": 0.1, "seed": 1}).finish()
    open_tracker(run_dir, params={"lr": 0.2, "seed": 1, "new": 3}).finish()
    params = in_mlflow(run_dir).data.params
    assert params == {"lr": "0.1", "seed": "1", "new": "3"}
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 1
    assert "parameter lr was '0.1' when this MLflow run began and is now '0.2'" in told[0]


def test_a_figure_is_a_png_in_the_run_folder_and_in_mlflow(run_dir: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    with open_tracker(run_dir) as tracker:
        tracker.log_figure(figure, "loss")
    png = (run_dir / "plots" / "loss.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    sent = run_dir.parent / "mlartifacts" / run_id(run_dir) / "artifacts" / "plots" / "loss.png"
    assert sent.read_bytes() == png


def test_a_lost_artifact_is_told_and_does_not_stop_the_rest(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tracker(run_dir) as tracker:
        tracker.log_artifact(run_dir / "gone.txt")
        tracker.log_metrics({"a": 1}, 1)
    assert "gone.txt is gone and cannot be sent" in caplog.text
    assert history(run_dir, "a") == [(1, 1.0)]


@pytest.mark.parametrize("cut", [2, 5, 20])
def test_a_half_written_event_is_left_out(
    run_dir: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(run_dir, enabled=False)
    tracker.log_metrics({"a": 1}, 1)
    tracker.log_metrics({"a": 2}, 2)
    tracker.finish()
    path = run_dir / EVENTS_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    assert pending_events(run_dir) == 3  # the torn one is not an event
    open_tracker(run_dir).finish()
    values = [event.value for event in read_events(run_dir)]
    assert [value.get("status", value.get("step")) for value in values] == [
        *("RUNNING", 1, 2, None),
        *("RUNNING", "FINISHED"),
    ]
    assert "ends in a half-written event" in caplog.text
    assert caplog.text.count("skipped a damaged line") == 1
    assert in_mlflow(run_dir).info.status == "FINISHED"


def test_a_damaged_line_is_skipped_and_told(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = open_tracker(run_dir, enabled=False)
    tracker.log_metrics({"a": 1}, 1)
    tracker.finish()
    with open(run_dir / EVENTS_FILE, "ab") as stream:
        stream.write(b"\xff\x00\n[1]\n")
    tracker = open_tracker(run_dir)
    tracker.log_metrics({"a": 2}, 2)
    assert tracker.finish() == 0
    assert history(run_dir, "a") == [(1, 1.0), (2, 2.0)]
    assert caplog.text.count("skipped a damaged line") == 2


def test_sending_twice_adds_nothing(run_dir: Path) -> None:
    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": 1, "b": math.nan}, 1)
        tracker.log_metrics({"a": 1}, 2)
    state = SendState.load(run_dir)
    assert state is not None
    # As after a crash between sending and remembering, before even the run's id was known.
    SendState(state.key, state.name, state.experiment, state.uri).save(run_dir)
    assert sync(run_dir) == len(events(run_dir))
    assert SendState.load(run_dir) == state
    assert history(run_dir, "a") == [(1, 1.0), (2, 1.0)]
    assert len(history(run_dir, "b")) == 1
    assert sync(run_dir) == 0


def test_a_run_deleted_in_mlflow_begins_anew(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": 1}, 1)
    first = run_id(run_dir)
    client(run_dir).delete_run(first)
    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": 2}, 2)
    assert run_id(run_dir) != first
    assert history(run_dir, "a") == [(1, 1.0), (2, 2.0)]
    assert f"the MLflow run {first}" in caplog.text


def test_what_mlflow_refuses_is_named_and_the_rest_arrives(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": 1}, 1)
        tracker._events.write(step="not a number", metrics={"b": 1.0})
        tracker.log_metrics({"a": 2}, 2)
    assert history(run_dir, "a") == [(1, 1.0), (2, 2.0)]
    assert "MLflow refuses one of the metrics, 'b' = 1.0" in caplog.text


def test_without_mlflow_training_goes_on_and_sync_sends_later(
    run_dir: Path, offline: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tracker = open_tracker(run_dir, uri=offline)
    slowest = 0.0
    for step in range(20):
        start = time.perf_counter()
        tracker.log_metrics({"train/loss": 1 / (step + 1)}, step)
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.01)
    start = time.monotonic()
    assert tracker.finish(timeout_s=0.3) == 22
    assert time.monotonic() - start < 2
    lost = [r for r in caplog.records if "cannot be reached" in r.getMessage()]
    assert len(lost) == 1
    assert lost[0].levelno == logging.WARNING
    assert "nothing is lost" in caplog.text
    with pytest.raises(TrackingError, match=r"22 of 22 events remain in .*events.jsonl; run the"):
        sync(run_dir)

    assert sync(run_dir, resolve_uri(run_dir, "")) == 22
    assert len(history(run_dir, "train/loss")) == 20
    assert in_mlflow(run_dir).info.status == "FINISHED"


def test_when_mlflow_is_back_all_is_sent_and_told_once(
    run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    caplog.set_level(logging.INFO)
    away = False
    log_batch = MlflowClient.log_batch

    def sometimes(self: Any, *args: Any, **kwargs: Any) -> Any:
        if away:
            raise ConnectionError("https://me:secret@host refused")
        return log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", sometimes)
    tracker = open_tracker(run_dir)
    wait_for(lambda: pending_events(run_dir) == 0)
    away = True
    tracker.log_metrics({"a": 1}, 1)
    wait_for(lambda: "cannot be reached" in caplog.text)
    tracker.log_metrics({"a": 2}, 2)
    away = False
    wait_for(lambda: "waiting events" in caplog.text)
    assert tracker.finish() == 0
    assert history(run_dir, "a") == [(1, 1.0), (2, 2.0)]
    told = [r.getMessage() for r in caplog.records if r.name.startswith("hyperadapter.tracking")]
    assert len(told) == 2
    assert "https://***@host refused" in told[0]
    assert told[1].endswith("is back; sent 2 waiting events")


def test_switched_off_it_only_writes(run_dir: Path) -> None:
    with open_tracker(run_dir, enabled=False) as tracker:
        tracker.log_metrics({"a": 1}, 1)
    assert [e.get("status", e.get("step")) for e in events(run_dir)] == ["RUNNING", 1, "FINISHED"]
    assert run_id(run_dir) == ""


def test_another_place_gets_everything_and_the_first_one_keeps_its_run(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": 1}, 1)
    first = run_id(run_dir)
    with open_tracker(run_dir, experiment="other") as tracker:
        tracker.log_metrics({"a": 2}, 2)
    assert run_id(run_dir) != first
    assert history(run_dir, "a") == [(1, 1.0), (2, 2.0)]
    assert "is now in 'other' at" in caplog.text
    assert "which gets all events from the start" in caplog.text
    open_tracker(run_dir).finish()
    assert run_id(run_dir) == first
    assert history(run_dir, "a") == [(1, 1.0), (2, 2.0)]


def test_a_deleted_experiment_is_named(run_dir: Path) -> None:
    open_tracker(run_dir, experiment="to delete").finish()
    mlflow = client(run_dir)
    mlflow.delete_experiment(mlflow.get_experiment_by_name("to delete").experiment_id)
    (run_dir / STATE_FILE).unlink()
    tracker = open_tracker(run_dir, experiment="to delete")
    assert tracker.finish(timeout_s=0.1) == 4
    with pytest.raises(TrackingError, match="experiment 'to delete' is deleted; restore it there"):
        sync(run_dir)


def test_a_full_disk_is_an_error_that_names_the_file(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = open_tracker(run_dir, enabled=False)

    class FullDisk:
        def write(self, _: bytes) -> None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tracker._events, "_stream", FullDisk())
        with pytest.raises(DiskFullError, match=EVENTS_FILE):
            tracker.log_metrics({"a": 1}, 1)
    tracker.finish()


def test_an_end_that_the_disk_does_not_take_is_told_to_mlflow(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise DiskFullError("no space left on the disk")

    def train_until_full() -> None:
        with open_tracker(run_dir) as tracker:
            tracker.log_metrics({"a": 1}, 1)
            monkeypatch.setattr(tracker._events, "write", full)
            monkeypatch.setattr(SendState, "save", full)
            tracker.log_metrics({"a": 2}, 2)

    with pytest.raises(DiskFullError):
        train_until_full()
    monkeypatch.undo()
    assert "the end of the run could not be logged either" in caplog.text
    assert caplog.text.count("the same events are sent again") == 1
    mlflow = client(run_dir)
    experiment = mlflow.get_experiment_by_name("hyperadapter").experiment_id
    (found,) = mlflow.search_runs([experiment], f"run_name = '{run_dir.name}'")
    assert found.info.status == "FAILED"
    assert found.data.tags["hyperadapter.status_reason"].startswith("DiskFullError: no space left")
    # What has arrived could not be remembered: it is sent again, and found dead.
    assert sync(run_dir, dead_after_s=0) == 3
    assert run_id(run_dir) == found.info.run_id
    assert in_mlflow(run_dir).info.status == "FAILED"
    assert history(run_dir, "a") == [(1, 1.0)]


def test_finishing_twice_is_harmless(run_dir: Path) -> None:
    with open_tracker(run_dir) as tracker:
        assert tracker.finish("KILLED") == 0
    assert [e["status"] for e in events(run_dir)] == ["RUNNING", "KILLED"]


def test_a_store_that_refuses_an_artifact_does_not_hold_up_metrics(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    open_tracker(run_dir).finish()
    in_the_way = run_dir.parent / "mlartifacts" / run_id(run_dir) / "artifacts" / "test"
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.write_text("a file where a folder is wanted")
    (run_dir / "hypotheses.txt").write_text("Hello")
    tracker = open_tracker(run_dir)
    tracker.log_artifact(run_dir / "hypotheses.txt", folder="test")
    tracker.log_metrics({"loss": 1.5}, 3)
    assert tracker.finish() == 0
    assert history(run_dir, "loss") == [(3, 1.5)]
    assert f"did not take {run_dir / 'hypotheses.txt'}" in caplog.text


def test_what_is_added_to_a_run_leaves_its_status_alone(run_dir: Path) -> None:
    open_tracker(run_dir).finish("KILLED")
    with Tracker(run_dir, TrackedRun("added"), owns_status=False) as tracker:
        tracker.log_metrics({"test/bleu": 20.0}, 3)
    assert [e["status"] for e in events(run_dir) if "status" in e] == ["RUNNING", "KILLED"]
    assert in_mlflow(run_dir).info.status == "KILLED"
    assert history(run_dir, "test/bleu") == [(3, 20.0)]


def test_the_null_tracker_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    monkeypatch.chdir(tmp_path)
    with NullTracker() as tracker:
        tracker.log_metrics({"a": 1}, 1)
        tracker.log_artifact(tmp_path / "x")
        tracker.log_figure(Figure(), "x")
    assert tracker.finish() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(autouse=True)
def _other_loggers_are_left_alone() -> Iterator[None]:
    before = list(logging.getLogger().handlers)
    yield
    assert logging.getLogger().handlers == before


def test_the_database_is_sound(runs: Path) -> None:
    with sqlite3.connect(runs / "mlflow.db") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()


@pytest.mark.parametrize("parent_first", [True, False])
def test_a_run_is_shown_below_its_parent_whichever_comes_first(
    run_dir: Path, parent_first: bool
) -> None:
    folders = {"parent": run_dir.with_name(f"parent{parent_first}"), "child": run_dir}
    key = f"study {parent_first}"
    fields = {"parent": {"key": key}, "child": {"parent": key}}
    for name in ("parent", "child") if parent_first else ("child", "parent"):
        open_tracker(folders[name], **fields[name]).finish()
    if not parent_first:
        assert "mlflow.parentRunId" not in in_mlflow(run_dir).data.tags
        sync(run_dir)
    assert in_mlflow(run_dir).data.tags["mlflow.parentRunId"] == run_id(folders["parent"])
    assert "mlflow.parentRunId" not in in_mlflow(folders["parent"]).data.tags


def test_a_second_start_finds_the_run_of_a_given_key(run_dir: Path) -> None:
    open_tracker(run_dir, key="given key").finish()
    first = run_id(run_dir)
    (run_dir / "tracking.json").unlink()
    open_tracker(run_dir, key="given key").finish()
    assert run_id(run_dir) == first
