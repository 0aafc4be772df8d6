"""Samples of any peer to padded batches under a token budget: what a user of each would write.

Vectorised as far as samples that come one by one allow, so that the peers are not slowed down here.
The arrays are those of `data_pipeline/stream/batching.py`.
"""

# ruff: noqa: N815 (names end in the letters of their shape)
from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic_text import PAD_ID

__all__ = ["PeerBatch", "Sample", "iter_buffers"]

Ints = NDArray[np.int64]


class Sample(NamedTuple):
    """One sentence pair as a peer yields it; both sides end with the end mark."""

    pair: int
    a: NDArray[Any]
    b: NDArray[Any]


class PeerBatch(NamedTuple):
    """The same arrays as `MicroBatch`."""

    src_BS: Ints
    src_lengths_B: Ints
    tgt_in_BT: Ints
    tgt_out_BT: Ints
    tgt_lengths_B: Ints
    direction_P: Ints
    sentences_P: Ints


def iter_buffers(
    samples: Iterable[Sample], *, tokens: int, buffer: int, vocab_size: int, seed: int
) -> Iterator[Iterator[PeerBatch]]:
    """Yields the batches of one buffer after another.

    The samples of a buffer are sorted by length, cut into batches whose longer side takes at most
    `tokens` positions, and the batches are shuffled. A coin chooses a sample's direction.

    Args:
        samples: Sentence pairs in random order, without end.
        tokens: Most positions of a batch's longer side.
        buffer: Samples sorted together.
        vocab_size: Language tags begin here: the shared language has the first one.
        seed: Of the coin and the shuffling.
    """
    rng = np.random.default_rng(seed)
    stream = iter(samples)
    while held := list(islice(stream, buffer)):
        yield _batches(held, tokens, vocab_size, rng)


def _batches(
    held: list[Sample], limit: int, vocab_size: int, rng: np.random.Generator
) -> Iterator[PeerBatch]:
    flip = rng.integers(2, size=len(held))
    src = [sample.b if turn else sample.a for sample, turn in zip(held, flip, strict=True)]
    tgt = [sample.a if turn else sample.b for sample, turn in zip(held, flip, strict=True)]
    pair = np.array([sample.pair for sample in held], np.int64)
    direction = 2 * pair + flip
    src_lengths = np.fromiter(map(len, src), np.int64, len(src))
    tgt_lengths = np.fromiter(map(len, tgt), np.int64, len(tgt))
    widths = np.maximum(src_lengths + 1, tgt_lengths)
    order = np.lexsort((-src_lengths, -tgt_lengths, -widths))
    groups = []
    first = 0
    while first < len(order):
        size = limit // int(widths[order[first]])
        groups.append(order[first : first + size])
        first += size
    for number in rng.permutation(len(groups)):
        index = groups[number]
        index = index[np.argsort(direction[index], kind="stable")]
        tags = vocab_size + np.stack([np.zeros_like(index), pair[index] + 1])
        turned = flip[index]
        rows = np.arange(len(index))
        yield _collate(
            [src[i] for i in index], [tgt[i] for i in index],
            tags[turned, rows], tags[1 - turned, rows], direction[index],
        )  # fmt: skip


def _collate(
    src: list[NDArray[Any]], tgt: list[NDArray[Any]], src_tag: Ints, tgt_tag: Ints, direction: Ints
) -> PeerBatch:
    src_BS, src_lengths_B = _pad(src, src_tag)
    both, lengths = _pad(tgt, tgt_tag)
    tgt_in_BT = both[:, :-1].copy()
    # The end mark of a shorter sentence is its last token, which the decoder never reads.
    shorter = np.flatnonzero(lengths <= tgt_in_BT.shape[1])
    tgt_in_BT[shorter, lengths[shorter] - 1] = PAD_ID
    distinct, counts = np.unique(direction, return_counts=True)
    return PeerBatch(
        src_BS, src_lengths_B, tgt_in_BT, both[:, 1:].copy(), lengths - 1, distinct, counts
    )


def _pad(rows: list[NDArray[Any]], opening: Ints) -> tuple[Ints, Ints]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows)) + 1
    width = int(lengths.max())
    padded = np.full((len(rows), width), PAD_ID, np.int64)
    padded[:, 0] = opening
    padded[:, 1:][np.arange(1, width) < lengths[:, None]] = np.concatenate(rows)
    return padded, lengths
