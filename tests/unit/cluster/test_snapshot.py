"""What is frozen at submission."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.snapshot import (
    Note,
    Submission,
    add_note,
    copy_code,
    end_code,
    find_submissions,
    new_submission,
    new_task,
    next_submission,
    read_notes,
    task_runs,
    write_runs,
)
from hyperadapter.core.errors import ConfigError, DataError


def record(folder: Path, job: str = "1") -> Submission:
    folder.mkdir(parents=True)
    made = Submission(
        name="x", script=str(folder / "job.sbatch"), index=None, throttle=None, jobs=(job,),
        submitted="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    made.save(folder)
    return made


def test_numbers_go_up_and_two_commands_do_not_share_one(tmp_path: Path) -> None:
    first = next_submission(tmp_path)
    assert first == tmp_path / "submit" / "1"
    assert not first.parent.exists()
    new_submission(first, "a: 1\n")
    assert (first / "config.yaml").read_text() == "a: 1\n"
    with pytest.raises(ConfigError, match="made by another command in this moment"):
        new_submission(first, "a: 1\n")
    for name in ("9", "10", "notes"):
        (tmp_path / "submit" / name).mkdir()
    assert next_submission(tmp_path).name == "11"


def test_the_newest_submission_of_every_run_is_found(tmp_path: Path) -> None:
    for name in ("a/submit/9", "a/submit/10", "deep/er/b/submit/1"):
        record(tmp_path / name)
    (tmp_path / "a" / "submit" / "11").mkdir()  # Slurm refused it
    found = find_submissions([tmp_path, tmp_path / "a"])
    assert found == [tmp_path / "a/submit/10", tmp_path / "deep/er/b/submit/1"]
    with pytest.raises(ConfigError, match=r"nothing was submitted from .*er/none or below"):
        find_submissions([tmp_path / "deep/er/none"])


def test_a_record_keeps_every_job(tmp_path: Path) -> None:
    made = record(tmp_path / "1", "12").with_job("13")
    made.save(tmp_path / "1")
    assert Submission.load(tmp_path / "1") == made
    assert made.jobs == ("12", "13")
    assert made.submitted > "2026-01-01"
    (tmp_path / "1" / "submission.json").write_text("{")
    with pytest.raises(DataError, match=r"submission\.json is not valid JSON"):
        Submission.load(tmp_path / "1")


def test_the_code_is_what_is_installed(tmp_path: Path, repository: Path) -> None:
    copy_code(tmp_path / "code")
    for package in ("cluster", "data_pipeline", "hyperadapter"):
        copied = tmp_path / "code" / package
        assert not list(copied.rglob("*.pyc"))
        for path in (repository / package).rglob("*.py"):
            assert (copied / path.relative_to(repository / package)).stat().st_size > -1
    assert (tmp_path / "code" / "cluster" / "templates" / "run.sbatch.j2").is_file()
    assert (tmp_path / "code" / "hyperadapter" / "core" / "languages.yaml").is_file()


def test_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert end_code(read_notes(tmp_path, "12_3")) is None
    add_note(tmp_path, "12_3", 0, "begin at step 0 on n1")
    assert end_code(read_notes(tmp_path, "12_3")) is None
    add_note(tmp_path, "12_3", 0, "end 75")
    add_note(tmp_path, "12_4", 0, "begin at step 0 on n2")
    assert end_code(read_notes(tmp_path, "12_3")) == 75
    add_note(tmp_path, "12_3", 1, "begin at step 5 on n1")
    assert end_code(read_notes(tmp_path, "12_3")) is None
    assert read_notes(tmp_path, "12_3")[1:] == [
        Note(0, ["end", "75"]), Note(1, ["begin", "at", "step", "5", "on", "n1"])
    ]  # fmt: skip
    last = (tmp_path / "job.log").read_text().splitlines()[-1]
    assert last.endswith("Z hyperadapter: job 12_3, start 1: begin at step 5 on n1")


def test_the_runs_of_a_task_may_become_fewer(tmp_path: Path) -> None:
    submissions = [tmp_path / name for name in ("a b", "c")]
    for submission in submissions:
        submission.mkdir()
    task = tmp_path / "tasks" / "0"
    new_task(task, submissions)
    assert task_runs(task) == submissions
    (task / "progress").write_text("5 2\n")
    write_runs(submissions[1] / "task", submissions[1:])
    assert task_runs(task) == submissions[1:]
    assert not (task / "progress").exists()
