"""The door to Slurm: nobody else calls sbatch, squeue, sacct, scontrol and scancel.

What Slurm says to a failed command is shown in its own words, with what to do about the ones that
users meet most.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from hyperadapter.core.errors import HyperAdapterError

__all__ = ["ACTIVE", "FAILED", "JobState", "SlurmError", "cancel", "job_environment", "states",
           "submit"]  # fmt: skip

log = logging.getLogger(__name__)

_TIMEOUT_S = 90.0
_FIELD = re.compile(r"(?:^|\s)([A-Za-z]+)=(\S*)")

ACTIVE = frozenset(
    {"COMPLETING", "CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "RUNNING"}
    | {"SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
"""States of a job that may still do something."""
FAILED = frozenset(
    {"BOOT_FAIL", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""States of a job that ended without being done, and that nobody cancelled."""

_REMEDIES = {
    "partition": "`sinfo -o %P` lists the partitions; set partition in the cluster's file",
    "account": "`sacctmgr show associations user=$USER` lists yours; set account in the cluster's "
    "file",
    "qos": "`sacctmgr show qos` lists them; set qos in the cluster's file",
    "time limit": "`sinfo -o '%P %l'` shows the longest; lower time_limit in the cluster's file",
    "node count": "`sinfo -o '%P %D'` shows how many there are; use a smaller --nodes",
    "node configuration": "`sinfo -o '%P %c %m %G'` shows cores, memory and GPUs of the nodes; "
    "lower gpus_per_node, cpus_per_task or memory in the cluster's file",
    "processors": "lower tasks_per_node or cpus_per_task in the cluster's file",
    "job array": "`scontrol show config | grep MaxArraySize` says how long one may be; submit the "
    "study in parts, with --points",
    "generic resource": "`sinfo -o '%P %G'` shows GPUs; set gpus_per_node in the cluster's file",
}


class SlurmError(HyperAdapterError):
    """Slurm refused a command, or cannot be reached."""


class JobState(NamedTuple):
    """What Slurm knows about a job.

    Attributes:
        job: Its number, `12` or `12_3`.
        state: Slurm's word; empty if Slurm has forgotten the job.
        reason: Why it waits or ended so, in Slurm's word; empty if there is none.
        code: Exit code of the script, or 128 + the signal that ended it; None while it runs.
        nodes: In Slurm's short form.
        restarts: How often it was put back into the queue.
    """

    job: str
    state: str = ""
    reason: str = ""
    code: int | None = None
    nodes: str = ""
    restarts: int = 0


def job_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns an environment in which a script alone decides what is submitted.

    SBATCH_* would silently replace its lines, and SLURM_* belong to the job that we may be in.
    """
    replaced = sorted(name for name in environment if name.startswith("SBATCH_"))
    if replaced:
        log.warning("%s would replace lines of the script and are left out", ", ".join(replaced))
    return {
        name: value
        for name, value in environment.items()
        if name == "SLURM_CONF" or not name.startswith(("SBATCH_", "SLURM_", "SRUN_"))
    }


def _run(command: Sequence[str], accepted: tuple[str, ...] = ()) -> str:
    """Returns what a command prints; an error that contains an accepted text counts as nothing.

    Raises:
        SlurmError: It failed, is not installed, or does not answer.
    """
    try:
        done = subprocess.run(
            command,
            env=job_environment() if command[0] == "sbatch" else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise SlurmError(
            f"there is no command {command[0]} here; submit from a login node of the cluster, or "
            "add Slurm's commands to PATH"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(
            f"{command[0]} has not answered for {_TIMEOUT_S:.0f} s; is Slurm's controller up "
            "(`scontrol ping`)?"
        ) from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        if any(text in said for text in accepted):
            return ""
        raise SlurmError(_explain(command, said, done.returncode))
    return done.stdout


def _explain(command: Sequence[str], said: str, code: int) -> str:
    known = [remedy for word, remedy in _REMEDIES.items() if word in said.lower()]
    words = said or f"nothing, and ended with {code}"
    # The last one knows most: `account/partition combination` is about the account.
    return f"{command[0]} says: {words}" + (f"\n{known[-1]}" if known else "")


def submit(script: Path, *, after: str = "", tasks: str = "") -> str:
    """Submits a script and returns the number of its job.

    Args:
        script: The batch script.
        after: A job that must end well first; if it does not, this one is cancelled.
        tasks: Tasks of the script's array, such as `1,5%2`, instead of all.

    Raises:
        SlurmError: Slurm refused it.
    """
    command = ["sbatch", "--parsable"]
    if after:
        # Slurm takes any number here, and waits for none that it does not know.
        if not _show(after):
            raise SlurmError(
                f"Slurm knows no job {after} that another could wait for; `squeue --me` lists yours"
            )
        command += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    if tasks:
        command.append(f"--array={tasks}")
    return _run([*command, str(script)]).strip().partition(";")[0]


def cancel(jobs: Sequence[str]) -> None:
    """Cancels jobs; those that have ended stay as they are.

    Raises:
        SlurmError: Slurm refused.
    """
    if jobs:
        _run(["scancel", *jobs], accepted=("already completing", "completed", "Invalid job id"))


def states(jobs: Sequence[str]) -> dict[str, JobState]:
    """Returns what Slurm knows of each job: the controller first, then accounting if there is any.

    Raises:
        SlurmError: The controller cannot be reached.
    """
    arrays = dict.fromkeys(job.partition("_")[0] for job in jobs)
    found = {state.job: state for array in arrays for state in _show(array)}
    missing = [job for job in jobs if job not in found]
    if missing:
        found |= {state.job: state for state in _account(missing)}
    return {job: found.get(job, JobState(job)) for job in jobs}


def _show(job: str) -> list[JobState]:
    """Asks the controller, which forgets a job some minutes after its end."""
    text = _run(["scontrol", "--oneliner", "show", "job", job], accepted=("Invalid job id",))
    return [state for line in text.splitlines() if line for state in _parse_record(line)]


def _parse_record(line: str) -> list[JobState]:
    fields: dict[str, str] = {}
    for key, value in _FIELD.findall(line):
        fields.setdefault(key, value)  # a path at the end may look like one more field
    job = fields["JobId"]
    names = [job]
    if "ArrayJobId" in fields:
        tasks = _parse_tasks(fields.get("ArrayTaskId", ""))
        names = [f"{fields['ArrayJobId']}_{task}" for task in tasks]
    reason = fields.get("Reason", "None")
    state = fields.get("JobState", "").partition("+")[0]
    nodes = fields.get("NodeList", "")
    return [
        JobState(
            job=name,
            state=state,
            reason="" if reason == "None" else reason,
            code=None if state in ACTIVE else _parse_code(fields.get("ExitCode", "")),
            nodes="" if nodes == "(null)" else nodes,
            restarts=int(fields.get("Restarts", "0")),
        )
        for name in names
    ]


def _parse_tasks(text: str) -> list[int]:
    """Reads the tasks of an array that wait together, such as `3,5-7%2`."""
    tasks: list[int] = []
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            tasks += range(int(first), int(last or first) + 1)
    return tasks


def _parse_code(text: str) -> int | None:
    code, _, signal = text.partition(":")
    if not code.isdigit():
        return None
    return 128 + int(signal) if signal.isdigit() and int(signal) and not int(code) else int(code)


def _account(jobs: Sequence[str]) -> list[JobState]:
    """Asks accounting, where a site has it."""
    command = ["sacct", "--noheader", "--parsable2", "--allocations"]
    command += ["--format=JobID,State,ExitCode,NodeList", f"--jobs={','.join(jobs)}"]
    try:
        text = _run(command, accepted=("accounting storage is disabled",))
    except SlurmError as error:
        log.warning("Slurm's accounting cannot be asked: %s", error)
        return []
    found = []
    for line in text.splitlines():
        job, words, code, nodes = line.split("|")[:4]
        state = words.partition(" ")[0]  # CANCELLED by 1000
        ended = None if state in ACTIVE else _parse_code(code)
        found.append(JobState(job, state, "", ended, nodes.replace("None assigned", "")))
    return found
