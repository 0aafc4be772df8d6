"""A language as a weighted mean of other languages: its own rows of tensors are replaced by

    row = sum over languages c of w_c row_c,    w = softmax(logits)

with the same w for its tag, its language embeddings and its stored adapters. Only w is learnt: as
many numbers as there are other languages, so a few dozen sentence pairs are enough.

Rows that a language shares with relatives, as adapters of families are, are not its own and stay.

Shape legend: C other languages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hyperadapter.analysis.distances import GivenDistances
from hyperadapter.core.errors import TrainingError
from hyperadapter.extension.passes import Pass, run_passes
from hyperadapter.extension.rows import LanguageRows, Rows
from hyperadapter.model.adapters import StackedAdapters
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import named_rows, part_of
from hyperadapter.model.seq2seq import Seq2Seq

__all__ = ["Learnt", "Mixture", "distance_weights", "effective_number", "learn_weights"]

_LEARNING_RATE = 0.2
"""Of Adam."""
_MOST_PASSES = 40
_PATIENCE = 4
"""Passes without a better held-out loss that end learning."""


class Learnt(NamedTuple):
    """What learning gave.

    Attributes:
        weights: Of the others [C], on the CPU; they sum to 1.
        passes: One after the other; the weights are those of the best held-out loss.
    """

    weights: Tensor
    passes: tuple[Pass, ...]


class Mixture(LanguageRows):
    """A language of a model whose own rows can be replaced by mixtures of others'.

    Args:
        model: In evaluation mode; it knows the language and the others. Its parameters lose their
            gradients.
        code: The language.
        others: C languages to mix.
    """

    def __init__(self, model: Seq2Seq, code: str, others: Sequence[str]) -> None:
        self.code, self.others = code, tuple(others)
        languages = model.vocabulary.languages
        numbers = [languages.index(other) for other in self.others]
        places: dict[str, list[int]] = {}
        self._tables: Rows = {}
        for name, weight in model.named_parameters():
            row_of = _rows_of_languages(model, name)
            if row_of is None or row_of.count(row_of[languages.index(code)]) > 1:
                continue
            places[name] = [row_of[languages.index(code)]]
            self._tables[name] = weight.detach()[[row_of[number] for number in numbers]]
        super().__init__(model.requires_grad_(False), places)

    def mix(self, weights: Tensor) -> Rows:
        """Returns rows [1, ...], through which gradients reach the weights [C]."""
        # Sums of products and not a matrix product, which a GPU may round to fewer bits.
        return {
            name: (weights.to(table).view(-1, *[1] * (table.dim() - 1)) * table).sum(0, True)
            for name, table in self._tables.items()
        }


def _rows_of_languages(model: Seq2Seq, name: str) -> list[int] | None:
    """Returns the row of each language in a parameter, or None if it has none."""
    if part_of(name) == "adapters":
        assert isinstance(model.adapters, StackedAdapters)
        return None if model.adapters.group is None else list(model.adapters.group.tolist())
    found = named_rows(name, model.vocabulary, ())
    return found and list(range(found.first, found.first + len(found.names)))


def learn_weights(
    mixture: Mixture, train: Sequence[Batch], valid: Sequence[Batch], seed: int
) -> Learnt:
    """Learns the weights of a mixture by Adam on their logits, which all begin as 0.

    To begin with the best relative, or with weights by the loss of each, leads to the same loss.

    Args:
        mixture: Of the language.
        train: Batches to learn from; each is a step.
        valid: Batches that say when to stop and which weights are the best.
        seed: Of the order of batches.

    Raises:
        TrainingError: A loss is not finite.
    """
    device = mixture.model.embedding.weight.device
    logits = torch.zeros(len(mixture.others), device=device, requires_grad=True)
    optimizer = torch.optim.Adam([logits], _LEARNING_RATE)
    best = logits.detach().clone()

    def step(batch: Batch) -> float:
        nll = mixture.loss(batch, mixture.mix(logits.softmax(0))).loss
        (logits.grad,) = torch.autograd.grad(nll / batch.target_K.numel(), logits)
        optimizer.step()
        return float(nll.detach())

    def held_out() -> float:
        loss = mixture.mean_loss(valid, mixture.mix(logits.detach().softmax(0)))
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of {mixture.code} as a mixture of {', '.join(mixture.others)} is {loss};"
                " the model is damaged: choose another --checkpoint"
            )
        return loss

    def keep() -> None:
        best.copy_(logits.detach())

    passes = run_passes(
        train, step, held_out, keep, max_passes=_MOST_PASSES, patience=_PATIENCE, seed=seed
    )
    found = tuple(passes)  # before the best of them is asked for
    return Learnt(best.softmax(0).cpu(), found)


def distance_weights(given: GivenDistances, code: str, others: Sequence[str]) -> Tensor:
    """Returns weights [C] in proportion to exp(-distance / tau), 0 where there is no distance.

    tau is the median, over the language and the others, of the distance to the nearest: what is
    further away by tau weighs e times less. Where it is 0, the nearest share all weight.

    Args:
        given: Has the language and some of the others.
        code: The language.
        others: C languages.
    """
    names = [other for other in (code, *others) if other in given.languages]
    places = [given.languages.index(name) for name in names]
    matrix = given.matrix[np.ix_(places, places)]
    apart = matrix + np.diag(np.full(len(names), np.inf))
    tau = float(np.median(apart.min(axis=1)))
    further = matrix[0, 1:] - matrix[0, 1:].min()
    weights = np.exp(-further / tau) if tau > 0 else (further == 0).astype(np.float64)
    found = dict(zip(names[1:], weights / weights.sum(), strict=True))
    return torch.tensor([found.get(other, 0.0) for other in others], dtype=torch.float32)


def effective_number(weights: Tensor) -> float:
    """Returns the exponential of the entropy of weights [C]: from 1, one has all, to C."""
    return float(torch.special.entr(weights.double()).sum().exp())
