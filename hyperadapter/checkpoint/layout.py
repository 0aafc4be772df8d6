"""Where checkpoints lie, and which of them exist.

    RUN_DIR/checkpoints/step-00000100/
        state/...              sharded optimizer state, one part per rank
        weights.safetensors    the whole model in fp32
        manifest.json          step, world, and size and checksum of every file; comes last

A checkpoint without a manifest does not exist: it is written as `step-00000100.part` and renamed.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from hyperadapter.core.errors import CheckpointError, ConfigError, DataError
from hyperadapter.core.files import read_json, sha256_file, write_json
from hyperadapter.core.schema import StrictModel, parse_config

__all__ = [
    "WEIGHTS_FILE",
    "CheckpointManifest",
    "FileRecord",
    "checkpoint_folder",
    "commit",
    "complete_checkpoints",
    "new_part_folder",
    "newest_checkpoint",
    "prune",
    "read_manifest",
    "removed_on_failure",
    "verify",
]

WEIGHTS_FILE = "weights.safetensors"
_MANIFEST = "manifest.json"
_FULL_BYTES = 1_000_000
_NAME = re.compile(r"^step-(\d{8,})$")


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


def checkpoint_folder(run_dir: Path, step: int) -> Path:
    """Returns the folder of the checkpoint after `step` optimizer steps."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def new_part_folder(run_dir: Path, step: int) -> Path:
    """Makes the folder that a checkpoint is written to before it exists."""
    part = checkpoint_folder(run_dir, step).with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


@contextmanager
def removed_on_failure(part: Path) -> Iterator[None]:
    """Removes a part folder if the block fails, and names a full disk that torch does not name.

    torch writes archives in C++ and reports a full disk as a RuntimeError.

    Raises:
        OSError: ENOSPC where torch raised a RuntimeError and the disk is full.
    """
    try:
        yield
    except BaseException as error:
        full = part.exists() and shutil.disk_usage(part).free < _FULL_BYTES
        shutil.rmtree(part, ignore_errors=True)
        if full and isinstance(error, RuntimeError):
            raise OSError(errno.ENOSPC, "the disk is full", str(part)) from error
        raise


def commit(part: Path, *, step: int, values: Mapping[str, str | int]) -> Path:
    """Writes the manifest of a part folder and gives the folder its final name.

    Args:
        part: From `new_part_folder`, with all files in it.
        step: Optimizer steps done.
        values: The manifest's fingerprint, world_size, zero_stage, precision and data.
    """
    files = {
        str(path.relative_to(part)): FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }
    record = {name: file.model_dump() for name, file in files.items()}
    write_json(part / _MANIFEST, {"step": step, **values, "files": record})
    final = part.with_suffix("")
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
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


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """Reads a checkpoint's manifest.

    Raises:
        CheckpointError: It is missing or is not a manifest.
    """
    path = checkpoint / _MANIFEST
    try:
        return parse_config(CheckpointManifest, read_json(path), str(path))
    except (DataError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint} is not a whole checkpoint: {error}") from error


def verify(checkpoint: Path) -> CheckpointManifest:
    """Checks size and checksum of every file.

    Raises:
        CheckpointError: A file is missing or differs; the message names it.
    """
    manifest = read_manifest(checkpoint)
    remedy = f"delete {checkpoint} to go on from the checkpoint before it"
    for name, record in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise CheckpointError(f"the checkpoint's file {path} is missing; {remedy}")
        if path.stat().st_size != record.bytes:
            raise CheckpointError(
                f"the checkpoint's file {path} has {path.stat().st_size} bytes instead of "
                f"{record.bytes}; {remedy}"
            )
        if sha256_file(path) != record.sha256:
            raise CheckpointError(f"the checkpoint's file {path} has a wrong checksum; {remedy}")
    return manifest


def prune(run_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` complete checkpoints, and left-over parts."""
    for _, path in complete_checkpoints(run_dir)[:-keep]:
        # Without its manifest the checkpoint is gone at once, even if this is interrupted.
        (path / _MANIFEST).unlink()
        shutil.rmtree(path)
    for part in (run_dir / "checkpoints").glob("step-*.part"):
        shutil.rmtree(part, ignore_errors=True)
