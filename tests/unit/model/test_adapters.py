"""Applying adapters and choosing them by key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hyperadapter.model.adapters import AdapterStack, LayerAdapter, RawAdapters, StackedAdapters
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary, language_groups


def random_raw(num: int, layers: int, d_model: int, width: int, seed: int = 1) -> RawAdapters:
    generator = torch.Generator().manual_seed(seed)
    trailing = [(width, d_model), (width,), (d_model, width), (d_model,), (d_model,), (d_model,)]

    def draw(shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(num, layers, *shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    return RawAdapters(*map(draw, trailing))


def plain_adapter(raw: RawAdapters, place: int, layer: int, z: Tensor) -> Tensor:
    """U relu(D LN(z) + b_D) + b_U (Bapna and Firat 2019) for one vector, not folded."""
    down, down_bias, up, up_bias, gain, bias = (weight[place, layer] for weight in raw)
    normalised = (z - z.mean()) / (z.var(correction=0) + 1e-5).sqrt()
    return up @ (down @ (gain * normalised + bias) + down_bias).relu() + up_bias


@given(
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    length=st.integers(1, 3),
    d_model=st.integers(2, 5),
    width=st.integers(1, 4),
)
def test_each_sentence_gets_its_directions_adapter(
    counts: list[int], length: int, d_model: int, width: int
) -> None:
    """Folded and batched, against the formula vector by vector, in value and gradient."""
    raw = random_raw(len(counts), 2, d_model, width)
    generator = torch.Generator().manual_seed(length)
    z = torch.randn(sum(counts), length, d_model, generator=generator, dtype=torch.float64)
    z.requires_grad_()
    owner = [place for place, count in enumerate(counts) for _ in range(count)]
    for layer in range(2):
        adapter = raw.fold().layer(layer)
        found = adapter.residual(F.layer_norm(z, z.shape[-1:]), counts)
        wanted = torch.stack(
            [
                torch.stack([plain_adapter(raw, place, layer, vector) for vector in sentence])
                for place, sentence in zip(owner, z, strict=True)
            ]
        )
        torch.testing.assert_close(found, wanted)
        probe = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        inputs = [z, *raw]
        grads = torch.autograd.grad((found * probe).sum(), inputs)
        wanted_grads = torch.autograd.grad((wanted * probe).sum(), inputs)
        for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
            torch.testing.assert_close(grad, wanted_grad)


def test_one_direction_of_many() -> None:
    folded = random_raw(3, 2, 4, 2).fold()
    one = folded.direction(1)
    for weight, single in zip(folded, one, strict=True):
        assert single.size(0) == 1
        assert torch.equal(weight[1], single[0])
    # The shortcut for a single direction and the batched product agree.
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    alone = one.layer(1).residual(x, [2])
    doubled = LayerAdapter(*(weight[1:2, 1].expand(2, *weight.shape[2:]) for weight in folded))
    torch.testing.assert_close(doubled.residual(x, [1, 1]), alone)


# ------------------------------------------------------------------------------- stored adapters


def numbered_stack(num_keys: int, num_layers: int) -> AdapterStack:
    """A stack whose numbers tell key and layer: 10 key + layer."""
    stack = AdapterStack(num_keys, num_layers, d_model=2, bottleneck_dim=1)
    with torch.no_grad():
        for parameter in stack.parameters():
            for key in range(num_keys):
                for layer in range(num_layers):
                    parameter[key, layer] = 10 * key + layer
    return stack


def keys_of(raw: RawAdapters, split: int) -> tuple[list[int], list[int]]:
    """Reads the keys of encoder and decoder back, and checks the order of layers."""
    for weight in raw:
        table = weight.flatten(2)[:, :, 0]
        assert torch.equal(table, raw.gain_PLD[:, :, 0])
        assert (table[:, :split] % 10).tolist() == [list(range(split))] * len(table)
        layers = table.size(1) - split
        assert (table[:, split:] % 10).tolist() == [list(range(layers))] * len(table)
    return (
        (raw.gain_PLD[:, 0, 0] // 10).int().tolist(),
        (raw.gain_PLD[:, split, 0] // 10).int().tolist(),
    )


def test_language_keys_are_source_in_the_encoder_and_target_in_the_decoder() -> None:
    provider = StackedAdapters([2, 0, 1], numbered_stack(3, 2), numbered_stack(3, 3))
    raw = provider(torch.tensor([0, 1]), torch.tensor([1, 2]), torch.tensor([7, 8]))
    assert keys_of(raw, split=2) == ([2, 0], [0, 1])


def test_direction_keys_are_the_directions_numbers() -> None:
    provider = StackedAdapters(None, numbered_stack(4, 2), numbered_stack(4, 1))
    raw = provider(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([3, 1]))
    assert keys_of(raw, split=2) == ([3, 1], [3, 1])


def test_relatives_share_family_adapters() -> None:
    languages = ("en", "de", "fr", "nl", "es", "fi")
    assert language_groups("language", languages) == ([0, 1, 2, 3, 4, 5], 6)
    # germanic, romance, finnic.
    assert language_groups("family", languages) == ([0, 0, 1, 0, 1, 2], 3)


@pytest.mark.parametrize(("kind", "keys"), [("language", 5), ("family", 2), ("direction", 5)])
def test_a_model_has_one_stacked_parameter_a_weight(
    make_model: Callable[..., Seq2Seq], vocabulary: Vocabulary, kind: str, keys: int
) -> None:
    model = make_model(kind)
    assert isinstance(model.adapters, StackedAdapters)
    for stack, layers in ((model.adapters.encoder, 2), (model.adapters.decoder, 1)):
        sizes = [parameter.shape[:2] for parameter in stack.parameters()]
        assert sizes == [(keys, layers)] * 6
    assert len(vocabulary.directions) == len(vocabulary.languages) == 5


def test_the_family_model_gives_relatives_one_adapter(make_model: Callable[..., Seq2Seq]) -> None:
    model = make_model("family")
    made: list[Any] = [
        model.adapter_weights(torch.tensor([src]), torch.tensor([tgt]), torch.tensor([0]))
        for src, tgt in ((1, 3), (2, 4), (3, 1))
    ]
    # de-fr and nl-es are both germanic to romance; fr-de is not.
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[1], strict=True))
    assert not torch.equal(made[0].down_PLRD, made[2].down_PLRD)


def test_unused_keys_get_zero_gradients_and_used_ones_their_own() -> None:
    stack = AdapterStack(3, 2, d_model=4, bottleneck_dim=2)
    stack.reset_parameters(torch.Generator().manual_seed(1))
    raw = stack(torch.tensor([2, 0]))
    sum(weight.sum() for weight in raw).backward()
    for parameter in stack.parameters():
        assert parameter.grad is not None
        assert parameter.grad[[0, 2]].eq(1).all()
        assert not parameter.grad[1].any()


def test_initial_adapters_are_xavier_with_zero_biases() -> None:
    stack = AdapterStack(4, 3, d_model=64, bottleneck_dim=16)
    stack.reset_parameters(torch.Generator().manual_seed(1))
    wanted = (2 / (64 + 16)) ** 0.5
    for weight in (stack.down_KLRD, stack.up_KLDR):
        assert weight.std().item() == pytest.approx(wanted, rel=0.03)
    for bias in (stack.down_bias_KLR, stack.up_bias_KLD, stack.bias_KLD):
        assert not bias.any()
    assert stack.gain_KLD.eq(1).all()
