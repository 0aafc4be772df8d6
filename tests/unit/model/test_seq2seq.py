"""The whole model: padding, mixed directions and caches change nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hyperadapter.config import ModelConfig
from hyperadapter.model.batch import Batch
from hyperadapter.model.hypernetwork import HyperNetwork
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.model.transformer import sinusoidal_positions
from hyperadapter.model.vocabulary import Vocabulary

MakeModel = Callable[..., Seq2Seq]
MakeBatch = Callable[..., Batch]

KINDS = ["none", "language", "family", "direction", "hyper"]
# (direction, source pieces, target pieces)
MIXED = [(0, 3, 4), (0, 5, 1), (2, 1, 2), (3, 4, 6), (4, 2, 3), (4, 6, 1)]


def grid(test: Callable[..., None]) -> Callable[..., None]:
    """Runs a test for every kind of adapter and every placement."""
    test = pytest.mark.parametrize("placement", ["sequential", "parallel"])(test)
    return pytest.mark.parametrize("kind", KINDS)(test)


def hidden_states(model: Seq2Seq, batch: Batch) -> Tensor:
    adapters = model.adapter_weights(batch.src_language_P, batch.tgt_language_P, batch.direction_P)
    mask = batch.src_padding_mask_BS
    memory = model.encode(batch.src_BS, mask, adapters, batch.sentences_P)
    return model.decode(batch.tgt_in_BT, memory, mask, adapters, batch.sentences_P)


def gradients(model: Seq2Seq, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


@grid
def test_a_mixed_batch_equals_its_sentences_alone(
    make_model: MakeModel, make_batch: MakeBatch, kind: str, placement: str
) -> None:
    """In hidden states, loss and gradients: neither padding nor neighbours matter."""
    model = make_model(kind, placement=placement)
    batch = make_batch(MIXED)
    hidden_BTD = hidden_states(model, batch)
    sums = model(batch, 0.1)
    total: dict[str, Tensor] = {}
    alone_loss = alone_nll = 0.0
    owner = [place for place, count in enumerate(batch.sentences_P) for _ in range(count)]
    for row, (_, src_pieces, tgt_pieces) in enumerate(MIXED):
        place = slice(owner[row], owner[row] + 1)
        src, tgt = slice(0, src_pieces + 2), slice(0, tgt_pieces + 1)
        alone = Batch(
            src_BS=batch.src_BS[row : row + 1, src],
            src_padding_mask_BS=batch.src_padding_mask_BS[row : row + 1, src],
            tgt_in_BT=batch.tgt_in_BT[row : row + 1, tgt],
            tgt_out_BT=batch.tgt_out_BT[row : row + 1, tgt],
            tgt_padding_mask_BT=batch.tgt_padding_mask_BT[row : row + 1, tgt],
            direction_P=batch.direction_P[place],
            src_language_P=batch.src_language_P[place],
            tgt_language_P=batch.tgt_language_P[place],
            sentences_P=(1,),
        )
        assert not alone.src_padding_mask_BS.any()
        assert not alone.tgt_padding_mask_BT.any()
        torch.testing.assert_close(hidden_BTD[row : row + 1, tgt], hidden_states(model, alone))
        one = model(alone, 0.1)
        alone_loss, alone_nll = alone_loss + one.loss, alone_nll + one.nll
        for name, grad in gradients(model, one.loss).items():
            total[name] = total.get(name, 0) + grad
    # The loss is a sum in fp32.
    torch.testing.assert_close(sums.loss, alone_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.nll, alone_nll, rtol=1e-5, atol=1e-5)
    for name, grad in gradients(model, sums.loss).items():
        torch.testing.assert_close(grad, total[name], rtol=1e-4, atol=1e-4, msg=name)


@grid
def test_decoding_step_by_step_equals_decoding_at_once(
    make_model: MakeModel, make_batch: MakeBatch, kind: str, placement: str
) -> None:
    model = make_model(kind, placement=placement, num_decoder_layers=2)
    batch = make_batch(MIXED)
    whole = hidden_states(model, batch)
    adapters = model.adapter_weights(batch.src_language_P, batch.tgt_language_P, batch.direction_P)
    mask = batch.src_padding_mask_BS
    cache = model.new_cache(model.encode(batch.src_BS, mask, adapters, batch.sentences_P))
    for step in range(batch.tgt_in_BT.size(1)):
        assert cache.length == step
        new = batch.tgt_in_BT[:, step : step + 1]
        hidden = model.decode(new, cache, mask, adapters, batch.sentences_P)
        torch.testing.assert_close(hidden, whole[:, step : step + 1])


def test_reordered_rows_go_on_as_if_they_had_always_been_there(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model(num_decoder_layers=2)
    batch = make_batch([(1, 3, 3), (1, 5, 3), (1, 2, 3)])
    whole = hidden_states(model, batch)
    adapters = model.adapter_weights(batch.src_language_P, batch.tgt_language_P, batch.direction_P)
    mask = batch.src_padding_mask_BS
    cache = model.new_cache(model.encode(batch.src_BS, mask, adapters, (3,)))
    for step in range(2):
        model.decode(batch.tgt_in_BT[:, step : step + 1], cache, mask, adapters, (3,))
    rows = torch.tensor([2, 0, 0, 2])
    cache.reorder(rows)
    for step in range(2, 4):
        new = batch.tgt_in_BT[rows, step : step + 1]
        hidden = model.decode(new, cache, mask[rows], adapters, (4,))
        torch.testing.assert_close(hidden, whole[rows, step : step + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_cannot_be_seen(make_model: MakeModel, make_batch: MakeBatch, kind: str) -> None:
    model = make_model(kind)
    batch = make_batch([(0, 3, 5)])
    before = hidden_states(model, batch)
    batch.tgt_in_BT[0, 3] = 4 + (batch.tgt_in_BT[0, 3] - 3) % 7
    after = hidden_states(model, batch)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


def test_what_padding_holds_does_not_matter(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(), make_batch(MIXED)
    before = model(batch, 0.1)
    for ids, mask in (
        (batch.src_BS, batch.src_padding_mask_BS),
        (batch.tgt_in_BT, batch.tgt_padding_mask_BT),
        (batch.tgt_out_BT, batch.tgt_padding_mask_BT),
    ):
        assert mask.any()
        ids[mask] = 7
    after = model(batch, 0.1)
    assert torch.equal(before.loss, after.loss)


def test_loss_is_cross_entropy_of_the_target(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model, batch = make_model(), make_batch(MIXED)
    logits = model.logits(hidden_states(model, batch))
    assert logits.shape[-1] == model.vocabulary.num_pieces
    targets = batch.tgt_out_BT.masked_fill(batch.tgt_padding_mask_BT, -100).flatten()
    for smoothing in (0.0, 0.1):
        wanted = F.cross_entropy(
            logits.flatten(0, 1), targets, label_smoothing=smoothing, reduction="sum"
        )
        sums = model(batch, smoothing)
        assert sums.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        assert sums.loss.item() == pytest.approx(sums.nll.item(), rel=1e-5) or smoothing


def test_one_matrix_embeds_and_projects_and_tags_are_never_predicted(
    make_model: MakeModel, make_batch: MakeBatch, vocabulary: Vocabulary
) -> None:
    model = make_model()
    rows = vocabulary.num_pieces + len(vocabulary.languages)
    assert model.embedding.weight.shape == (rows, 8)
    hidden = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(
        model.logits(hidden), hidden @ model.embedding.weight[: vocabulary.num_pieces].t()
    )
    # A tag matters as an input all the same.
    batch = make_batch([(0, 3, 3)])
    before = hidden_states(model, batch)
    batch.tgt_in_BT[0, 0] += 1
    assert not torch.allclose(hidden_states(model, batch), before)


@pytest.mark.parametrize(
    ("kind", "generated_layer_norm"),
    [("language", True), ("family", True), ("direction", True), ("hyper", True), ("hyper", False)],
)
def test_every_parameter_gets_a_gradient_in_every_step(
    make_model: MakeModel, make_batch: MakeBatch, kind: str, generated_layer_norm: bool
) -> None:
    """Even when masks or a single direction leave some of them without effect (ZeRO needs it)."""
    hyper = {"encoder_inputs": ["src"], "decoder_inputs": ["tgt"]} if kind == "hyper" else None
    model = make_model(kind, hyper=hyper, generated_layer_norm=generated_layer_norm)
    model(make_batch([(0, 2, 2)]), 0.1).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_adapters_are_generated_once_for_all_layers_and_directions(
    make_model: MakeModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    forward = HyperNetwork.forward

    def counted(self: HyperNetwork, src_language_P: Tensor, *rest: Tensor) -> Any:
        calls.append(len(src_language_P))
        return forward(self, src_language_P, *rest)

    monkeypatch.setattr(HyperNetwork, "forward", counted)
    make_model()(make_batch(MIXED), 0.1)
    assert calls == [4]


@pytest.mark.parametrize("kind", ["language", "family", "direction", "hyper"])
def test_directions_differ_and_adapters_matter(
    make_model: MakeModel, make_batch: MakeBatch, kind: str
) -> None:
    """The same source and target under another direction's adapters."""
    model, batch = make_model(kind), make_batch([(0, 3, 3)])
    french = make_batch([(2, 1, 1)])
    other = replace(
        batch,
        direction_P=french.direction_P,
        src_language_P=french.src_language_P,
        tgt_language_P=french.tgt_language_P,
    )
    assert not torch.allclose(hidden_states(model, batch), hidden_states(model, other))


def test_a_dense_model_has_no_adapters(make_model: MakeModel) -> None:
    model = make_model("none")
    zero = torch.tensor([0])
    assert model.adapters is None
    assert model.adapter_weights(zero, zero, zero) is None


def test_long_sentences_get_positions(make_model: MakeModel, make_batch: MakeBatch) -> None:
    """More than the model is built with; the first positions stay what they were."""
    model = make_model("none")
    ids = torch.full((1, 600), 5)
    embedded = model._embed(ids)[0]
    wanted = model.embedding.weight[5] * math.sqrt(8) + sinusoidal_positions(600, 8).double()
    torch.testing.assert_close(embedded, wanted)
    torch.testing.assert_close(model._embed(ids[:, :1], offset=550)[0, 0], wanted[550])
    short = make_batch([(0, 3, 3)])
    torch.testing.assert_close(
        hidden_states(model, short), hidden_states(make_model("none"), short)
    )


def test_one_seed_is_one_model(
    make_config: Callable[..., ModelConfig], vocabulary: Vocabulary
) -> None:
    first, same, other = (
        build_model(make_config(), vocabulary, seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_initial_weights(make_config: Callable[..., ModelConfig], vocabulary: Vocabulary) -> None:
    model = build_model(make_config("none", d_model=64, ffn_dim=96), vocabulary, 1)
    assert model.embedding.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
    attention = model.encoder.layers[0].self_attention
    # Queries, keys and values are three square matrices, not one of 64 by 192.
    bound = math.sqrt(6 / (64 + 64))
    for matrix in attention.qkv.weight.chunk(3):
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not attention.qkv.bias.any()
    assert model.encoder.norm.weight.eq(1).all()


def test_dropout_is_for_training_only(
    make_config: Callable[..., ModelConfig], vocabulary: Vocabulary, make_batch: MakeBatch
) -> None:
    model = build_model(make_config(dropout=0.5), vocabulary, 1)
    batch = make_batch(MIXED)
    torch.manual_seed(1)
    assert not torch.equal(hidden_states(model, batch), hidden_states(model, batch))
    model.eval()
    assert torch.equal(hidden_states(model, batch), hidden_states(model, batch))


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_runs_and_is_near(make_model: MakeModel, make_batch: MakeBatch, kind: str) -> None:
    model, batch = make_model(kind), make_batch(MIXED)
    exact = model(batch, 0.1)
    half = model.bfloat16()(batch, 0.1)
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    half.loss.backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.dtype == torch.bfloat16
