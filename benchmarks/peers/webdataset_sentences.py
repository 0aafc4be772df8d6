"""Plain webdataset: a member per sentence pair, shuffle buffers, RandomMix over language pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.collate import Sample
from benchmarks.synthetic_text import FlatCorpus, temperature

__all__ = ["PACKAGE", "iter_samples", "prepare"]

PACKAGE = "webdataset"

_SHARD_SENTENCES = 10_000
_SHUFFLE = 1_000  # samples a language pair; shards are shuffled besides


def prepare(corpus: FlatCorpus, folder: Path) -> None:
    """Writes tars with one msgpack member per sentence pair."""
    import webdataset as wds

    folder.mkdir(parents=True)
    for pair in range(corpus.spec.pairs):
        rows = np.flatnonzero(corpus.pair == pair)
        for shard, first in enumerate(range(0, len(rows), _SHARD_SENTENCES)):
            with wds.TarWriter(str(folder / f"{pair:03d}-{shard:04d}.tar")) as tar:
                for row in rows[first : first + _SHARD_SENTENCES]:
                    a, b = corpus.sides(int(row))
                    value = {"pair": pair, "a": a.tobytes(), "b": b.tobytes()}
                    tar.write({"__key__": f"{row:09d}", "mp": value})


def iter_samples(corpus: FlatCorpus, folder: Path, mixing: float, seed: int) -> Iterator[Sample]:
    """Yields sentence pairs in random order, without end."""
    import random

    import webdataset as wds

    random.seed(seed)  # RandomMix draws from the global generator
    shares = temperature(np.bincount(corpus.pair), mixing)
    pipelines = [
        wds.WebDataset(
            [str(path) for path in sorted(folder.glob(f"{pair:03d}-*.tar"))],
            shardshuffle=100, seed=seed, empty_check=False,
        )
        .repeat()
        .shuffle(_SHUFFLE)
        .decode()
        for pair in range(corpus.spec.pairs)
    ]  # fmt: skip
    for sample in wds.RandomMix(pipelines, probs=[float(share) for share in shares]):
        yield _sample(sample["mp"])


def _sample(value: dict[str, Any]) -> Sample:
    return Sample(
        value["pair"], np.frombuffer(value["a"], np.uint16), np.frombuffer(value["b"], np.uint16)
    )
