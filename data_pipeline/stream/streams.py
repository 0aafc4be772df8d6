"""Batches of any step, read as the plan says.

Every rank plans the whole chunk (a few numbers a sentence), then reads the tokens of its own
micro-batches only.

**Damage.** A block that cannot be read, or is not what the manifest promises, raises
`LostBlocksError`. Who runs the ranks lets them agree on the lost blocks and calls `quarantine` on
all of them with the coming step: from this step on, the sentences of those blocks are left out of
their micro-batches, and everything else stays where it was. So batches are a pure function of the
step and the quarantine. The plan itself reads lengths only, which are there twice, beside the
shards and in them; where both are gone nothing can be planned, and the run ends.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import DataConfig
from data_pipeline.ragged import Ragged
from data_pipeline.shards.manifest import Side
from data_pipeline.shards.reader import PairBlocks, ShardReader
from data_pipeline.shards.remote import ShardCache
from data_pipeline.stream.batching import (
    BatchLayout,
    MicroBatch,
    PackedBatch,
    build_empty_batch,
    build_empty_packed_batch,
    build_micro_batch,
    build_packed_batch,
)
from data_pipeline.stream.cutting import BatchShape
from data_pipeline.stream.plan import (
    DirectionLine,
    Lengths,
    PlanConfig,
    SentenceRefs,
    StepPlan,
    TrainPlan,
    plan_validation,
)
from hyperadapter.core.errors import CorruptShardError, DataError, LostBlockError

__all__ = [
    "LostBlocksError",
    "StepBatches",
    "TrainStream",
    "ValidBatch",
    "ValidStream",
    "shards_folder",
]

log = logging.getLogger(__name__)

_OTHER: dict[Side, Side] = {"a": "b", "b": "a"}
_NAMED_REASONS = 5


class LostBlocksError(CorruptShardError):
    """Blocks that a step needs cannot be read.

    Attributes:
        blocks: What is wrong, by number of the block.
    """

    def __init__(self, blocks: Mapping[int, str]) -> None:
        reasons = list(dict.fromkeys(blocks.values()))
        named = "; ".join(reasons[:_NAMED_REASONS])
        more = f"; and {len(reasons) - _NAMED_REASONS} more" if reasons[_NAMED_REASONS:] else ""
        super().__init__(f"{len(blocks)} blocks cannot be read: {named}{more}")
        self.blocks = dict(blocks)

    def __reduce__(self) -> tuple[type[LostBlocksError], tuple[dict[int, str]]]:
        """Goes between processes whole: exceptions pickle their message only."""
        return type(self), (self.blocks,)


@dataclass(frozen=True, slots=True)
class StepBatches:
    """What one rank trains on in one optimizer step.

    Attributes:
        micro_batches: This rank's share, in order; `PackedBatch` if the layout is packed.
        target_tokens: Target tokens of the whole step, over all ranks.
        tokens_per_direction: The same per direction, `[num_directions]`.
        widths_per_direction: Tokens of each sentence's longer side, which the mixture is about,
            `[num_directions]`.
    """

    micro_batches: Sequence[MicroBatch | PackedBatch]
    target_tokens: int
    tokens_per_direction: NDArray[np.int64]
    widths_per_direction: NDArray[np.int64]

    def padded(self) -> list[MicroBatch]:
        """Returns the micro-batches of a stream whose layout is padded."""
        padded = [batch for batch in self.micro_batches if isinstance(batch, MicroBatch)]
        assert len(padded) == len(self.micro_batches), "the layout is packed"
        return padded


class ValidBatch(NamedTuple):
    """One validation batch; one that does not count only keeps the ranks in step."""

    micro_batch: MicroBatch
    counts: bool


def shards_folder(config: DataConfig) -> Path:
    """Returns the folder of the shards of both splits."""
    return Path(config.shards_folder or f"{config.folder}/shards")


def _widths(blocks: PairBlocks, side: Side, src_extra: int, tgt_extra: int) -> NDArray[np.int64]:
    """Sums max(source + src_extra, target + tgt_extra) over the sentences of each block.

    Args:
        blocks: Of a language pair.
        side: The side that is the source.
        src_extra: Positions added to every source, 0 or 1.
        tgt_extra: Positions added to every target, 0 or 1.
    """
    longer: tuple[NDArray[np.int64], ...] = tuple(blocks.longer)
    if src_extra == tgt_extra:
        return longer[0] + src_extra * blocks.sentences
    extra_side = side if src_extra else _OTHER[side]
    return longer[1 if extra_side == "a" else 2]


class _Source:
    """The blocks of a split, as directions and as token sequences."""

    def __init__(self, folder: Path, config: DataConfig) -> None:
        cache = Path(config.stream.cache_folder or folder / ".cache")
        self.reader = ShardReader(
            folder, config.stream.memory_bytes, ShardCache(cache, config.stream.cache_bytes)
        )
        self.layout = BatchLayout.from_config(config, self.reader.manifest.vocab_size)
        self.directions = config.resolved_directions()
        self.pair_of: list[int] = []
        self._src_side: list[Side] = []
        for direction in self.directions:
            found = self.reader.manifest.find(direction.src, direction.tgt)
            if found is None:
                known = ", ".join(pair.name for pair in self.reader.manifest.pairs)
                raise DataError(
                    f"{folder} has no shards for the direction {direction} (it has {known}); run "
                    "`hyperadapter data shard` again"
                )
            self.pair_of.append(found[0])
            self._src_side.append(found[1])
        numbers = [self.reader.pair_blocks(pair).numbers.tolist() for pair in set(self.pair_of)]
        self.blocks = {block for pair in numbers for block in pair}

    def lines(self) -> list[DirectionLine]:
        """Describes every direction's blocks."""
        extra = self.layout.src_extra, self.layout.tgt_extra
        lines = []
        for number, direction in enumerate(self.directions):
            pair, side = self.pair_of[number], self._src_side[number]
            entry = self.reader.manifest.pairs[pair]
            blocks = self.reader.pair_blocks(pair)
            src, tgt = entry.a_longest, entry.b_longest
            if side == "b":
                src, tgt = tgt, src
            lines.append(
                DirectionLine(
                    direction,
                    blocks.numbers,
                    _widths(blocks, side, *extra),
                    entry.sentences,
                    max(src + extra[0], tgt + extra[1]),
                    self._lengths(side, *extra),
                )
            )
        return lines

    def _lengths(self, side: Side, src_extra: int, tgt_extra: int) -> Lengths:
        def read(block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            src = self.reader.lengths(block, side).astype(np.int64)
            tgt = self.reader.lengths(block, _OTHER[side]).astype(np.int64)
            return src + src_extra, tgt + tgt_extra

        return read

    def window_blocks(self, most: int, memory_bytes: int) -> int:
        """Returns how many blocks of each direction fit into memory together, at most `most`.

        A direction's window is read once, whole, and used up chunk by chunk. If windows did not fit
        together, each would be read again for every chunk.
        """
        sizes = [np.sort(self.reader.pair_blocks(pair).memory_bytes)[::-1] for pair in self.pair_of]
        sums = np.array([np.pad(size[:most], (0, max(0, most - len(size)))) for size in sizes])
        needed = np.cumsum(sums.sum(axis=0))
        fitting = max(1, int((needed <= memory_bytes).sum()))
        if needed[0] > memory_bytes:
            log.warning(
                "data.stream.memory_bytes %d is less than the %d bytes of one block a direction: "
                "blocks will be read again and again. Raise it, or lower "
                "data.shards.block_sentences and shard again",
                memory_bytes, needed[0],
            )  # fmt: skip
        return fitting

    def gather(self, refs: SentenceRefs) -> tuple[Ragged, Ragged]:
        """Reads the source and target sequences of references, each with its end mark.

        Raises:
            LostBlocksError: Blocks cannot be read; all of them are named.
        """
        from_b = np.array([side == "b" for side in self._src_side])[refs.directions]
        blocks = np.unique(refs.blocks).tolist()
        self.reader.will_need((block, side) for block in blocks for side in _OTHER)
        lost: dict[int, str] = {}
        src, tgt = self._gather(refs, from_b, lost), self._gather(refs, ~from_b, lost)
        if lost:
            raise LostBlocksError(
                {k: v for k, v in self.reader.damaged_blocks().items() if k in self.blocks} | lost
            )
        return src, tgt

    def _gather(
        self, refs: SentenceRefs, from_b: NDArray[np.bool_], lost: dict[int, str]
    ) -> Ragged:
        key = refs.blocks * 2 + from_b
        order = np.argsort(key, kind="stable")
        firsts = np.flatnonzero(np.diff(key[order], prepend=-1))
        tokens = [np.empty(0, np.uint16)]
        lengths = [np.empty(0, np.int64)]
        for rows in np.split(order, firsts[1:]) if len(order) else ():
            block, side = divmod(int(key[rows[0]]), 2)
            try:
                text = self.reader.sentences(block, "b" if side else "a").rows(refs.rows[rows])
            except LostBlockError as error:
                lost[block] = f"{error.shard}: {error.reason}"
                continue
            tokens.append(text.flat())
            lengths.append(text.lengths)
        if lost:
            return Ragged.from_sequences([])
        in_blocks = Ragged.from_lengths(np.concatenate(tokens), np.concatenate(lengths))
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return in_blocks.rows(back)


class _OwnTokens(NamedTuple):
    """The tokens of this rank's share of a chunk, from one of its steps on."""

    chunk: int
    first_step: int
    src: Ragged
    tgt: Ragged
    offsets: dict[int, int]  # of each micro-batch, by its number in the chunk


class TrainStream:
    """The training data of one rank; any step can be asked for at any time.

    Attributes:
        sentence_pairs: How many each direction has.
    """

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        *,
        micro_batch_tokens: int,
        micro_batches_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Opens `folder/train` and plans the order of the data.

        Raises:
            ConfigError: The batch is too small for the longest sentence.
            DataError: There are no shards, or a direction has no sentence.
        """
        assert micro_batches_per_step % world_size == 0
        assert 0 <= rank < world_size
        self.config = config
        self.seed = seed
        self.folder = folder
        self.shape = BatchShape(
            micro_batch_tokens, micro_batches_per_step, config.stream.policy, config.stream.layout
        )
        self.rank, self.world_size = rank, world_size
        self._source = _Source(folder / "train", config)
        lines = self._source.lines()
        for line in lines:
            if not line.sentences:
                raise DataError(
                    f"the direction {line.direction} has 0 sentence pairs in {folder / 'train'}; "
                    "add a source for it, loosen data.clean, or leave it out of data.directions"
                )
        self.sentence_pairs = {str(line.direction): line.sentences for line in lines}
        stream = config.stream
        window_blocks = self._source.window_blocks(stream.window_blocks, stream.memory_bytes)
        self.plan = TrainPlan(
            lines,
            PlanConfig(
                self.shape, stream.mixing, stream.phases, window_blocks, seed,
                self._source.layout.tgt_extra,
            ),
        )  # fmt: skip
        self._share = micro_batches_per_step // world_size
        self._own: _OwnTokens | None = None
        self._quarantine: dict[int, int] = {}
        pairs = self._source.reader.manifest.pairs
        self._sentences_of_block = np.concatenate([pair.blocks.sentences for pair in pairs])
        self._total_sentences = sum(pairs[pair].sentences for pair in set(self._source.pair_of))
        self._lock = threading.Lock()

    def step_plan(self, step: int) -> StepPlan:
        """Returns an optimizer step of all ranks, without the sentences that are quarantined."""
        plan = self.plan.step(step)
        if not self._lost_at(step):
            return plan
        refs = tuple(self._without_lost(refs, step) for refs in plan.micro_batches)
        return StepPlan.of(refs, len(plan.tokens_per_direction), self._source.layout.tgt_extra)

    def step(self, step: int) -> StepBatches:
        """Returns this rank's share of an optimizer step.

        Raises:
            LostBlocksError: Blocks that the step's chunk needs cannot be read.
        """
        with self._lock:
            plan = self.step_plan(step)
            own = self._own_tokens(step)
            first = self.plan.micro_batches(step)[0]
            micro_batches = []
            for index in range(self.rank * self._share, (self.rank + 1) * self._share):
                refs = plan.micro_batches[index]
                start = own.offsets[first + index]
                rows = slice(start, start + len(refs))
                micro_batches.append(self._build(refs, own.src.rows(rows), own.tgt.rows(rows)))
        return StepBatches(
            micro_batches,
            plan.target_tokens,
            plan.tokens_per_direction,
            plan.widths_per_direction,
        )

    def _build(self, refs: SentenceRefs, src: Ragged, tgt: Ragged) -> MicroBatch | PackedBatch:
        layout = self._source.layout
        packed = self.shape.layout == "packed"
        if not len(refs):
            return build_empty_packed_batch(layout) if packed else build_empty_batch(layout)
        build = build_packed_batch if packed else build_micro_batch
        return build(layout, refs.directions, src, tgt)

    def _own_tokens(self, step: int) -> _OwnTokens:
        """Reads the tokens of this rank's share of the step's chunk, unless they are here."""
        number = self.plan.chunk_of(step)
        own = self._own
        if own is None or own.chunk != number or step < own.first_step:
            chunk = self.plan.chunk(number)
            offsets: dict[int, int] = {}
            parts: list[SentenceRefs] = []
            total = 0
            for other in range(step, self.plan.steps_of(number).stop):
                first = self.plan.micro_batches(other)[0] + self.rank * self._share
                for micro_batch in range(first, first + self._share):
                    offsets[micro_batch] = total
                    parts.append(self._without_lost(chunk.micro_batch(micro_batch), other))
                    total += len(parts[-1])
            src, tgt = self._source.gather(SentenceRefs.concatenate(parts))
            own = self._own = _OwnTokens(number, step, src, tgt, offsets)
        return own

    def _lost_at(self, step: int) -> list[int]:
        return [block for block, since in self._quarantine.items() if step >= since]

    def _without_lost(self, refs: SentenceRefs, step: int) -> SentenceRefs:
        lost = self._lost_at(step)
        return refs.select(~np.isin(refs.blocks, lost)) if lost else refs

    def quarantine(self, steps: Mapping[int, int], reasons: Mapping[int, str]) -> None:
        """Leaves blocks out from a step on; all ranks must call it alike.

        Args:
            steps: The first step without each block, by its number.
            reasons: What is wrong with them, for the error.

        Raises:
            CorruptShardError: More sentence pairs are lost than `max_lost_fraction` allows.
            DataError: A read that does not end stands in the way.
        """
        if not self._lock.acquire(timeout=self.config.stream.stall_s):
            raise DataError(
                "a read of the shards does not end; the same command resumes when their disk or "
                "server answers again"
            )
        try:
            for block, step in steps.items():
                self._quarantine[block] = min(step, self._quarantine.get(block, step))
            self._own = None
        finally:
            self._lock.release()
        most = self.config.stream.max_lost_fraction
        if self.lost_fraction > most:
            raise CorruptShardError(
                f"{self.lost_sentences:,} of {self._total_sentences:,} sentence pairs "
                f"({self.lost_fraction:.2%}) are lost, more than data.stream.max_lost_fraction "
                f"{most:.2%} allows: {LostBlocksError(reasons)}. `hyperadapter data verify` lists "
                "every bad shard; restore them (or their server), or make them again"
            )

    def key(self, block: int) -> str:
        """Returns the key of a block, which stays when pairs are added to the shards."""
        return self._source.reader.key(block)

    def block(self, key: str) -> int | None:
        """Returns the number of a block; None if the shards have none with this key."""
        return self._source.reader.block(key)

    @property
    def quarantined(self) -> dict[int, int]:
        """The blocks that are left out, each with the first step without it."""
        return dict(self._quarantine)

    @property
    def worst_lost_fraction(self) -> float:
        """The largest share that a language pair has lost of its sentence pairs."""
        pairs = self._source.reader.manifest.pairs
        worst = 0.0
        for pair in set(self._source.pair_of):
            blocks = self._source.reader.pair_blocks(pair)
            lost = blocks.sentences[np.isin(blocks.numbers, list(self._quarantine))].sum()
            worst = max(worst, float(lost) / pairs[pair].sentences)
        return worst

    @property
    def lost_sentences(self) -> int:
        """Sentence pairs in quarantined blocks."""
        return int(self._sentences_of_block[list(self._quarantine)].sum())

    @property
    def lost_fraction(self) -> float:
        """Their share of all sentence pairs of the directions."""
        return self.lost_sentences / self._total_sentences

    def passes(self, step: int) -> NDArray[np.float64]:
        """Returns how often each direction's data have been seen before `step`."""
        return self.plan.passes(step)

    def planned_shares(self, step: int) -> NDArray[np.float64]:
        """Returns what share of the tokens before `step` each direction was to have."""
        widths = self.plan.widths(max(step, 1))
        return np.asarray(widths / widths.sum(), np.float64)


class ValidStream:
    """The validation batches of one rank; every rank has the same number."""

    def __init__(
        self,
        folder: Path,
        config: DataConfig,
        *,
        micro_batch_tokens: int,
        max_sentences: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Opens `folder/valid`.

        Raises:
            ConfigError: A sentence is longer than a batch.
            DataError: There are no shards, or none of the directions has a sentence.
        """
        assert 0 <= rank < world_size
        self._source = _Source(folder / "valid", config)
        lines = self._source.lines()
        without = [str(line.direction) for line in lines if not line.sentences]
        if len(without) == len(lines):
            raise DataError(
                f"{folder}/valid holds no sentence of any direction; raise "
                "data.split.valid_fraction and run `hyperadapter data clean` again"
            )
        if without:
            log.warning(
                "no validation sentences, so no validation loss, for %s", ", ".join(without)
            )
        items = plan_validation(lines, micro_batch_tokens, max_sentences, world_size)
        self._directions = frozenset(int(item.refs.directions[0]) for item in items)
        self._items = items[rank::world_size]
        self._lost: set[int] = set()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def lost_blocks(self) -> frozenset[int]:
        """Blocks that this rank could not read and left out so far."""
        return frozenset(self._lost)

    @property
    def directions(self) -> frozenset[int]:
        """Numbers of the directions that have sentences, on all ranks together."""
        return self._directions

    def __iter__(self) -> Iterator[ValidBatch]:
        for refs, counts in self._items:
            yield self._batch(refs, counts)

    def _batch(self, refs: SentenceRefs, counts: bool) -> ValidBatch:
        refs = refs.select(~np.isin(refs.blocks, list(self._lost)))
        if not len(refs):
            return ValidBatch(build_empty_batch(self._source.layout), counts=False)
        try:
            src, tgt = self._source.gather(refs)
        except LostBlocksError as error:
            log.warning("validation goes on without what is lost: %s", error)
            self._lost |= set(error.blocks)
            return self._batch(refs, counts)
        return ValidBatch(build_micro_batch(self._source.layout, refs.directions, src, tgt), counts)
