"""Fitting a new language's rows, and parts of the model if wanted, to a few pairs.

Only what is fitted has gradients. The new rows are tensors of their own that stand in for the
model's in each step, so that known rows cannot change unless their part is fitted. Held-out pairs
are looked at after every pass over the pairs; the best state counts, and a few passes without a
better one end the fit.

Embeddings learn at a rate in proportion to their size: `learning_rate` times the root of the mean
square of the known ones, so that one rate serves tags and language embeddings alike. Stored
adapters are matrices, and learn as parts of the model do.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.progress import track
from hyperadapter.config import Part
from hyperadapter.core.errors import ConfigError, TrainingError
from hyperadapter.extension.model import ExtendedModel
from hyperadapter.extension.passes import Pass, run_passes
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import part_of

__all__ = ["FitOptions", "FitReport", "fit", "require_something"]

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


def require_something(extended: ExtendedModel, options: FitOptions) -> None:
    """Checks that there is something to fit.

    Raises:
        ConfigError: There is not, or the tag is to be kept and fitted.
    """
    if not options.tag and "embedding" in options.parts:
        raise ConfigError("--keep-tag and --fit embedding exclude each other; leave one out")
    if not options.parts and not _fitted_rows(extended, options):
        raise ConfigError(
            f"nothing of {extended.new.code} can be fitted: with adapters of kind "
            f"{extended.config.model.adapter.kind} it has no rows of its own but a tag, which is "
            "kept, or which no sentence has (data.tags); fit parts of the model with --fit"
        )


def _fitted_rows(extended: ExtendedModel, options: FitOptions) -> list[str]:
    """Returns the parameters whose new rows are fitted: a tag that nothing reads is not."""
    tags = extended.config.data.tags
    tag = options.tag and (tags.encoder, tags.decoder) != ("none", "none")
    return [name for name in extended.rows() if tag or part_of(name) != "embedding"]


class _Fitted:
    """The tensors that are fitted, and the optimizer that does it."""

    def __init__(self, extended: ExtendedModel, options: FitOptions, num_steps: int) -> None:
        self._extended = extended
        names = _fitted_rows(extended, options)
        self.rows = {
            name: rows.requires_grad_(name in names) for name, rows in extended.rows().items()
        }
        groups: list[tuple[list[Tensor], float]] = []
        weights = dict(extended.model.named_parameters())
        for name in names:
            rate = options.parts_learning_rate
            if part_of(name) != "adapters":
                known = weights[name].detach()[: -len(self.rows[name])]
                rate = options.learning_rate * float(known.square().mean().sqrt())
            groups.append(([self.rows[name]], rate))
        # Their new rows have no gradient: in each step those above stand in for them.
        whole: list[Tensor] = [
            weight.requires_grad_(True)
            for name, weight in weights.items()
            if part_of(name) in options.parts
        ]
        groups += [(whole, options.parts_learning_rate)] if whole else []
        self.optimizer = torch.optim.AdamW(
            [{"params": tensors, "lr": rate} for tensors, rate in groups],
            weight_decay=0.0,
            betas=(0.9, 0.98),
        )
        self._schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.05, num_steps)
        self._tensors = [tensor for tensors, _ in groups for tensor in tensors]
        self.num_parameters = sum(tensor.numel() for tensor in self._tensors)
        if whole:  # those that nothing reads
            self.num_parameters -= sum(
                rows.numel() for name, rows in self.rows.items() if part_of(name) in options.parts
            )

    def step(self, batch: Batch, label_smoothing: float) -> float:
        """Takes a step and returns the likelihood's part of the loss, in nats."""
        sums = self._extended.loss(batch, self.rows, label_smoothing)
        self.optimizer.zero_grad()
        (sums.loss / batch.target_K.numel()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._tensors, 1.0, error_if_nonfinite=True)
        self.optimizer.step()
        self._schedule.step()
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
        ConfigError: There is nothing to fit.
        TrainingError: A gradient is not finite.
    """
    require_something(extended, options)
    device = extended.model.embedding.weight.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)  # of dropout
        return _fit(extended, train, valid, options)


def _fit(
    extended: ExtendedModel, train: Sequence[Batch], valid: Sequence[Batch], options: FitOptions
) -> FitReport:
    fitted = _Fitted(extended, options, options.max_passes * len(train))
    # A few numbers need no dropout, whole matrices do.
    has_matrices = any(part_of(name) == "adapters" for name in fitted.rows)
    extended.model.train(bool(options.parts) or has_matrices)
    best: list[Tensor] = []

    def keep() -> None:
        best[:] = fitted.state()

    going = run_passes(
        train,
        lambda batch: fitted.step(batch, options.label_smoothing),
        lambda: _valid_loss(extended, valid, fitted),
        keep,
        max_passes=options.max_passes,
        patience=options.patience,
        seed=options.seed,
    )
    passes = [next(going)]
    try:
        for item in track(going, options.max_passes, "fitting"):
            passes.append(item)
            log.info(
                "pass %d: train %.4f, held out %.4f nats/token",
                *(item.number, item.train_loss, item.valid_loss),
            )
    except RuntimeError as error:
        if "non-finite" not in str(error):
            raise
        raise TrainingError(
            f"pass {len(passes)}: a gradient is not finite; lower --learning-rate "
            f"({options.learning_rate:g})"
        ) from error
    fitted.restore(best)
    fitted.finish()
    return FitReport(tuple(passes), fitted.num_parameters)


def _valid_loss(extended: ExtendedModel, valid: Sequence[Batch], fitted: _Fitted) -> float:
    training = extended.model.training
    extended.model.eval()
    loss = extended.mean_loss(valid, fitted.rows)
    extended.model.train(training)
    return loss
