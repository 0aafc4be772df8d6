"""Plain bitext: Moses (two aligned files) and TSV (two columns of one file), also with gzip."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.config import MosesSource, TsvSource
from hyperadapter.core.errors import DataError

__all__ = ["iter_moses_rows", "iter_tsv_rows"]

# More lines than this share without the columns means that the file is not what the user thinks.
_MAX_BAD_LINES = 0.01


def _iter_lines(path: Path, where: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 file without their ends.

    Lines end at `\\n` only: other separators of Unicode are text, as for `wc` and Moses.

    Raises:
        DataError: The file is missing, unreadable, damaged, or not UTF-8.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as stream:
            for line in stream:
                number += 1
                yield line.decode("utf-8").rstrip("\r\n")
    except FileNotFoundError as error:
        raise DataError(f"{where}: the file {path} does not exist; correct the path") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number} is not UTF-8: byte 0x{error.object[error.start]:02x} at position "
            f"{error.start} of the line ({error.reason}). Convert the file, for instance with "
            f"iconv -f latin1 -t utf-8"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not a whole gzip file ({error}) after line {number}; copy it again, or "
            "rename it if it is not compressed"
        ) from error
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror or error}") from error


def iter_moses_rows(source: MosesSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields the aligned lines of two files, in the order of `source.languages`.

    Raises:
        DataError: A file is unreadable, or the files do not have the same number of lines.
    """
    where = f"source {source.name!r}"
    paths = tuple(Path(path) for path in source.paths)
    left, right = (_iter_lines(path, where) for path in paths)
    count = 0
    while True:
        first, second = next(left, None), next(right, None)
        if first is None or second is None:
            break
        count += 1
        if first.strip() and second.strip():
            yield first, second
        else:
            skipped["empty line"] += 1
    counts = (
        count + (first is not None) + sum(1 for _ in left),
        count + (second is not None) + sum(1 for _ in right),
    )
    if counts[0] != counts[1]:
        raise DataError(
            f"{where}: {paths[0]} has {counts[0]:,} lines but {paths[1]} has {counts[1]:,}; the "
            "two files of a moses source are aligned line by line. Check that both come from the "
            "same release and are complete"
        )


def iter_tsv_rows(source: TsvSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields two columns of a tab-separated file, in the order of `source.languages`.

    A few lines without the columns are skipped and counted.

    Raises:
        DataError: The file is unreadable, or more than one line in a hundred lacks a column.
    """
    path = Path(source.path)
    first, second = source.columns
    num_needed = max(first, second) + 1
    count = num_bad = 0
    first_bad = ""
    for count, line in enumerate(_iter_lines(path, f"source {source.name!r}"), 1):
        fields = line.split("\t")
        if not line.strip():
            skipped["empty line"] += 1
        elif len(fields) < num_needed:
            num_bad += 1
            first_bad = first_bad or f"{path}:{count} has {len(fields)}"
            skipped["too few columns"] += 1
        elif fields[first].strip() and fields[second].strip():
            yield fields[first], fields[second]
        else:
            skipped["empty line"] += 1
    if num_bad > count * _MAX_BAD_LINES:
        raise DataError(
            f"source {source.name!r}: {num_bad:,} of {count:,} lines have fewer than {num_needed} "
            f"tab-separated columns; the first, {first_bad}. Correct the file, or `columns` "
            f"{list(source.columns)} (counted from 0)"
        )
