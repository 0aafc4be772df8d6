"""Runs as jobs of Slurm: submitted, looked at, cancelled, and submitted again."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cluster import slurm
from cluster.config import ClusterConfig
from cluster.local import EXIT_INTERRUPTED
from cluster.script import SCRIPT_FILE, TASKS_FOLDER, JobScript, render
from cluster.snapshot import (
    LOG_FILE,
    NEWEST_JOB_FILE,
    TASK_LINK,
    Note,
    Submission,
    copy_code,
    end_code,
    find_submissions,
    new_submission,
    new_task,
    next_submission,
    now,
    read_notes,
    task_runs,
    write_runs,
)
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.events import EVENTS_FILE, newest_event
from hyperadapter.core.files import write_text

__all__ = ["Job", "Plan", "Run", "Shape", "active", "active_jobs", "cancel", "failed", "last_lines",
           "log_file", "look", "retry", "submit", "submitted_runs"]  # fmt: skip

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


class Shape(NamedTuple):
    """What jobs are made of runs.

    Attributes:
        nodes: Of each run.
        throttle: Most tasks of the array at a time; None: one run, no array.
        evaluate: Score the test split after training.
        pack: Runs that share one node; 1: each has its nodes.
        name: Of the job; empty: that of the first run.
    """

    nodes: int
    throttle: int | None = None
    evaluate: bool = False
    pack: int = 1
    name: str = ""


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
    shape: Shape,
    *,
    after: str = "",
    dry_run: bool = False,
) -> Plan:
    """Submits one run, or several as an array, and returns at once.

    Args:
        site: Where.
        runs: The runs; more than one needs `shape.throttle`.
        shape: How they become jobs.
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
        name=shape.name or runs[0].name,
        folder=Path.cwd(),
        submissions=folders,
        code=folders[0] / "code",
        python=site.python or sys.executable,
        nodes=shape.nodes,
        throttle=shape.throttle,
        evaluate=shape.evaluate,
        pack=shape.pack,
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
        if shape.pack > 1:
            _make_tasks(folders, shape.pack)
        elif shape.throttle is not None:
            _link_logs(folders)
        number = slurm.submit(path, after=after)
    except BaseException:
        for folder in made:
            shutil.rmtree(folder)
        raise
    try:
        return Plan(text, folders, _record(path, number, folders, runs, shape))
    except BaseException:
        slurm.cancel([number])  # nobody would know of it
        raise


def _record(
    script: Path, number: str, folders: Sequence[Path], runs: Sequence[Run], shape: Shape
) -> list[str]:
    """Writes down which job each run has, and returns them."""
    jobs = []
    for position, (folder, run) in enumerate(zip(folders, runs, strict=True)):
        index = None if shape.throttle is None else position // shape.pack
        jobs.append(_job_name(number, index))
        record = Submission(
            name=run.name,
            script=str(script),
            index=index,
            throttle=shape.throttle,
            jobs=(jobs[-1],),
            submitted=now(),
        )
        _save(folder, record)
    return jobs


def _job_name(number: str, index: int | None) -> str:
    return number if index is None else f"{number}_{index}"


def _save(folder: Path, record: Submission) -> None:
    """Writes down the job that a run has got."""
    record.save(folder)
    if (folder / TASK_LINK).exists():
        write_text(folder / TASK_LINK / NEWEST_JOB_FILE, record.jobs[-1])


def _refuse_second_job(folders: Sequence[Path]) -> None:
    """Two jobs in one run folder would only fail later, at its lock."""
    for job in active_jobs([folder.parents[1] for folder in folders]):
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


def _make_tasks(folders: Sequence[Path], pack: int) -> None:
    """Makes a folder for each task of an array that several runs share."""
    for index, first in enumerate(range(0, len(folders), pack)):
        new_task(folders[0] / TASKS_FOLDER / str(index), folders[first : first + pack])


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
    notes = read_notes(folder, state.job)
    shared = read_notes(folder / TASK_LINK, state.job)
    began = next((note.words for note in reversed(notes or shared) if note.words[0] == "begin"), [])
    word, code, reason = state.state, state.code, state.reason
    ended = end_code(notes)
    if (folder / TASK_LINK).exists() and ended not in (None, EXIT_INTERRUPTED):
        # It is over, whatever becomes of the others that share its node.
        word, code, reason = "FAILED" if ended else "COMPLETED", ended, ""
        shared = []
    elif not word:  # Slurm forgets jobs, the run folder does not
        code = end_code(shared or notes)
        word = "LOST" if code is None else "FAILED" if code else "COMPLETED"
    # What ended a run before it began is in the log of its task.
    place = folder if notes or not shared else folder / TASK_LINK
    return Job(
        run_dir=str(run_dir),
        job=state.job,
        state=word,
        run_status=status.get("status", ""),
        step=newest_event(run_dir, "step").get("step") if events else None,
        restarts=max([state.restarts, *(note.restart for note in (*shared, *notes))]),
        nodes=state.nodes or (began[-1] if began else ""),
        code=code,
        why=_why(place, word, reason, [*shared, *notes], status.get("reason", "")),
    )


def _why(folder: Path, state: str, reason: str, notes: Sequence[Note], said: str) -> str:
    """Returns the best known reason: the run's own, the script's, a line of the log, or Slurm's."""
    if state in slurm.ACTIVE:
        return reason
    if state == "COMPLETED":
        return ""
    found = [reason] if reason not in ("", "NonZeroExitCode") else []
    found += [" ".join(note.words) for note in notes if note.words[0] == "stopped:"][-1:]
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


def log_file(folder: Path) -> Path:
    """Returns the log of a submission; of a run that has not begun, that of the task it shares."""
    places = (folder / LOG_FILE, folder / TASK_LINK / LOG_FILE)
    return next((path for path in places if path.exists()), places[0])


def last_lines(folder: Path, count: int) -> list[str]:
    """Returns the last lines of a submission's log."""
    path = log_file(folder)
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


def active_jobs(run_dirs: Sequence[Path]) -> list[Job]:
    """Returns the jobs that wait or run of some runs, which need not have been submitted.

    Raises:
        SlurmError: Slurm cannot be reached; it is not asked where nothing was submitted.
    """
    submitted = submitted_runs(run_dirs)
    return active(look(submitted)) if submitted else []


def submitted_runs(run_dirs: Sequence[Path]) -> list[Path]:
    """Returns those of some run folders that were ever submitted."""
    return [path for path in run_dirs if any(path.glob("submit/*/submission.json"))]


def failed(jobs: Sequence[Job]) -> list[Job]:
    """Returns those that ended without being done, and that nobody cancelled."""
    return [job for job in jobs if job.state in slurm.FAILED or job.state == "LOST"]


def cancel(folders: Sequence[Path], *, dry_run: bool = False) -> list[Job]:
    """Cancels the jobs of every run in or below some folders, and returns them.

    Raises:
        ConfigError: As `look`.
        SlurmError: As `look`, or a job would end others as well, which were not named.
    """
    found = active(look(folders))
    places = _places(folders)
    numbers = {job.job for job in found}
    links = {places[job.run_dir] / TASK_LINK for job in found}
    for task in {link.resolve() for link in links if link.exists()}:
        others = active(look([path.parents[1] for path in task_runs(task)]))
        spared = [job for job in others if job.job in numbers and job.run_dir not in places]
        if spared:
            raise slurm.SlurmError(
                f"the job {spared[0].job} would end {', '.join(job.run_dir for job in spared)} as "
                "well, which share its node; name them too, or wait until they are done"
            )
    if not dry_run:
        slurm.cancel(list(dict.fromkeys(job.job for job in found)))
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
    places = _places(folders)
    busy = _busy([places[job.run_dir] for job in again])
    chosen = {job.run_dir: job.job for job in again if places[job.run_dir] not in busy}
    if dry_run:
        return chosen
    scripts: dict[str, dict[Path, Submission]] = {}
    for run_dir in chosen:
        record = Submission.load(places[run_dir])
        scripts.setdefault(record.script, {})[places[run_dir]] = record
    submitted = {}
    for script, records in scripts.items():
        _forget_starts(list(records))
        throttle = next(iter(records.values())).throttle
        indices = sorted({r.index for r in records.values() if r.index is not None})
        tasks = f"{','.join(map(str, indices))}%{throttle}" if indices else ""
        number = slurm.submit(Path(script), tasks=tasks)
        for folder, record in records.items():
            job = _job_name(number, record.index)
            _save(folder, record.with_job(job))
            submitted[str(folder.parents[1])] = job
    return submitted


def _places(folders: Sequence[Path]) -> dict[str, Path]:
    """Returns the newest submission of every run folder."""
    return {str(folder.parents[1]): folder for folder in find_submissions(folders)}


def _busy(submissions: Sequence[Path]) -> set[Path]:
    """Returns those that share a task whose newest job still waits or runs."""
    jobs = {
        folder: (folder / TASK_LINK / NEWEST_JOB_FILE).read_text(encoding="utf-8")
        for folder in submissions
        if (folder / TASK_LINK).exists()
    }
    states = slurm.states(sorted(set(jobs.values()))) if jobs else {}
    busy = {folder for folder, job in jobs.items() if states[job].state in slurm.ACTIVE}
    for folder in sorted(busy):
        log.warning(
            "%s shares the node of the job %s, in which other runs go on; retry it when that has "
            "ended", folder.parents[1], jobs[folder],
        )  # fmt: skip
    return busy


def _forget_starts(submissions: Sequence[Path]) -> None:
    """Makes fruitless starts count anew, and leaves in tasks only the runs to be tried again."""
    tasks: dict[Path, list[Path]] = {}
    for folder in sorted(submissions):
        (folder / "progress").unlink(missing_ok=True)
        if (folder / TASK_LINK).exists():
            tasks.setdefault((folder / TASK_LINK).resolve(), []).append(folder)
    for task, folders in tasks.items():
        write_runs(task, folders)
