"""Files of UTF-8 lines, plain or compressed: `.gz`, `.xz` and `.zst`, by the end of the name."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from hyperadapter.core.errors import DataError

__all__ = ["TOO_LONG", "BadLines", "iter_lines", "open_binary"]

# A file with a larger share of bad lines is not what the user thinks. So many bad ones are enough
# to say so before the end of a long file.
_MAX_BAD_SHARE = 0.01
_EARLY_BAD_LINES = 1_000

# No sentence is as long as this; a file without line ends must not fill the memory.
_MAX_LINE_BYTES = 1_000_000
TOO_LONG = "line too long"


@contextmanager
def open_binary(path: Path, where: str) -> Iterator[BinaryIO]:
    """Opens a file for reading, decompressed, and explains what goes wrong while it is read.

    Args:
        path: The file.
        where: What named the file, for errors, such as "source 'opus'".

    Raises:
        DataError: The file is missing, unreadable, or not a whole compressed file.
    """
    try:
        with _open(path) as stream:
            yield stream
    except FileNotFoundError as error:
        raise DataError(f"{where}: the file {path} does not exist; correct the path") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # how Arrow reports damage
            raise _damaged(path, error) from error
        raise DataError(f"{where}: {path} cannot be read: {error.strerror}") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path))
    if path.suffix == ".zst":
        import pyarrow as pa  # heavy; the zstandard package takes a cut file for a whole one

        with open(path, "rb"):  # Arrow's errors have no errno
            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} is not a whole {path.suffix} file ({error}); copy it again, or rename it if it is "
        "not compressed"
    )


def iter_lines(path: Path, where: str) -> Iterator[str | None]:
    """Yields the lines of a UTF-8 file without their ends.

    Lines end at `\\n` only: other separators of Unicode are text, as for `wc` and Moses. None
    stands for a line of a megabyte or more, which callers count as `TOO_LONG`.

    Raises:
        DataError: The file is missing, unreadable, damaged, or not UTF-8.
    """
    number = 0
    with open_binary(path, where) as stream:
        try:
            while line := stream.readline(_MAX_LINE_BYTES):
                number += 1
                if len(line) < _MAX_LINE_BYTES or line.endswith(b"\n"):
                    yield line.decode("utf-8").rstrip("\r\n")
                    continue
                while line and not line.endswith(b"\n"):
                    line = stream.readline(_MAX_LINE_BYTES)
                yield None
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number} is not UTF-8: byte 0x{error.object[error.start]:02x} at position "
                f"{error.start} of the line ({error.reason}). Convert the file, for instance with "
                f"iconv -f latin1 -t utf-8"
            ) from error


class BadLines:
    """Counts lines without what is read from them; a few are skipped, many are an error.

    Args:
        where: What named the file, for errors.
        lack: What is wrong with the lines, such as "have fewer than 2 columns".
        remedy: What the user can do.
    """

    def __init__(self, where: str, lack: str, remedy: str) -> None:
        self._where = where
        self._lack = lack
        self._remedy = remedy
        self._first = ""
        self._count = 0

    def add(self, num_lines: int, description: str) -> None:
        """Counts one more of `num_lines` lines; the first one's description goes in the error.

        Raises:
            DataError: There are so many already that the file cannot be right.
        """
        self._first = self._first or description
        self._count += 1
        if self._count >= _EARLY_BAD_LINES:
            self.check(num_lines)

    def check(self, num_lines: int) -> None:
        """Judges a file at its end.

        Raises:
            DataError: More than one line in a hundred is bad.
        """
        if self._count > num_lines * _MAX_BAD_SHARE:
            raise DataError(
                f"{self._where}: {self._count:,} of {num_lines:,} lines {self._lack}; the first, "
                f"{self._first}. {self._remedy}"
            )
