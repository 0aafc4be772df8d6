"""How long a point trains, and what goes along with the length."""

from __future__ import annotations

from typing import Any

from hyperadapter.config import CheckpointConfig, TrainingConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.study.config import BudgetConfig
from hyperadapter.study.sizes import Counts

__all__ = ["budget_settings"]


def budget_settings(
    budget: BudgetConfig, amount: Any, training: TrainingConfig, counts: Counts
) -> dict[str, int]:
    """Returns the keys of a run that its budget decides, and their values.

    Args:
        budget: What is measured, and the shares of the steps.
        amount: The point's value on the budget's axis; unused without a measure.
        training: The run as it is without the budget.
        counts: Of its model.

    Raises:
        ConfigError: The amount is no number above 0.
    """
    settings: dict[str, int] = {}
    steps = training.max_steps
    if budget.measure:
        if isinstance(amount, bool | str) or amount <= 0:
            raise ConfigError(f"{budget.measure} must be a number above 0, not {amount!r}")
        steps = max(1, round(amount / _unit(budget, training, counts)))
        settings["training.max_steps"] = steps
    warmup = training.schedule.warmup_steps
    if budget.warmup is not None:
        warmup = settings["training.schedule.warmup_steps"] = round(budget.warmup * steps)
    if budget.decay is not None:
        # Both may have been rounded up.
        decay = min(round(budget.decay * steps), max(0, steps - warmup))
        settings["training.schedule.decay_steps"] = decay
    return settings | _intervals(budget, steps, training)


def _unit(budget: BudgetConfig, training: TrainingConfig, counts: Counts) -> float:
    """Returns what one optimizer step takes of the budget."""
    if budget.measure == "flops":
        return counts.step_flops
    if budget.measure == "tokens":
        return training.global_batch_tokens
    return training.global_batch_tokens / counts.parameters


def _intervals(budget: BudgetConfig, steps: int, training: TrainingConfig) -> dict[str, int]:
    """Returns the steps between validations and between checkpoints.

    With `keep_best` the larger one becomes a multiple of the smaller one, as a run demands.
    """
    if budget.validations is None and budget.checkpoints is None:
        return {}
    checkpoint = training.checkpoint
    # There is one more at the end, so that rounding up makes as many as asked for, at most.
    validate = _interval(steps, budget.validations) or training.validation.every_steps
    save = _interval(steps, budget.checkpoints) or checkpoint.every_steps
    if checkpoint.keep_best and save >= validate:
        save = _multiple(save, validate)
    elif checkpoint.keep_best:
        validate = _multiple(validate, save)
    return {
        "training.validation.every_steps": validate,
        "training.checkpoint.every_steps": save,
        "training.checkpoint.keep_every_steps": _kept(checkpoint, save),
    }


def _interval(steps: int, count: int | None) -> int:
    return 0 if count is None else -(-steps // count)


def _multiple(value: int, unit: int) -> int:
    return max(1, round(value / unit)) * unit


def _kept(checkpoint: CheckpointConfig, save: int) -> int:
    kept = checkpoint.keep_every_steps
    return _multiple(kept, save) if kept else 0
