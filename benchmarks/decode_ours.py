"""Our beam search in the benchmark: dense, with the adapters made once, and made in every step.

The authors' published code (a fairseq fork) runs the hyper-network whenever a layer applies its
adapter, so in every step of the search. `hyper_regenerated` does so with our model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.copying import set_copying_weights
from benchmarks.decode_task import BOS_ID, DecodeTask, Output, Translator, serve_translator
from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_prompts
from hyperadapter.config import EvaluationConfig, ModelConfig
from hyperadapter.core.heap import keep_freed_memory
from hyperadapter.core.languages import parse_direction
from hyperadapter.core.schema import parse_config
from hyperadapter.evaluation.search import beam_search
from hyperadapter.model.adapters import Adapters, LayerAdapter
from hyperadapter.model.batch import Batch
from hyperadapter.model.hypernetwork import HyperNetwork
from hyperadapter.model.rows import Groups
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.model.vocabulary import Vocabulary

__all__ = ["KINDS", "build_copying_model"]

KINDS = {"hyper_materialised": "hyper", "dense": "none", "hyper_regenerated": "hyper"}
"""Adapter kind of each row."""

_VOCABULARY_LANGUAGES = ("en", "de")
_DIRECTION = "en-de"


def build_copying_model(task: DecodeTask, kind: str) -> Seq2Seq:
    """Builds a model on the CPU in fp32; those of all kinds have the same main network."""
    tree = task.model | {"adapter": task.model["adapter"] | {"kind": kind}}
    if kind != "hyper":
        tree["adapter"] = {"kind": kind}
    config = parse_config(ModelConfig, tree, "the model")
    directions = (parse_direction(_DIRECTION),)
    vocabulary = Vocabulary(task.num_pieces, _VOCABULARY_LANGUAGES, directions)
    model = build_model(config, vocabulary, seed=1)
    set_copying_weights(model)
    return model.eval()


class _RegeneratedLayer(NamedTuple):
    """One layer's adapter, made anew in every call."""

    hyper: HyperNetwork
    keys: tuple[Tensor, Tensor, Tensor]
    place: int

    def hidden(self, normalised_ND: Tensor, groups: Groups) -> Tensor:
        """Runs the hyper-network for this layer and computes the bottleneck's units."""
        return self._generate().hidden(normalised_ND, groups)

    def residual(self, normalised_ND: Tensor, groups: Groups) -> Tensor:
        """Runs the hyper-network for this layer and applies the adapter."""
        return self._generate().residual(normalised_ND, groups)

    def _generate(self) -> LayerAdapter:
        layers = slice(self.place, self.place + 1)
        context_PLH = self.hyper.context(*self.keys)
        adapters: list[LayerAdapter] = self.hyper.generate(context_PLH[:, layers], layers).unbind()
        return adapters[0]


class _RegeneratedAdapters:
    """What the Transformer asks for its adapters."""

    def __init__(self, model: Seq2Seq, keys: tuple[Tensor, Tensor, Tensor]) -> None:
        assert isinstance(model.adapters, HyperNetwork)
        self._layers = {
            number: _RegeneratedLayer(model.adapters, keys, place)
            for place, number in enumerate(model.config.adapted_layers)
        }

    def layer(self, number: int) -> _RegeneratedLayer | None:
        """Returns the adapters of a layer."""
        return self._layers.get(number)


def _build(name: str, task: DecodeTask) -> tuple[Translator, str]:
    model = build_copying_model(task, KINDS[name]).to(task.device, task.dtype)
    layout = BatchLayout(np.array([0]), np.array([1]), None, np.array([BOS_ID]))
    source, target = (torch.tensor([number], device=task.device) for number in (0, 1))
    keys = source, target, source
    adapters: Adapters | None
    if name == "hyper_regenerated":
        adapters = _RegeneratedAdapters(model, keys)
    else:
        with torch.inference_mode():
            adapters = model.adapter_weights(*keys)
    config = EvaluationConfig(
        beam_size=task.beam_size,
        max_length_ratio=task.max_length_ratio,
        max_length_extra=task.max_length_extra,
    )

    def translate(batch: Sequence[list[int]]) -> list[Output]:
        rows = Ragged.from_sequences([np.array(ids[:-1]) for ids in batch])  # adds the end marks
        prompts, _ = build_prompts(layout, np.zeros(len(batch), np.int64), rows)
        found = beam_search(model, Batch.from_micro_batch(prompts, task.device), adapters, config)
        return [Output(list(hypothesis.ids), hypothesis.score) for hypothesis in found]

    return translate, f"torch {torch.__version__}"


def main() -> None:
    """Obeys stdin, see `decode_task.serve_translator`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=KINDS)
    parser.add_argument("task", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    serve_translator(partial(_build, arguments.name), arguments.task)


if __name__ == "__main__":
    main()
