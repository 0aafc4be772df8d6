"""Files that are either whole or absent: written beside, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hyperadapter.core.errors import DataError, DiskFullError

__all__ = [
    "atomic_directory",
    "atomic_open",
    "locked",
    "read_json",
    "require_space",
    "resumable_directory",
    "sha256_file",
    "sync_folder",
    "translate_disk_full",
    "write_json",
    "write_text",
]

_PART = ".part"
_FINGERPRINT = ".fingerprint"


@contextmanager
def translate_disk_full(path: Path) -> Iterator[None]:
    """Turns ENOSPC and EDQUOT into a `DiskFullError` that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(
            f"no space left on the disk while writing {path}; nothing half-written was kept. "
            "Free some space (or choose another run folder) and run the same command again"
        ) from error


@contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file beside `path` and renames it to `path` when the block ends without error.

    Args:
        path: The final name; its folder is made.
        mode: `w` (UTF-8 text with `\\n`) or `wb`.

    Raises:
        DiskFullError: The disk is full; the partial file has been removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}{_PART}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with translate_disk_full(path):
            with open(part, mode, **text) as stream:  # type: ignore[call-overload]
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty folder beside `path` that becomes `path` when the block ends without error.

    Its files are flushed to disk first. An older folder at `path` is replaced. Left-overs of a
    killed process are removed.

    Raises:
        DiskFullError: The disk is full; the partial folder has been removed.
    """
    part = path.with_name(path.name + _PART)
    shutil.rmtree(part, ignore_errors=True)
    with translate_disk_full(path):
        part.mkdir(parents=True)
        try:
            yield part
            _flush_files(part)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)


@contextmanager
def resumable_directory(path: Path, fingerprint: str) -> Iterator[Path]:
    """As `atomic_directory`, but keeps what an interrupted call with the same fingerprint left.

    Who writes in it must make single files with `atomic_open` and look for those that exist. Ending
    without error gives the folder its name; an error leaves it beside, for the next call.

    Args:
        path: The final name.
        fingerprint: Identifies what the folder is made from; left-overs of another are removed.

    Raises:
        DiskFullError: The disk is full; what was finished stays.
    """
    part = path.with_name(path.name + _PART)
    mark = part / _FINGERPRINT
    if not mark.is_file() or mark.read_text(encoding="utf-8") != fingerprint:
        shutil.rmtree(part, ignore_errors=True)
    with translate_disk_full(path):
        part.mkdir(parents=True, exist_ok=True)
        write_text(mark, fingerprint)
        yield part
        _flush_files(part)
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
        (path / _FINGERPRINT).unlink()  # only now: a kill before would throw the work away


def _flush_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Holds a folder, which is made, against other processes of this machine that hold it too.

    Yields:
        False if another process holds it. A process that is killed lets go by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_text(path: Path, text: str) -> None:
    """Writes `text` atomically."""
    with atomic_open(path) as stream:
        stream.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not valid JSON ({error}); delete it and make it anew"
        ) from error


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_space(folder: Path, num_bytes: int, purpose: str) -> None:
    """Checks that a folder's disk has room before anything is written.

    Raises:
        DiskFullError: Fewer than `num_bytes` bytes are free.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise DiskFullError(
            f"{purpose} needs {num_bytes / 1e6:.1f} MB but {folder} has {free / 1e6:.1f} MB free; "
            "free some space or choose another folder"
        )
