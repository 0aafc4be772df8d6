"""Generated adapters against the paper's formula, one layer and one direction at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperadapter.config import ModelConfig
from hyperadapter.model.adapters import direct_adapter_std
from hyperadapter.model.hypernetwork import HyperNetwork

MakeConfig = Callable[..., ModelConfig]
NUM_LANGUAGES = 5
SRC, TGT = torch.tensor([0, 1, 4]), torch.tensor([1, 0, 3])
UNUSED = torch.zeros(3, dtype=torch.int64)


def build(config: ModelConfig, seed: int = 1) -> HyperNetwork:
    network = HyperNetwork(config, NUM_LANGUAGES)
    network.reset_parameters(torch.Generator().manual_seed(seed))
    return network.double().eval()


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * weight + bias


def reference(network: HyperNetwork, config: ModelConfig, src: int, tgt: int, layer: int) -> Any:
    """One adapter, as the paper has it: (D, b_D, U, b_U, gain, bias)."""
    hyper = config.adapter.hyper_network
    assert hyper is not None
    p = dict(network.named_parameters())
    target_table = "src" if hyper.tied_language_embeddings else "tgt"
    in_encoder = layer < config.num_encoder_layers
    inputs = hyper.encoder_inputs if in_encoder else hyper.decoder_inputs
    parts = {
        "src": p["src_embedding.weight"][src],
        "tgt": p[f"{target_table}_embedding.weight"][tgt],
        "layer": p["layer_embedding.weight"][layer],
    }
    x = torch.cat([part * (name in inputs) for name, part in parts.items()])
    h = (p["input.weight"] @ x + p["input.bias"]).relu()
    for index in range(hyper.num_blocks):
        block = {n: p[f"blocks.{index}.{n}"] for n in ("norm.weight", "norm.bias")}
        y = layer_norm(h, block["norm.weight"], block["norm.bias"])
        y = (p[f"blocks.{index}.up.weight"] @ y + p[f"blocks.{index}.up.bias"]).relu()
        h = h + p[f"blocks.{index}.down.weight"] @ y + p[f"blocks.{index}.down.bias"]
    scale = 1 / math.sqrt(hyper.hyper_dim) if hyper.rescale == "sqrt" else 1.0

    def head(name: str) -> Tensor:
        return (p[f"{name}.weight"] @ h + p[f"{name}.bias"]) * scale

    width, d_model = config.adapter.bottleneck_dim, config.d_model
    generated = config.adapter.generated_layer_norm
    return (
        head("down").view(width, d_model),
        head("down_bias"),
        head("up").view(d_model, width),
        head("up_bias"),
        1 + head("gain") if generated else p["gain_LD"][layer],
        head("bias") if generated else p["bias_LD"][layer],
    )


def grid() -> list[dict[str, Any]]:
    masks = [
        (["src", "tgt", "layer"], ["src", "tgt", "layer"]),
        (["src", "layer"], ["tgt", "layer"]),
        (["tgt"], ["src", "tgt"]),
    ]
    options = itertools.product(["sqrt", "none"], [True, False], [True, False], masks)
    return [
        {
            "generated_layer_norm": generated,
            "hyper": {
                "rescale": rescale,
                "tied_language_embeddings": tied,
                "encoder_inputs": encoder,
                "decoder_inputs": decoder,
                "num_blocks": number % 3,
            },
        }
        for number, (rescale, generated, tied, (encoder, decoder)) in enumerate(options)
    ]


def name_of(options: dict[str, Any]) -> str:
    hyper = options["hyper"]
    names = [hyper["rescale"], "tied" if hyper["tied_language_embeddings"] else "untied"]
    names += ["norm"] if options["generated_layer_norm"] else []
    return "-".join([*names, *hyper["encoder_inputs"], "to", *hyper["decoder_inputs"]])


@pytest.mark.parametrize("options", grid(), ids=name_of)
def test_equals_the_formula_in_value_and_gradient(
    make_config: MakeConfig, randomise: Callable[..., None], options: dict[str, Any]
) -> None:
    config = make_config(**options)
    network = build(config)
    randomise(network)
    found = network(SRC, TGT, UNUSED)
    # A random number for each output, so that every gradient is checked.
    generator = torch.Generator().manual_seed(5)
    probes = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in found]
    total = sum((t * probe).sum() for t, probe in zip(found, probes, strict=True))
    wanted_total = torch.zeros((), dtype=torch.float64)
    for place, layer in itertools.product(range(3), range(config.num_layers)):
        wanted = reference(network, config, int(SRC[place]), int(TGT[place]), layer)
        for got, want, probe in zip(found, wanted, probes, strict=True):
            torch.testing.assert_close(got[place, layer], want)
            wanted_total = wanted_total + (want * probe[place, layer]).sum()
    parameters = list(network.parameters())
    grads = torch.autograd.grad(total, parameters)
    wanted_grads = torch.autograd.grad(wanted_total, parameters, allow_unused=True)
    for parameter, grad, wanted_grad in zip(parameters, grads, wanted_grads, strict=True):
        expected = torch.zeros_like(parameter) if wanted_grad is None else wanted_grad
        torch.testing.assert_close(grad, expected)


def test_masked_inputs_do_not_matter_and_others_do(
    make_config: MakeConfig, randomise: Callable[..., None]
) -> None:
    config = make_config(hyper={"encoder_inputs": ["src"], "decoder_inputs": ["tgt", "layer"]})
    network = build(config)
    randomise(network)
    split = config.num_encoder_layers
    base = network(torch.tensor([0]), torch.tensor([1]), UNUSED).down_PLRD[0]
    other_src = network(torch.tensor([2]), torch.tensor([1]), UNUSED).down_PLRD[0]
    other_tgt = network(torch.tensor([0]), torch.tensor([2]), UNUSED).down_PLRD[0]
    assert torch.equal(base[:split], other_tgt[:split])
    assert torch.equal(base[split:], other_src[split:])
    assert not torch.allclose(base[:split], other_src[:split])
    assert not torch.allclose(base[split:], other_tgt[split:])
    # Without the layer, all encoder layers have the same adapter.
    assert torch.equal(base[0], base[1])


def test_rescaling_divides_every_head_by_the_root_of_the_width(make_config: MakeConfig) -> None:
    """Weights, biases and both halves of LayerNorm alike; the gain is 1 and what comes after it."""
    made = {}
    for rescale in ("sqrt", "none"):
        network = build(make_config(hyper={"rescale": rescale, "init": "default"}))
        nn.init.ones_(network.down.bias)
        made[rescale] = network(SRC, TGT, UNUSED)
    for name in made["sqrt"]._fields:
        shift = 1.0 if name == "gain_PLD" else 0.0
        scaled, plain = (getattr(made[key], name) - shift for key in ("sqrt", "none"))
        assert plain.abs().max() > 0.01
        torch.testing.assert_close(scaled * math.sqrt(6), plain)


@pytest.mark.parametrize("hyper_dim", [16, 64, 256, 1024])
@pytest.mark.parametrize("rescale", ["sqrt", "none"])
@pytest.mark.parametrize("num_blocks", [0, 2])
def test_calibrated_adapters_begin_as_direct_ones(
    make_config: MakeConfig, hyper_dim: int, rescale: str, num_blocks: int
) -> None:
    """Whatever the width and with or without rescaling; the authors' condition was inverted."""
    config = make_config(
        d_model=64,
        bottleneck_dim=24,
        hyper={"hyper_dim": hyper_dim, "rescale": rescale, "num_blocks": num_blocks},
    )
    pairs = torch.tensor(list(itertools.permutations(range(NUM_LANGUAGES), 2)))
    made = build(config)(pairs[:, 0], pairs[:, 1], pairs[:, 0])
    wanted = direct_adapter_std(64, 24)
    for weight in (made.down_PLRD, made.up_PLDR):
        assert weight.std().item() == pytest.approx(wanted, rel=0.1)
        assert weight.mean().item() == pytest.approx(0.0, abs=0.05 * wanted)
    for bias in (made.down_bias_PLR, made.up_bias_PLD, made.bias_PLD):
        assert not bias.any()
    assert torch.equal(made.gain_PLD, torch.ones_like(made.gain_PLD))


@pytest.mark.parametrize("seed", range(4))
def test_calibration_looks_at_all_languages_and_layers(make_config: MakeConfig, seed: int) -> None:
    """The authors drew index 0 always; here h of language 0 and layer 0 is far from the mean."""
    config = make_config(d_model=64, bottleneck_dim=24, hyper={"hyper_dim": 16, "num_blocks": 1})
    network = build(config, seed)
    everything = torch.arange(NUM_LANGUAGES)
    hidden = network.hidden(everything, everything)
    made = network(everything, everything, UNUSED)
    assert made.down_PLRD.std().item() == pytest.approx(direct_adapter_std(64, 24), rel=0.04)
    first, whole = hidden[0, 0].pow(2).mean().sqrt(), hidden.pow(2).mean().sqrt()
    assert abs(first / whole - 1) > 0.06


def test_default_initialisation_is_the_main_networks(make_config: MakeConfig) -> None:
    network = build(make_config(hyper={"init": "default"}))
    for head in network.heads():
        bound = math.sqrt(6 / (head.in_features + head.out_features))
        assert head.weight.abs().max() <= bound
        assert head.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.35)
        assert not head.bias.any()


def test_every_head_has_a_gradient_from_the_first_step(make_config: MakeConfig) -> None:
    """Heads that start at 0 must not stay there."""
    network = build(make_config())
    made = network(SRC, TGT, UNUSED)
    sum(t.sum() for t in made).backward()
    for head in network.heads():
        assert head.weight.grad is not None
        assert head.weight.grad.any()


def test_one_seed_is_one_network(make_config: MakeConfig) -> None:
    config = make_config(hyper={"tied_language_embeddings": False})
    first, same, other = (build(config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["input.weight"], other["input.weight"])
    assert not torch.equal(first["src_embedding.weight"], first["tgt_embedding.weight"])


def test_initialisation_leaves_the_mode_and_the_global_generator_alone(
    make_config: MakeConfig,
) -> None:
    network = HyperNetwork(make_config(hyper={"dropout": 0.5}), NUM_LANGUAGES)
    before = torch.random.get_rng_state()
    network.train().reset_parameters(torch.Generator().manual_seed(1))
    assert network.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_is_for_training_only(make_config: MakeConfig) -> None:
    network = build(make_config(hyper={"dropout": 0.5, "hyper_dim": 64}))
    quiet = [network(SRC, TGT, UNUSED).down_PLRD for _ in range(2)]
    assert torch.equal(*quiet)
    network.train()
    assert not torch.equal(network(SRC, TGT, UNUSED).down_PLRD, quiet[0])


def test_a_direction_never_seen_has_adapters(make_config: MakeConfig) -> None:
    """The number of the direction plays no part."""
    network = build(make_config())
    made = [network(SRC, TGT, UNUSED + number).up_PLDR for number in (0, 10_000)]
    assert torch.equal(*made)
