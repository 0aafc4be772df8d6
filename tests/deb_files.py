"""Debian packages for tests: an `ar` archive around a compressed tar."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ar_archive", "compress", "tar_archive", "write_deb"]


def ar_archive(members: Mapping[str, bytes]) -> bytes:
    """Packs files as `ar` does: a header of 60 bytes each, contents padded to an even length."""
    parts = [b"!<arch>\n"]
    for name, content in members.items():
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        parts += [header.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def tar_archive(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """Packs files and symbolic links (name to target) as dpkg does, with `./` before the names."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name if name.startswith("/") else f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(f"./{name}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return stream.getvalue()


def compress(content: bytes, suffix: str) -> bytes:
    """Compresses as the end of a file's name says."""
    if suffix == ".xz":
        return lzma.compress(content, preset=0)
    if suffix == ".gz":
        return gzip.compress(content, mtime=0)
    if suffix == ".zst":
        import pyarrow as pa

        return bytes(pa.compress(content, codec="zstd", asbytes=True))
    return content


def write_deb(
    path: Path,
    files: Mapping[str, bytes],
    suffix: str = ".xz",
    links: Mapping[str, str] | None = None,
) -> Path:
    """Writes a package with these files."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": b"odd",
        f"data.tar{suffix}": compress(tar_archive(files, links), suffix),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ar_archive(members))
    return path
