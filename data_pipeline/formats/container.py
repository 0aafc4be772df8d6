"""Folders, single files and zip archives, such as wheels, as one set of named files."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from hyperadapter.core.errors import DataError

__all__ = ["ZIP_DAMAGE", "Container", "walk"]

_ARCHIVES = (".whl", ".zip")
# What zipfile raises for a damaged archive. RuntimeError: encrypted, by a flipped bit; with
# NotImplementedError, which is one, it also refuses compressions that it does not know.
ZIP_DAMAGE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Container:
    """The files of all roots of a source; a zip archive counts as a folder, also in a folder.

    A name is the whole path, so that what stands above a root can tell the language too:
    `/data/po/de.po` names German although the root is a file.

    Args:
        roots: Folders, zip archives and other files.

    Raises:
        DataError: A root does not exist or is a damaged archive.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        self._archive_of: dict[str, zipfile.ZipFile] = {}
        self._stack = ExitStack()
        names: list[str] = []
        try:
            for root in roots:
                for path in walk(root):
                    names += self._members(path) if path.endswith(_ARCHIVES) else [path]
        except BaseException:
            self._stack.close()
            raise
        self.names = tuple(sorted(names))

    def _members(self, path: str) -> list[str]:
        try:
            archive = self._stack.enter_context(zipfile.ZipFile(path))
        except ZIP_DAMAGE as error:
            raise DataError(
                f"{path} is not a readable archive ({error}); delete it and fetch it again"
            ) from error
        names = [f"{path}/{name}" for name in archive.namelist() if not name.endswith("/")]
        self._archive_of.update(dict.fromkeys(names, archive))
        return names

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, name: str) -> bytes:
        """Returns the content of one of `names`.

        Raises:
            DataError: The file is gone, unreadable, or damaged in its archive.
        """
        try:
            archive = self._archive_of.get(name)
            if archive is None:
                with open(name, "rb") as stream:
                    return stream.read()
            return archive.read(name.removeprefix(f"{archive.filename}/"))
        except ZIP_DAMAGE as error:
            raise DataError(
                f"{name} cannot be read ({error}); delete what holds it and fetch it again"
            ) from error


def walk(root: Path) -> Iterator[str]:
    """Yields the paths of the files in a folder and below, or the path of a file.

    Raises:
        DataError: The path does not exist, or a folder cannot be read.
    """
    if not root.is_dir():
        if not root.exists():
            raise DataError(f"{root} does not exist; fetch the sources, or correct the path")
        yield root.as_posix()
        return
    for folder, _, names in os.walk(root, onerror=_refuse):
        for name in names:
            yield f"{folder}/{name}"


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename} cannot be read ({error.strerror}); allow it, or correct the path"
    ) from error
