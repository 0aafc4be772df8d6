"""The configuration of a site: how its Slurm is asked for nodes, and what a job finds there."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import StrictModel

__all__ = ["ClusterConfig"]

_TIME = re.compile(r"^(?:(\d+)-)?(\d{1,2}):([0-5]\d):([0-5]\d)$")
_WORD = re.compile(r"^[\w.,:+@/-]*$")
_OPTION = re.compile(r"^--[a-z][a-z-]*(=[^\s\"'\\#]+)?$")
_VARIABLE = re.compile(r"^[A-Za-z_]\w*$", re.ASCII)
_OURS = {
    *("array", "chdir", "cpus-per-task", "dependency", "gpus-per-node", "job-name", "nodes"),
    *("no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal"),
    *("time", "partition", "account", "qos", "mem", "export", "error", "input", "wrap", "parsable"),
}


class ClusterConfig(StrictModel):
    """One site, a file of configs/clusters."""

    partition: str = Field(min_length=1, description="Slurm partition, or several with commas")
    account: str = Field(default="", description="Slurm account; empty: your default")
    qos: str = Field(default="", description="Slurm quality of service; empty: the default")
    nodes: int = Field(default=1, ge=1, description="Nodes of a job, unless --nodes is given")
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs of a node; 0: train on CPUs")
    tasks_per_node: int | None = Field(
        default=None, ge=1, description="Processes of a node; null: one for each GPU, at least one"
    )
    cpus_per_task: int = Field(default=1, ge=1, description="CPU cores of each process")
    memory: str = Field(default="", description="Of a node, such as 400G; empty: the default")
    time_limit: str = Field(description="Of one start, as [days-]hours:minutes:seconds")
    save_lead_s: int = Field(
        default=300, ge=1, le=65535,
        description="So long before the time limit a job saves and requeues itself",
    )  # fmt: skip
    max_fruitless_starts: int = Field(
        default=3, ge=1, description="Starts in a row without a new checkpoint, then a job stops"
    )
    min_all_reduce_gb_per_s: float | None = Field(
        default=None, ge=0,
        description="Measured before training, which a slower network ends; null: not measured",
    )  # fmt: skip
    options: tuple[str, ...] = Field(
        default=(), description="More options of sbatch, such as --constraint=h100"
    )
    modules: tuple[str, ...] = Field(default=(), description="For `module load`, in this order")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables of the job; never passwords, files are read"
    )
    container: tuple[str, ...] = Field(
        default=(), description="Words before the command, such as [apptainer, exec, --nv, my.sif]"
    )
    python: str = Field(
        default="", description="The interpreter in the job; empty: the one that submits"
    )
    scratch: str = Field(
        default="", description="A fast folder on each node, for TMPDIR; empty: the site's TMPDIR"
    )

    @field_validator("partition", "account", "qos", "memory")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if not _WORD.match(value):
            raise ValueError("must be one word of letters, digits and . , : + @ / -")
        return value

    @field_validator("time_limit")
    @classmethod
    def _time(cls, value: str) -> str:
        if not _TIME.match(value):
            raise ValueError("must be [days-]hours:minutes:seconds, such as 12:00:00 or 2-00:00:00")
        return value

    @field_validator("options")
    @classmethod
    def _options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not _OPTION.match(option):
                raise ValueError(f"{option!r} must have the form --name or --name=value")
            if option.split("=")[0][2:] in _OURS:
                raise ValueError(f"{option!r} would replace what the script sets itself")
        return options

    @field_validator("modules", "container")
    @classmethod
    def _lines(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        for word in words:
            if not word or not word.isprintable():
                raise ValueError(f"{word!r} is empty or has control characters")
        return words

    @field_validator("environment")
    @classmethod
    def _variables(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if not _VARIABLE.match(name):
                raise ValueError(f"{name!r} cannot be the name of a variable")
            if "\0" in value:
                raise ValueError(f"{name}: a value cannot hold a zero byte")
        return variables

    @model_validator(mode="after")
    def _lead_is_short(self) -> ClusterConfig:
        if 2 * self.save_lead_s > self.time_limit_s:
            raise ValueError(
                f"save_lead_s {self.save_lead_s} is more than half of time_limit "
                f"{self.time_limit}: a job would save before it has trained"
            )
        return self

    @property
    def time_limit_s(self) -> int:
        """The time limit in seconds."""
        match = _TIME.match(self.time_limit)
        assert match is not None
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

    @property
    def processes_per_node(self) -> int:
        """Ranks that each node gets."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    def processes_per_run(self, nodes: int, pack: int = 1) -> int:
        """Returns how many ranks a run gets.

        Args:
            nodes: Nodes of a job.
            pack: Runs that share a node.

        Raises:
            ConfigError: The GPUs and processes of a node cannot be shared out evenly.
        """
        for name, count in (
            ("gpus_per_node", self.gpus_per_node),
            ("processes of a node (tasks_per_node)", self.processes_per_node),
        ):
            if count % pack:
                choices = [str(n) for n in range(2, count + 1) if count % n == 0]
                raise ConfigError(
                    f"{pack} runs cannot share {name} {count} evenly; pack "
                    f"{' or '.join(choices) or 'none'}"
                )
        return nodes * self.processes_per_node // pack
