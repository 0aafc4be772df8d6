"""A folded direction computes the same without adapters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperadapter.config import ModelConfig
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import parse_config
from hyperadapter.model.adapters import AdapterWeights
from hyperadapter.model.rows import PaddedRows
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.serving.fold import Folded, as_ordinary, fold_adapters

VOCABULARY = Vocabulary(11, ("en", "de"), (Direction("en", "de"),))
HYPER = {"kind": "hyper", "hyper_network": {"hyper_dim": 6}}
# Exact but for the order of sums; logits are of the order of 10.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def model_config(**adapter: Any) -> ModelConfig:
    tree = {
        "d_model": 8,
        "ffn_dim": 12,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 3,
        "adapter": {"kind": "language", "bottleneck_dim": 5, **adapter},
    }
    return parse_config(ModelConfig, tree, "test")


def random_model(config: ModelConfig, seed: int, dtype: torch.dtype) -> Seq2Seq:
    """Returns a model whose numbers are all random, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    model = Seq2Seq(config, VOCABULARY).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.5, generator=generator)
    return model


def random_rows(lengths: list[int], generator: torch.Generator) -> tuple[Tensor, PaddedRows]:
    width = max(lengths)
    rows = PaddedRows.from_lengths(np.array(lengths), width, np.array([len(lengths)]))
    return torch.randint(4, 11, (len(lengths) * width,), generator=generator), rows


@torch.no_grad()
def logits(model: Seq2Seq, adapters: AdapterWeights | None, inputs: Any) -> Tensor:
    (src_ids, src), (tgt_ids, tgt) = inputs
    memory = model.encode(src_ids, src, adapters)
    return model.logits(model.decode(tgt_ids, tgt, memory, src, adapters))


def fold(model: Seq2Seq) -> tuple[AdapterWeights | None, Folded]:
    """Returns the adapters of en-de, and the model with them folded in."""
    one = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        adapters = model.adapter_weights(one, one + 1, one)
        state = model.state_dict()
        main = {name: x for name, x in state.items() if not name.startswith("adapters.")}
        return adapters, fold_adapters(main, model.config, adapters)


@pytest.mark.parametrize("placement", ["sequential", "parallel"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "adapter",
    [
        {},
        HYPER,
        HYPER | {"generated_layer_norm": False},
        {"encoder_layers": [], "decoder_layers": [0, 2]},
        {"encoder_layers": [1]},
    ],
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_scores_stay_the_same(
    adapter: dict[str, Any],
    dtype: torch.dtype,
    placement: str,
    seed: int,
    lengths: list[int],
) -> None:
    config = model_config(**adapter, placement=placement)
    model = random_model(config, seed, dtype)
    adapters, folded = fold(model)
    tensors, ordinary = as_ordinary(folded, config)
    assert ordinary.adapter.kind == "none"
    dense = Seq2Seq(ordinary, VOCABULARY).to(dtype).eval()
    dense.load_state_dict(tensors)
    generator = torch.Generator().manual_seed(seed)
    inputs = random_rows(lengths, generator), random_rows(lengths[::-1], generator)
    expected = logits(model, adapters, inputs)
    found = logits(dense, None, inputs)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=TOLERANCE[dtype])
    # The adapters do something: a fold that drops them would be seen.
    assert (logits(model, None, inputs) - expected).abs().max() > 100 * TOLERANCE[dtype]


SIZES = {
    # Adapters in encoder layer 1 of 2 and decoder layers 0 and 2 of 3, units of each layer's block.
    "sequential": ([12, 12, 5], [12, 5, 12, 12, 5], 12),
    "parallel": ([12, 17], [17, 12, 17], 17),
}


@pytest.mark.parametrize("placement", SIZES)
def test_layers_are_as_small_as_they_can_be(placement: str) -> None:
    config = model_config(encoder_layers=[1], decoder_layers=[0, 2], placement=placement)
    model = random_model(config, 0, torch.float32)
    _, folded = fold(model)
    encoder, decoder, width = SIZES[placement]
    for layers, expected in ((folded.encoder, encoder), (folded.decoder, decoder)):
        assert [len(layer["feed_forward.up.bias"]) for layer in layers] == expected
        for layer in layers:
            assert any("attention" in name for name in layer) == (
                len(layer["feed_forward.up.bias"]) > 5
            )
    tensors, ordinary = as_ordinary(folded, config)
    assert ordinary.ffn_dim == width
    assert (ordinary.num_encoder_layers, ordinary.num_decoder_layers) == (
        len(encoder),
        len(decoder),
    )
    assert all(x.isfinite().all() for x in tensors.values())
    if placement == "sequential":  # LayerNorm would hide a constant that an attention adds
        for name in ("encoder.layers.2.self_attention", "decoder.layers.4.cross_attention"):
            assert not tensors[f"{name}.out.weight"].any()
            assert not tensors[f"{name}.out.bias"].any()
    state = model.state_dict()
    for name in ("encoder.norm.weight", "decoder.norm.bias", "embedding.weight"):
        assert torch.equal(tensors[name], state[name])


def test_a_bottleneck_wider_than_the_blocks() -> None:
    config = model_config(bottleneck_dim=20, placement="sequential")
    model = random_model(config, 3, torch.float64)
    adapters, folded = fold(model)
    tensors, ordinary = as_ordinary(folded, config)
    assert ordinary.ffn_dim == 20
    dense = Seq2Seq(ordinary, VOCABULARY).double().eval()
    dense.load_state_dict(tensors)
    generator = torch.Generator().manual_seed(3)
    inputs = random_rows([4, 2], generator), random_rows([3, 5], generator)
    expected = logits(model, adapters, inputs)
    torch.testing.assert_close(logits(dense, None, inputs), expected, rtol=0.0, atol=1e-11)


def test_a_dense_model_stays_as_it_is() -> None:
    config = model_config(kind="none")
    state = random_model(config, 0, torch.float32).state_dict()
    tensors, ordinary = as_ordinary(fold_adapters(state, config, None), config)
    assert ordinary == config.model_copy(update={"adapter": ordinary.adapter})
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)
