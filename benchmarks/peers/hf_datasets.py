"""Hugging Face datasets, streaming: Arrow files with lists of tokens, a shuffle buffer each.

What was chosen in favour of datasets 5.0.1, as measured: Arrow, because reading parquet sleeps 5 s
whenever a file ends; mixing language pairs by hand, because `interleave_datasets` copies the state
of all its parts for every sample (5 to 20 times slower with 20 parts); arrays made by hand, because
`with_format("numpy")` takes 2 to 6 times as long.
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
_RECORD_BATCH = 1_000


def prepare(corpus: FlatCorpus, folder: Path) -> None:
    """Writes one Arrow stream per language pair."""
    import pyarrow as pa

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
        table = pa.table(columns)
        path = folder / f"{pair:03d}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=_RECORD_BATCH)


def iter_samples(corpus: FlatCorpus, folder: Path, mixing: float, seed: int) -> Iterator[Sample]:
    """Yields sentence pairs in random order, without end."""
    from datasets import load_dataset  # type: ignore[import-not-found]  # peers' venv

    shares = temperature(np.bincount(corpus.pair), mixing)
    parts = [
        load_dataset(
            "arrow", data_files=str(folder / f"{pair:03d}.arrow"), split="train", streaming=True
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
