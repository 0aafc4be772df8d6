"""What `study status` reads from run folders, and which points `study run` takes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.jobs import Job
from cluster.slurm import SlurmError
from hyperadapter.cli import cli
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.events import EVENTS_FILE
from hyperadapter.core.files import write_text
from hyperadapter.study import local, status
from hyperadapter.study.plan import load_plan, point_config
from hyperadapter.tracking import TrackedRun, Tracker
from tests.planned_study import write_study


def begin(run_dir: Path, state: str, silent_s: float = 0.0) -> None:
    """Leaves the events of a run that is at step 40."""
    tracker = Tracker(run_dir, TrackedRun("x", enabled=False))
    tracker.log_metrics({"valid/macro/nll": 3.5}, 20)
    tracker.log_metrics({"train/nll": 3.0}, 40)
    if state == "RUNNING":
        tracker._events.close()  # as the system does for a process that dies
        os.utime(run_dir / EVENTS_FILE, (time.time() - silent_s,) * 2)
    else:
        tracker.finish(state, reason="the loss is nan" if state == "FAILED" else "")  # type: ignore[arg-type]


def test_each_point_has_the_state_that_its_folder_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["waits", "runs", "quiet", "dead", "fails", "killed", "trained", "done"]
    write_study(tmp_path, names)
    runs = tmp_path / "runs"
    begin(runs / "runs", "RUNNING")
    begin(runs / "quiet", "RUNNING", silent_s=200)
    begin(runs / "dead", "RUNNING", silent_s=700)
    for name, word in {"fails": "FAILED", "killed": "KILLED"}.items():
        begin(runs / name, word)
    for name in ("trained", "done"):
        begin(runs / name, "FINISHED")
    finished = {str(runs / "trained"), str(runs / "done")}
    monkeypatch.setattr(status, "is_trained", lambda config: config.run_dir in finished)
    monkeypatch.setattr(status, "is_evaluated", lambda config: config.run_dir.endswith("done"))
    found = {s.name: s for s in status.point_states(tmp_path, load_plan(tmp_path))}
    assert {name: s.state for name, s in found.items()} == {
        "waits": "WAITING", "runs": "RUNNING", "quiet": "RUNNING", "dead": "FAILED",
        "fails": "FAILED", "killed": "STOPPED", "trained": "RUNNING", "done": "DONE",
    }  # fmt: skip
    assert (found["waits"].step, found["waits"].loss) == (None, None)
    assert (found["runs"].step, found["runs"].loss, found["runs"].score) == (40, 3.5, None)
    assert found["quiet"].why.startswith("no sign of life for 20")
    assert found["dead"].why.startswith("no sign of life for 70")
    assert found["fails"].why == "the loss is nan"
    assert found["trained"].why == "evaluating"
    for path in (runs / "trained").iterdir():
        os.utime(path, (time.time() - 700,) * 2)
    [state] = [s for s in status.point_states(tmp_path, load_plan(tmp_path)) if s.name == "trained"]
    assert (state.state, state.why) == ("STOPPED", "trained, not evaluated")
    directions = runs / "trained" / "evaluation" / "test"
    directions.mkdir(parents=True)
    (directions / "en-de.hyp.txt").touch()
    [state] = [s for s in status.point_states(tmp_path, load_plan(tmp_path)) if s.name == "trained"]
    assert state.state == "RUNNING"

    plan = load_plan(tmp_path)
    unscored = plan.model_copy(update={"evaluate": False})
    assert {s.state for s in status.point_states(tmp_path, unscored)[-2:]} == {"DONE"}
    shown = CliRunner().invoke(cli, ["study", "status", str(tmp_path)]).output
    assert "Study widths: 1 WAITING, 3 RUNNING, 2 FAILED, 1 STOPPED, 1 DONE" in shown
    assert "the loss is nan" in shown


def test_a_run_that_ended_before_it_could_say_why_has_failed(tmp_path: Path) -> None:
    write_study(tmp_path, ["a"])
    log = tmp_path / "runs" / "a" / status.LOG_FILE
    for text, state, why in (
        ("", "WAITING", ""),
        ("loading\nerror: no shards\nstudy run: ended with code 1\n", "FAILED", "error: no shards"),
        ("error: no shards\nstudy run: ended with code 1\nloading again\n", "WAITING", ""),
        ("study run: ended with code 137\n", "FAILED", "study run: ended with code 137"),
    ):
        write_text(log, text)
        [found] = status.point_states(tmp_path, load_plan(tmp_path))
        assert (found.state, found.why) == (state, why)


def test_a_finished_run_is_trained_without_its_checkpoints(tmp_path: Path) -> None:
    write_study(tmp_path, ["a"])
    config = point_config(tmp_path, load_plan(tmp_path).points[0])
    for step, word, trained in ((3299, "FINISHED", False), (3300, "KILLED", False),
                                (3300, "FINISHED", True)):  # fmt: skip
        tracker = Tracker(Path(config.run_dir), TrackedRun("x", enabled=False))
        tracker.log_metrics({"train/nll": 3.0}, step)
        tracker.finish(word)  # type: ignore[arg-type]
        assert status.is_trained(config) is trained


def test_runs_that_slurm_has_are_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_study(tmp_path, ["a", "b", "c"])
    configs = {p.name: point_config(tmp_path, p) for p in load_plan(tmp_path).points}
    for name in "ab":
        write_text(tmp_path / "runs" / name / "submit" / "1" / "submission.json", "{}")
    jobs = [
        Job(str((tmp_path / "runs" / name).resolve()), "7", state, "", None, 0, "", None, "")
        for name, state in {"a": "PENDING", "b": "FAILED"}.items()
    ]
    monkeypatch.setattr("cluster.jobs.look", lambda _: jobs)
    todo = dict(configs)
    local._leave_to_slurm(todo)
    assert list(todo) == ["b", "c"]
    assert "a waits or runs as a job of Slurm and is left to it" in caplog.text

    def fail(_: object) -> None:
        raise SlurmError("no squeue here")

    monkeypatch.setattr("cluster.jobs.look", fail)
    todo = dict(configs)
    local._leave_to_slurm(todo)
    assert list(todo) == ["a", "b", "c"]
    assert "2 runs were submitted to Slurm, which cannot be asked: no squeue" in caplog.text


def test_points_are_chosen_by_pattern(tmp_path: Path) -> None:
    write_study(tmp_path, ["dim-8_seed-1", "dim-16_seed-1"])
    runner = CliRunner()
    shown = runner.invoke(cli, ["study", "status", str(tmp_path), "--points", "dim-8_*"]).output
    assert "dim-8_seed-1" in shown
    assert "dim-16" not in shown
    done = runner.invoke(cli, ["study", "status", str(tmp_path), "--points", "dim-9*"])
    assert isinstance(done.exception, ConfigError)
    assert "--points 'dim-9*' matches no point of the study widths" in str(done.exception)
    done = runner.invoke(cli, ["study", "status", str(tmp_path / "none")])
    assert "holds no planned study" in str(done.exception)


@pytest.mark.parametrize(
    ("gpus", "workers", "processes", "shares"),
    [
        ("", 3, 1, None),
        ("0,1,2,3", 2, 1, ["0,1", "2,3"]),
        ("4,5,6", 3, 1, ["4", "5", "6"]),
        ("0,1,2,3", 2, 2, ["0,1", "2,3"]),
    ],
)
def test_workers_share_cores_and_gpus(
    gpus: str,
    workers: int,
    processes: int,
    shares: list[str] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_study(tmp_path, ["a"])
    config = point_config(tmp_path, load_plan(tmp_path).points[0])
    more = {"num_processes": processes, "device": "auto"}
    config = config.model_copy(update={"training": config.training.model_copy(update=more)})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    found = local._environments([config], workers)
    assert {e["OMP_NUM_THREADS"] for e in found} == {str(12 // (workers * processes))}
    assert len(found) == workers
    assert [e.get("CUDA_VISIBLE_DEVICES") for e in found] == (shares or [None] * workers)


def test_more_workers_than_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(tmp_path, ["a"])
    config = point_config(tmp_path, load_plan(tmp_path).points[0])
    training = config.training.model_copy(update={"device": "cuda", "num_processes": 2})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(ConfigError, match=r"2 runs of 2 processes .* need 4 GPUs, and there"):
        local._environments([config.model_copy(update={"training": training})], 2)
