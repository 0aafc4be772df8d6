"""The clean corpus: read, clean, deduplicate and split every language pair, then write `clean/`.

    clean/train/{a}-{b}.tsv          source, side a, side b
    clean/{valid,test}/{a}-{b}.tsv   the same, and 1 for a near-duplicate of train, else 0
    clean/held_out/, clean/pairs/    held-out text without marks, and a record of each pair
    clean/manifest.json              counts, checksums, and the fingerprint of the inputs

All files are in the order of a salted hash of side a (`split.order_of`); no file depends on how
many processes made it.

Text of any size goes through. A process that cleans holds 16 MB of rows before it spills them. One
that deduplicates holds one group of buckets: 64 MB of clean text, about six times as much in
Python, or 1/4096 of a language pair's text if that is more (from 260 GB on). The search for
near-duplicates takes 9 bytes for each different n-gram of held-out text, shared by all processes.
On disk, spills take as much room as the clean text before deduplication.

A language pair is made of its own inputs alone, so it is reused while these stay the same: from the
finished corpus, and from one that was interrupted. Only the near-duplicates, which depend on all
pairs, are looked for each time.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_pipeline.bitext import (
    MANIFEST,
    SPLITS,
    LanguagePair,
    language_pairs,
    pivoted_pairs,
    source_covers,
    split_path,
)
from data_pipeline.clean_manifest import (
    CleanManifest,
    LeakCounts,
    PairRecord,
    SourceCounts,
    SplitCounts,
    add_counts,
    read_manifest,
)
from data_pipeline.config import CleanConfig, DataConfig, PivotedConfig, SourceConfig, SplitConfig
from data_pipeline.fetch import FetchManifest, fetch, read_fetch_manifest, roots_of
from data_pipeline.leaks import load_leak_index
from data_pipeline.near_duplicates import NEAR_DUPLICATE, HeldOutCounts, write_held_out
from data_pipeline.pair_corpus import (
    HELD_OUT,
    BucketTask,
    PairWork,
    SpillRecord,
    SpillTask,
    assemble,
    bucket_tasks,
    finish_buckets,
    read_record,
    record_path,
    spill_sources,
)
from data_pipeline.pivot import PivotTask, pivot_source, spill_joined
from data_pipeline.sources import CatalogSource
from data_pipeline.workers import num_processes, parallel_map
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import resumable_directory, sha256_file, write_text
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = [
    "CleanManifest",
    "SourceCounts",
    "SplitCounts",
    "build_clean_corpus",
    "clean_folder",
    "expected_fingerprint",
    "read_manifest",
]

log = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", SpillTask, PivotTask)

# Part of the fingerprint: raise it with each change of what cleaning or splitting yields.
_RULES_VERSION = 3
_WORK = "work"
# A source is shared between processes in parts of this size; each part reads all of the source.
_PART_BYTES = 64_000_000
_PARALLEL_FROM_BYTES = 5_000_000  # starting processes takes longer than cleaning less


class _PairInputs(StrictModel):
    """All that the clean text of one language pair depends on, near-duplicates apart."""

    rules_version: int
    pair: LanguagePair
    pivot: str
    sources: tuple[SourceConfig, ...]
    fetched: tuple[str, ...]
    joined: tuple[str, ...]
    pivoted: PivotedConfig | None
    clean: CleanConfig
    split: SplitConfig
    leak_tests: tuple[str, ...]


class _Inputs(StrictModel):
    """All that the clean corpus depends on."""

    pairs: dict[str, str]
    split: SplitConfig


def clean_folder(config: DataConfig) -> Path:
    """Returns the folder of the clean corpus."""
    return Path(config.folder) / "clean"


def build_clean_corpus(config: DataConfig) -> CleanManifest:
    """Makes the clean corpus, unless it is there already, and returns its manifest.

    Raises:
        ConfigError: No source can hold a language pair that the directions need, or no pair has the
            language of a test set in `split.leak_tests`.
        FetchError: Something cannot be downloaded or has the wrong checksum.
        DataError: A source is unreadable, or a language pair has an empty split.
    """
    pairs = language_pairs(config)
    _require_known_leak_tests(config, pairs)
    fetched = fetch(config)
    prints = _pair_fingerprints(config, fetched)
    identity = _fingerprint(config, prints)
    folder = clean_folder(config)
    old = read_manifest(folder)
    if old is not None and old.fingerprint == identity:
        return old
    for source in config.sources:
        if not any(source_covers(source, pair) for pair in prints):
            log.warning("source %s serves none of data.directions and is not read", source.name)
    with resumable_directory(folder, f"rules {_RULES_VERSION}") as part:
        builder = _Builder(config, fetched, prints, part, folder)
        records = builder.build_pairs()
        wanted = {pair: records[pair] for pair in pairs}
        builder.require_text({pair: wanted[pair].splits for pair in pairs}, records)
        held_out = builder.write_held_out(pairs)
        splits = {pair: wanted[pair].splits | held_out[pair].splits for pair in pairs}
        builder.require_text(splits, records)
        manifest = CleanManifest(
            fingerprint=identity,
            splits={"-".join(pair): counts for pair, counts in splits.items()},
            sources={
                "-".join(pair): _without(record.sources, held_out[pair])
                for pair, record in wanted.items()
            },
            leak_tests=_leak_counts(config, list(wanted.values())),
            unknown_languages=_unknown_languages(config),
        )
        builder.remove_others()
        write_text(part / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def expected_fingerprint(config: DataConfig) -> str | None:
    """Returns the fingerprint that the clean corpus of a configuration has.

    None if it cannot be told because the record of the fetched files is gone.
    """
    fetched = read_fetch_manifest(config)
    return None if fetched is None else _fingerprint(config, _pair_fingerprints(config, fetched))


def _fingerprint(config: DataConfig, prints: dict[LanguagePair, str]) -> str:
    pairs = {"-".join(pair): prints[pair] for pair in language_pairs(config)}
    return fingerprint(_Inputs(pairs=pairs, split=config.split))


def _pair_fingerprints(config: DataConfig, fetched: FetchManifest) -> dict[LanguagePair, str]:
    """Identifies the inputs of all pairs to be made, also of those that only serve for joining.

    Pairs that are joined come last.
    """
    checksums = {test: sha256_file(Path(test.path)) for test in config.split.leak_tests}
    prints: dict[LanguagePair, str] = {}
    joined = pivoted_pairs(config)
    read = [pair for pair in language_pairs(config) if pair not in joined]
    read += [(config.pivot, code) for pair in joined for code in pair]
    for pair in dict.fromkeys([*read, *joined]):
        is_joined = pair in joined
        covering = [source for source in config.sources if source_covers(source, pair)]
        tests = tuple(test for test in config.split.leak_tests if test.language in pair)
        split = config.split.model_copy(
            update={"leak_tests": tests, "near_duplicates": "mark"}
            | ({} if tests else {"near_duplicate_containment": 1.0})
        )
        inputs = _PairInputs(
            rules_version=_RULES_VERSION,
            pair=pair,
            pivot=config.pivot,
            sources=tuple(covering),
            fetched=tuple(fetched.fingerprint_of(source.name) for source in covering),
            joined=tuple(prints[config.pivot, code] for code in pair) if is_joined else (),
            pivoted=config.pivoted if is_joined else None,
            clean=config.clean,
            split=split,
            leak_tests=tuple(checksums[test] for test in tests),
        )
        prints[pair] = fingerprint(inputs)
    return prints


def _require_known_leak_tests(config: DataConfig, pairs: Sequence[LanguagePair]) -> None:
    languages = sorted({code for pair in pairs for code in pair})
    for test in config.split.leak_tests:
        if test.language not in languages:
            raise ConfigError(
                f"data.split.leak_tests: {test.name!r} is in {test.language!r}, which no language "
                f"pair has ({', '.join(languages)}); correct its language or leave it out"
            )
        if not Path(test.path).is_file():
            raise ConfigError(
                f"data.split.leak_tests: the file {test.path} of {test.name!r} does not exist; "
                "correct the path"
            )


def _leak_counts(config: DataConfig, records: Sequence[PairRecord]) -> dict[str, LeakCounts]:
    return {
        test.name: LeakCounts(
            num_sentences=load_leak_index(test).num_sentences,
            num_found=len({n for record in records for n in record.leaks.get(test.name, ())}),
        )
        for test in config.split.leak_tests
    }


def _without(sources: dict[str, SourceCounts], held_out: HeldOutCounts) -> dict[str, SourceCounts]:
    """Takes the near-duplicates that were left out from the counts of what was kept."""
    result = dict(sources)
    for name, number in held_out.dropped.items():
        counts = sources[name]
        result[name] = SourceCounts(
            num_read=counts.num_read,
            num_kept=counts.num_kept - number,
            dropped=add_counts([counts.dropped, {NEAR_DUPLICATE: number}]),
        )
    return result


@dataclass(frozen=True, slots=True)
class _Builder:
    """Makes what is missing in the unfinished corpus.

    Attributes:
        config: The data configuration.
        fetched: The files of the sources.
        prints: Fingerprints of all pairs to be made, joined ones last.
        folder: The unfinished corpus.
        finished: The corpus of the last time, if any.
    """

    config: DataConfig
    fetched: FetchManifest
    prints: dict[LanguagePair, str]
    folder: Path
    finished: Path

    @property
    def workers(self) -> int:
        """How many processes to use."""
        num_bytes = sum(file.num_bytes for file in self.fetched.files)
        return num_processes(self.config.num_workers) if num_bytes >= _PARALLEL_FROM_BYTES else 1

    def build_pairs(self) -> dict[LanguagePair, PairRecord]:
        """Makes train and unmarked held-out text of all pairs that are not there."""
        records: dict[LanguagePair, PairRecord] = {}
        for pair, identity in self.prints.items():
            record = self._reuse(pair, identity)
            if record is not None:
                records[pair] = record
        if records:
            log.info("%d of %d language pairs are there already", len(records), len(self.prints))
        names = tuple(source.name for source in self.config.sources)
        joined = pivoted_pairs(self.config)
        missing = [pair for pair in self.prints if pair not in records]
        spills = [
            task
            for pair in missing
            if pair not in joined
            for task in self._spill_tasks(self._work(pair, names))
        ]
        spills.sort(key=lambda task: -task.num_bytes)
        records |= self._make(spill_sources, spills, "cleaning")
        via = (pivot_source(self.config.pivot),)
        joins = [PivotTask(self._work(p, via), self.folder) for p in missing if p in joined]
        records |= self._make(spill_joined, joins, "joining")
        return records

    def _reuse(self, pair: LanguagePair, identity: str) -> PairRecord | None:
        """Finds a pair in the unfinished corpus or brings it there from the finished one."""
        for folder in (self.folder, self.finished):
            record = read_record(folder, pair, identity)
            paths = [_unmarked_path(folder, split, pair) for split in SPLITS]
            if record is None or [_size(path) for path in paths] != [
                record.splits[split].num_bytes for split in SPLITS
            ]:
                continue
            if folder != self.folder:
                for path in (*paths, record_path(folder, pair)):
                    _link(path, self.folder / path.relative_to(folder))
            return record
        return None

    def _work(self, pair: LanguagePair, sources: tuple[str, ...]) -> PairWork:
        name = f"{pair[0]}-{pair[1]}.{self.prints[pair]}"
        return PairWork(self.config, pair, self.folder / _WORK / name, sources)

    def _spill_tasks(self, work: PairWork) -> list[SpillTask]:
        """Divides a pair: large sources into parts, small ones and catalogs all together."""
        sizes: Counter[str] = Counter()
        for file in self.fetched.files:
            sizes[file.source] += file.num_bytes
        tasks, small, small_bytes = [], [], 0
        for number, source in enumerate(self.config.sources):
            if not source_covers(source, work.pair):
                continue
            num_bytes = sizes[source.name]
            if isinstance(source, CatalogSource) or num_bytes < _PART_BYTES:
                small.append(number)
                small_bytes += num_bytes
                continue
            num_parts = min(self.workers, -(-num_bytes // _PART_BYTES))
            share = num_bytes // num_parts
            tasks += [SpillTask(work, (number,), i, num_parts, share) for i in range(num_parts)]
        if small:
            tasks.append(SpillTask(work, tuple(small), 0, 1, small_bytes))
        return tasks

    def _make(
        self, spill: Callable[[TaskT], SpillRecord], tasks: list[TaskT], task_name: str
    ) -> dict[LanguagePair, PairRecord]:
        """Takes language pairs from raw text, or from other pairs, to their finished files."""
        records: defaultdict[LanguagePair, list[SpillRecord]] = defaultdict(list)
        for task, record in parallel_map(spill, tasks, task_name, self.workers):
            records[task.work.pair].append(record)
        paths: defaultdict[LanguagePair, list[Path]] = defaultdict(list)
        works = {task.work.pair: task.work for task in tasks}
        for task in tasks:
            paths[task.work.pair].append(task.path)
        groups = {pair: bucket_tasks(work, paths[pair]) for pair, work in works.items()}
        unfinished = {pair: len(there) for pair, there in groups.items()}
        buckets = [task for there in groups.values() for task in there]
        made: dict[LanguagePair, PairRecord] = {}
        for bucket, _ in parallel_map(finish_buckets, buckets, "deduplicating", self.workers):
            pair = bucket.work.pair
            unfinished[pair] -= 1
            if not unfinished[pair]:
                made[pair] = self._finish(groups[pair], records[pair])
        return made

    def _finish(self, tasks: Sequence[BucketTask], spills: Sequence[SpillRecord]) -> PairRecord:
        pair = tasks[0].work.pair
        record = assemble(self.folder, tasks, spills, self.prints[pair])
        counts = ", ".join(f"{split} {record.splits[split].num_pairs:,}" for split in SPLITS)
        log.info("%s: %s", "-".join(pair), counts)
        return record

    def write_held_out(self, pairs: Sequence[LanguagePair]) -> dict[LanguagePair, HeldOutCounts]:
        """Marks or drops near-duplicates of train among held-out text."""
        hashes = self.folder / _WORK / "hashes"
        shutil.rmtree(hashes, ignore_errors=True)
        hashes.mkdir(parents=True)
        return write_held_out(self.folder, pairs, hashes, self.config, self.workers)

    def remove_others(self) -> None:
        """Removes work folders, and pairs that an earlier call with other settings left."""
        shutil.rmtree(self.folder / _WORK, ignore_errors=True)
        wanted = {record_path(self.folder, pair) for pair in self.prints}
        wanted |= {_unmarked_path(self.folder, s, pair) for s in SPLITS for pair in self.prints}
        wanted |= {split_path(self.folder, s, p) for s in SPLITS for p in language_pairs(self.config)}
        for path in self.folder.rglob("*"):
            if path.is_file() and path.parent != self.folder and path not in wanted:
                path.unlink()

    def require_text(
        self,
        splits: dict[LanguagePair, dict[str, SplitCounts]],
        records: dict[LanguagePair, PairRecord],
    ) -> None:
        """Checks that each pair has text in each split that the configuration asks for.

        Raises:
            DataError: Some have not; the message names them all.
        """
        problems = [self._problem(pair, c, records[pair]) for pair, c in splits.items()]
        if any(problems):
            raise DataError("there is not enough text:\n  " + "\n  ".join(filter(None, problems)))

    def _problem(
        self, pair: LanguagePair, splits: dict[str, SplitCounts], record: PairRecord
    ) -> str:
        name = "-".join(pair)
        counts = {split: splits[split].num_pairs for split in SPLITS}
        wanted = ["train"]
        wanted += ["valid"] * (self.config.split.valid_fraction > 0)
        wanted += ["test"] * (self.config.split.test_fraction > 0)
        empty = " and ".join(split for split in wanted if not counts[split])
        if not empty:
            return ""
        if sum(counts.values()):
            listed = ", ".join(f"{split} {count:,}" for split, count in counts.items())
            return (
                f"{name}: {empty} has no sentence pairs ({listed}). Add a source with this pair, "
                "raise data.split's fractions, or drop its directions"
            )
        reasons = add_counts(source.dropped for source in record.sources.values())
        if reasons:
            most = ", ".join(f"{reason} {n:,}" for reason, n in list(reasons.items())[:3])
            total = sum(reasons.values())
            return f"{name}: all {total:,} texts were dropped ({most}); see data.clean"
        return (
            f"{name}: no source has any text{self._what_there_is(pair)}; add a source with this "
            "pair, or drop its directions"
        )

    def _what_there_is(self, pair: LanguagePair) -> str:
        found: set[str] = set()
        for source in self.config.sources:
            if isinstance(source, CatalogSource) and source_covers(source, pair):
                found.update(catalog_languages(source, roots_of(source, self.config)))
        return f"; the catalogs have {', '.join(sorted(found))}" if found else ""


def _unmarked_path(folder: Path, split: str, pair: LanguagePair) -> Path:
    ...


def _size(path: Path) -> int:
    """Returns a file's size, -1 if it is not there."""
    return path.stat().st_size if path.exists() else -1


def _link(path: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where the disk cannot do that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
