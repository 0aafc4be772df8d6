"""Fitting a new language's rows, and parts of the model if wanted, to a few pairs.

Only what is fitted has gradients. The new rows are a tensor of their own that is put behind the
known rows in each step, so that those cannot change. Held-out pairs are looked at after every pass
over the pairs; the best state counts, and a few passes without a better one end the fit.

Embeddings learn at a rate in proportion to their size: `learning_rate` times the root of the mean
square of the known ones, so that one rate serves tags and language embeddings alike. Stored
adapters are matrices, and learn as parts of the model do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.progress import track
from hyperadapter.config import Part
from hyperadapter.core.errors import TrainingError
from hyperadapter.extension.model import ExtendedModel
from hyperadapter.extension.relatives import mean_loss
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import part_of

__all__ = ["FitOptions", "FitReport", "Pass", "fit"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to fit.

    Attributes:
        parts: Parts of the model that are fitted beside the new rows.
        tag: Whether the new language's tag is fitted; if not it stays that of the relative.
        learning_rate: Of the new rows, over the size of the known ones.
        parts_learning_rate: Of the parts.
        label_smoothing: Of the loss that is fitted; held-out losses are without.
        max_passes: Over the pairs, at most.
        patience: Passes without a better held-out loss that end the fit.
        seed: Of the order of batches, and of dropout.
    """

    parts: tuple[Part, ...] = ()
    tag: bool = True
    learning_rate: float = 0.1
    parts_learning_rate: float = 5e-4
    label_smoothing: float = 0.1
    max_passes: int = 40
    patience: int = 4
    seed: int = 1


class Pass(NamedTuple):
    """One pass over the pairs: losses in nats per target token; pass 0 is before the fit."""

    number: int
    train_loss: float | None
    valid_loss: float


class FitReport(NamedTuple):
    """What a fit did.

    Attributes:
        passes: One after the other; the best held-out loss is what the model has now.
        num_parameters: Numbers that were fitted.
    """

    passes: tuple[Pass, ...]
    num_parameters: int

    @property
    def best(self) -> Pass:
        """The pass whose state was kept."""
        return min(self.passes, key=lambda item: item.valid_loss)


class _Fitted:
    """The tensors that are fitted, and the optimizer that does it."""

    def __init__(self, extended: ExtendedModel, options: FitOptions) -> None:
        self._extended = extended
        weights = dict(extended.model.named_parameters())
        self._whole = {
            name: weight for name, weight in weights.items() if part_of(name) in options.parts
        }
        tags = extended.config.data.tags
        tag = options.tag and (tags.encoder, tags.decoder) != ("none", "none")
        # Where a whole tensor is fitted, its new rows are.
        self.rows = {
            name: rows.requires_grad_(tag or part_of(name) != "embedding")
            for name, rows in extended.rows().items()
            if name not in self._whole
        }
        groups: list[dict[str, object]] = []
        for name, rows in self.rows.items():
            if rows.requires_grad:
                rate = options.parts_learning_rate
                if part_of(name) != "adapters":
                    known = weights[name][: -len(rows)]
                    rate = options.learning_rate * float(known.square().mean().sqrt())
                groups.append({"params": [rows], "lr": rate})
        if self._whole:
            groups.append({"params": [*self._whole.values()], "lr": options.parts_learning_rate})
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.98))
        for weight in self._whole.values():
            weight.requires_grad_(True)
        self._tensors: list[Tensor] = [tensor for group in groups for tensor in group["params"]]  # type: ignore[attr-defined]

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for tensor in self._tensors)

    def step(self, batch: Batch, label_smoothing: float) -> float:
        """Takes a step and returns the likelihood's part of the loss, in nats."""
        sums = self._extended.loss(batch, self.rows, label_smoothing)
        self.optimizer.zero_grad()
        (sums.loss / batch.target_K.numel()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._tensors, 1.0, error_if_nonfinite=True)
        self.optimizer.step()
        return float(sums.nll)

    def state(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def restore(self, state: Sequence[Tensor]) -> None:
        for tensor, kept in zip(self._tensors, state, strict=True):
            tensor.copy_(kept)

    def finish(self) -> None:
        """Puts the rows into the model."""
        self._extended.set_rows({name: rows.detach() for name, rows in self.rows.items()})
        self._extended.model.requires_grad_(False).eval()


def fit(
    extended: ExtendedModel, train: Sequence[Batch], valid: Sequence[Batch], options: FitOptions
) -> FitReport:
    """Fits new rows, and parts if wanted, and leaves the best state in the model.

    Args:
        extended: Its new rows hold what the fit begins from.
        train: Batches to learn from.
        valid: Batches that say when to stop.
        options: What and how.

    Raises:
        TrainingError: A gradient is not finite.
    """
    fitted = _Fitted(extended, options)
    # So few numbers need no dropout.
    extended.model.train(bool(options.parts))
    tokens = sum(batch.target_K.numel() for batch in train)
    generator = torch.Generator().manual_seed(options.seed)
    passes = [Pass(0, None, _valid_loss(extended, valid, fitted))]
    best = fitted.state()
    schedule = torch.optim.lr_scheduler.LinearLR(
        fitted.optimizer, 1.0, 0.05, options.max_passes * len(train)
    )
    for number in track(range(1, options.max_passes + 1), options.max_passes, "fitting"):
        nll = 0.0
        for index in torch.randperm(len(train), generator=generator).tolist():
            try:
                nll += fitted.step(train[index], options.label_smoothing)
            except RuntimeError as error:
                if "non-finite" not in str(error):
                    raise
                raise TrainingError(
                    f"pass {number}: a gradient is not finite; lower --learning-rate "
                    f"({options.learning_rate:g})"
                ) from error
            schedule.step()
        passes.append(Pass(number, nll / tokens, _valid_loss(extended, valid, fitted)))
        log.info(
            "pass %d: train %.4f, held out %.4f nats/token",
            *(number, passes[-1].train_loss, passes[-1].valid_loss),
        )
        winner = min(passes, key=lambda item: item.valid_loss)
        if winner.number == number:
            best = fitted.state()
        elif number - winner.number >= options.patience or not math.isfinite(passes[-1].valid_loss):
            break
    fitted.restore(best)
    fitted.finish()
    return FitReport(tuple(passes), fitted.num_parameters)


def _valid_loss(extended: ExtendedModel, valid: Sequence[Batch], fitted: _Fitted) -> float:
    training = extended.model.training
    extended.model.eval()
    loss = mean_loss(extended, valid, fitted.rows)
    extended.model.train(training)
    return loss
