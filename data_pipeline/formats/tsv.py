"""Tab-separated bitext: two columns of one file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.formats.text_files import TOO_LONG, BadLines, iter_lines
from data_pipeline.sources import TsvSource

__all__ = ["iter_rows"]


def iter_rows(source: TsvSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields two columns of a tab-separated file, in the order of `source.languages`.

    A few lines without the columns are skipped and counted.

    Raises:
        DataError: The file is unreadable, or more than one line in a hundred lacks a column.
    """
    path = Path(source.path)
    where = f"source {source.name!r}"
    first, second = source.columns
    num_needed = max(first, second) + 1
    bad = BadLines(
        where,
        f"have fewer than {num_needed} tab-separated columns",
        f"Correct the file, or `columns` {list(source.columns)} (counted from 0)",
    )
    count = 0
    for count, line in enumerate(iter_lines(path, where), 1):
        if line is None:
            skipped[TOO_LONG] += 1
            continue
        fields = line.split("\t")
        if not line.strip():
            skipped["empty line"] += 1
        elif len(fields) < num_needed:
            skipped["too few columns"] += 1
            bad.add(count, f"{path}:{count} has {len(fields)}")
        elif fields[first].strip() and fields[second].strip():
            yield fields[first], fields[second]
        else:
            skipped["empty line"] += 1
    bad.check(count)
