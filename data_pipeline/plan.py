"""Which sentences each optimizer step trains on: a pure function of the step. No text, no torch.

**Lines.** The sentences of a direction, again and again, form an endless line. A sentence takes
as much of it as its width, `max(source, target)` tokens with the encoder tag, i.e. what it costs
in a padded batch. Pass p orders the blocks by a permutation seeded by (seed, direction, p), and
permutes sentences inside each window of `window_blocks` consecutive blocks by (seed, direction, p,
window). The manifest knows the width of each block, so finding a position costs O(blocks),
whatever the step.

**Chunks.** K steps of M micro-batches form a chunk. Chunk c takes from direction d the sentences
that start in `[floor(c Q_d), floor((c + 1) Q_d))` of its line: every sentence once per pass, and
the mixture `Q_d / sum Q` in each chunk, both by construction. The chunk's sentences are sorted by
width and cut into exactly K M groups under the smallest possible cap on the padded width
`n * widest`; a seeded permutation of the groups makes the micro-batches, and step t takes M
consecutive ones. Ranks share these in order, so the global batch does not depend on how many ranks
there are.

**No micro-batch exceeds C = micro_batch_tokens.** Cut greedily from the widest sentence, with cap
C. A group that is followed by another holds `n = floor(C / l)` sentences, l its widest, so its
padded width is at least `phi C`, with `phi = min over widths l of floor(C / l) l / C`. Its padding
is at most `n (l - l_last) <= C (1 - l_last / l) <= C ln(l / l_last)`; over all groups this
telescopes to `C ln(L / l_min)`, L the widest sentence of all. G groups therefore hold the width

    S >= (G - 1) phi C - C ln(L / l_min),   and   S <= Q + sum_d L_d,

because a direction's share overshoots its part of the line by less than one sentence. So G <= K M
if

    Q = phi C (K M - F) - F C ln(L / l_min) - sum_d L_d

with F = 1, or F = the number of directions when a micro-batch holds one direction only. K is the
smallest number for which the fill `Q / (K M C)` reaches 0.9 of its limit phi. Real text needs
fewer groups than the bound, and the smallest cap then spreads it evenly: what a micro-batch lacks
to C is head-room, not padding.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.mixing import temperature_weights, token_shares
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.languages import Direction

__all__ = [
    "DirectionLine",
    "PlanConfig",
    "SentenceRefs",
    "StepPlan",
    "TrainPlan",
    "ValidItem",
    "plan_validation",
]

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Lengths = Callable[[int], tuple[NDArray[Any], NDArray[Any]]]

FILL_OF_LIMIT = 0.9
MAX_CHUNK_STEPS = 4096
_FRACTION_BITS = 32
_CHUNK_STREAM = 0xC4  # separates the seeds of chunks from those of directions


@dataclass(frozen=True, slots=True)
class DirectionLine:
    """The blocks of one direction.

    Attributes:
        direction: Which one; its name is part of the seeds.
        blocks: Numbers of its blocks, `[num_blocks]`.
        widths: Sum of the widths of each block's sentences, `[num_blocks]`.
        sentences: Sentence pairs of all blocks.
        longest: Width of the widest sentence.
        lengths: Reads a block's source lengths (with the encoder tag) and target lengths.
    """

    direction: Direction
    blocks: Ints
    widths: Ints
    sentences: int
    longest: int
    lengths: Lengths


class PlanConfig(NamedTuple):
    """What the order of the data depends on, besides the data.

    Attributes:
        micro_batch_tokens: C, most tokens of a micro-batch's longer side, padding included.
        micro_batches_per_step: M, over all ranks.
        temperature: Of the mixture.
        window_blocks: Blocks shuffled together.
        policy: What a micro-batch may hold.
        seed: Of all permutations.
    """

    micro_batch_tokens: int
    micro_batches_per_step: int
    temperature: float
    window_blocks: int
    policy: Literal["mixed", "one_direction_per_micro_batch"]
    seed: int


@dataclass(frozen=True, slots=True)
class SentenceRefs:
    """References to sentences; five arrays of one length.

    Attributes:
        directions: Number of the direction.
        blocks: Number of the block.
        rows: Row in the block.
        src_lengths: Source tokens, end mark and encoder tag included.
        tgt_lengths: Target tokens, end mark included.
    """

    directions: Ints
    blocks: Ints
    rows: Ints
    src_lengths: Ints
    tgt_lengths: Ints

    @classmethod
    def from_rows(cls, rows: NDArray[Any]) -> SentenceRefs:
        """Makes references of the five rows of a matrix."""
        return cls(*rows)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: NDArray[Any] | slice) -> SentenceRefs:
        """Selects sentences."""
        return SentenceRefs(
            self.directions[index],
            self.blocks[index],
            self.rows[index],
            self.src_lengths[index],
            self.tgt_lengths[index],
        )

    @property
    def padded_tokens(self) -> int:
        """Tokens of the longer side of one batch of all these sentences, padding included."""
        return len(self) * int(max(self.src_lengths.max(), self.tgt_lengths.max()))


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One optimizer step.

    Attributes:
        micro_batches: All M micro-batches, each sorted by direction.
        target_tokens: Tokens that the step's loss is averaged over.
        tokens_per_direction: The same per direction, `[num_directions]`.
    """

    micro_batches: tuple[SentenceRefs, ...]
    target_tokens: int
    tokens_per_direction: Ints

    @property
    def hash(self) -> str:
        """SHA-256 of the ordered sentences; the same for every number of ranks."""
        digest = hashlib.sha256()
        for refs in self.micro_batches:
            rows = np.stack([refs.directions, refs.blocks, refs.rows])
            digest.update(np.array(rows.shape, "<i8").tobytes() + rows.astype("<i8").tobytes())
        return digest.hexdigest()


class Chunk(NamedTuple):
    """K steps: the sentences of micro-batch i are `refs[offsets[i] : offsets[i + 1]]`."""

    number: int
    refs: SentenceRefs
    offsets: Ints

    def micro_batch(self, index: int) -> SentenceRefs:
        """Returns one of the K M micro-batches."""
        return self.refs.select(slice(self.offsets[index], self.offsets[index + 1]))


class _Size(NamedTuple):
    """How large a chunk is: K steps, and Q tokens of the lines' width."""

    steps: int
    width: float
    fill: float


class _Pass(NamedTuple):
    """The block order of one pass, and where its windows begin on the line, `[windows + 1]`."""

    number: int
    order: Ints
    bounds: Ints


class _Window(NamedTuple):
    """The sentences of one window in their order.

    `rows` is `[4, n]`: block, row, source and target length; `starts` is `[n + 1]`.
    """

    key: tuple[int, int]
    rows: NDArray[np.int32]
    starts: Ints


class TrainPlan:
    """The order of the training data."""

    def __init__(self, lines: Sequence[DirectionLine], config: PlanConfig) -> None:
        """Chooses the mixture and the size of a chunk.

        Raises:
            ConfigError: `micro_batch_tokens` is too small for the longest sentence.
        """
        self._lines = list(lines)
        self._config = config
        counts = np.array([line.sentences for line in lines], np.float64)
        self._totals = [int(line.widths.sum()) for line in lines]
        probabilities = temperature_weights(counts, config.temperature)
        shares = token_shares(probabilities, np.array(self._totals) / counts)
        size = _chunk_size(self._lines, config)
        self.steps_per_chunk = size.steps
        self.fill = size.fill
        # Integers, so that the boundaries of a chunk are exact however far the run goes.
        self._quota = [int(share * size.width * 2**_FRACTION_BITS) for share in shares]
        self._seeds = [zlib.crc32(str(line.direction).encode()) for line in lines]
        self._passes: dict[int, _Pass] = {}
        self._windows: dict[int, _Window] = {}
        self._chunk: Chunk | None = None
        log.info(
            "plan: %d directions, %d steps a chunk, micro-batches at least %.0f%% of %d tokens",
            len(lines), size.steps, 100 * size.fill, config.micro_batch_tokens,
        )  # fmt: skip

    def step(self, step: int) -> StepPlan:
        """Returns the micro-batches of an optimizer step, for all ranks together."""
        chunk = self.chunk(step // self.steps_per_chunk)
        first, last = self.micro_batches(step)
        refs = chunk.refs.select(slice(chunk.offsets[first], chunk.offsets[last]))
        tokens = np.bincount(
            refs.directions, weights=refs.tgt_lengths, minlength=len(self._lines)
        ).astype(np.int64)
        return StepPlan(
            tuple(chunk.micro_batch(index) for index in range(first, last)),
            int(tokens.sum()),
            tokens,
        )

    def micro_batches(self, step: int) -> tuple[int, int]:
        """Returns which micro-batches of its chunk a step takes: `[first, last)`."""
        count = self._config.micro_batches_per_step
        first = step % self.steps_per_chunk * count
        return first, first + count

    def passes(self, step: int) -> NDArray[np.float64]:
        """Returns how often each direction was passed through before `step`, `[num_directions]`."""
        width_per_step = np.array(self._quota) / (2**_FRACTION_BITS * self.steps_per_chunk)
        return np.asarray(step * width_per_step / np.array(self._totals), np.float64)

    def chunk(self, number: int) -> Chunk:
        """Returns one chunk; the last one asked for is kept."""
        if self._chunk is None or self._chunk.number != number:
            self._chunk = self._build_chunk(number)
        return self._chunk

    def _build_chunk(self, number: int) -> Chunk:
        parts = []
        for direction in range(len(self._lines)):
            pieces = list(self._take(direction, *self._part(direction, number)))
            if pieces:
                rows = np.concatenate(pieces, axis=1)
                index = np.full((1, rows.shape[1]), direction, np.int32)
                parts.append(np.concatenate([index, rows]))
        columns = np.concatenate(parts, axis=1).astype(np.int64)
        rng = self._generator(_CHUNK_STREAM, number)
        return _cut_chunk(number, columns, self.steps_per_chunk, self._config, rng)

    def _part(self, direction: int, chunk: int) -> tuple[int, int]:
        quota = self._quota[direction]
        return (chunk * quota) >> _FRACTION_BITS, ((chunk + 1) * quota) >> _FRACTION_BITS

    def _take(self, direction: int, low: int, high: int) -> Iterator[NDArray[np.int32]]:
        """Yields the sentences that start in `[low, high)` of a direction's line."""
        while low < high:
            number, offset = divmod(low, self._totals[direction])
            order = self._pass(direction, number)
            index = int(np.searchsorted(order.bounds, offset, side="right")) - 1
            window = self._window(direction, order, index)
            base = number * self._totals[direction] + int(order.bounds[index])
            first, last = np.searchsorted(window.starts[:-1], (low - base, high - base))
            yield window.rows[:, first:last]
            low = base + int(window.starts[-1])

    def _pass(self, direction: int, number: int) -> _Pass:
        kept = self._passes.get(direction)
        if kept is None or kept.number != number:
            line = self._lines[direction]
            rng = self._generator(self._seeds[direction], number)
            order = rng.permutation(len(line.blocks))
            firsts = np.arange(0, len(order), self._config.window_blocks)
            widths = np.add.reduceat(line.widths[order], firsts)
            kept = _Pass(number, order, np.concatenate([[0], np.cumsum(widths)]))
            self._passes[direction] = kept
        return kept

    def _window(self, direction: int, order: _Pass, index: int) -> _Window:
        kept = self._windows.get(direction)
        if kept is None or kept.key != (order.number, index):
            line, size = self._lines[direction], self._config.window_blocks
            parts = []
            for block in line.blocks[order.order[index * size : (index + 1) * size]]:
                src, tgt = line.lengths(int(block))
                columns = [np.full(len(src), block), np.arange(len(src)), src, tgt]
                parts.append(np.stack(columns, dtype=np.int32, casting="unsafe"))
            rows = np.concatenate(parts, axis=1)
            # From 1, because numpy fills a short seed with zeros: 0 would be the pass's own stream.
            rng = self._generator(self._seeds[direction], order.number, index + 1)
            rows = rows[:, rng.permutation(rows.shape[1])]
            starts = np.concatenate([[0], np.cumsum(np.maximum(rows[2], rows[3]), dtype=np.int64)])
            assert starts[-1] == order.bounds[index + 1] - order.bounds[index], line.direction
            kept = _Window((order.number, index), rows, starts)
            self._windows[direction] = kept
        return kept

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([self._config.seed % 2**64, *stream])


def _chunk_size(lines: Sequence[DirectionLine], config: PlanConfig) -> _Size:
    """Finds K and Q; the derivation stands at the head of this file."""
    limit, per_step = config.micro_batch_tokens, config.micro_batches_per_step
    longest = max(line.longest for line in lines)
    place = (
        f"training.micro_batch_tokens {limit} with {len(lines)} directions and a longest sentence "
        f"of {longest} tokens (tag and end mark included)"
    )
    if longest > limit:
        raise ConfigError(
            f"{place} cannot hold every sentence; raise micro_batch_tokens, or lower "
            "data.shards.max_sentence_tokens and shard again"
        )
    widths = np.arange(1, longest + 1)
    phi = float((limit // widths * widths).min()) / limit
    # A sentence has at least one piece and the end mark.
    padding = limit * math.log(longest / min(2, longest))
    fronts = 1 if config.policy == "mixed" else len(lines)
    overshoot = sum(line.longest for line in lines)
    loss = fronts * (phi * limit + padding) + overshoot
    groups = loss / (phi * (1 - FILL_OF_LIMIT) * limit)
    # No group may be empty, even if all sentences of a chunk are of the longest kind:
    # width - overshoot - num_directions >= groups * longest.
    spare = phi * limit - longest
    groups = max(groups, (loss + overshoot + len(lines)) / spare) if spare > 0 else math.inf
    steps = math.ceil(min(groups, 1e9) / per_step)
    if steps > MAX_CHUNK_STEPS:
        raise ConfigError(
            f"{place} leaves no room to balance micro-batches: with {per_step} of them a step, the "
            f"mixture would take more than {MAX_CHUNK_STEPS} steps to come true. Raise "
            f"micro_batch_tokens (to {3 * longest} or more) or global_batch_tokens, or lower "
            "data.shards.max_sentence_tokens and shard again"
        )
    groups = steps * per_step
    width = phi * limit * groups - loss
    return _Size(steps, width, width / (groups * limit))


def _cut_chunk(
    number: int, columns: Ints, steps: int, config: PlanConfig, rng: np.random.Generator
) -> Chunk:
    """Turns the sentences of a chunk (`[5, n]`, as in `SentenceRefs`) into its micro-batches."""
    columns = columns[:, rng.permutation(columns.shape[1])]  # breaks ties of the stable sort
    direction, _, _, src, tgt = columns
    widths = np.maximum(src, tgt)
    separate = config.policy == "one_direction_per_micro_batch"
    key = -((widths << 32) + (tgt << 16) + src)
    order = np.lexsort((key, direction)) if separate else np.argsort(key, kind="stable")
    columns, widths = columns[:, order], widths[order]
    cuts = np.flatnonzero(np.diff(columns[0])) + 1 if separate else np.empty(0, np.int64)
    num_groups = steps * config.micro_batches_per_step
    starts = _cut([part.tolist() for part in np.split(widths, cuts)], num_groups, config)

    sizes = np.diff(np.append(starts, columns.shape[1]))
    places = rng.permutation(num_groups)  # group g becomes micro-batch places[g]
    place = np.repeat(places, sizes)
    order = np.argsort(place * (int(direction.max()) + 1) + columns[0], kind="stable")
    sizes = sizes[np.argsort(places)]
    return Chunk(
        number,
        SentenceRefs.from_rows(columns[:, order]),
        np.concatenate([[0], np.cumsum(sizes)]),
    )


def _cut(segments: Sequence[list[int]], num_groups: int, config: PlanConfig) -> Ints:
    """Cuts descending widths into exactly `num_groups` groups of the least padded width.

    Args:
        segments: Widths, descending inside each segment; no group reaches over two segments.
        num_groups: Groups over all segments.
        config: Its `micro_batch_tokens` is known to be large enough.

    Returns:
        Where each group starts in the concatenated segments, ascending.
    """
    cap = _smallest_cap(segments, num_groups, config.micro_batch_tokens)
    groups: list[tuple[int, int, int]] = []
    first = 0
    for segment in segments:
        # Evens out the groups of one segment where the others dictate the cap.
        own = _smallest_cap([segment], len(_greedy(segment, cap)), cap) if segments[1:] else cap
        for start, size in _greedy(segment, own):
            groups.append((-size * segment[start], first + start, size))
        first += len(segment)
    # Too few groups can come out; the largest are halved. One sentence cannot be.
    heap = [group for group in groups if group[2] > 1]
    done = [group for group in groups if group[2] == 1]
    heapq.heapify(heap)
    widths = [width for segment in segments for width in segment]
    while len(heap) + len(done) < num_groups:
        _, start, size = heapq.heappop(heap)
        for begin, count in ((start, size // 2), (start + size // 2, size - size // 2)):
            group = (-count * widths[begin], begin, count)
            if count > 1:
                heapq.heappush(heap, group)
            else:
                done.append(group)
    return np.array(sorted(start for _, start, _ in heap + done), np.int64)


def _smallest_cap(segments: Sequence[list[int]], num_groups: int, high: int) -> int:
    """Returns the least padded width at which `num_groups` groups suffice; at `high` they do."""
    # Greedy cutting is optimal for a given cap, because a part of a group never costs more.
    assert sum(len(_greedy(segment, high)) for segment in segments) <= num_groups, "broken bound"
    low = max(max(segment[0] for segment in segments), -(-sum(map(sum, segments)) // num_groups))
    while low < high:
        cap = (low + high) // 2
        if sum(len(_greedy(segment, cap)) for segment in segments) <= num_groups:
            high = cap
        else:
            low = cap + 1
    return high


def _greedy(widths: list[int], cap: int) -> list[tuple[int, int]]:
    """Cuts descending widths into groups `(start, size)` with `size * widths[start] <= cap`."""
    groups = []
    start, end = 0, len(widths)
    while start < end:
        size = min(cap // widths[start], end - start)
        groups.append((start, size))
        start += size
    return groups


class ValidItem(NamedTuple):
    """One validation batch; a repeated one that only keeps ranks in step does not count."""

    refs: SentenceRefs
    counts: bool


def plan_validation(
    lines: Sequence[DirectionLine], micro_batch_tokens: int, max_sentences: int, world_size: int
) -> list[ValidItem]:
    """Plans the pass over the validation split: item i is for rank `i % world_size`.

    The first `max_sentences` of every direction come once each, sorted by length, one direction per
    batch, no batch above `micro_batch_tokens`. The number of items is a multiple of `world_size`.

    Raises:
        ConfigError: A sentence is longer than `micro_batch_tokens`.
    """
    longest = max(line.longest for line in lines)
    if longest > micro_batch_tokens:
        raise ConfigError(
            f"training.micro_batch_tokens {micro_batch_tokens} cannot hold a validation sentence "
            f"of {longest} tokens; raise it, or lower data.shards.max_sentence_tokens and shard "
            "again"
        )
    items: list[ValidItem] = []
    for number, line in enumerate(lines):
        parts: list[Ints] = []
        missing = max_sentences
        for block in line.blocks:
            if missing <= 0:
                break
            src, tgt = (lengths[:missing] for lengths in line.lengths(int(block)))
            count = len(src)
            parts.append(
                np.stack(
                    [np.full(count, number), np.full(count, block), np.arange(count), src, tgt]
                )
            )
            missing -= count
        if not parts:
            continue
        columns = np.concatenate(parts, axis=1)
        widths = np.maximum(columns[3], columns[4])
        order = np.argsort(-widths, kind="stable")
        columns = columns[:, order]
        for start, size in _greedy(widths[order].tolist(), micro_batch_tokens):
            refs = SentenceRefs.from_rows(columns[:, start : start + size])
            items.append(ValidItem(refs, counts=True))
    fillers = -len(items) % world_size
    return items + [ValidItem(items[-1].refs, counts=False)] * fillers if items else []
