"""Errors that a user can cause or meet, with the exit code that each ends the command with.

    HyperAdapterError            1
    ├── ConfigError              3   a key, value or file of the configuration
    │   └── LanguageError        3   a language code that is not in the table
    ├── DataError                1   bitext that is missing, unreadable or empty
    │   └── CorruptShardError    1   a shard that differs from its manifest
    │       └── LostBlockError   1   a block that cannot be read; training can leave it out
    ├── FetchError               1   a download that failed or has the wrong checksum
    ├── CheckpointError          1   a checkpoint that is missing, incomplete or foreign
    ├── DiskFullError            1   no space left for what was to be written
    ├── TrackingError            1   MLflow cannot be reached, where a command needs it
    ├── TrainingError            1   a loss or gradient that is not finite, a rank that died
    └── Interrupted             75   a signal asked to stop; the run can be resumed

A message says what is wrong, the value, where it came from, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorruptShardError",
    "DataError",
    "DiskFullError",
    "FetchError",
    "HyperAdapterError",
    "Interrupted",
    "LanguageError",
    "LostBlockError",
    "TrackingError",
    "TrainingError",
    "nearest",
]


class HyperAdapterError(Exception):
    """Base of all errors that are reported without a traceback."""

    exit_code = 1


class ConfigError(HyperAdapterError):
    """The configuration cannot be used."""

    exit_code = 3


class LanguageError(ConfigError, ValueError):
    """A language code is unknown. Also a `ValueError`, so that pydantic adds the key."""


class DataError(HyperAdapterError):
    """Bitext is missing, unreadable or empty."""


class CorruptShardError(DataError):
    """A shard's bytes differ from what its manifest promises."""


class LostBlockError(CorruptShardError):
    """A block of a shard cannot be read, or is not what the manifest promises.

    Attributes:
        block: Number of the block in the manifest.
        shard: Path or URL of the shard.
        reason: What is wrong with it.
    """

    def __init__(self, block: int, shard: str, reason: str, remedy: str) -> None:
        super().__init__(f"{shard}: {reason}; {remedy}")
        self.block = block
        self.shard = shard
        self.reason = reason
        self._remedy = remedy

    def __reduce__(self) -> tuple[type[LostBlockError], tuple[int, str, str, str]]:
        """Goes between processes whole: exceptions pickle their message only."""
        return type(self), (self.block, self.shard, self.reason, self._remedy)


class FetchError(HyperAdapterError):
    """A file could not be downloaded or has the wrong checksum."""


class CheckpointError(HyperAdapterError):
    """A checkpoint is missing, incomplete or belongs to another run."""


class DiskFullError(HyperAdapterError):
    """There is no space left for what was to be written."""


class TrackingError(HyperAdapterError):
    """MLflow cannot be reached, in a command that is about nothing else."""


class TrainingError(HyperAdapterError):
    """Training cannot go on."""


class Interrupted(HyperAdapterError):  # noqa: N818 (a request, not an error)
    """A signal asked to stop; everything needed to resume has been saved."""

    exit_code = 75


def nearest(word: str, choices: Iterable[str]) -> str:
    """Returns `` (did you mean 'x'?)`` for the closest choice, or an empty string."""
    match = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean {match[0]!r}?)" if match else ""
