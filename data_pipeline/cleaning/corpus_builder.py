"""Makes the text of all language pairs, in several processes, from what is not there already."""

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
    SPLITS,
    LanguagePair,
    language_pairs,
    pivoted_pairs,
    source_covers,
    split_path,
)
from data_pipeline.cleaning.clean_manifest import PairRecord
from data_pipeline.cleaning.near_duplicates import HeldOutCounts, write_held_out
from data_pipeline.cleaning.pair_corpus import (
    BucketTask,
    PairWork,
    SpillRecord,
    SpillTask,
    assemble,
    bucket_tasks,
    finish_buckets,
    processes_for,
    read_record,
    record_path,
    spill_sources,
    unmarked_path,
)
from data_pipeline.cleaning.pivot import PivotTask, pivot_source, spill_joined
from data_pipeline.config import DataConfig
from data_pipeline.fetching.fetch import FetchManifest
from data_pipeline.sources import CatalogSource, SourceConfig
from data_pipeline.workers import num_processes, parallel_map

__all__ = ["CorpusBuilder"]

log = logging.getLogger(__name__)

TaskT = TypeVar("TaskT", SpillTask, PivotTask)

_WORK = "work"
# A source is shared between processes in parts of this size; each part reads all of the source.
_PART_BYTES = 64_000_000
_PARALLEL_FROM_BYTES = 5_000_000  # starting processes takes longer than cleaning less


@dataclass(frozen=True, slots=True)
class CorpusBuilder:
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
            paths = [unmarked_path(folder, split, pair) for split in SPLITS]
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
        num_bytes = sum(path.stat().st_size for there in paths.values() for path in there)
        workers = processes_for(num_bytes, self.config)
        for bucket, _ in parallel_map(finish_buckets, buckets, "deduplicating", workers):
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
        return write_held_out(self.folder, pairs, hashes, self.config)

    def forget(self, sources: Sequence[SourceConfig]) -> None:
        """Removes what was made of some sources, and of the pairs that are joined through them."""
        shutil.rmtree(self.folder / _WORK, ignore_errors=True)
        joined = pivoted_pairs(self.config)
        for pair in self.prints:
            if pair in joined or any(source_covers(source, pair) for source in sources):
                record_path(self.folder, pair).unlink(missing_ok=True)

    def remove_others(self) -> None:
        """Removes work folders, and pairs that an earlier call with other settings left."""
        shutil.rmtree(self.folder / _WORK, ignore_errors=True)
        wanted = {record_path(self.folder, pair) for pair in self.prints}
        wanted |= {unmarked_path(self.folder, s, pair) for s in SPLITS for pair in self.prints}
        wanted |= {
            split_path(self.folder, s, p) for s in SPLITS for p in language_pairs(self.config)
        }
        for path in self.folder.rglob("*"):
            is_ours = path.parent != self.folder or path.suffix == ".part"  # of a killed process
            if path.is_file() and is_ours and path not in wanted:
                path.unlink()


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
