"""Batches of any step, read as the plan says.

Every rank plans the whole chunk (a few numbers a sentence), then reads the tokens of its own
micro-batches only.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batching import BatchLayout, MicroBatch, Ragged, build_micro_batch
from data_pipeline.bitext import pair_of
from data_pipeline.config import DataConfig
from data_pipeline.plan import (
    DirectionLine,
    Lengths,
    PlanConfig,
    SentenceRefs,
    TrainPlan,
    plan_validation,
)
from data_pipeline.shards import ShardReader, Side
from hyperadapter.core.errors import DataError

__all__ = ["StepBatches", "TrainStream", "ValidBatch", "ValidStream"]

log = logging.getLogger(__name__)

_PREFETCH_STEPS = 4
_POLL_S = 0.1
_OTHER: dict[Side, Side] = {"a": "b", "b": "a"}


@dataclass(frozen=True, slots=True)
class StepBatches:
    """What one rank trains on in one optimizer step.

    Attributes:
        micro_batches: This rank's share, in order.
        target_tokens: Target tokens of the whole step, over all ranks.
        tokens_per_direction: The same per direction, `[num_directions]`.
    """

    micro_batches: list[MicroBatch]
    target_tokens: int
    tokens_per_direction: NDArray[np.int64]


class ValidBatch(NamedTuple):
    """One validation batch; one that does not count only keeps the ranks in step."""

    micro_batch: MicroBatch
    counts: bool


class _Source:
    """The blocks of a split, as directions and as token sequences."""

    def __init__(self, folder: Path, config: DataConfig) -> None:
        self.reader = ShardReader(folder, config.stream.cache_bytes)
        self.layout = BatchLayout.from_config(config, self.reader.manifest.vocab_size)
        self.directions = config.resolved_directions()
        pairs = [(pair.a, pair.b) for pair in self.reader.manifest.pairs]
        self._pair_of: list[int] = []
        self._src_side: list[Side] = []
        for direction in self.directions:
            pair = pair_of(direction, config)
            if pair not in pairs:
                known = ", ".join(f"{a}-{b}" for a, b in pairs)
                raise DataError(
                    f"{folder} has no shards for the direction {direction} (it has {known}); run "
                    "`hyperadapter data shard` again"
                )
            self._pair_of.append(pairs.index(pair))
            self._src_side.append("a" if direction.src == pair[0] else "b")

    def lines(self) -> list[DirectionLine]:
        """Describes every direction's blocks."""
        manifest = self.reader.manifest
        extra = self.layout.src_extra
        lines = []
        for number, direction in enumerate(self.directions):
            pair, side = self._pair_of[number], self._src_side[number]
            entry = manifest.pairs[pair]
            blocks = [i for i, block in enumerate(manifest.blocks) if block.pair == pair]
            sum_index = 0 if not extra else (1 if side == "a" else 2)
            src, tgt = entry.a_longest, entry.b_longest
            if side == "b":
                src, tgt = tgt, src
            lines.append(
                DirectionLine(
                    direction,
                    np.array(blocks, np.int64),
                    np.array([manifest.blocks[i].longer[sum_index] for i in blocks], np.int64),
                    entry.sentences,
                    max(src + extra, tgt),
                    self._lengths(side, extra),
                )
            )
        return lines

    def _lengths(self, side: Side, extra: int) -> Lengths:
        def read(block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            src = self.reader.lengths(block, side).astype(np.int64) + extra
            return src, self.reader.lengths(block, _OTHER[side]).astype(np.int64)

        return read

    def gather(self, refs: SentenceRefs) -> tuple[Ragged, Ragged]:
        """Reads the source and target sequences of references, each with its end mark."""
        from_b = np.array([side == "b" for side in self._src_side])[refs.directions]
        return self._gather(refs, from_b), self._gather(refs, ~from_b)

    def _gather(self, refs: SentenceRefs, from_b: NDArray[np.bool_]) -> Ragged:
        key = refs.blocks * 2 + from_b
        order = np.argsort(key, kind="stable")
        firsts = np.flatnonzero(np.diff(key[order], prepend=-1))
        tokens, lengths = [], []
        for rows in np.split(order, firsts[1:]):
            block, side = divmod(int(key[rows[0]]), 2)
            text = self.reader.sentences(block, "b" if side else "a").rows(refs.rows[rows])
            tokens.append(text.flat())
            lengths.append(text.lengths)
        in_blocks = Ragged.from_lengths(np.concatenate(tokens), np.concatenate(lengths))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return in_blocks.rows(back)

    def build(self, refs: SentenceRefs, src: Ragged, tgt: Ragged) -> MicroBatch:
        """Builds the micro-batch of sentences that were gathered."""
        return build_micro_batch(self.layout, refs.directions, src, tgt)


class _OwnTokens(NamedTuple):
    """The tokens of this rank's share of one chunk, by number of the micro-batch in the chunk."""

    chunk: int
    src: Ragged
    tgt: Ragged
    offsets: dict[int, int]


class TrainStream:
    """The training data of one rank; any step can be asked for at any time."""

    def __init__(
        self,
        shards_folder: Path,
        config: DataConfig,
        *,
        micro_batch_tokens: int,
        micro_batches_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Opens `shards_folder/train` and plans the order of the data.

        Raises:
            ConfigError: The batch is too small for the longest sentence.
            DataError: There are no shards, or a direction has no sentence.
            CorruptShardError: A shard is missing or has the wrong size.
        """
        assert micro_batches_per_step % world_size == 0
        assert 0 <= rank < world_size
        self._source = _Source(shards_folder / "train", config)
        lines = self._source.lines()
        for line in lines:
            if not line.sentences:
                raise DataError(
                    f"the direction {line.direction} has 0 sentence pairs in "
                    f"{shards_folder / 'train'}; add a source for it, loosen data.clean, or leave "
                    "it out of data.directions"
                )
        self.plan = TrainPlan(
            lines,
            PlanConfig(
                micro_batch_tokens,
                micro_batches_per_step,
                config.stream.temperature,
                config.stream.window_blocks,
                config.stream.policy,
                seed,
            ),
        )
        self._share = micro_batches_per_step // world_size
        self._rank = rank
        self._own: _OwnTokens | None = None
        self._lock = threading.Lock()
        self._warn_of_small_cache(config)

    def _warn_of_small_cache(self, config: DataConfig) -> None:
        blocks = self._source.reader.manifest.blocks
        largest: dict[int, int] = {}
        for block in blocks:
            size = sum(member.size for member in block.members.values())
            largest[block.pair] = max(largest.get(block.pair, 0), size)
        # The two directions of a pair are at different places of the same blocks.
        needed = 2 * config.stream.window_blocks * sum(largest.values())
        needed = min(needed, sum(m.size for block in blocks for m in block.members.values()))
        if needed > config.stream.cache_bytes:
            log.warning(
                "data.stream.cache_bytes %d is less than the %d bytes that are read at random; "
                "raise it, or lower data.stream.window_blocks, or training may wait for data",
                config.stream.cache_bytes, needed,
            )  # fmt: skip

    def step(self, step: int) -> StepBatches:
        """Returns this rank's share of an optimizer step.

        Raises:
            CorruptShardError: A block that the step needs differs from the manifest.
        """
        with self._lock:
            plan = self.plan.step(step)
            own = self._own_tokens(step)
            first = self.plan.micro_batches(step)[0]
            micro_batches = []
            for index in range(self._rank * self._share, (self._rank + 1) * self._share):
                refs = plan.micro_batches[index]
                start = own.offsets[first + index]
                rows = slice(start, start + len(refs))
                batch = self._source.build(refs, own.src.rows(rows), own.tgt.rows(rows))
                micro_batches.append(batch)
        return StepBatches(micro_batches, plan.target_tokens, plan.tokens_per_direction)

    def _own_tokens(self, step: int) -> _OwnTokens:
        """Reads the tokens of this rank's share of the step's chunk, unless they are here."""
        number = step // self.plan.steps_per_chunk
        if self._own is None or self._own.chunk != number:
            chunk = self.plan.chunk(number)
            offsets: dict[int, int] = {}
            index: list[NDArray[np.int64]] = []
            total = 0
            for k in range(self.plan.steps_per_chunk):
                first = self.plan.micro_batches(k)[0] + self._rank * self._share
                for micro_batch in range(first, first + self._share):
                    offsets[micro_batch] = total
                    rows = np.arange(chunk.offsets[micro_batch], chunk.offsets[micro_batch + 1])
                    index.append(rows)
                    total += len(rows)
            src, tgt = self._source.gather(chunk.refs.select(np.concatenate(index)))
            self._own = _OwnTokens(number, src, tgt, offsets)
        return self._own

    def passes(self, step: int) -> NDArray[np.float64]:
        """Returns how often each direction's data have been seen before `step`."""
        return self.plan.passes(step)

    def iter_from(self, step: int) -> Generator[StepBatches, None, None]:
        """Yields the batches of `step`, `step + 1`, ... while a thread prepares the next ones.

        Closing the iterator stops the thread. What goes wrong in the thread is raised here.
        """
        ready: queue.Queue[StepBatches | BaseException] = queue.Queue(_PREFETCH_STEPS)
        stop = threading.Event()

        def put(item: StepBatches | BaseException) -> None:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=_POLL_S)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            number = step
            try:
                while not stop.is_set():
                    put(self.step(number))
                    number += 1
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, name="data-prefetch", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


class ValidStream:
    """The validation batches of one rank; every rank has the same number."""

    def __init__(
        self,
        shards_folder: Path,
        config: DataConfig,
        *,
        micro_batch_tokens: int,
        max_sentences: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Opens `shards_folder/valid`.

        Raises:
            ConfigError: A sentence is longer than a batch.
            DataError: There are no shards, or none of the directions has a sentence.
        """
        assert 0 <= rank < world_size
        self._source = _Source(shards_folder / "valid", config)
        lines = self._source.lines()
        without = [str(line.direction) for line in lines if not line.sentences]
        if len(without) == len(lines):
            raise DataError(
                f"{shards_folder}/valid holds no sentence of any direction; raise "
                "data.split.valid_fraction and run `hyperadapter data clean` again"
            )
        if without:
            log.warning(
                "no validation sentences, so no validation loss, for %s", ", ".join(without)
            )
        items = plan_validation(lines, micro_batch_tokens, max_sentences, world_size)
        self._items = items[rank::world_size]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[ValidBatch]:
        for refs, counts in self._items:
            yield ValidBatch(self._source.build(refs, *self._source.gather(refs)), counts)
