"""Deduplication: one target per text of side a in a language pair.

The most frequent target wins; of equally frequent ones, the first in reading order, so that the
sources' order in the configuration decides. Frequencies count over all sources.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_pipeline.cleaning.spill import Row

__all__ = ["DUPLICATE", "OTHER_TARGET", "Deduplicated", "deduplicate"]

DUPLICATE = "duplicate"
OTHER_TARGET = "another target preferred"


@dataclass(slots=True)
class Deduplicated:
    """What is left, in reading order, and why the rest is not, by number of source and reason."""

    rows: list[Row] = field(default_factory=list)
    dropped: defaultdict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def deduplicate(rows: Iterable[Row]) -> Deduplicated:
    """Keeps one row for each text of side a.

    Args:
        rows: In reading order; with a text, all rows that have it.

    Returns:
        The kept rows, each from the source that had it first, in the order of those first
        appearances, and the counts of the others.
    """
    rows = list(rows)
    frequency = Counter((row.a, row.b) for row in rows)
    best: dict[str, str] = {}
    for a, b in frequency:  # in the order of first appearance
        if a not in best or frequency[a, b] > frequency[a, best[a]]:
            best[a] = b
    result = Deduplicated()
    kept: set[str] = set()
    for row in rows:
        if best[row.a] != row.b:
            result.dropped[row.source][OTHER_TARGET] += 1
        elif row.a in kept:
            result.dropped[row.source][DUPLICATE] += 1
        else:
            kept.add(row.a)
            result.rows.append(row)
    return result
