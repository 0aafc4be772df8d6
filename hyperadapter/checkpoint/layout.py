"""Where checkpoints lie, and which of them exist and stay.

RUN_DIR/checkpoints/
    step-00000100/
        weights.safetensors         the whole model in fp32
        optimizer/rank-*.safetensors    what the optimizer keeps, see checkpoint/pieces.py
        progress.json               what training has cost
        manifest.json               step, world, and size and checksum of every file; comes last
    step-00000200.part/             being written: without a manifest a checkpoint is none
    step-00000050.damaged/          found to differ from its manifest, and set aside
    validation.json                 the metric by which the best are kept
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, field_validator

from hyperadapter.config import CheckpointConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError
from hyperadapter.core.files import read_json, sha256_file, sync_folder, write_json
from hyperadapter.core.schema import StrictModel, parse_config

__all__ = [
    "WEIGHTS_FILE",
    "CheckpointManifest",
    "FileRecord",
    "OtherFormatError",
    "best_checkpoints",
    "checkpoint_folder",
    "choose_weights",
    "commit",
    "complete_checkpoints",
    "new_part_folder",
    "newest_checkpoint",
    "note_value",
    "prune",
    "read_manifest",
    "remove_leftovers",
    "set_aside",
    "verify",
]

log = logging.getLogger(__name__)

WEIGHTS_FILE = "weights.safetensors"
_MANIFEST = "manifest.json"
_VALIDATION = "validation.json"
_NAME = re.compile(r"^step-(\d{8,})$")


class OtherFormatError(CheckpointError):
    """A checkpoint is whole, but not of this version."""


class FileRecord(StrictModel):
    """Size and checksum of one file."""

    bytes: int
    sha256: str


class CheckpointManifest(StrictModel):
    """What a checkpoint holds."""

    step: int = Field(description="Optimizer steps done")
    fingerprint: str = Field(description="Of the configuration that trained it")
    world_size: int
    zero_stage: int
    precision: str
    data: str = Field(description="Fingerprint of the training shards")
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ValueError(f"{name!r} lies outside of the checkpoint")
        return files


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Returns the folder of the checkpoint after `step` optimizer steps."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def new_part_folder(run_dir: Path, step: int) -> Path:
    """Makes the folder that a checkpoint is written to before it exists."""
    part = checkpoint_folder(run_dir, step).with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def commit(
    part: Path, *, step: int, values: Mapping[str, str | int], names: Iterable[str] = ()
) -> Path:
    """Writes the manifest of a part folder and gives the folder its final name.

    Args:
        part: From `new_part_folder`, with all files in it.
        step: Optimizer steps done.
        values: The manifest's fingerprint, world_size, zero_stage, precision and data.
        names: Files that must be there, which other nodes wrote: a listing may not show them yet.

    Raises:
        OSError: One of `names` is not there.
    """
    listed = {str(path.relative_to(part)) for path in part.rglob("*") if path.is_file()}
    paths = {name: part / name for name in sorted(listed.union(names))}
    files = {
        name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        for name, path in paths.items()
    }
    record = {name: file.model_dump() for name, file in files.items()}
    tree = {"step": step, **values, "files": record}
    write_json(part / _MANIFEST, tree | {"checksum": _checksum(tree)})
    for folder in {path.parent for path in paths.values()}:
        sync_folder(folder)
    final = part.with_suffix("")
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    sync_folder(final.parent)
    return final


def complete_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """Returns (step, folder) of every checkpoint that has a manifest, oldest first."""
    folder = run_dir / "checkpoints"
    found = []
    for path in folder.iterdir() if folder.is_dir() else []:
        match = _NAME.match(path.name)
        if match and (path / _MANIFEST).is_file():
            found.append((int(match.group(1)), path))
    return sorted(found)


def newest_checkpoint(run_dir: Path) -> Path:
    """Returns the newest complete checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    found = complete_checkpoints(run_dir)
    if not found:
        raise CheckpointError(
            f"{run_dir / 'checkpoints'} holds no complete checkpoint; train first: "
            "hyperadapter train --config CONFIG"
        )
    return found[-1][1]


def choose_weights(run_dir: Path, which: str, config: CheckpointConfig) -> Path:
    """Returns a weights file of a run.

    Args:
        run_dir: The run folder.
        which: `newest`, `best`, the step of a checkpoint, or the path of a weights file.
        config: Says what the best is.

    Raises:
        CheckpointError: There is no such checkpoint or file.
    """
    if which == "newest":
        return newest_checkpoint(run_dir) / WEIGHTS_FILE
    if which == "best":
        best = best_checkpoints(run_dir, config)
        if not best:
            raise CheckpointError(
                f"{run_dir} has no checkpoint whose {config.best_metric} is known; train with "
                "training.checkpoint.keep_best, or name a step"
            )
        return best[0][1] / WEIGHTS_FILE
    steps = dict(complete_checkpoints(run_dir))
    if which.isdigit() and int(which) in steps:
        return steps[int(which)] / WEIGHTS_FILE
    if not Path(which).is_file():
        raise CheckpointError(
            f"{which!r} is neither newest, best, a step of {run_dir} "
            f"({', '.join(map(str, steps)) or 'none'}), nor a weights file"
        )
    return Path(which)


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Reads a checkpoint's manifest.

    Raises:
        CheckpointError: It is missing or damaged; OtherFormatError: of another version.
    """
    path = checkpoint / _MANIFEST
    try:
        tree = dict(read_json(path))
    except (DataError, OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} is not a whole checkpoint: {error}") from error
    checksum = tree.pop("checksum", None)
    if checksum is not None and checksum != _checksum(tree):
        raise CheckpointError(f"{checkpoint} is not a whole checkpoint: {path} was changed")
    try:
        return parse_config(CheckpointManifest, tree, str(path))
    except ConfigError as error:
        raise OtherFormatError(
            f"{checkpoint} was written by another version of hyperadapter: {error}. Go on with "
            "that version, or start a new run from its weights (training.start_from)"
        ) from error


def _checksum(tree: Mapping[str, Any]) -> str:
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(checkpoint: Path) -> CheckpointManifest:
    """Checks size and checksum of every file.

    Raises:
        CheckpointError: A file is missing or differs; the message names it.
    """
    manifest = read_manifest(checkpoint)
    for name, record in manifest.files.items():
        try:
            _verify_file(checkpoint / name, record)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint's file {checkpoint / name} cannot be read: {error}"
            ) from error
    return manifest


def _verify_file(path: Path, record: FileRecord) -> None:
    if not path.is_file():
        raise CheckpointError(f"the checkpoint's file {path} is missing")
    if path.stat().st_size != record.bytes:
        raise CheckpointError(
            f"the checkpoint's file {path} has {path.stat().st_size} bytes instead of "
            f"{record.bytes}"
        )
    if sha256_file(path) != record.sha256:
        raise CheckpointError(f"the checkpoint's file {path} has a wrong checksum")


def set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, so that it is none any more but can be looked at."""
    aside = checkpoint.with_suffix(".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    return aside


def note_value(run_dir: Path, metric: str, step: int, value: float) -> None:
    """Remembers a metric of validation at a step; another metric begins anew."""
    path = run_dir / "checkpoints" / _VALIDATION
    values = _values(run_dir, metric) | {step: value}
    tree = {"metric": metric, "values": {str(key): value for key, value in values.items()}}
    write_json(path, tree)


def _values(run_dir: Path, metric: str) -> dict[int, float]:
    path = run_dir / "checkpoints" / _VALIDATION
    tree: dict[str, Any] = read_json(path) if path.exists() else {}
    if tree.get("metric") != metric:
        return {}
    return {int(step): value for step, value in tree["values"].items()}


def best_checkpoints(run_dir: Path, config: CheckpointConfig) -> list[tuple[int, Path]]:
    """Returns (step, folder) of the complete checkpoints that were validated, best first."""
    values = _values(run_dir, config.best_metric)
    sign = 1 if config.best_is == "lowest" else -1
    found = [
        (step, path)
        for step, path in complete_checkpoints(run_dir)
        if step in values and math.isfinite(values[step])
    ]
    return sorted(found, key=lambda item: (sign * values[item[0]], -item[0]))


def prune(run_dir: Path, config: CheckpointConfig) -> None:
    """Removes the complete checkpoints that need not be kept, and left-over parts."""
    found = complete_checkpoints(run_dir)
    kept = {step for step, _ in found[-config.keep :]}
    kept |= {step for step, _ in best_checkpoints(run_dir, config)[: config.keep_best]}
    if config.keep_every_steps:
        kept |= {step for step, _ in found if step % config.keep_every_steps == 0}
    for step, path in found:
        if step not in kept:
            # Without its manifest the checkpoint is gone at once, even if this is interrupted.
            (path / _MANIFEST).unlink()
    remove_leftovers(run_dir)


def remove_leftovers(run_dir: Path) -> None:
    """Removes what is no checkpoint: parts, and folders without a manifest.

    Who reads from one may hold it on a network file system: it is removed the next time then.
    """
    folder = run_dir / "checkpoints"
    for path in folder.iterdir() if folder.is_dir() else []:
        named = _NAME.match(path.name.removesuffix(".part"))
        if named and (path.suffix == ".part" or not (path / _MANIFEST).exists()):
            try:
                shutil.rmtree(path)
            except OSError as error:
                log.warning("%s cannot be removed now: %s", path, error)
