from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hyperadapter.config import AdapterConfig, HyperNetworkConfig, ModelConfig
from hyperadapter.core.languages import Direction
from hyperadapter.model.accounting import adapter_size, count_flops, count_parameters
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import build_model
from hyperadapter.model.vocabulary import Vocabulary

LANGUAGES = ("en", "de", "nl", "fr")
DIRECTIONS = tuple(Direction(*p) for p in itertools.permutations(LANGUAGES, 2))
VOCABULARY = Vocabulary(60, LANGUAGES, DIRECTIONS)


def model_config(kind: str, layer_norm: bool = True, tied: bool = True) -> ModelConfig:
    hyper = HyperNetworkConfig(
        hyper_dim=20, num_blocks=3, language_dim=7, layer_dim=5, tied_language_embeddings=tied
    )
    return ModelConfig(
        d_model=16,
        ffn_dim=40,
        num_heads=2,
        num_encoder_layers=3,
        num_decoder_layers=2,
        adapter=AdapterConfig(
            kind=kind,
            bottleneck_dim=6,
            generated_layer_norm=layer_norm,
            hyper_network=hyper if kind == "hyper" else None,
        ),
    )


@pytest.mark.parametrize("kind", ["none", "language", "family", "direction"])
def test_counts_equal_the_built_model(kind: str) -> None:
    config = model_config(kind)
    model = build_model(config, VOCABULARY, seed=1)
    assert sum(count_parameters(config, VOCABULARY).values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_hyper_counts_equal_the_built_model_by_part(layer_norm: bool, tied: bool) -> None:
    config = model_config("hyper", layer_norm, tied)
    model = build_model(config, VOCABULARY, seed=1)
    counts = count_parameters(config, VOCABULARY)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert sum(counts.values()) == sum(sizes.values())
    heads = sum(n for name, n in sizes.items() if name.split(".")[1] in _HEADS)
    assert counts["hyper-network heads"] == heads
    encoder = sum(n for name, n in sizes.items() if name.startswith("encoder."))
    assert counts["encoder"] == encoder


_HEADS = {"down", "up", "down_bias", "up_bias", "gain", "bias"}


def test_known_points() -> None:
    assert adapter_size(512, 128) == 132_736
    config = ModelConfig(
        d_model=512,
        ffn_dim=2048,
        num_heads=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
        adapter=AdapterConfig(kind="direction", bottleneck_dim=128),
    )
    directions = DIRECTIONS * 9
    counts = count_parameters(config, Vocabulary(90_000, LANGUAGES, directions[:100]))
    assert counts["direction adapters"] == 159_283_200


@pytest.mark.parametrize("kind", ["none", "language", "hyper"])
def test_flops_equal_what_torch_counts(kind: str) -> None:
    config = model_config(kind)
    model = build_model(config, VOCABULARY, seed=1)
    sentences, length = 6, 9
    ids = torch.randint(4, 60, (sentences, length), generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(sentences, length, dtype=torch.bool)
    numbers = torch.arange(3)
    batch = Batch(
        ids, padding, ids, ids, padding, numbers, torch.zeros_like(numbers), numbers + 1, (2, 2, 2)
    )
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(batch)
    flops = count_flops(
        config, VOCABULARY.num_pieces, sentences=sentences, length=length, num_directions=3
    )
    assert flops.forward == counter.get_total_flops()
    assert flops.train_per_tgt_token == pytest.approx(3 * flops.forward / 54)
