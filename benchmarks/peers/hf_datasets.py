"""Hugging Face datasets, streaming: parquet with lists of tokens, a shuffle buffer a language pair.

Language pairs are mixed by hand: `interleave_datasets` copies the state of all its parts for every
sample, which made it 5 to 20 times slower with 20 parts (datasets 5.0.1). Lists become arrays by
hand, too: `with_format("numpy")` took 2 to 6 times as long.
"""
from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.collate import Sample
from benchmarks.synthetic_text import FlatCorpus, temperature

__all__ = ["PACKAGE", "iter_samples", "prepare"]

PACKAGE = "datasets"

_SHUFFLE = 1_000  # samples of a language pair
_DRAW = 1_000


def prepare(corpus: FlatCorpus, folder: Path) -> None:
    """Writes one parquet file per language pair."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    for pair in range(corpus.spec.pairs):
        rows = np.flatnonzero(corpus.pair == pair)
        columns: dict[str, pa.Array] = {"pair": pa.array(np.full(len(rows), pair, np.uint16))}
        for side, name in enumerate("ab"):
            lengths = corpus.lengths[side, rows]
            first = int(corpus.starts[side, rows[0]])
            values = pa.array(np.array(corpus.tokens[first : first + int(lengths.sum())]))
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            columns[name] = pa.ListArray.from_arrays(offsets, values)
        pq.write_table(pa.table(columns), folder / f"{pair:03d}.parquet")


def iter_samples(corpus: FlatCorpus, folder: Path, mixing: float, seed: int) -> Iterator[Sample]:
    """Yields sentence pairs in random order, without end."""
    from datasets import load_dataset

    shares = temperature(np.bincount(corpus.pair), mixing)
    parts = [
        load_dataset(
            "parquet", data_files=str(folder / f"{pair:03d}.parquet"), split="train", streaming=True
        ).shuffle(seed=seed, buffer_size=_SHUFFLE)
        for pair in range(corpus.spec.pairs)
    ]
    iterators = [_repeat(part) for part in parts]
    rng = np.random.default_rng(seed)
    while True:
        for pair in rng.choice(len(parts), _DRAW, p=shares).tolist():
            sample = next(iterators[pair])
            a, b = np.array(sample["a"], np.uint16), np.array(sample["b"], np.uint16)
            yield Sample(sample["pair"], a, b)


def _repeat(dataset: Any) -> Iterator[dict[str, Any]]:
    for epoch in count():
        dataset.set_epoch(epoch)
        yield from dataset
