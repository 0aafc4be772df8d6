"""What a queued job depends on, frozen when it is submitted.

RUN_DIR/submit/<n>/
    code/               the packages as installed when the job was submitted
    config.yaml         the resolved configuration
    job.sbatch          the script
    submission.json     the jobs that were made of it; comes last
    job.log             what Slurm, the script and all ranks printed
    starts.tsv          when it began and ended: time, job, restart, what
    bad_nodes           what the check of the newest start found, one a line
    progress            of the script: step at the last start, starts since the last new checkpoint

Runs that share a node have a task of an array in common. It has such a job.log, starts.tsv,
bad_nodes and progress of its own, in a folder that the link `task` of each of them leads to:

FIRST_RUN_DIR/submit/<n>/tasks/<index>/
    runs                submission folders that its newest job works on, one a line
    newest_job          Slurm's number of that
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from hyperadapter.core.errors import ConfigError
from hyperadapter.core.files import read_json, write_json, write_text
from hyperadapter.core.schema import StrictModel, parse_config

__all__ = [
    "CONFIG_FILE",
    "LOG_FILE",
    "NEWEST_JOB_FILE",
    "RUNS_FILE",
    "TASK_LINK",
    "Note",
    "Submission",
    "add_note",
    "copy_code",
    "end_code",
    "find_submissions",
    "new_submission",
    "new_task",
    "next_submission",
    "now",
    "read_notes",
    "task_runs",
    "write_runs",
]

CONFIG_FILE = "config.yaml"
LOG_FILE = "job.log"
TASK_LINK = "task"
RUNS_FILE = "runs"
NEWEST_JOB_FILE = "newest_job"
_STARTS = "starts.tsv"
_RECORD = "submission.json"
_PACKAGES = ("cluster", "data_pipeline", "hyperadapter")


class Submission(StrictModel):
    """The record of a submission folder."""

    name: str = Field(description="Of the run")
    script: str = Field(description="The script; runs of an array have one in common")
    index: int | None = Field(description="Task of the array; null: no array")
    throttle: int | None = Field(description="Most tasks of the array at a time")
    jobs: tuple[str, ...] = Field(min_length=1, description="Slurm's numbers, the newest last")
    submitted: str = Field(description="When the newest was submitted, UTC")

    @staticmethod
    def load(folder: Path) -> Submission:
        """Reads the record of a submission folder.

        Raises:
            DataError, ConfigError: There is none, or it is damaged.
        """
        path = folder / _RECORD
        return parse_config(Submission, read_json(path), str(path))

    def save(self, folder: Path) -> None:
        """Writes the record."""
        write_json(folder / _RECORD, self.model_dump(mode="json"))

    def with_job(self, job: str) -> Submission:
        """Returns the record with one more job, submitted now."""
        return self.model_copy(update={"jobs": (*self.jobs, job), "submitted": now()})


class Note(NamedTuple):
    """A line of starts.tsv, without its time and job.

    Attributes:
        restart: How often the job had been put back into the queue.
        words: What happened: `begin at step 9 on n1`, `end 75`, `requeue: ...`, `stopped: ...`.
    """

    restart: int
    words: list[str]


def now() -> str:
    """Returns the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def next_submission(run_dir: Path) -> Path:
    """Returns the folder that the next submission of a run gets."""
    folder = run_dir.resolve() / "submit"
    numbers = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return folder / str(max(numbers, default=0) + 1)


def new_submission(folder: Path, config: str) -> None:
    """Makes a submission folder with its resolved configuration.

    Raises:
        ConfigError: Another command has just made it.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(
            f"{folder} was made by another command in this moment; run the same command again"
        ) from error
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")


def new_task(folder: Path, submissions: Sequence[Path]) -> None:
    """Makes the folder of a task that several runs share, and leads each of them to it."""
    folder.mkdir(parents=True)
    write_runs(folder, submissions)
    for submission in submissions:
        (submission / TASK_LINK).symlink_to(folder)


def write_runs(task: Path, submissions: Sequence[Path]) -> None:
    """Says which submissions the next job of a task works on; the script reads it at each start."""
    write_text(task / RUNS_FILE, "".join(f"{path}\n" for path in submissions))
    (task / "progress").unlink(missing_ok=True)


def task_runs(task: Path) -> list[Path]:
    """Returns the submissions that the newest job of a task works on."""
    return [Path(line) for line in (task / RUNS_FILE).read_text(encoding="utf-8").splitlines()]


def add_note(folder: Path, job: str, restart: int, text: str) -> None:
    """Adds a line to starts.tsv and to the log, in the form of the script's own."""
    moment = datetime.now(UTC).strftime("%FT%TZ")
    with open(folder / _STARTS, "a", encoding="utf-8") as stream:
        stream.write(f"{moment}\t{job}\t{restart}\t{text}\n")
    with open(folder / LOG_FILE, "a", encoding="utf-8") as stream:
        stream.write(f"{moment} hyperadapter: job {job}, start {restart}: {text}\n")


def read_notes(folder: Path, job: str) -> list[Note]:
    """Returns what was noted about a job in a submission folder, or in that of a task."""
    path = folder / _STARTS
    notes = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        parts = line.split("\t")
        if len(parts) == 4 and parts[1] == job and parts[2].isdigit():
            notes.append(Note(int(parts[2]), parts[3].split()))
    return notes


def end_code(notes: Sequence[Note]) -> int | None:
    """Returns the exit code of the newest start; None if it has none, or there was no start."""
    newest = next((n.words for n in reversed(notes) if n.words[0] in ("begin", "end")), ["begin"])
    return int(newest[1]) if newest[0] == "end" else None


def copy_code(folder: Path) -> None:
    """Copies the installed packages into `folder`, without what Python makes of them."""
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        source = Path(next(iter(spec.submodule_search_locations)))
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.part")
        shutil.copytree(source, folder / package, ignore=ignored)


def find_submissions(folders: Sequence[Path]) -> list[Path]:
    """Returns the newest submission folder of every run in or below some folders, sorted.

    Raises:
        ConfigError: A folder has none.
    """
    found: set[Path] = set()
    for folder in folders:
        here = set(_walk(folder.resolve()))
        if not here:
            raise ConfigError(
                f"nothing was submitted from {folder} or below; name the run_dir of a submitted "
                "run, or a folder of such folders"
            )
        found |= here
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    for path, folders, _ in os.walk(folder):
        records = list(Path(path).glob(f"submit/*/{_RECORD}"))
        if records:
            yield max((record.parent for record in records), key=lambda item: int(item.name))
            folders.clear()  # a run's checkpoints and data hold no runs
