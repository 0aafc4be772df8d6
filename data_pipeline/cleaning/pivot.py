"""Language pairs that no source has, joined where two pairs with the pivot share the pivot's text.

German-French comes from English-German and English-French, from the pairs with the same English.
All files of the clean corpus are in the order of a hash of side a (`order_of`), which is the pivot
here, so two files are joined by reading both once, side by side.

The first `max_pairs` of train are kept: those with the smallest hashes of the pivot's text, which
are the same texts in every language pair that has them. Reading ends there; what comes after is not
counted as read. Validation and test text stay what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.bitext import SPLITS, Split
from data_pipeline.cleaning.pair_corpus import PairWork, SpillRecord, unmarked_path
from data_pipeline.cleaning.reasons import Reason
from data_pipeline.cleaning.spill import Row, open_spill
from data_pipeline.cleaning.split import order_of
from hyperadapter.core.files import write_text

__all__ = ["PivotTask", "iter_joined", "pivot_source", "spill_joined"]


@dataclass(frozen=True, slots=True)
class PivotTask:
    """A pivoted language pair.

    Attributes:
        work: The pair; its one source is `pivot_source`.
        corpus: The clean corpus with both pairs that have the pivot.
    """

    work: PairWork
    corpus: Path

    @property
    def path(self) -> Path:
        """The spill."""
        return self.work.folder / "joined.spill"


def pivot_source(pivot: str) -> str:
    """Returns the name that joined pairs have in place of a source's."""
    return f"via {pivot}"


def spill_joined(task: PivotTask) -> SpillRecord:
    """Joins a language pair and spills the rows."""
    path = task.path.with_suffix(".json")
    if path.exists():
        return SpillRecord.model_validate_json(path.read_text(encoding="utf-8"))
    config = task.work.config
    assert config.pivoted is not None
    dropped: Counter[str] = Counter()
    num_rows = 0
    with open_spill(task.path, config.split.seed) as spill:
        for split in SPLITS:
            num_left = config.pivoted.max_pairs if split == "train" else None
            for a, b in _joined_split(task, split):
                if num_left == 0:
                    break
                if a.casefold() == b.casefold():
                    dropped[Reason.EQUAL.value] += 1
                    continue
                spill.add(Row(0, num_rows, split, a, b))
                num_rows += 1
                num_left = None if num_left is None else num_left - 1
    name = task.work.sources[0]
    record = SpillRecord(num_rows={name: num_rows}, dropped={name: dict(dropped)})
    write_text(path, record.model_dump_json())
    return record


def _joined_split(task: PivotTask, split: Split) -> Iterator[tuple[str, str]]:
    config = task.work.config
    paths = [unmarked_path(task.corpus, split, (config.pivot, code)) for code in task.work.pair]
    return iter_joined(paths[0], paths[1], config.split.seed)


def iter_joined(path_a: Path, path_b: Path, seed: int) -> Iterator[tuple[str, str]]:
    """Yields side b of two files where side a is the same.

    Args:
        path_a: A file of the clean corpus; its side b is yielded first.
        path_b: Another one; no text is side a twice in either.
        seed: Salt of the order of both files.
    """
    rows_a, rows_b = _iter_rows(path_a, seed), _iter_rows(path_b, seed)
    one, other = next(rows_a, None), next(rows_b, None)
    while one is not None and other is not None:
        if one[0] == other[0]:
            yield one[1], other[1]
            one, other = next(rows_a, None), next(rows_b, None)
        elif one[0] < other[0]:
            one = next(rows_a, None)
        else:
            other = next(rows_b, None)


def _iter_rows(path: Path, seed: int) -> Iterator[tuple[tuple[int, str], str]]:
    """Yields the place in the order, with side a, and side b of each line."""
    with open(path, encoding="utf-8", newline="\n") as stream:
        for line in stream:
            _, a, b = line.rstrip("\n").split("\t")
            yield (order_of(a, seed), a), b
