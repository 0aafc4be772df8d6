"""Runs as jobs of Slurm: submitted, looked at, cancelled, and submitted again."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cluster import slurm
from cluster.config import ClusterConfig
from cluster.script import SCRIPT_FILE, JobScript, render
from cluster.snapshot import (
    LOG_FILE,
    Submission,
    copy_code,
    find_submissions,
    new_submission,
    next_submission,
    now,
)
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.events import EVENTS_FILE, newest_event
from hyperadapter.core.files import write_text

__all__ = ["Job", "Plan", "Run", "active", "cancel", "failed", "last_lines", "look", "retry",
           "submit"]  # fmt: skip

log = logging.getLogger(__name__)

_TAIL_BYTES = 1 << 16
_SRUN = "srun: error: "
_BEGIN = re.compile(r"^\S+ hyperadapter: job \S+, start \d+: begin ")


class Run(NamedTuple):
    """A run to be submitted.

    Attributes:
        name: As in its configuration.
        run_dir: Its folder.
        config: The resolved configuration as YAML.
    """

    name: str
    run_dir: Path
    config: str


class Plan(NamedTuple):
    """What a submission is.

    Attributes:
        script: The text that Slurm gets.
        submissions: The folder of each run, in the order of the array's tasks.
        jobs: Slurm's number of each run; empty if nothing was submitted.
    """

    script: str
    submissions: list[Path]
    jobs: list[str]


class Job(NamedTuple):
    """A run's newest job, as Slurm and the run folder see it.

    Attributes:
        run_dir: The run folder.
        job: Slurm's number.
        state: Slurm's word; LOST if Slurm has forgotten a job that has not said how it ended.
        run_status: What the run's events say: RUNNING, FINISHED, FAILED, KILLED; empty if none.
        step: Newest step of the run's metrics.
        restarts: How often it was put back into the queue.
        nodes: In Slurm's short form.
        code: Exit code; None while it runs.
        why: Why it waits, or ended so.
    """

    run_dir: str
    job: str
    state: str
    run_status: str
    step: int | None
    restarts: int
    nodes: str
    code: int | None
    why: str


def submit(
    site: ClusterConfig,
    runs: Sequence[Run],
    *,
    nodes: int,
    throttle: int | None = None,
    after: str = "",
    dry_run: bool = False,
) -> Plan:
    """Submits one run, or several as an array, and returns at once.

    Args:
        site: Where.
        runs: The runs; more than one needs `throttle`.
        nodes: Nodes of each.
        throttle: Most runs of the array at a time.
        after: A job that must end well first.
        dry_run: Only say what would be submitted; nothing is written.

    Raises:
        ConfigError: Two runs have one folder, or a path cannot be given to Slurm.
        SlurmError: A run has a job already, or Slurm refused.
    """
    folders = [next_submission(run.run_dir) for run in runs]
    twice = [str(folder.parents[1]) for folder in folders if folders.count(folder) > 1]
    if twice:
        raise ConfigError(f"two runs of the array have the run_dir {twice[0]}; give each its own")
    script = JobScript(
        name=runs[0].name,
        folder=Path.cwd(),
        submissions=folders,
        code=folders[0] / "code",
        python=site.python or sys.executable,
        nodes=nodes,
        throttle=throttle,
    )
    text = render(site, script)
    if dry_run:
        return Plan(text, folders, [])
    _refuse_second_job(folders)
    path = folders[0] / SCRIPT_FILE
    made: list[Path] = []
    try:
        for folder, run in zip(folders, runs, strict=True):
            new_submission(folder, run.config)
            made.append(folder)
        copy_code(folders[0] / "code")
        write_text(path, text)
        if throttle is not None:
            _link_logs(folders)
        number = slurm.submit(path, after=after)
    except BaseException:
        for folder in made:
            shutil.rmtree(folder)
        raise
    jobs = [number] if throttle is None else [f"{number}_{i}" for i in range(len(runs))]
    for index, (folder, run, job) in enumerate(zip(folders, runs, jobs, strict=True)):
        Submission(
            name=run.name,
            script=str(path),
            index=None if throttle is None else index,
            throttle=throttle,
            jobs=(job,),
            submitted=now(),
        ).save(folder)
    return Plan(text, folders, jobs)


def _refuse_second_job(folders: Sequence[Path]) -> None:
    """Two jobs in one run folder would only fail later, at its lock."""
    run_dirs = [folder.parents[1] for folder in folders]
    before = [run_dir for run_dir in run_dirs if any(run_dir.glob("submit/*/submission.json"))]
    for job in active(look(before)) if before else []:
        raise slurm.SlurmError(
            f"{job.run_dir} has the job {job.job}, which is {job.state}; wait for it, or cancel "
            f"it: hyperadapter jobs cancel {job.run_dir}"
        )


def _link_logs(folders: Sequence[Path]) -> None:
    """Leads the output of each task of an array into the folder of its own run."""
    links = folders[0] / "logs"
    links.mkdir()
    for index, folder in enumerate(folders):
        (links / f"{index}.log").symlink_to(folder / LOG_FILE)


def look(folders: Sequence[Path]) -> list[Job]:
    """Returns the newest job of every run in or below some folders.

    Raises:
        ConfigError: A folder has no submitted run.
        SlurmError: Slurm cannot be reached.
    """
    submissions = find_submissions(folders)
    jobs = {folder: Submission.load(folder).jobs[-1] for folder in submissions}
    states = slurm.states(list(jobs.values()))
    return [_join(folder, states[job]) for folder, job in jobs.items()]


def _join(folder: Path, state: slurm.JobState) -> Job:
    run_dir = folder.parents[1]
    events = (run_dir / EVENTS_FILE).exists()
    status = newest_event(run_dir, "status") if events else {}
    notes = list(_notes(folder, state.job))
    began = next((words for _, words in reversed(notes) if words[0] == "begin"), [])
    end = next((words for _, words in reversed(notes) if words[0] in ("begin", "end")), [""])
    word, code = state.state, state.code
    if not word:  # Slurm forgets jobs, the run folder does not
        code = int(end[1]) if end[0] == "end" else None
        word = "LOST" if code is None else "FAILED" if code else "COMPLETED"
    return Job(
        run_dir=str(run_dir),
        job=state.job,
        state=word,
        run_status=status.get("status", ""),
        step=newest_event(run_dir, "step").get("step") if events else None,
        restarts=max([state.restarts, *(restart for restart, _ in notes)]),
        nodes=state.nodes or (began[-1] if began else ""),
        code=code,
        why=_why(folder, word, state.reason, notes, status.get("reason", "")),
    )


def _notes(folder: Path, job: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (restart, words) of what the script noted about a job."""
    path = folder / "starts.tsv"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        parts = line.split("\t")
        if len(parts) == 4 and parts[1] == job and parts[2].isdigit():
            yield int(parts[2]), parts[3].split()


def _why(
    folder: Path, state: str, reason: str, notes: Sequence[tuple[int, list[str]]], said: str
) -> str:
    """Returns the best known reason: the run's own, the script's, a line of the log, or Slurm's."""
    if state in slurm.ACTIVE:
        return reason
    if state == "COMPLETED":
        return ""
    found = [reason] if reason not in ("", "NonZeroExitCode") else []
    found += [" ".join(words) for _, words in notes if words[0] == "stopped:"][-1:]
    errors = [line for line in _last_start(folder) if "error" in line.lower()]
    # The first is the cause, the others follow from it.
    found += [line.removeprefix(_SRUN) for line in errors if line.startswith(_SRUN)][:1]
    found += [said] if said else [line for line in errors if not line.startswith(_SRUN)][:1]
    return "; ".join(found)


def _last_start(folder: Path) -> list[str]:
    """Returns what the log says about the newest start."""
    lines = last_lines(folder, 1000)
    begins = [i for i, line in enumerate(lines) if _BEGIN.search(line)]
    return lines[begins[-1] :] if begins else lines


def last_lines(folder: Path, count: int) -> list[str]:
    """Returns the last lines of a submission's log."""
    path = folder / LOG_FILE
    if not path.exists():
        return []
    with open(path, "rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _TAIL_BYTES))
        text = stream.read().decode("utf-8", errors="replace")
    return text.splitlines()[-count:]


def active(jobs: Sequence[Job]) -> list[Job]:
    """Returns those that wait or run."""
    return [job for job in jobs if job.state in slurm.ACTIVE]


def failed(jobs: Sequence[Job]) -> list[Job]:
    """Returns those that ended without being done, and that nobody cancelled."""
    return [job for job in jobs if job.state in slurm.FAILED or job.state == "LOST"]


def cancel(folders: Sequence[Path]) -> list[Job]:
    """Cancels the jobs of every run in or below some folders, and returns them.

    Raises:
        ConfigError, SlurmError: As `look`.
    """
    found = active(look(folders))
    slurm.cancel([job.job for job in found])
    return found


def retry(folders: Sequence[Path], only_failed: bool, *, dry_run: bool = False) -> dict[str, str]:
    """Submits the same scripts again for runs that are not done; arrays stay arrays.

    Args:
        folders: Run folders, and folders with run folders below.
        only_failed: Leave out those that somebody cancelled.
        dry_run: Submit nothing, and return the old jobs.

    Returns:
        The new job of each run folder.

    Raises:
        ConfigError, SlurmError: As `look`, or Slurm refused.
    """
    jobs = look(folders)
    again = failed(jobs)
    if not only_failed:
        again += [job for job in jobs if job.state == "CANCELLED"]
    chosen = {job.run_dir: job.job for job in again}
    if dry_run:
        return chosen
    scripts: dict[str, dict[Path, Submission]] = {}
    for folder in find_submissions(folders):
        record = Submission.load(folder)
        if str(folder.parents[1]) in chosen:
            scripts.setdefault(record.script, {})[folder] = record
    submitted = {}
    for script, records in scripts.items():
        throttle = next(iter(records.values())).throttle
        indices = sorted(r.index for r in records.values() if r.index is not None)
        tasks = f"{','.join(map(str, indices))}%{throttle}" if indices else ""
        number = slurm.submit(Path(script), tasks=tasks)
        for folder, record in records.items():
            job = number if record.index is None else f"{number}_{record.index}"
            (folder / "progress").unlink(missing_ok=True)
            record.with_job(job).save(folder)
            submitted[str(folder.parents[1])] = job
    return submitted
