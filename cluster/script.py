"""The text of a batch script: a template filled with quoted values."""

from __future__ import annotations

import functools
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2

from cluster.config import ClusterConfig
from hyperadapter.core.errors import ConfigError

__all__ = ["SCRIPT_FILE", "TASKS_FOLDER", "JobScript", "check_path", "job_name", "render"]

SCRIPT_FILE = "job.sbatch"
TASKS_FOLDER = "tasks"


class JobScript(NamedTuple):
    """What a batch script is made from.

    Attributes:
        name: Of the run or of the array, any text.
        folder: Where the command was given: relative paths of the configuration begin here.
        submissions: A folder for each run, in the order of the array's tasks.
        code: Folder with the packages that the job runs.
        python: The interpreter.
        nodes: How many nodes each run gets.
        throttle: Most tasks of the array at a time; None: one run, no array.
        evaluate: Whether runs are scored on the test split after training.
        pack: Runs that share a node, side by side in one task of the array.
    """

    name: str
    folder: Path
    submissions: Sequence[Path]
    code: Path
    python: str
    nodes: int
    throttle: int | None = None
    evaluate: bool = False
    pack: int = 1


def job_name(name: str) -> str:
    """Returns a label that squeue can show and that no parser reads as anything else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")[:100] or "run"


def check_path(path: Path) -> None:
    """Checks that Slurm can write output to a path.

    Raises:
        ConfigError: It has a backslash, which changes Slurm's reading of names, or a line's end.
    """
    if "\\" in str(path) or not str(path).isprintable():
        raise ConfigError(
            f"the path {str(path)!r} has a backslash or a control character, with which Slurm "
            "names no output; choose another run_dir"
        )


def _directive(value: str) -> str:
    """Quotes a value of an #SBATCH line: sbatch strips the quotes and lets no shell see it."""
    return '"' + value.replace('"', '\\"') + '"'


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="<#",  # {# is bash's: ${#files[@]}
        comment_end_string="#>",
    )  # no HTML is made, so autoescape would only spoil the text
    environment.filters |= {"quote": shlex.quote, "directive": _directive}
    return environment.get_template("run.sbatch.j2")


def render(site: ClusterConfig, job: JobScript) -> str:
    """Returns the batch script of one run, or of an array of runs.

    Raises:
        ConfigError: A path cannot be given to Slurm.
    """
    for path in (job.folder, *job.submissions):
        check_path(path)
    first = str(job.submissions[0]).replace("%", "%%")
    output = f"{first}/job.log"
    if job.throttle is not None:
        # In an array of single runs each of these is a link to the log of its own run.
        output = f"{first}/logs/%a.log" if job.pack == 1 else f"{first}/{TASKS_FOLDER}/%a/job.log"
    tasks_per_node, cpus_per_task = site.processes_per_node, site.cpus_per_task
    if job.pack > 1:  # one task has the node, and starts all processes
        tasks_per_node, cpus_per_task = 1, tasks_per_node * cpus_per_task
    last_task = math.ceil(len(job.submissions) / job.pack) - 1
    return _template().render(
        site=site,
        job_name=job_name(job.name),
        folder=str(job.folder),
        output=output,
        array="" if job.throttle is None else f"0-{last_task}%{job.throttle}",
        submissions=[str(path) for path in job.submissions],
        tasks=str(job.submissions[0] / TASKS_FOLDER),
        code=str(job.code),
        python=[*site.container, job.python],
        nodes=job.nodes,
        pack=job.pack,
        tasks_per_node=tasks_per_node,
        cpus_per_task=cpus_per_task,
        evaluate=job.evaluate,
    )
