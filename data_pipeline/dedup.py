"""Deduplication: one target per text of side a in a language pair.

The most frequent target wins; of equally frequent ones, the first in reading order, so that the
sources' order in the configuration decides. Frequencies count over all sources.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from data_pipeline.bitext import SentencePair

__all__ = ["DUPLICATE", "OTHER_TARGET", "Deduplicated", "deduplicate"]

DUPLICATE = "duplicate"
OTHER_TARGET = "another target preferred"


@dataclass(slots=True)
class Deduplicated:
    """What is left, in reading order, and why the rest is not, by source and reason."""

    pairs: list[SentencePair] = field(default_factory=list)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)


def deduplicate(pairs: Iterable[SentencePair]) -> Deduplicated:
    """Keeps one pair for each text of side a.

    Returns:
        The kept pairs, each from the source that had it first, in the order of those first
        appearances, and the counts of the others.
    """
    pairs = list(pairs)
    frequency = Counter((pair.a, pair.b) for pair in pairs)
    best: dict[str, str] = {}
    for a, b in frequency:  # in the order of first appearance
        if a not in best or frequency[a, b] > frequency[a, best[a]]:
            best[a] = b
    result = Deduplicated()
    kept: set[str] = set()
    for pair in pairs:
        if best[pair.a] == pair.b and pair.a not in kept:
            kept.add(pair.a)
            result.pairs.append(pair)
        else:
            reason = DUPLICATE if best[pair.a] == pair.b else OTHER_TARGET
            result.dropped.setdefault(pair.source, Counter())[reason] += 1
    return result
