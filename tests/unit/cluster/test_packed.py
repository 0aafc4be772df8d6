"""Several runs on one node, with a script in the place of the interpreter."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import local
from cluster.packed import environments, exit_code, main, newest_step
from cluster.snapshot import read_notes

STUB = """#!/bin/bash
# -m hyperadapter VERB --config SUBMISSION/config.yaml
submission=${5%/config.yaml}
echo "$3 $CUDA_VISIBLE_DEVICES $MASTER_ADDR:$MASTER_PORT"
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_POLL_S", 0.02)
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Path]]:
    """Writes the program that stands for training and evaluation; returns three submissions."""

    def write(script: str) -> list[Path]:
        path = tmp_path / "python"
        path.write_text(STUB + script)
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))
        submissions = [tmp_path / name / "submit" / "1" for name in "abc"]
        for submission in submissions:
            submission.mkdir(parents=True, exist_ok=True)
        return submissions

    return write


def start(submissions: list[Path], *more: str, job: str = "12_3", restart: int = 0) -> int:
    words = ["--slots", "4", "--gpus", "4", "--job", job, "--restart", str(restart), *more]
    return main([*words, "--", *map(str, submissions)])


def notes(submission: Path, job: str = "12_3") -> list[tuple[int, str]]:
    return [(note.restart, " ".join(note.words)) for note in read_notes(submission, job)]


def test_each_run_has_its_gpus_its_port_and_its_log(
    stub: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    submissions = stub("")
    manifest = tmp_path / "b" / "checkpoints" / "step-00000040" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    assert start(submissions, "--evaluate") == 0
    for gpu, submission in enumerate(submissions, 4):
        said = [line for line in (submission / "job.log").read_text().splitlines()]
        assert [line for line in said if "hyperadapter: " not in line] == [
            f"train {gpu} 127.0.0.1:0",
            f"evaluate {gpu} 127.0.0.1:0",
        ]
        assert "hyperadapter: job 12_3, start 0: begin at step" in said[0]
    assert notes(submissions[1]) == [(0, "begin at step 40 on n7"), (0, "end 0")]


def test_a_failure_ends_no_other_run_and_is_not_repeated_when_the_job_is_requeued(
    stub: Callable[[str], list[Path]],
) -> None:
    script = "case $submission in */a/*) exit 7 ;; */b/*) sleep 0.3; exit {b} ;; esac"
    submissions = stub(script.format(b=75))
    assert start(submissions) == 75
    assert [notes(path)[-1][1] for path in submissions] == ["end 7", "end 75", "end 0"]
    stub(script.format(b=0))
    assert start(submissions, restart=1) == 7  # b went on; the failure is the job's in the end
    assert [len(notes(path)) for path in submissions] == [2, 4, 2]
    assert start(submissions, restart=2) == 7  # nothing is left
    assert [len(notes(path)) for path in submissions] == [2, 4, 2]
    stub("exit 0")
    assert start(submissions[:1], job="13_3") == 0  # a new job repeats it
    assert notes(submissions[0], "13_3")[-1] == (0, "end 0")


def test_what_fails_in_training_is_not_evaluated(stub: Callable[[str], list[Path]]) -> None:
    submissions = stub("exit 9")
    assert start(submissions, "--evaluate") == 9
    assert "evaluate" not in (submissions[0] / "job.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_reach_every_run_and_nothing_is_evaluated_then(
    number: signal.Signals, stub: Callable[[str], list[Path]]
) -> None:
    """a saves and ends with 75, b is done just then, c cannot listen yet and dies of it."""
    submissions = stub(
        f"case $submission in */a/*) trap 'exit 75' {number.name} ;; "
        f"*/b/*) trap 'exit 0' {number.name} ;; esac\n"
        "touch $submission/ready; for i in {1..600}; do sleep 0.05; done"
    )

    def send() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all(
            (path / "ready").exists() for path in submissions
        ):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert start(submissions, "--evaluate") == 75
    thread.join()
    assert [notes(path)[-1][1] for path in submissions] == ["end 75"] * 3
    assert all("evaluate" not in (path / "job.log").read_text() for path in submissions)


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([0, 7, 3], 7),
        ([7, 75], 75),
        ([7, None], 75),  # asked to stop before it was started
        ([137, 0], 137),
    ],
)
def test_exit_codes(codes: list[int | None], code: int) -> None:
    assert exit_code(codes) == code


def test_gpus_are_shared_out() -> None:
    def shares(slots: int, gpus: int, **environment: str) -> list[str | None]:
        return [e.get("CUDA_VISIBLE_DEVICES") for e in environments(slots, gpus, environment)]

    assert shares(2, 4, CUDA_VISIBLE_DEVICES="3,1,0,2") == ["3,1", "0,2"]
    assert shares(2, 2, CUDA_VISIBLE_DEVICES="GPU-a,GPU-b") == ["GPU-a", "GPU-b"]
    assert shares(2, 4) == ["0,1", "2,3"]  # a site whose Slurm names none
    assert shares(3, 0, CUDA_VISIBLE_DEVICES="0") == [None] * 3


def test_a_checkpoint_without_a_manifest_is_none(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == 0
    for name in ("step-00000009", "step-00000010", "step-00000099.part"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").touch()
    (tmp_path / "checkpoints" / "step-00000011").mkdir()
    assert newest_step(tmp_path) == 10
