"""Near-duplicates between held-out text and train, in memory that depends on held-out text alone.

Two things leak although no text of side a is in two splits. Templates (`The order has been
changed.`, `The event has been changed.`), and the other side: `Close` in test and `Shut` in train
may both be `Schliessen`. So a held-out pair is a near-duplicate when either side is found in the
training text of its language, all language pairs together:

- the whole text, at any length, is a training text;
- or a large share of its word 5-grams stands in training texts;
- or it has three or four words, which stand in a row in a training text.

`ngrams.py` says what takes the place of words in scripts without spaces. Three passes: the hashes
of all held-out n-grams are collected by language (8 bytes for each different one); all train text
is read once, in pieces, to see which of them it has; and held-out files are written with a mark, or
without the near-duplicates. All arrays lie in files that the processes share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.bitext import SPLITS, LanguagePair, SentencePair, format_line, split_path
from data_pipeline.cleaning.clean_manifest import SplitCounts, add_splits
from data_pipeline.cleaning.ngrams import (
    Hashes,
    HashPlaces,
    contained_share,
    hash_texts,
    is_in,
)
from data_pipeline.cleaning.pair_corpus import count_rows, processes_for, unmarked_path
from data_pipeline.cleaning.split import normalise
from data_pipeline.config import DataConfig
from data_pipeline.workers import parallel_map
from hyperadapter.core.files import atomic_open, sha256_file

__all__ = ["NEAR_DUPLICATE", "HeldOutCounts", "write_held_out"]

NEAR_DUPLICATE = "near-duplicate of train"
_BATCH_ROWS = 10_000
_PIECE_BYTES = 256_000_000


@dataclass(frozen=True, slots=True)
class HeldOutCounts:
    """What was written of a language pair.

    Attributes:
        splits: Counts of valid and test.
        dropped: Near-duplicates that were left out, by source.
    """

    splits: dict[str, SplitCounts]
    dropped: Counter[str]


@dataclass(frozen=True, slots=True)
class _LanguageTask:
    """The held-out texts of one language, as (file, column), and where their hashes go."""

    language: str
    files: tuple[tuple[Path, int], ...]
    folder: Path


@dataclass(frozen=True, slots=True)
class _ScanTask:
    """A piece of a train file: the lines that begin in a range of bytes."""

    path: Path
    pair: LanguagePair
    folder: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _MarkTask:
    """The held-out text of one language pair."""

    corpus: Path
    pair: LanguagePair
    folder: Path
    least: float
    drop: bool


def write_held_out(
    corpus: Path, pairs: Sequence[LanguagePair], folder: Path, config: DataConfig
) -> dict[LanguagePair, HeldOutCounts]:
    """Writes validation and test text of all pairs.

    Args:
        corpus: The clean corpus, with train and unmarked held-out text of all pairs.
        pairs: The language pairs.
        folder: An empty folder for the hashes.
        config: The data configuration.
    """
    languages = _language_tasks(corpus, pairs, folder)
    num_bytes = sum(_num_bytes(task) for task in languages) // 2  # each file has two languages
    workers = processes_for(num_bytes, config)
    found: dict[str, NDArray[np.bool_]] = {}
    for task, num_hashes in parallel_map(_hash_held_out, languages, "hashing", workers):
        found[task.language] = np.zeros(num_hashes, np.bool_)
    scans = _scan_tasks(corpus, pairs, folder)
    scanners = processes_for(sum(scan.end - scan.start for scan in scans), config)
    for scan, places in parallel_map(_scan, scans, "comparing with train", scanners):
        for code, there in zip(scan.pair, places, strict=True):
            found[code][there] = True
    for code, is_found in found.items():
        hashes = _load(folder, code)[is_found]
        with atomic_open(_found_path(folder, code), "wb") as stream:
            np.save(stream, hashes)
    split = config.split
    least, drop = split.near_duplicate_containment, split.near_duplicates == "drop"
    marks = [_MarkTask(corpus, pair, folder, least, drop) for pair in pairs]
    return {task.pair: counts for task, counts in parallel_map(_mark, marks, "marking", workers)}


def _language_tasks(
    corpus: Path, pairs: Sequence[LanguagePair], folder: Path
) -> list[_LanguageTask]:
    files: dict[str, list[tuple[Path, int]]] = {}
    for pair in pairs:
        for column, code in enumerate(pair, 1):
            paths = (unmarked_path(corpus, split, pair) for split in SPLITS[1:])
            files.setdefault(code, []).extend((path, column) for path in paths)
    tasks = [_LanguageTask(code, tuple(there), folder) for code, there in files.items()]
    return sorted(tasks, key=_num_bytes, reverse=True)


def _num_bytes(task: _LanguageTask) -> int:
    return sum(path.stat().st_size for path, _ in task.files)


def _scan_tasks(corpus: Path, pairs: Sequence[LanguagePair], folder: Path) -> list[_ScanTask]:
    tasks = []
    for pair in pairs:
        path = split_path(corpus, "train", pair)
        size = path.stat().st_size
        for start in range(0, size, _PIECE_BYTES):
            tasks.append(_ScanTask(path, pair, folder, start, min(start + _PIECE_BYTES, size)))
    return sorted(tasks, key=lambda task: task.start - task.end)


def _hashes_path(folder: Path, language: str) -> Path:
    return folder / f"{language}.npy"


def _found_path(folder: Path, language: str) -> Path:
    return folder / f"{language}.found.npy"


def _load(folder: Path, language: str) -> Hashes:
    return cast(Hashes, np.load(_hashes_path(folder, language), mmap_mode="r"))


def _iter_batches(path: Path, start: int = 0, end: int | None = None) -> Iterator[list[list[str]]]:
    """Yields batches of the columns of the lines that begin in a range of bytes."""
    end = path.stat().st_size if end is None else end
    with open(path, "rb") as stream:
        if start:
            stream.seek(start - 1)
            stream.readline()  # the line that began before; none if one ends just there
        lines = iter(lambda: stream.readline() if stream.tell() < end else b"", b"")
        while batch := list(islice(lines, _BATCH_ROWS)):
            yield [line.decode().rstrip("\n").split("\t") for line in batch]


def _hash_held_out(task: _LanguageTask) -> int:
    """Writes the hashes of all texts of a language and of their longest n-grams, sorted.

    Returns:
        How many there are.
    """
    known = np.empty(0, np.uint64)
    fresh: list[Hashes] = []
    num_fresh = 0
    for path, column in task.files:
        for rows in _iter_batches(path):
            texts = hash_texts([normalise(row[column]) for row in rows], task.language)
            fresh += [texts.whole, texts.longest()[0]]
            num_fresh += len(fresh[-1]) + len(fresh[-2])
            if num_fresh > max(len(known), 1_000_000):  # so that sorting takes n log n in all
                known = np.unique(np.concatenate([known, *fresh]))
                fresh, num_fresh = [], 0
    known = np.unique(np.concatenate([known, *fresh]))
    with atomic_open(_hashes_path(task.folder, task.language), "wb") as stream:
        np.save(stream, known)
    return len(known)


def _scan(task: _ScanTask) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns which held-out hashes a piece of train has, for both sides."""
    wanted = [_load(task.folder, code) for code in task.pair]
    found = [np.zeros(len(hashes), np.bool_) for hashes in wanted]
    places = [HashPlaces(hashes) for hashes in wanted]
    for rows in _iter_batches(task.path, task.start, task.end):
        for side, code in enumerate(task.pair):
            texts = hash_texts([normalise(row[side + 1]) for row in rows], code)
            found[side][places[side].find(texts.all())] = True
    return np.flatnonzero(found[0]), np.flatnonzero(found[1])


def _mark(task: _MarkTask) -> HeldOutCounts:
    """Writes the held-out text of a pair with its marks, or without the near-duplicates."""
    found = [np.load(_found_path(task.folder, code), mmap_mode="r") for code in task.pair]
    splits: dict[str, SplitCounts] = {}
    dropped: Counter[str] = Counter()
    for split in SPLITS[1:]:
        path = split_path(task.corpus, split, task.pair)
        counts: list[SplitCounts] = []
        with atomic_open(path) as stream:
            for rows in _iter_batches(unmarked_path(task.corpus, split, task.pair)):
                marks = np.zeros(len(rows), np.bool_)
                for side, code in enumerate(task.pair):
                    texts = hash_texts([normalise(row[side + 1]) for row in rows], code)
                    share = contained_share(texts, partial(is_in, known=found[side]))
                    marks |= share >= task.least
                pairs = [SentencePair(a, b, source) for source, a, b in rows]
                if task.drop:
                    dropped.update(pairs[i].source for i in np.flatnonzero(marks))
                    pairs = [pairs[i] for i in np.flatnonzero(~marks)]
                    marks = np.zeros(len(pairs), np.bool_)
                stream.writelines(map(format_line, pairs, marks.tolist()))
                update = {"num_near_duplicates": int(marks.sum())}
                counts.append(count_rows(pairs).model_copy(update=update))
        file = {"num_bytes": path.stat().st_size, "sha256": sha256_file(path)}
        splits[split] = add_splits(counts).model_copy(update=file)
    return HeldOutCounts(splits, dropped)
