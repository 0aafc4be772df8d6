"""What the corpus is made from: every file of every source with its version and checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from data_pipeline.workers import parallel_map
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import sha256_file
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = ["FetchManifest", "SourceFile", "SourcePath", "describe", "read_manifest"]

_PARALLEL_BYTES = 300_000_000  # checksums of less take no longer than starting processes


class SourceFile(StrictModel):
    """One file or folder of a source. Size and time tell whether its checksum must be taken again.

    Attributes:
        package: Name of the Python or Debian package, empty for files of the user.
        mtime_ns: Of a folder, the latest time in it.
    """

    source: str
    package: str = ""
    version: str = ""
    path: str
    num_bytes: int
    mtime_ns: int
    sha256: str


class FetchManifest(StrictModel):
    """What `raw/fetch.json` says: the files that the corpus is made from."""

    files: tuple[SourceFile, ...]

    @property
    def fingerprint(self) -> str:
        """Identifies the contents, wherever the files lie and whenever they came."""
        neutral = {"package": "", "version": "", "path": "", "mtime_ns": 0}
        files = [file.model_copy(update=neutral) for file in self.files]
        return fingerprint(FetchManifest(files=tuple(files)))

    def fingerprint_of(self, source: str) -> str:
        """Identifies the contents of the source with this name."""
        files = [file for file in self.files if file.source == source]
        return FetchManifest(files=tuple(files)).fingerprint


def read_manifest(path: Path) -> FetchManifest:
    """Returns an earlier manifest, an empty one if there is none that can be read."""
    try:
        return FetchManifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError, UnicodeDecodeError):
        return FetchManifest(files=())


class SourcePath(NamedTuple):
    """A file or folder of a source, before its checksum is known."""

    source: str
    path: Path
    package: str = ""
    version: str = ""


def describe(items: Sequence[SourcePath], known: FetchManifest, workers: int) -> FetchManifest:
    """Takes the checksums of all files that are not as they were the last time.

    Args:
        items: The files and folders of all sources.
        known: The manifest of the last time.
        workers: Processes; 0 means one for each core.

    Raises:
        DataError: A file cannot be read.
    """
    stamps = {item.path: _stamp(item) for item in items}
    sums = {
        Path(file.path): file.sha256
        for file in known.files
        if stamps.get(Path(file.path)) == (file.num_bytes, file.mtime_ns)
    }
    todo = sorted((p for p in stamps if p not in sums), key=lambda p: stamps[p], reverse=True)
    if sum(stamps[path][0] for path in todo) < _PARALLEL_BYTES:
        workers = 1
    sums.update(parallel_map(_checksum, todo, "taking checksums", workers))
    files = [
        SourceFile(
            source=item.source,
            package=item.package,
            version=item.version,
            path=str(item.path),
            num_bytes=stamps[item.path][0],
            mtime_ns=stamps[item.path][1],
            sha256=sums[item.path],
        )
        for item in items
    ]
    return FetchManifest(files=tuple(files))


def _stamp(item: SourcePath) -> tuple[int, int]:
    """Returns the size and the time of a file, or the sum and the latest of a folder."""
    try:
        stat = item.path.stat()
        if not item.path.is_dir():
            return stat.st_size, stat.st_mtime_ns
        inner = [path.stat() for path in item.path.rglob("*")]  # of folders too: a file may go
        size = sum(s.st_size for s in inner)
        return size, max([stat.st_mtime_ns, *(s.st_mtime_ns for s in inner)])
    except OSError as error:
        raise DataError(
            f"source {item.source!r}: {item.path} cannot be read: {error.strerror or error}; "
            "correct the path"
        ) from error


def _checksum(path: Path) -> str:
    """Returns the SHA-256 of a file; of a folder, that of its names and their checksums."""
    try:
        if not path.is_dir():
            return sha256_file(path)
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        text = "".join(f"{sha256_file(file)} {file.relative_to(path)}\n" for file in files)
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
