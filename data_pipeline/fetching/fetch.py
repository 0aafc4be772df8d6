"""Brings the sources together: wheels by pip, packages by apt, all else where it lies.

Nothing is installed. What is in `raw/` already is used without any network, so that a machine
without one needs no more than the files placed there by hand. Checksums of wheels come from the
configuration and those of packages from apt's signed index; files of the user are only
fingerprinted, so that the clean corpus is made anew when they change.

    raw/*.whl                 wheels
    raw/debs/*.deb            packages; raw/unpacked/*.zip the members that their format reads
    raw/ddtp/Translation-*    apt's lists of package descriptions
    raw/apt/                  apt's own files, while packages are missing
    raw/fetch.json            the manifest, written last

pip has no programming interface and apt's is not on every machine, so this is the one module
outside `cluster/` that starts a program.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.config import DataConfig
from data_pipeline.fetching.apt import Apt, AptFile, Outcome
from data_pipeline.fetching.debian import UnpackJob, deb_name, find_deb, is_unpacked, unpack
from data_pipeline.fetching.fetch_manifest import (
    FetchManifest,
    SourceFile,
    SourcePath,
    describe,
    read_manifest,
)
from data_pipeline.progress import track
from data_pipeline.sources import CatalogSource, SourceConfig, TmxSource, TsvSource, Wheel
from data_pipeline.workers import parallel_map
from hyperadapter.core.errors import DataError, FetchError
from hyperadapter.core.files import atomic_directory, require_space, write_text

__all__ = [
    "FetchManifest",
    "SourceFile",
    "fetch",
    "raw_folder",
    "read_fetch_manifest",
    "roots_of",
]

log = logging.getLogger(__name__)

_PIP_TIMEOUT_S = 900
_APT_TIMEOUT_S = 3600
_MANIFEST = "fetch.json"
_WHEEL_BYTES = 200_000_000  # a wheel's size is not known beforehand; the largest here has 40 MB
_APT_LISTS_BYTES = 500_000_000  # Debian 12: 180 MB, and 140 MB for the copy of the translations
_APT_BATCH = 8  # packages a call: each call reads the index first
_RELEASE = "release.txt"


def raw_folder(config: DataConfig) -> Path:
    """Returns the folder of the downloads."""
    return Path(config.folder) / "raw"


def fetch(config: DataConfig) -> FetchManifest:
    """Downloads what is missing, checks what is there and unpacks Debian packages.

    A call that is interrupted is taken up by the next one; finished files are not fetched again.

    Returns:
        The manifest, which is also written to `raw/fetch.json`.

    Raises:
        FetchError: A download failed or has the wrong checksum.
        DataError: A file of the user does not exist, or a package is damaged.
        DiskFullError: There is no room for the files.
    """
    raw = raw_folder(config)
    catalogs = [source for source in config.sources if isinstance(source, CatalogSource)]
    _fetch_wheels(catalogs, raw)
    _fetch_debs(list(dict.fromkeys(name for source in catalogs for name in source.debs)), raw)
    if any(source.apt_translations for source in catalogs):
        _fetch_translations(raw)
    shutil.rmtree(raw / "apt", ignore_errors=True)
    path = raw / _MANIFEST
    items = [item for source in config.sources for item in _items_of(source, raw)]
    manifest = describe(items, read_manifest(path), config.num_workers)
    _check_wheels(catalogs, manifest)
    _unpack_all(catalogs, raw, manifest, config.num_workers)
    text = manifest.model_dump_json(indent=2) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return manifest


def roots_of(source: CatalogSource, config: DataConfig) -> tuple[Path, ...]:
    """Returns what the reader of a source's format reads.

    Returns:
        Wheels, zip files with what was unpacked from packages, the folder of apt's lists, or files
        and folders of the user.

    Raises:
        DataError: The source has not been fetched.
    """
    raw = raw_folder(config)
    roots = [raw / "ddtp"] if source.apt_translations else []
    for item in _items_of(source, raw):
        if item.path.suffix == ".deb":
            roots.append(_unpacked_path(raw, item.path, source.format))
        elif not source.apt_translations:
            roots.append(item.path)
    if len(roots) < max(1, len(source.debs)) or not all(root.exists() for root in roots):
        raise DataError(f"the files of {source.name} are not in {raw}; fetch the sources first")
    return tuple(roots)


def read_fetch_manifest(config: DataConfig) -> FetchManifest | None:
    """Returns what was fetched the last time, or None if there is no record of it."""
    manifest = read_manifest(raw_folder(config) / _MANIFEST)
    return manifest if manifest.files else None


def _items_of(source: SourceConfig, raw: Path) -> list[SourcePath]:
    """Returns the files of a source that are there, and those of the user whether or not."""
    if not isinstance(source, CatalogSource):
        paths = (source.path,) if isinstance(source, TsvSource | TmxSource) else source.paths
        return [SourcePath(source.name, Path(path)) for path in paths]
    if source.wheel is not None:
        wheel = _find_wheel(raw, source.wheel)
        named = (source.wheel.package, source.wheel.version)
        return [SourcePath(source.name, wheel, *named)] if wheel else []
    if source.debs:
        debs = [find_deb(raw / "debs", package) for package in source.debs]
        return [SourcePath(source.name, deb, *deb_name(deb.name)) for deb in debs if deb]
    if source.apt_translations:
        lists = sorted((raw / "ddtp").glob("Translation-*"))
        release = raw / "ddtp" / _RELEASE
        version = release.read_text(encoding="utf-8").strip() if release.exists() else ""
        return [SourcePath(source.name, path, path.stem, version) for path in lists]
    return [SourcePath(source.name, Path(path)) for path in source.paths]


def _run(argv: Sequence[str], folder: Path, timeout_s: float = _APT_TIMEOUT_S) -> Outcome:
    """Runs a program in a folder.

    Raises:
        FetchError: It is not on this machine, or does not end.
    """
    program = argv[2] if argv[1] == "-m" else argv[0]
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=os.environ | {"LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise FetchError(f"{program} is not on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{program} did not finish within {timeout_s} s") from error
    return Outcome(done.returncode, done.stdout, done.stderr)


# ---------------------------------------------------------------------------------------- wheels


def _wheel_pattern(wheel: Wheel) -> str:
    """Returns the glob pattern of a wheel's file name, which ends in tags not known beforehand."""
    name = re.sub(r"[-_.]+", "_", wheel.package)
    return f"{name}-{wheel.version}-*.whl"


def _find_wheel(folder: Path, wheel: Wheel) -> Path | None:
    matches = sorted(folder.glob(_wheel_pattern(wheel)))
    return matches[0] if matches else None


def _fetch_wheels(catalogs: Sequence[CatalogSource], raw: Path) -> None:
    wheels = {source.name: source.wheel for source in catalogs if source.wheel}
    missing = {name: wheel for name, wheel in wheels.items() if _find_wheel(raw, wheel) is None}
    if not missing:
        return
    require_space(raw, _WHEEL_BYTES * len(missing), "downloading the sources")
    raw.mkdir(parents=True, exist_ok=True)
    failed: dict[str, FetchError] = {}
    for name, wheel in track(missing.items(), len(missing), "downloading wheels"):
        try:
            _download_wheel(wheel, raw)
        except FetchError as error:
            failed[name] = error
    if failed:
        lines = [
            f"\n  {raw / _wheel_pattern(missing[name])} with SHA-256 {missing[name].sha256}"
            for name in failed
        ]
        problems = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise FetchError(
            f"{len(failed)} of {len(missing)} downloads failed ({problems}). Try again, or place "
            f"these files by hand; a file with the right checksum is used without any network:"
            + "".join(lines)
        )


def _download_wheel(wheel: Wheel, raw: Path) -> None:
    requirement = f"{wheel.package}=={wheel.version}"
    log.info("downloading %s", requirement)
    with tempfile.TemporaryDirectory(dir=raw, prefix="download-") as folder:
        argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        argv += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
        argv += ["--progress-bar=off", "--dest", ".", requirement]
        done = _run(argv, Path(folder), _PIP_TIMEOUT_S)
        if done.code:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise FetchError(errors[-1] if errors else f"pip ended with {done.code}")
        found = _find_wheel(Path(folder), wheel)
        if found is None:
            raise FetchError(f"pip brought no file named {_wheel_pattern(wheel)}")
        os.replace(found, raw / found.name)


def _check_wheels(catalogs: Sequence[CatalogSource], manifest: FetchManifest) -> None:
    wheels = {source.name: source.wheel for source in catalogs if source.wheel}
    for file in manifest.files:
        wheel = wheels.get(file.source)
        if wheel and file.sha256 != wheel.sha256:
            raise FetchError(
                f"{file.path} has the SHA-256 {file.sha256}, but source {file.source!r} asks for "
                f"{wheel.sha256}. Delete the file and fetch again; if the sums still differ, the "
                "package index serves another file than the configuration was written for"
            )


# -------------------------------------------------------------------------------- Debian packages


def _fetch_debs(packages: Sequence[str], raw: Path) -> None:
    debs = raw / "debs"
    missing = [package for package in packages if find_deb(debs, package) is None]
    if not missing:
        return
    require_space(raw, _APT_LISTS_BYTES, "apt's index")
    debs.mkdir(parents=True, exist_ok=True)
    apt = Apt(raw / "apt", _run)
    try:
        files = apt.files(missing)
        num_bytes = sum(file.num_bytes for file in files)
        require_space(raw, num_bytes, "downloading packages")
        log.info("downloading %d packages, %.0f MB", len(files), num_bytes / 1e6)
        for _ in track(_download_debs(apt, files, debs), len(files), "downloading packages"):
            pass
    except FetchError as error:
        lost = [package for package in missing if find_deb(debs, package) is None]
        raise FetchError(
            f"{error}. Try again (what has been downloaded is kept), or place these files by hand; "
            "a file that is there is used without any network:"
            + "".join(f"\n  {debs / package}_*.deb" for package in lost)
        ) from error


def _download_debs(apt: Apt, files: Sequence[AptFile], debs: Path) -> Iterator[AptFile]:
    """Downloads packages a few at a time and yields each when it has its place."""
    for start in range(0, len(files), _APT_BATCH):
        batch = files[start : start + _APT_BATCH]
        apt.download(batch)
        for file in batch:
            path = apt.archives / file.name
            with open(path, "rb") as stream:
                digest = hashlib.file_digest(stream, file.algorithm).hexdigest()
            if digest != file.digest or path.stat().st_size != file.num_bytes:
                path.unlink()
                raise FetchError(
                    f"apt-get brought {file.name} with the {file.algorithm} {digest}, but the "
                    f"archive's index says {file.digest}"
                )
            os.replace(path, debs / file.name)
            yield file


def _fetch_translations(raw: Path) -> None:
    folder = raw / "ddtp"
    if any(folder.glob("Translation-*")):
        return
    require_space(raw, _APT_LISTS_BYTES, "apt's translated package descriptions")
    log.info("downloading translated package descriptions")
    try:
        translations = Apt(raw / "apt", _run).translations()
    except FetchError as error:
        raise FetchError(
            f"{error}. Try again, or place the files Translation-* (also .xz) of the folder "
            f"main/i18n of a Debian release in {folder}, Translation-en among them"
        ) from error
    with atomic_directory(folder) as part:
        for code, path in translations.files.items():
            shutil.copyfile(path, part / f"Translation-{code}")
        write_text(part / _RELEASE, translations.release + "\n")


def _unpacked_path(raw: Path, deb: Path, format_name: str) -> Path:
    return raw / "unpacked" / f"{deb.stem}.{format_name}.zip"


def _unpack_all(
    catalogs: Sequence[CatalogSource], raw: Path, manifest: FetchManifest, workers: int
) -> None:
    formats = {source.name: source.format for source in catalogs}
    jobs: dict[Path, UnpackJob] = {}
    num_bytes: dict[Path, int] = {}
    for file in manifest.files:
        if file.source not in formats or not file.path.endswith(".deb"):
            continue
        deb, format_name = Path(file.path), formats[file.source]
        target = _unpacked_path(raw, deb, format_name)
        job = jobs.setdefault(target, UnpackJob(deb, file.sha256, format_name, target))
        if job.sha256 != file.sha256:
            raise DataError(
                f"{job.deb} and {deb} are two packages with the same file name; rename one"
            )
        num_bytes[target] = file.num_bytes
    todo = [job for job in jobs.values() if not is_unpacked(job)]
    todo.sort(key=lambda job: num_bytes[job.target], reverse=True)
    require_space(raw, 2 * sum(num_bytes[job.target] for job in todo), "unpacking")
    for job, count in parallel_map(unpack, todo, "unpacking packages", workers):
        if not count:
            log.warning("%s has no file of the format %s", job.deb, job.format)
