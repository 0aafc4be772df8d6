"""The clean corpus of one language pair, in steps that run in any process and can be taken up.

1. `spill_sources` reads and cleans a part of the raw text and spills the rows (`spill.py`).
2. `finish_buckets` deduplicates and splits the rows of a group of buckets, and drops from train
   what stands in a test set.
3. `assemble` puts the groups' files together: the pair's train and held-out text, in the order of
   `order_of`, and a record with counts and checksums, which comes last.

Each step leaves files in the pair's work folder; what is there is not done again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.bitext import (
    SPLITS,
    LanguagePair,
    SentencePair,
    Split,
    format_line,
    iter_pairs,
    split_path,
)
from data_pipeline.cleaning.clean import PairCleaner
from data_pipeline.cleaning.clean_manifest import (
    PairRecord,
    SourceCounts,
    SplitCounts,
    add_counts,
    add_splits,
)
from data_pipeline.cleaning.dedup import deduplicate
from data_pipeline.cleaning.leaks import load_leak_index
from data_pipeline.cleaning.spill import Row, SpillWriter, group_buckets, open_spill, read_buckets
from data_pipeline.cleaning.split import normalise, order_of, split_of
from data_pipeline.config import DataConfig, LeakTest
from data_pipeline.fetching.fetch import roots_of
from data_pipeline.sources import CatalogSource, SourceConfig
from data_pipeline.workers import num_processes
from hyperadapter.core.files import atomic_open, write_text
from hyperadapter.core.schema import StrictModel

__all__ = [
    "BucketTask",
    "PairWork",
    "SpillRecord",
    "SpillTask",
    "assemble",
    "bucket_tasks",
    "count_rows",
    "finish_buckets",
    "processes_for",
    "read_record",
    "record_path",
    "spill_sources",
    "unmarked_path",
]

_HELD_OUT = "held_out"
_RECORDS = "pairs"
_BUCKET_BYTES = 64_000_000
_PART_ROWS = 4096
_LEAK_ROWS = 20_000
_PARALLEL_FROM_BYTES = 30_000_000


def processes_for(num_bytes: int, config: DataConfig) -> int:
    """Returns how many processes a step on clean text is worth: starting them takes seconds."""
    return num_processes(config.num_workers) if num_bytes >= _PARALLEL_FROM_BYTES else 1


class SpillRecord(StrictModel):
    """What became of the raw text of one spill, by source; written when the spill is whole."""

    num_rows: dict[str, int]
    dropped: dict[str, dict[str, int]]


class _BucketRecord(StrictModel):
    """What became of the rows of a group of buckets; written when its files are."""

    splits: dict[Split, SplitCounts]
    dropped: dict[str, dict[str, int]]
    leaks: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class PairWork:
    """What all steps of a language pair share.

    Attributes:
        config: The data configuration.
        pair: The language pair.
        folder: Where its unfinished files are.
        sources: Names of the sources, by the number that rows have.
    """

    config: DataConfig
    pair: LanguagePair
    folder: Path
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SpillTask:
    """A part of a language pair's raw text.

    Attributes:
        work: The pair.
        sources: Numbers of sources in the configuration; all but one are read whole.
        part: Which of `num_parts` equal shares of the rows of these sources.
        num_parts: The number of shares.
        num_bytes: About how much there is to read.
    """

    work: PairWork
    sources: tuple[int, ...]
    part: int
    num_parts: int
    num_bytes: int

    @property
    def path(self) -> Path:
        """The spill."""
        name = f"{self.sources[0]}-{self.part}-of-{self.num_parts}.spill"
        return self.work.folder / name


@dataclass(frozen=True, slots=True)
class BucketTask:
    """A group of buckets of a language pair.

    Attributes:
        work: The pair.
        spills: The files that have its rows.
        buckets: The first bucket and the one after the last.
    """

    work: PairWork
    spills: tuple[Path, ...]
    buckets: tuple[int, int]

    def path(self, suffix: str) -> Path:
        """One of the files of the group."""
        first, end = self.buckets
        return self.work.folder / f"{first:04d}-{end:04d}.{suffix}"


def spill_sources(task: SpillTask) -> SpillRecord:
    """Reads, cleans and spills a part of a language pair.

    Raises:
        DataError: A source is unreadable.
    """
    path = task.path.with_suffix(".json")
    if path.exists():
        return SpillRecord.model_validate_json(path.read_text(encoding="utf-8"))
    num_rows: Counter[str] = Counter()
    dropped: dict[str, dict[str, int]] = {}
    config = task.work.config
    with open_spill(task.path, config.split.seed) as spill:
        for number in task.sources:
            source = config.sources[number]
            counts = _spill_source(task, source, number, spill)
            num_rows[source.name], dropped[source.name] = counts
    record = SpillRecord(num_rows=num_rows, dropped=dropped)
    write_text(path, record.model_dump_json())
    return record


def _spill_source(
    task: SpillTask, source: SourceConfig, number: int, spill: SpillWriter
) -> tuple[int, dict[str, int]]:
    config, pair = task.work.config, task.work.pair
    cleaner = PairCleaner(pair, config.clean, config.pivot)
    roots = roots_of(source, config) if isinstance(source, CatalogSource) else ()
    skipped: Counter[str] = Counter()
    num_rows = 0
    for index, raw in enumerate(iter_pairs(source, pair, roots, skipped)):
        if index // _PART_ROWS % task.num_parts != task.part:
            continue
        for paragraph, (a, b) in enumerate(cleaner.clean(raw.a, raw.b)):
            split = split_of(normalise(a), config.split)
            spill.add(Row(number, (index << 16) + paragraph, split, a, b))
            num_rows += 1
    if task.part == 0:  # every part reads all rows, but one tells of those that are none
        cleaner.dropped.update(skipped)
    return num_rows, dict(cleaner.dropped)


def bucket_tasks(work: PairWork, spills: Sequence[Path]) -> list[BucketTask]:
    """Divides a language pair whose spills are whole into groups that fit into memory."""
    groups = group_buckets(spills, _BUCKET_BYTES)
    return [BucketTask(work, tuple(spills), group) for group in groups]


def finish_buckets(task: BucketTask) -> None:
    """Deduplicates, splits and writes the rows of a group of buckets."""
    if task.path("json").exists():
        return
    config, names = task.work.config, task.work.sources
    rows = read_buckets(task.spills, task.buckets)
    dropped: defaultdict[str, Counter[str]] = defaultdict(Counter)
    splits: dict[Split, SplitCounts] = {}
    leaks: dict[str, tuple[int, ...]] = {}
    for split in SPLITS:
        unique = deduplicate(row for row in rows if row.split == split)
        for number, counts in unique.dropped.items():
            dropped[names[number]].update(counts)
        kept = unique.rows
        if split == "train":
            kept, leaks = _drop_leaks(task.work, kept, dropped)
        kept.sort(key=lambda row: (order_of(row.a, config.split.seed), row.a))
        pairs = [SentencePair(row.a, row.b, names[row.source]) for row in kept]
        splits[split] = count_rows(pairs)
        with atomic_open(task.path(split)) as stream:
            stream.writelines(map(format_line, pairs))
    record = _BucketRecord(
        splits=splits, dropped={name: dict(counts) for name, counts in dropped.items()}, leaks=leaks
    )
    write_text(task.path("json"), record.model_dump_json())


def _drop_leaks(
    work: PairWork, rows: list[Row], dropped: defaultdict[str, Counter[str]]
) -> tuple[list[Row], dict[str, tuple[int, ...]]]:
    """Drops rows that hold a sentence of a test set; returns the rest, and what was found."""
    split = work.config.split
    leaking: dict[int, str] = {}
    found: dict[str, tuple[int, ...]] = {}
    for test in split.leak_tests:
        if test.language not in work.pair:
            continue
        sentences: set[int] = set()
        for start in range(0, len(rows), _LEAK_ROWS):
            texts = _normalised_side(rows[start : start + _LEAK_ROWS], work.pair, test)
            hits = load_leak_index(test).find(texts, split.near_duplicate_containment)
            for place, held in hits.items():
                leaking.setdefault(start + place, test.name)
                sentences.update(held)
        found[test.name] = tuple(sorted(sentences))
    for place, name in leaking.items():
        dropped[work.sources[rows[place].source]][f"stands in test set {name}"] += 1
    return [row for place, row in enumerate(rows) if place not in leaking], found


def _normalised_side(rows: Sequence[Row], pair: LanguagePair, test: LeakTest) -> list[str]:
    if test.language == pair[0]:
        return [normalise(row.a) for row in rows]
    return [normalise(row.b) for row in rows]


def count_rows(rows: Sequence[SentencePair]) -> SplitCounts:
    """Counts the pairs of a split or a part of it."""
    return SplitCounts(
        num_pairs=len(rows),
        words_a=sum(len(row.a.split()) for row in rows),
        words_b=sum(len(row.b.split()) for row in rows),
        characters_a=sum(len(row.a) for row in rows),
        characters_b=sum(len(row.b) for row in rows),
        pairs_by_source=add_counts([Counter(row.source for row in rows)]),
    )


def unmarked_path(corpus: Path, split: Split, pair: LanguagePair) -> Path:
    """Returns the file of a split before near-duplicates are marked; train has no marks."""
    return split_path(corpus if split == "train" else corpus / _HELD_OUT, split, pair)


def record_path(corpus: Path, pair: LanguagePair) -> Path:
    """Returns where the record of a finished language pair is."""
    return corpus / _RECORDS / f"{pair[0]}-{pair[1]}.json"


def read_record(corpus: Path, pair: LanguagePair, fingerprint: str) -> PairRecord | None:
    """Returns the record of a finished pair; None if it is not there or of another fingerprint."""
    path = record_path(corpus, pair)
    if not path.exists():
        return None
    record = PairRecord.model_validate_json(path.read_bytes())
    return record if record.fingerprint == fingerprint else None


def assemble(
    corpus: Path, tasks: Sequence[BucketTask], spills: Sequence[SpillRecord], fingerprint: str
) -> PairRecord:
    """Puts together what the steps of a language pair made, and removes its work folder.

    Args:
        corpus: The clean corpus.
        tasks: All groups of buckets, finished.
        spills: What became of the raw text.
        fingerprint: Of all that the pair is made from.
    """
    work = tasks[0].work
    parts = [
        _BucketRecord.model_validate_json(task.path("json").read_text(encoding="utf-8"))
        for task in tasks
    ]
    splits: dict[str, SplitCounts] = {}
    for split in SPLITS:
        path = unmarked_path(corpus, split, work.pair)
        counts = add_splits(part.splits[split] for part in parts)
        sha256 = _concatenate([task.path(split) for task in tasks], path)
        splits[split] = counts.model_copy(
            update={"num_bytes": path.stat().st_size, "sha256": sha256}
        )
    read = {name for spill in spills for name in spill.num_rows}
    names = [name for name in work.sources if name in read]
    record = PairRecord(
        fingerprint=fingerprint,
        splits=splits,
        sources=_source_counts(names, spills, parts, splits),
        leaks={
            name: tuple(sorted({number for part in parts for number in part.leaks[name]}))
            for name in parts[0].leaks
        },
    )
    write_text(record_path(corpus, work.pair), record.model_dump_json(indent=2) + "\n")
    shutil.rmtree(work.folder)
    return record


def _source_counts(
    names: Sequence[str],
    spills: Sequence[SpillRecord],
    parts: Sequence[_BucketRecord],
    splits: dict[str, SplitCounts],
) -> dict[str, SourceCounts]:
    kept = add_counts(counts.pairs_by_source for counts in splits.values())
    result: dict[str, SourceCounts] = {}
    for name in names:
        before = [spill.dropped[name] for spill in spills if name in spill.dropped]
        after = [part.dropped.get(name, {}) for part in parts]
        num_rows = sum(spill.num_rows.get(name, 0) for spill in spills)
        result[name] = SourceCounts(
            num_read=num_rows + sum(sum(counts.values()) for counts in before),
            num_kept=kept.get(name, 0),
            dropped=add_counts(before + after),
        )
    return result


def _concatenate(parts: Sequence[Path], path: Path) -> str:
    """Joins files and returns the SHA-256 of the whole."""
    digest = hashlib.sha256()
    with atomic_open(path, "wb") as out:
        for part in parts:
            with open(part, "rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                    out.write(chunk)
    return digest.hexdigest()
