"""Our models in the timed training step: dense, stored adapters, hyper-adapters, the naive way.

    dense, language, direction, hyper     one forward pass of `Seq2Seq` for each micro-batch
    naive_hyper                           the same sentences, one direction at a time, gradients
                                          added up; every layer calls the hyper-network
    naive_hyper_own_batching              the same calls, but whole micro-batches of one direction

The authors' published code (a fairseq fork) generates an adapter whenever a layer applies it and
gives a batch one language pair. Here it runs on our Transformer, so that nothing else differs; the
Linear layers of the hyper-network are ours, too.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.model_data import ModelData, pack, split_by_direction
from benchmarks.step_loop import LABEL_SMOOTHING, Built, StepSpec, Unit, serve_model, serve_peaks
from data_pipeline.stream.batching import MicroBatch, PackedBatch
from hyperadapter.config import ModelConfig
from hyperadapter.core.heap import keep_freed_memory
from hyperadapter.core.schema import parse_config
from hyperadapter.model.adapters import LayerAdapter
from hyperadapter.model.batch import Batch
from hyperadapter.model.hypernetwork import HyperNetwork
from hyperadapter.model.rows import Groups
from hyperadapter.model.seq2seq import Seq2Seq, build_model

__all__ = ["KINDS"]

KINDS = {
    "dense": "none",
    "language": "language",
    "direction": "direction",
    "hyper": "hyper",
    "naive_hyper": "hyper",
    "naive_hyper_own_batching": "hyper",
}
"""Adapter kind of each model that is measured."""


class _NaiveLayer(NamedTuple):
    """One layer's adapter, made anew in every call."""

    hyper: HyperNetwork
    batch: Batch
    place: int

    def hidden(self, normalised_ND: Tensor, groups: Groups) -> Tensor:
        """Generates the adapter and computes its bottleneck's units."""
        return self._generate().hidden(normalised_ND, groups)

    def residual(self, normalised_ND: Tensor, groups: Groups) -> Tensor:
        """Generates the adapter and applies it."""
        added: Tensor = self._generate().residual(normalised_ND, groups)
        return added

    def _generate(self) -> LayerAdapter:
        """Runs the hyper-network for one direction and one layer."""
        batch, layers = self.batch, slice(self.place, self.place + 1)
        context_PLH = self.hyper.context(
            batch.src_language_P, batch.tgt_language_P, batch.direction_P
        )
        (adapter,) = self.hyper.generate(context_PLH[:, layers], layers).unbind()
        return adapter


class _NaiveAdapters:
    """What the Transformer asks for its adapters."""

    def __init__(self, model: Seq2Seq, batch: Batch) -> None:
        assert isinstance(model.adapters, HyperNetwork)
        self._hyper, self._batch = model.adapters, batch
        self._place = {number: place for place, number in enumerate(model.config.adapted_layers)}

    def layer(self, number: int) -> _NaiveLayer | None:
        """Returns the adapters of a layer."""
        place = self._place.get(number)
        return None if place is None else _NaiveLayer(self._hyper, self._batch, place)


def _loss(model: Seq2Seq, batch: Batch, tgt_tokens: int) -> Tensor:
    total: Tensor = model(batch, LABEL_SMOOTHING).loss
    return total / tgt_tokens


def _unit(model: Seq2Seq, parts: Sequence[MicroBatch | PackedBatch], device: str) -> Unit:
    tgt_tokens = sum(part.num_tgt_tokens for part in parts)
    return Unit(
        [partial(_loss, model, Batch.from_micro_batch(part, device), tgt_tokens) for part in parts],
        sum(_src_tokens(part) for part in parts),
        tgt_tokens,
        sum(_positions(part) for part in parts),
    )


def _src_tokens(batch: MicroBatch | PackedBatch) -> int:
    if isinstance(batch, MicroBatch):
        return int(batch.src_lengths_B.sum())
    return len(batch.src_tokens)


def _positions(batch: MicroBatch | PackedBatch) -> int:
    if isinstance(batch, MicroBatch):
        return batch.src_BS.size + batch.tgt_in_BT.size
    return len(batch.src_tokens) + len(batch.tgt_in)


def _build(name: str, spec: StepSpec) -> Built:
    folder = Path(spec.folder)
    mixed = name != "naive_hyper_own_batching"
    data: ModelData = pickle.loads(
        (folder / ("data.pickle" if mixed else "one_direction.pickle")).read_bytes()
    )
    settings = spec.model | {"adapter": spec.model["adapter"] | {"kind": KINDS[name]}}
    config = parse_config(ModelConfig, settings, str(folder))
    model = build_model(config, data.vocabulary, seed=1)
    model.to(spec.device, spec.dtype).train()
    if spec.compile:
        model.compile_layers()
    naive = name.startswith("naive")
    works: list[Sequence[MicroBatch | PackedBatch]] = []
    for batch in data.micro_batches[: spec.units]:
        parts = split_by_direction(batch, data.layout) if naive else [batch]
        packed = spec.layout == "packed"
        works.append([pack(part, data.layout) for part in parts] if packed else parts)
    if naive:
        model.adapters_of = partial(_NaiveAdapters, model)  # type: ignore[method-assign]
    units = [_unit(model, work, spec.device) for work in works]
    return Built(model, units, f"torch {torch.__version__}")


def main() -> None:
    """Obeys stdin, see `step_loop.serve_model`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("peaks", *KINDS))
    parser.add_argument("spec", type=Path)
    arguments = parser.parse_args()
    spec = StepSpec.read(arguments.spec)
    keep_freed_memory()  # as a run does
    if arguments.name == "peaks":
        serve_peaks(spec)
    else:
        serve_model(partial(_build, arguments.name, spec), spec)


if __name__ == "__main__":
    main()
