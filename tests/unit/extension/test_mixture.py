"""Mixtures: exact at the corners, differentiable, and found again in text that they wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_micro_batch
from data_pipeline.tokenizer import EOS_ID
from hyperadapter.analysis.distances import GivenDistances
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import TrainingError
from hyperadapter.core.languages import Direction
from hyperadapter.extension.mixture import (
    Mixture,
    distance_weights,
    effective_number,
    learn_weights,
)
from hyperadapter.extension.rows import Rows
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import named_rows, part_of
from hyperadapter.model.seq2seq import Seq2Seq
from tests.unit.analysis.conftest import make_config, make_model
from tests.unit.extension.test_text import batches_of

Trained = Callable[[str], tuple[Path, Seq2Seq]]
OTHERS = ("nl", "es", "fr", "uk")
TAGS = {"tags": {"encoder": "source", "decoder": "target"}}
PAIRS = [("house tree", "haus baum"), ("river", "fluss"), ("bird tree house", "vogel baum haus")]


def make_mixture(kind: str = "hyper", **hyper: Any) -> tuple[RunConfig, Mixture]:
    config = make_config(Path("run"), kind, data=TAGS, **hyper)
    return config, Mixture(make_model(config), "de", OTHERS)


@pytest.mark.parametrize(
    ("kind", "hyper", "count"),
    [("hyper", {}, 2), ("hyper", {"tied_language_embeddings": False}, 3), ("language", {}, 7)],
)
def test_all_weight_on_one_language_is_that_language_bit_for_bit(
    kind: str, hyper: dict[str, Any], count: int
) -> None:
    config, mixture = make_mixture(kind, **hyper)
    (batch,) = batches_of(config, PAIRS, "de")
    for place, code in enumerate(OTHERS):
        rows = mixture.mix((1e4 * F.one_hot(torch.tensor(place), 4)).softmax(0))
        assert len(rows) == count
        for name, weight in mixture.model.named_parameters():
            found = named_rows(name, mixture.model.vocabulary, config.data.languages)
            assert (name in rows) == (found is not None)
            if found is not None:
                theirs = weight[found.first + found.names.index(code)]
                assert torch.equal(rows[name][0], theirs), name
        # Text, tags and adapters: as if the sentences were of the other language.
        (as_other,) = batches_of(config, PAIRS, code)
        assert torch.equal(nll(mixture, batch, rows), mixture.model(as_other).loss)
        assert not torch.equal(nll(mixture, batch, rows), mixture.model(batch).loss)


def nll(mixture: Mixture, batch: Batch, rows: Rows) -> Tensor:
    return mixture.loss(batch, rows).loss


def test_a_mixture_is_the_weighted_mean_of_rows() -> None:
    _, mixture = make_mixture()
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0])
    table = mixture.model.get_parameter("adapters.src_embedding.weight")
    languages = mixture.model.vocabulary.languages
    nl, es, fr = (table[languages.index(code)] for code in OTHERS[:3])
    rows = mixture.mix(weights)
    torch.testing.assert_close(rows["adapters.src_embedding.weight"][0], nl / 2 + es / 4 + fr / 4)


def test_rows_that_relatives_share_stay() -> None:
    config = make_config(Path("run"), "family")
    model = make_model(config)
    assert list(Mixture(model, "de", OTHERS).rows()) == ["embedding.weight"]
    # Nobody but Ukrainian is Slavic here.
    mixture = Mixture(model, "uk", ("de", "nl", "es"))
    stacks = [name for name in mixture.rows() if part_of(name) == "adapters"]
    assert len(stacks) == 6
    rows = mixture.mix(torch.tensor([0.0, 0.0, 1.0]))
    for name in stacks:
        # Families in the order of their first language: germanic, romance, slavic.
        assert torch.equal(rows[name][0], model.get_parameter(name)[1])
        assert torch.equal(mixture.rows()[name][0], model.get_parameter(name)[2])


def test_own_rows_change_nothing_and_others_go_again() -> None:
    config, mixture = make_mixture()
    (batch,) = batches_of(config, PAIRS, "de")
    own = mixture.model(batch).loss
    assert torch.equal(nll(mixture, batch, mixture.rows()), own)
    before = {name: tensor.clone() for name, tensor in mixture.model.state_dict().items()}
    rows = mixture.mix(torch.full((4,), 0.25))

    def interrupt() -> None:
        with mixture.replaced(rows):
            assert torch.equal(mixture.model(batch).loss, nll(mixture, batch, rows))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    for name, tensor in mixture.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class _Nll(nn.Module):
    """The loss without the rounding to fp32 of the model's own."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        model = self.model
        adapters = model.adapters_of(batch)
        memory = model.encode(batch.src_N, batch.src, adapters)
        hidden = model.decode(batch.tgt_in_M, batch.tgt, memory, batch.src, adapters)
        if batch.target_index_K is not None:
            hidden = hidden[batch.target_index_K]
        return F.cross_entropy(model.logits(hidden), batch.target_K, reduction="sum")


@pytest.mark.parametrize("kind", ["hyper", "language"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    config = make_config(Path("run"), kind, data=TAGS)
    mixture = Mixture(make_model(config).double(), "de", OTHERS)
    (batch,) = batches_of(config, PAIRS, "de")
    module = _Nll(mixture.model)

    def loss(logits: Tensor) -> Tensor:
        rows = mixture.overrides(mixture.mix(logits.softmax(0)))
        named = {f"model.{name}": tensor for name, tensor in rows.items()}
        found: Tensor = functional_call(module, named, (batch,))
        return found

    logits = torch.tensor([0.3, -0.2, 0.8, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (logits,), eps=1e-6, rtol=1e-5, atol=1e-7)
    (exact,) = torch.autograd.grad(loss(logits), logits)
    (found,) = torch.autograd.grad(nll(mixture, batch, mixture.mix(logits.softmax(0))), logits)
    assert exact.abs().max() > 1e-3
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def build_batch(
    config: RunConfig, src: Sequence[np.ndarray], tgt: Sequence[np.ndarray], code: str
) -> Batch:
    layout = BatchLayout.from_config(config.data, config.data.tokenizer.vocab_size)
    number = config.data.resolved_directions().index(Direction("en", code))
    rows = np.full(len(src), number)
    return Batch.from_micro_batch(
        build_micro_batch(layout, rows, Ragged.from_sequences(src), Ragged.from_sequences(tgt))
    )


@torch.no_grad()
def draw_batches(model: Seq2Seq, config: RunConfig, code: str, count: int) -> list[Batch]:
    """Draws translations from the model itself, in eight batches."""
    generator = torch.Generator().manual_seed(3)
    src = [torch.randint(4, 300, (5,), generator=generator).numpy() for _ in range(count)]
    drawn = np.empty((count, 0), np.int64)
    for length in range(9):
        batch = build_batch(config, src, list(drawn), code)
        adapters = model.adapters_of(batch)
        memory = model.encode(batch.src_N, batch.src, adapters)
        hidden = model.decode(batch.tgt_in_M, batch.tgt, memory, batch.src, adapters)
        last = model.logits(hidden.view(count, length + 1, -1)[:, -1])
        pieces = torch.multinomial(last.softmax(-1), 1, generator=generator).numpy()
        drawn = np.concatenate([drawn, pieces], axis=1)
    ended = [row for row in range(count) if EOS_ID in drawn[row]]
    tgt = {row: drawn[row, : drawn[row].tolist().index(EOS_ID)] for row in ended}
    return [
        build_batch(config, [src[r] for r in rows], [tgt[r] for r in rows], code)
        for rows in (ended[start::8] for start in range(8))
    ]


@pytest.mark.parametrize("kind", ["hyper", "language"])
def test_the_mixture_that_wrote_a_text_is_found(kind: str, trained: Trained) -> None:
    run_dir, _ = trained(kind)
    config = make_config(run_dir, kind)
    model = make_model(config)
    model.load_state_dict(trained(kind)[1].state_dict())
    # Without nl, whose rows are nearly those of de.
    mixture = Mixture(model, "fr", ("uk", "de", "es"))
    with mixture.replaced(mixture.mix(torch.tensor([0.0, 0.7, 0.3]))):
        batches = draw_batches(model, config, "fr", 1200)
        ceiling = mixture.mean_loss(batches, mixture.rows())
        learnt = learn_weights(mixture, batches[:-2], batches[-2:], seed=1)
        found = mixture.mean_loss(batches, mixture.mix(learnt.weights))
        uniform = mixture.mean_loss(batches, mixture.mix(torch.full((3,), 1 / 3)))
        best = min(mixture.mean_loss(batches, mixture.mix(row)) for row in torch.eye(3))
    torch.testing.assert_close(learnt.weights, torch.tensor([0.0, 0.7, 0.3]), rtol=0, atol=0.07)
    assert abs(found - ceiling) < 0.02
    assert min(uniform, best) > ceiling + 0.05


def test_learning_keeps_the_best_changes_no_weight_and_hangs_on_the_seed(
    trained: Trained,
) -> None:
    config = make_config(Path("run"))
    model = make_model(config)
    model.load_state_dict(trained("hyper")[1].state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = draw_batches(model, config, "fr", 200)
    mixture = Mixture(model, "fr", ("uk", "nl", "es"))
    one, again, other = (
        learn_weights(mixture, batches[1:], batches[:1], seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(one.weights, again.weights)
    assert one.passes == again.passes
    assert not torch.equal(one.weights, other.weights)
    found = mixture.mean_loss(batches[:1], mixture.mix(one.weights))
    assert found == min(item.valid_loss for item in one.passes)
    assert [item.number for item in one.passes] == list(range(len(one.passes)))
    assert one.passes[0].train_loss is None
    assert float(one.weights.sum()) == pytest.approx(1.0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_damaged_model_is_named() -> None:
    config, mixture = make_mixture()
    with torch.no_grad():
        mixture.model.get_parameter("decoder.norm.weight").fill_(torch.nan)
    batches = batches_of(config, PAIRS, "de")
    with pytest.raises(TrainingError, match="of de as a mixture of nl, es, fr, uk is nan; the mod"):
        learn_weights(mixture, batches, batches, seed=1)


def test_weights_from_distances() -> None:
    # English, the pivot, is no part of a mixture, however near it is.
    matrix = np.array(
        [[0, 1, 4, 3, 0], [1, 0, 5, 6, 0], [4, 5, 0, 2, 0], [3, 6, 2, 0, 0], [0, 0, 0, 0, 0]],
        np.float64,
    )
    given = GivenDistances(("de", "nl", "es", "uk", "en"), matrix)
    found = distance_weights(given, "de", ("fr", "uk", "nl", "es"))
    tau = 1.5  # the nearest are at 1, 1, 2 and 2
    expected = np.array([0, np.exp(-3 / tau), np.exp(-1 / tau), np.exp(-4 / tau)])
    np.testing.assert_allclose(found.numpy(), expected / expected.sum(), rtol=1e-6)


def test_equal_distances_share_all_weight() -> None:
    matrix = np.array([[0, 0, 0, 2], [0, 0, 0, 2], [0, 0, 0, 2], [2, 2, 2, 0]], np.float64)
    given = GivenDistances(("de", "nl", "es", "uk"), matrix)
    assert distance_weights(given, "de", ("nl", "es", "uk")).tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("weights", "number"), [([0, 1, 0], 1), ([0.25] * 4, 4), ([0.5, 0, 0.5], 2)]
)
def test_the_effective_number(weights: list[float], number: float) -> None:
    assert effective_number(torch.tensor(weights)) == pytest.approx(number)
