"""The arithmetic against the most bytes that were alive at one time in a real step on the CPU."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hyperadapter.config import ModelConfig
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import parse_config
from hyperadapter.model.activations import ActivationBytes, MicroBatchSize, count_activations
from hyperadapter.model.batch import Batch
from hyperadapter.model.rows import PaddedRows
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.model.vocabulary import Vocabulary

LANGUAGES = ("en", "de", "nl", "fr")
DIRECTIONS = tuple(Direction(*pair) for pair in itertools.permutations(LANGUAGES, 2))
LENGTH = 20


class Live(TorchDispatchMode):
    """Adds up the storages that operations make, for as long as they live.

    Gradients of parameters are no activations: they are left out as soon as they are one's `grad`.
    """

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.parameters = list(model.parameters())
        self.known = {p.untyped_storage()._cdata for p in self.parameters}
        self.bytes: dict[int, int] = {}
        self.most = 0
        self._references: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        grads = {p.grad.untyped_storage()._cdata for p in self.parameters if p.grad is not None}
        alive = sum(count for key, count in self.bytes.items() if key not in grads)
        self.most = max(self.most, alive)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known or key in self.bytes:
            return
        self.bytes[key] = storage.nbytes()
        self._references[key] = weakref.ref(storage, lambda _: self.bytes.pop(key, None))


def config_of(kind: str, dropout: float = 0.1, **adapter: Any) -> ModelConfig:
    tree: dict[str, Any] = {"kind": kind, "bottleneck_dim": 32, **adapter}
    if kind == "hyper":
        tree["hyper_network"] = {"hyper_dim": 40, "language_dim": 16, "layer_dim": 16}
    sizes = {"d_model": 128, "ffn_dim": 512, "num_heads": 4, "dropout": dropout}
    layers = {"num_encoder_layers": 3, "num_decoder_layers": 2}
    return parse_config(ModelConfig, sizes | layers | {"adapter": tree}, "test")


def a_batch(sentences: int, directions: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 100, (sentences * LENGTH,), generator=generator)
    rows = PaddedRows.from_lengths(
        np.full(sentences, LENGTH), LENGTH, np.full(directions, sentences // directions)
    )
    number = torch.arange(directions)
    src, tgt = (
        torch.tensor([LANGUAGES.index(pair[side]) for pair in DIRECTIONS[:directions]])
        for side in (0, 1)
    )
    return Batch(ids, rows, ids, rows, ids, None, number, src, tgt)


def measured(
    config: ModelConfig, pieces: int, batch: Batch, dtype: torch.dtype, recompute: bool
) -> int:
    model = build_model(config, Vocabulary(pieces, LANGUAGES, DIRECTIONS), seed=1).to(dtype)
    model.activation_checkpointing = recompute
    with Live(model) as live:
        model(batch, 0.1).loss.backward()
    return live.most


def counted(
    config: ModelConfig, pieces: int, sentences: int, directions: int, **more: Any
) -> ActivationBytes:
    options: dict[str, Any] = {"element_size": 4, "on_gpu": False, "recompute": False} | more
    return count_activations(
        config,
        Vocabulary(pieces, LANGUAGES, DIRECTIONS),
        MicroBatchSize(sentences * LENGTH, sentences * LENGTH, directions),
        **options,
    )


KINDS: dict[str, Callable[[], ModelConfig]] = {
    "dense": lambda: config_of("none"),
    "dense without dropout": lambda: config_of("none", dropout=0.0),
    "language": lambda: config_of("language"),
    "hyper": lambda: config_of("hyper"),
    "hyper, parallel": lambda: config_of("hyper", placement="parallel"),
    "hyper, few layers": lambda: config_of("hyper", encoder_layers=[0], decoder_layers=[1]),
    "hyper, layer by layer": lambda: config_of("hyper", generation="layer_by_layer"),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pieces", [100, 3_000])
def test_forecast_is_near_the_most_that_is_alive(pieces: int, name: str, recompute: bool) -> None:
    config = KINDS[name]()
    found = measured(config, pieces, a_batch(48, 12), torch.float32, recompute)
    forecast = counted(config, pieces, 48, 12, recompute=recompute)
    assert forecast.total == pytest.approx(found, rel=0.07)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["dense", "hyper"])
def test_bf16(name: str, recompute: bool) -> None:
    config = KINDS[name]()
    found = measured(config, 1_000, a_batch(48, 12), torch.bfloat16, recompute)
    forecast = counted(config, 1_000, 48, 12, element_size=2, recompute=recompute)
    assert forecast.total == pytest.approx(found, rel=0.07)


@pytest.mark.parametrize("generation", ["all_layers", "layer_by_layer"])
def test_few_sentences_of_many_directions_are_filled_by_generated_weights(generation: str) -> None:
    config = config_of("hyper", generation=generation)
    found = measured(config, 100, a_batch(12, 12), torch.float32, recompute=True)
    forecast = counted(config, 100, 12, 12, recompute=True)
    assert forecast.total == pytest.approx(found, rel=0.1)


def test_one_direction() -> None:
    config = config_of("hyper")
    found = measured(config, 100, a_batch(48, 1), torch.float32, recompute=False)
    assert counted(config, 100, 48, 1).total == pytest.approx(found, rel=0.1)


def test_what_saves_memory_saves_it() -> None:
    plain = counted(config_of("hyper"), 1_000, 48, 12)
    by_layer = config_of("hyper", generation="layer_by_layer")
    for smaller in (
        counted(config_of("hyper"), 1_000, 48, 12, recompute=True),
        counted(by_layer, 1_000, 48, 12),
        counted(config_of("hyper"), 1_000, 24, 12),
        counted(config_of("hyper"), 1_000, 48, 12, element_size=2),
    ):
        assert smaller.total < plain.total
    assert counted(config_of("none"), 1_000, 48, 12).generated == 0


def test_a_gpu_has_smaller_masks_and_gains_for_each_token() -> None:
    dense = config_of("none")
    assert counted(dense, 100, 48, 12, on_gpu=True).kept < counted(dense, 100, 48, 12).kept
    no_masks = config_of("hyper", dropout=0.0)
    more = counted(no_masks, 100, 48, 12, on_gpu=True).kept - counted(no_masks, 100, 48, 12).kept
    assert more == 5 * 48 * LENGTH * 2 * 128 * 4
