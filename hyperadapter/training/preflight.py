"""Checks before the first step, so that a run that cannot end well does not start."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperadapter.checkpoint.layout import complete_checkpoints
from hyperadapter.config import RunConfig, check_world_size
from hyperadapter.core.errors import ConfigError, TrainingError
from hyperadapter.core.files import locked, require_space, write_text
from hyperadapter.core.schema import load_config, to_yaml
from hyperadapter.tracking import resolve_uri
from hyperadapter.training.sharding import checkpoint_bytes, num_checkpoints

__all__ = [
    "check_disk",
    "check_identity",
    "check_world",
    "experiment_fingerprint",
    "freeze_config",
    "identity",
    "lock_run",
]

log = logging.getLogger(__name__)

_OPERATIONAL: dict[str, Any] = {
    "run_dir": ...,
    "tracking": ...,
    "evaluation": ...,
    "name": ...,
    "data": {
        "folder": ...,
        "shards_folder": ...,
        "num_workers": ...,
        "tokenizer": {"folder"},
        "stream": {"cache_folder", "cache_bytes", "workers", "stall_s", "max_lost_fraction"},
    },
    "model": {"adapter": {"generation"}},
    "training": {
        "num_processes",
        "device",
        "zero_stage",
        "offload_optimizer",
        "activation_checkpointing",
        "compile",
        "checkpoint",
        "validation",
        "recovery",
        "log_every_steps",
        "health_every_steps",
    },
}
"""Keys that may change between two starts of one run without making it another experiment."""


def identity(config: RunConfig) -> dict[str, Any]:
    """Returns the part of a configuration that decides what is trained."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude=_OPERATIONAL)
    return tree


def experiment_fingerprint(config: RunConfig) -> str:
    """Returns 12 hexadecimal digits that identify what is trained, wherever and however fast."""
    text = json.dumps(identity(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def freeze_config(config: RunConfig) -> None:
    """Writes the resolved configuration into the run folder.

    Raises:
        ConfigError: The folder holds the checkpoints of another experiment.
    """
    check_identity(config)
    write_text(_config_path(config), to_yaml(config))


def _config_path(config: RunConfig) -> Path:
    return Path(config.run_dir) / "config.yaml"


def check_identity(config: RunConfig) -> None:
    """Checks that the run folder does not hold another experiment.

    Raises:
        ConfigError: It does; the message names the keys that differ.
    """
    run_dir, path = Path(config.run_dir), _config_path(config)
    if path.exists() and complete_checkpoints(run_dir):
        before = load_config(RunConfig, path)
        changed = list(_differences(identity(before), identity(config)))
        if changed:
            raise ConfigError(
                f"{run_dir} holds checkpoints of another experiment; these keys differ:\n  "
                + "\n  ".join(changed)
                + "\nchoose another run_dir (--set run_dir=...), or restore the values to resume"
            )


@contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Holds a run folder against a second training in it; a killed process lets go by itself.

    Raises:
        TrainingError: Another process trains in the folder.
    """
    with locked(run_dir) as free:
        if not free:
            raise TrainingError(
                f"another process trains in {run_dir}; wait for it, stop it, or choose another "
                "run_dir"
            )
        yield


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {old!r} in the folder, {new!r} now"


def check_world(config: RunConfig, world_size: int) -> None:
    """Checks, on every rank, that this many processes can share a step and where metrics go.

    Raises:
        ConfigError: They cannot (the message names sizes that work), or there is no such place.
    """
    resolve_uri(Path(config.run_dir), config.tracking.uri)
    try:
        check_world_size(config.training, world_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_disk(config: RunConfig, num_parameters: int, num_trained: int) -> None:
    """Checks that the run folder has room for its checkpoints before the first step.

    Those that exist already count; while one is written it lies beside all that are kept.

    Raises:
        DiskFullError: It has not.
    """
    training = config.training
    most = num_checkpoints(training.checkpoint, training.max_steps)
    existing = len(complete_checkpoints(Path(config.run_dir)))
    missing = max(1, most - existing)
    purpose = f"writing {missing} checkpoints of {num_parameters:,} parameters"
    num_bytes = missing * checkpoint_bytes(num_parameters, num_trained)
    require_space(Path(config.run_dir), num_bytes, purpose)
