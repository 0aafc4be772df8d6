"""Moses bitext: two aligned plain-text files, one sentence a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.formats.text_files import TOO_LONG, iter_lines
from data_pipeline.sources import MosesSource
from hyperadapter.core.errors import DataError

__all__ = ["iter_rows"]

_END = "\n"  # no line holds it


def iter_rows(source: MosesSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields the aligned lines of two files, in the order of `source.languages`.

    Raises:
        DataError: A file is unreadable, or the files do not have the same number of lines.
    """
    where = f"source {source.name!r}"
    paths = tuple(Path(path) for path in source.paths)
    left, right = (iter_lines(path, where) for path in paths)
    count = 0
    while True:
        first, second = next(left, _END), next(right, _END)
        if _END in (first, second):
            break
        count += 1
        if first is None or second is None:
            skipped[TOO_LONG] += 1
        elif first.strip() and second.strip():
            yield first, second
        else:
            skipped["empty line"] += 1
    counts = (
        count + (first != _END) + sum(1 for _ in left),
        count + (second != _END) + sum(1 for _ in right),
    )
    if counts[0] != counts[1]:
        raise DataError(
            f"{where}: {paths[0]} has {counts[0]:,} lines but {paths[1]} has {counts[1]:,}; the "
            "two files of a moses source are aligned line by line. Check that both come from the "
            "same release and are complete"
        )
