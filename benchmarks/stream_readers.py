"""The readers that run in our own environment: the stream, and memory maps as a yardstick.

    hyperadapter      `TrainStream.step` over shards: planning, reading, checking, batching
    memmap_gathered   the same micro-batches from a memory map of all tokens, gathered by one
                      indexing operation a side: all that is left when nothing is to be decided
    memmap_views      the same micro-batches, sentence by sentence: views, and a loop that pads

The memory maps get the order of the sentences for nothing, from the plan, before the clock starts.
"""

# ruff: noqa: N815 (names end in the letters of their shape)
from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import count, cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import Batch, measure_batches, memory_mb, pin, print_result
from benchmarks.synthetic_shards import build_config
from benchmarks.synthetic_text import PAD_ID, FlatCorpus
from data_pipeline.config import DataConfig, StreamConfig, TemperatureMixing
from data_pipeline.ragged import Ragged
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.stream.batching import BatchLayout, MicroBatch, build_micro_batch
from data_pipeline.stream.streams import TrainStream

__all__ = ["READERS"]

_PLANNED_TOKENS = 20_000_000  # then the memory maps begin again: more than any cache of a processor
_COMPARED = 64  # micro-batches

Ints = NDArray[np.int64]
Units = Iterator[Iterable[Batch]]


class Order(NamedTuple):
    """One micro-batch as places in the memory map."""

    directions: Ints
    src_starts: Ints
    src_lengths: Ints
    tgt_starts: Ints
    tgt_lengths: Ints


class ViewBatch(NamedTuple):
    """The arrays of a `MicroBatch` that a loop fills."""

    src_BS: Ints
    src_lengths_B: Ints
    tgt_in_BT: Ints
    tgt_out_BT: Ints
    tgt_lengths_B: Ints


def iter_stream(stream: TrainStream) -> Units:
    """Yields the batches of one chunk of steps after another."""
    for chunk in count():
        yield _iter_chunk(stream, chunk)


def _iter_chunk(stream: TrainStream, chunk: int) -> Iterator[MicroBatch]:
    for step in stream.plan.steps_of(chunk):
        for batch in stream.step(step).micro_batches:
            assert isinstance(batch, MicroBatch)
            yield batch


def plan_orders(stream: TrainStream, corpus: FlatCorpus, config: DataConfig) -> list[list[Order]]:
    """Looks up where the sentences of whole chunks lie in the memory map."""
    manifest = read_manifest(Path(config.shards_folder) / "train")
    sentences = np.concatenate([pair.blocks.sentences for pair in manifest.pairs])
    first_row = np.cumsum(sentences) - sentences
    found = [manifest.find(d.src, d.tgt) for d in config.resolved_directions()]
    from_b = np.array([place is not None and place[1] == "b" for place in found], np.int64)
    chunks: list[list[Order]] = []
    planned = 0
    while planned < _PLANNED_TOKENS:
        orders = []
        for step in stream.plan.steps_of(len(chunks)):
            for refs in stream.plan.step(step).micro_batches:
                rows = first_row[refs.blocks] + refs.rows
                src, tgt = from_b[refs.directions], 1 - from_b[refs.directions]
                orders.append(
                    Order(
                        refs.directions,
                        corpus.starts[src, rows],
                        corpus.lengths[src, rows],
                        corpus.starts[tgt, rows],
                        corpus.lengths[tgt, rows],
                    )
                )
                planned += int(refs.src_lengths.sum() + refs.tgt_lengths.sum())
        chunks.append(orders)
    return chunks


def iter_gathered(chunks: list[list[Order]], corpus: FlatCorpus, layout: BatchLayout) -> Units:
    """Yields the planned batches, gathered by indexing."""
    tokens = corpus.tokens
    for orders in cycle(chunks):
        yield (
            build_micro_batch(
                layout,
                order.directions,
                Ragged(tokens, order.src_starts, order.src_lengths),
                Ragged(tokens, order.tgt_starts, order.tgt_lengths),
            )
            for order in orders
        )


def iter_views(chunks: list[list[Order]], corpus: FlatCorpus, layout: BatchLayout) -> Units:
    """Yields the planned batches, padded sentence by sentence."""
    for orders in cycle(chunks):
        yield (_pad_views(order, corpus, layout) for order in orders)


def _pad_views(order: Order, corpus: FlatCorpus, layout: BatchLayout) -> ViewBatch:
    assert layout.src_tag_D is not None
    tokens, rows = corpus.tokens, len(order.directions)
    src_BS = np.full((rows, int(order.src_lengths.max()) + 1), PAD_ID, np.int64)
    tgt_in_BT = np.full((rows, int(order.tgt_lengths.max())), PAD_ID, np.int64)
    tgt_out_BT = np.full_like(tgt_in_BT, PAD_ID)
    for row in range(rows):
        direction = order.directions[row]
        start, length = order.src_starts[row], order.src_lengths[row]
        src_BS[row, 0] = layout.src_tag_D[direction]
        src_BS[row, 1 : length + 1] = tokens[start : start + length]
        start, length = order.tgt_starts[row], order.tgt_lengths[row]
        tgt = tokens[start : start + length]
        tgt_out_BT[row, :length] = tgt
        tgt_in_BT[row, 0] = layout.tgt_tag_D[direction]
        tgt_in_BT[row, 1:length] = tgt[:-1]
    return ViewBatch(src_BS, order.src_lengths + 1, tgt_in_BT, tgt_out_BT, order.tgt_lengths)


READERS = {"memmap_gathered": iter_gathered, "memmap_views": iter_views}


def _check_equal(ours: Units, others: Units) -> None:
    """Makes sure that a yardstick does the same work: its first batches equal the stream's."""
    for _, mine, other in zip(range(_COMPARED), next(ours), next(others), strict=False):
        for name in ViewBatch._fields:
            if not np.array_equal(getattr(mine, name), getattr(other, name)):
                raise SystemExit(f"{name} differs from the stream's: the benchmark is broken")


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=("hyperadapter", *READERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--micro-batches", type=int, default=16)
    parser.add_argument("--mixing", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--core", type=int)
    arguments = parser.parse_args()
    pin(arguments.core)
    corpus = FlatCorpus(arguments.folder / "flat")
    mixing = TemperatureMixing(kind="temperature", temperature=arguments.mixing)
    config = build_config(arguments.folder / "shards", corpus.spec, StreamConfig(mixing=mixing))
    stream = TrainStream(
        Path(config.shards_folder), config, micro_batch_tokens=arguments.tokens,
        micro_batches_per_step=arguments.micro_batches, seed=arguments.seed,
    )  # fmt: skip
    if arguments.reader == "hyperadapter":
        # No warm-up: the first chunk finds all windows empty, as after every start.
        result = measure_batches(iter_stream(stream), arguments.seconds, 0) | memory_mb()
    else:
        chunks = plan_orders(stream, corpus, config)
        layout = BatchLayout.from_config(config, corpus.spec.vocab_size)
        reader = READERS[arguments.reader]
        _check_equal(iter_stream(stream), reader(chunks, corpus, layout))
        result = measure_batches(reader(chunks, corpus, layout), arguments.seconds, 1)
    print_result(result)


if __name__ == "__main__":
    main()
