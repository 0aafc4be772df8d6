"""mosaicml-streaming: a sample per sentence pair, a stream per language pair, its own shuffling."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.collate import Sample
from benchmarks.synthetic_text import FlatCorpus, temperature

__all__ = ["PACKAGE", "iter_samples", "prepare"]

PACKAGE = "mosaicml-streaming"

_COLUMNS = {"pair": "uint16", "a": "ndarray:uint16", "b": "ndarray:uint16"}
_BATCH_SIZE = 64  # of its partitioning; batches are cut by tokens


def _load_torchvision() -> Any:
    """Makes `import streaming` work beside a CPU build of torch; returns what must stay alive.

    streaming imports torchvision for its data sets of images. A torchvision built for CUDA cannot
    load its operators then, and fails because these two are not even declared.
    """
    import torch

    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401 (peers' venv)
    except RuntimeError:
        torch_library: Any = torch.library
        library = torch_library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def prepare(corpus: FlatCorpus, folder: Path) -> None:
    """Writes one MDS folder per language pair."""
    library = _load_torchvision()  # noqa: F841
    from streaming import MDSWriter  # type: ignore[import-not-found]  # peers' venv

    for pair in range(corpus.spec.pairs):
        with MDSWriter(out=str(folder / f"{pair:03d}"), columns=_COLUMNS) as writer:
            for row in np.flatnonzero(corpus.pair == pair):
                a, b = corpus.sides(int(row))
                writer.write({"pair": pair, "a": np.array(a), "b": np.array(b)})


def iter_samples(corpus: FlatCorpus, folder: Path, mixing: float, seed: int) -> Iterator[Sample]:
    """Yields sentence pairs in the order that mosaicml-streaming chooses, without end."""
    library = _load_torchvision()  # noqa: F841
    from streaming import Stream, StreamingDataset
    from streaming.base.util import (  # type: ignore[import-not-found]  # peers' venv
        clean_stale_shared_memory,
    )

    clean_stale_shared_memory()
    shares = temperature(np.bincount(corpus.pair), mixing)
    streams = [
        Stream(local=str(folder / f"{pair:03d}"), proportion=float(share))
        for pair, share in enumerate(shares)
    ]
    dataset = StreamingDataset(
        streams=streams, shuffle=True, shuffle_seed=seed, batch_size=_BATCH_SIZE
    )
    while True:
        for sample in dataset:
            yield Sample(int(sample["pair"]), sample["a"], sample["b"])
