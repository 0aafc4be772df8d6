"""Debian packages (`.deb`) as a source of text, read without dpkg.

A `.deb` is an `ar` archive that holds a compressed tar. The members that a format reads go into one
zip file: a hundred thousand small files would be slow on any cluster's file system.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast
from urllib.parse import unquote

from data_pipeline.formats.container import ZIP_DAMAGE
from hyperadapter.core.errors import DataError, FetchError
from hyperadapter.core.files import atomic_open

__all__ = ["UnpackJob", "deb_name", "find_deb", "is_unpacked", "iter_members", "unpack"]

# The members of a package that each format reads.
_MEMBERS = {
    "gettext": re.compile(r"\.(?:mo|po)$|(?:^|/)locales\.zip$"),
    "mediawiki": re.compile(r"(?:^|/)i18n/.+\.json$"),
    "libreoffice_help": re.compile(r"/help/[^/]+/text/.+\.html$"),
    "mallard": re.compile(r"/help/[^/]+/.+\.(?:page|xml)$"),
    "ddtp": re.compile(r"(?:^|/)Translation-[^/]+$"),
}
# calibre keeps its catalogs in locales.zip, as LANGUAGE/messages.mo.
_ZIPPED_CATALOG = re.compile(r"(?P<code>[^/]+)/(?P<file>[^/]+\.(?:mo|po))")

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60


def deb_name(name: str) -> tuple[str, str]:
    """Returns package and version from a file name: `vlc_1%3a3.0-1_all.deb` is vlc 1:3.0-1."""
    package, _, rest = name.removesuffix(".deb").partition("_")
    return package, unquote(rest.rpartition("_")[0])


def find_deb(folder: Path, package: str) -> Path | None:
    """Returns the file of a package in a folder, or None.

    Raises:
        FetchError: There are several.
    """
    found = sorted(folder.glob(f"{package}_*.deb"))
    if len(found) > 1:
        raise FetchError(
            f"{folder} has {len(found)} files of the package {package}: "
            f"{', '.join(path.name for path in found)}; keep one and delete the others"
        )
    return found[0] if found else None


class _Window(io.RawIOBase):
    """A part of an open file, read from its start to its end."""

    def __init__(self, stream: IO[bytes], num_bytes: int) -> None:
        self._stream = stream
        self._left = num_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")[: self._left]
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._left -= len(data)
        return len(data)


def iter_members(deb: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the files in a package whose name a pattern finds.

    Links are left out: they only give a file that is there another name.

    Raises:
        DataError: The file is not a whole `.deb` archive, or a name leads out of its folder.
    """
    try:
        with open(deb, "rb") as stream:
            suffix, num_bytes = _find_data(stream, deb.stat().st_size)
            plain = _decompressed(io.BufferedReader(_Window(stream, num_bytes)), suffix)
            with plain, tarfile.open(fileobj=plain, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not member.isfile() or not wanted.search(name):
                        continue
                    if name.startswith("/") or ".." in name.split("/"):
                        raise ValueError(f"the name of its member {name!r} leads out of its folder")
                    yield name, cast(IO[bytes], archive.extractfile(member)).read()
                while plain.read(io.DEFAULT_BUFFER_SIZE):
                    pass  # the checksum of the compressed data stands behind the end of the tar
    except (OSError, ValueError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"{deb} is not a whole Debian package ({error}); delete it and fetch it again"
        ) from error


def _find_data(stream: IO[bytes], file_bytes: int) -> tuple[str, int]:
    """Goes to the first byte of `data.tar.*` in an `ar` archive; returns its suffix and size."""
    if stream.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError("it does not begin as an ar archive does")
    while header := stream.read(_AR_HEADER_BYTES):
        if len(header) < _AR_HEADER_BYTES or header[58:] != b"`\n":
            raise ValueError(f"damaged or cut off before byte {stream.tell()}")
        name = header[:16].decode("ascii", "replace").rstrip().removesuffix("/")
        if not header[48:58].strip().isdigit():
            raise ValueError(f"the size of its member {name!r} is no number")
        num_bytes = int(header[48:58])
        if stream.tell() + num_bytes > file_bytes:
            raise ValueError(f"cut off in its member {name!r}")
        if name.startswith("data.tar"):
            return name.removeprefix("data.tar"), num_bytes
        stream.seek(num_bytes + num_bytes % 2, io.SEEK_CUR)
    raise ValueError("it has no member data.tar")


def _decompressed(stream: io.BufferedReader, suffix: str) -> IO[bytes]:
    if suffix == ".xz":
        return lzma.open(stream)
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(stream))
    if suffix == ".zst":
        import pyarrow as pa  # heavy; the zstandard package takes a cut stream for a whole one

        return cast(IO[bytes], pa.CompressedInputStream(stream, "zstd"))
    raise ValueError(f"data.tar{suffix} has a compression other than .xz, .gz and .zst")


class UnpackJob(NamedTuple):
    """A package, its checksum, the format of its text, and the zip file to write."""

    deb: Path
    sha256: str
    format: str
    target: Path


def unpack(job: UnpackJob) -> int:
    """Writes the members of a package that a format reads into a zip file.

    Returns:
        How many there are.

    Raises:
        DataError: The package is damaged, or the name of a member leads out of its folder.
    """
    count = 0
    with (
        atomic_open(job.target, "wb") as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as output,
    ):
        for member, content in iter_members(job.deb, _MEMBERS[job.format]):
            for name, data in _parts(member, content, job.deb):
                output.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 1)
                count += 1
        output.comment = _mark(job)
    return count


def _parts(name: str, content: bytes, deb: Path) -> Iterator[tuple[str, bytes]]:
    """Yields a member, or the catalogs in one that is a zip archive, where gettext has them."""
    if not name.endswith(".zip"):
        yield name, content
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for inner in sorted(archive.namelist()):
                if match := _ZIPPED_CATALOG.fullmatch(inner):
                    folder = f"{name.removesuffix('.zip')}/{match['code']}/LC_MESSAGES"
                    yield f"{folder}/{match['file']}", archive.read(inner)
    except ZIP_DAMAGE as error:
        raise DataError(f"{deb}: its member {name} is no readable zip archive: {error}") from error


def _mark(job: UnpackJob) -> bytes:
    """Returns what tells a zip file from one of another package or of other members."""
    mark = {"deb_sha256": job.sha256, "members": _MEMBERS[job.format].pattern}
    return json.dumps(mark, sort_keys=True).encode()


def is_unpacked(job: UnpackJob) -> bool:
    """Tells whether the zip file of a job is there, made from the same package in the same way."""
    try:
        with zipfile.ZipFile(job.target) as archive:
            return archive.comment == _mark(job)
    except (OSError, zipfile.BadZipFile):
        return False
