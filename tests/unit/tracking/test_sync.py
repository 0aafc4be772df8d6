"""Run folders after the fact: sent, told apart, and found dead."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from hyperadapter.cli import cli
from hyperadapter.core.errors import DataError, TrackingError
from hyperadapter.core.events import EVENTS_FILE, STATE_FILE, SendState
from hyperadapter.core.files import locked
from hyperadapter.tracking import (
    DEAD_AFTER_S,
    TrackedRun,
    Tracker,
    find_runs,
    mark_dead,
    pending_events,
    resolve_uri,
    run_status,
    sync,
    sync_all,
)
from tests.unit.tracking.conftest import (
    QUICK_S,
    client,
    events,
    history,
    in_mlflow,
    open_tracker,
    run_id,
)


def die_silently(run_dir: Path, silent_s: float, uri: str = "") -> None:
    """Leaves a run folder as SIGKILL does, its last sign of life so many seconds ago."""
    tracker = open_tracker(run_dir, enabled=False, uri=uri)
    tracker.log_metrics({"a": 1}, 1)
    tracker._events.close()
    then = time.time() - silent_s
    os.utime(run_dir / EVENTS_FILE, (then, then))


def test_a_run_that_died_silently_has_failed(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    die_silently(run_dir, 1000)
    died = (run_dir / EVENTS_FILE).stat().st_mtime
    assert sync(run_dir) == 3
    found = in_mlflow(run_dir)
    assert found.info.status == "FAILED"
    assert found.info.end_time == pytest.approx(1000 * died, abs=20)
    reason = found.data.tags["hyperadapter.status_reason"]
    assert reason == "no sign of life for 1000 s: its processes were killed, or its node"
    assert f"{reason}; its status is FAILED now" in caplog.text
    assert sync(run_dir) == 0

    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": 2}, 2)
    assert run_id(run_dir) == found.info.run_id
    assert in_mlflow(run_dir).info.status == "FINISHED"
    assert in_mlflow(run_dir).info.end_time == events(run_dir)[-1]["time_ms"]
    assert history(run_dir, "a") == [(1, 1.0), (2, 2.0)]


def test_a_run_with_signs_of_life_goes_on(run_dir: Path) -> None:
    die_silently(run_dir, 100)
    assert not mark_dead(run_dir)
    assert not mark_dead(run_dir, 200)
    assert sync(run_dir) == 2
    assert in_mlflow(run_dir).info.status == "RUNNING"
    assert mark_dead(run_dir, 50)


def test_a_run_whose_folder_is_held_goes_on(run_dir: Path) -> None:
    die_silently(run_dir, 1000)
    with locked(run_dir) as free:
        assert free
        assert not mark_dead(run_dir)
    assert mark_dead(run_dir)
    assert not mark_dead(run_dir)  # it says FAILED now


def test_only_what_says_running_can_be_dead(run_dir: Path) -> None:
    open_tracker(run_dir, enabled=False).finish("KILLED")
    os.utime(run_dir / EVENTS_FILE, (1, 1))
    assert not mark_dead(run_dir)
    added = Tracker(run_dir, TrackedRun("x", enabled=False), owns_status=False)
    added.log_metrics({"b": 1}, 1)
    added.finish()
    os.utime(run_dir / EVENTS_FILE, (1, 1))
    assert not mark_dead(run_dir)
    assert run_status(run_dir).status == "KILLED"


def test_the_thread_shows_life(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperadapter.tracking import sender

    monkeypatch.setattr(sender, "_SIGN_OF_LIFE_EVERY_S", 0.01)

    def goes_on(owns_status: bool) -> bool:
        tracker = Tracker(run_dir, TrackedRun("x"), None, QUICK_S, owns_status)
        while pending_events(run_dir):
            time.sleep(0.01)
        os.utime(run_dir / EVENTS_FILE, (1, 1))
        time.sleep(0.3)
        alive = (run_dir / EVENTS_FILE).stat().st_mtime > time.time() - 10
        tracker.finish()
        return alive

    assert goes_on(owns_status=True)
    assert not goes_on(owns_status=False)  # an evaluation says nothing about the training


def test_sync_elsewhere_and_back(run_dir: Path, runs: Path) -> None:
    with open_tracker(run_dir) as tracker:
        tracker.log_metrics({"a": 1}, 1)
    first, state = run_id(run_dir), SendState.load(run_dir)
    copy = runs / "copy" / run_dir.name
    copy.mkdir(parents=True)
    for name in (EVENTS_FILE, STATE_FILE):
        (copy / name).write_bytes((run_dir / name).read_bytes())
    assert state is not None
    SendState(state.key, state.name, "another", state.uri).save(copy)
    assert sync(copy) == 3  # a second experiment stands for a second place
    assert run_id(copy) != first
    SendState(state.key, state.name, state.experiment, state.uri).save(copy)
    assert sync(copy) == 3
    assert run_id(copy) == first
    assert history(run_dir, "a") == [(1, 1.0)]
    assert len(client(run_dir).get_metric_history(first, "a")) == 1


def test_sync_of_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder of a run that was started with tracking"):
        sync(tmp_path)
    with pytest.raises(DataError, match=r"there is no events.jsonl in .* or below; name the fold"):
        find_runs(tmp_path)
    with pytest.raises(DataError, match="name the folder of a run that was started with tracking"):
        run_status(tmp_path)


def test_a_damaged_state_is_named(run_dir: Path) -> None:
    open_tracker(run_dir, enabled=False).finish()
    (run_dir / STATE_FILE).write_text('{"key": "x", "colour": "blue"}')
    with pytest.raises(DataError, match=r"tracking.json is not what was written .*; delete it"):
        sync(run_dir)


def test_run_folders_are_found_below_and_not_in_each_other(tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/c/data/d"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / EVENTS_FILE).touch()
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b" / "c"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_one_bad_folder_does_not_hold_up_the_others(
    run_dir: Path, offline: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        open_tracker(run_dir / name, enabled=False, uri=resolve_uri(run_dir, "")).finish()
    open_tracker(run_dir / "aa", enabled=False, uri=offline).finish("KILLED")
    (tmp_path / "none").mkdir()
    bad, a, aa, b = sync_all([tmp_path / "none", run_dir])
    assert "there is no events.jsonl" in bad.error
    assert [a[1:], b[1:]] == [(2, "FINISHED", "")] * 2
    assert (aa.run_dir, aa.sent) == (str(run_dir / "aa"), 0)
    assert "2 of 2 events remain" in aa.error
    with pytest.raises(TrackingError):
        sync(run_dir / "aa")


def test_what_the_events_say(run_dir: Path) -> None:
    die_silently(run_dir, 100)
    found = run_status(run_dir)
    assert (found.status, found.step, found.unsent, found.mlflow_run) == ("RUNNING", 1, 2, "")
    assert found.silent_s == pytest.approx(100, abs=20)
    assert found.last_event.endswith("+00:00")
    open_tracker(run_dir).finish("KILLED", reason="because")
    found = run_status(run_dir)
    assert (found.status, found.reason, found.unsent) == ("KILLED", "because", 0)
    assert found.mlflow_run == run_id(run_dir)


def test_the_commands(run_dir: Path, tmp_path: Path) -> None:
    uri = resolve_uri(run_dir, "")
    die_silently(run_dir / "a", 1000, uri)
    open_tracker(run_dir / "b", enabled=False, uri=uri).finish()
    runner = CliRunner()
    found = runner.invoke(cli, ["track", "status", str(run_dir), "--json"])
    assert [item["status"] for item in json.loads(found.stdout)] == ["RUNNING", "FINISHED"]
    assert "FINISHED" in runner.invoke(cli, ["track", "status", str(run_dir)]).stdout

    alive = ["track", "sync", "--dead-after", "5000", str(run_dir / "a"), "--json"]
    found = runner.invoke(cli, alive, standalone_mode=False)
    (report,) = json.loads(found.stdout)
    assert (report["sent"], report["status"], found.return_value) == (2, "RUNNING", 0)
    os.utime(run_dir / "a" / EVENTS_FILE, (1, 1))
    found = runner.invoke(
        cli, ["track", "sync", str(run_dir), str(tmp_path)], standalone_mode=False
    )
    assert "FAILED" in found.stdout
    assert f"error: there is no events.jsonl in {tmp_path}" in found.stderr
    assert found.return_value == 1


def test_the_command_waits_as_long_as_the_function() -> None:
    (option,) = (
        p for p in cli.commands["track"].commands["sync"].params if p.name == "dead_after_s"
    )
    assert option.default == DEAD_AFTER_S
