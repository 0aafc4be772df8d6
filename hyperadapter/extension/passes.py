"""Passes over a few pairs, until held-out pairs gain no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from hyperadapter.model.batch import Batch

__all__ = ["Pass", "run_passes"]


class Pass(NamedTuple):
    """One pass over the pairs: losses in nats per target token; pass 0 is before the first."""

    number: int
    train_loss: float | None
    valid_loss: float


def run_passes(
    train: Sequence[Batch],
    step: Callable[[Batch], float],
    held_out: Callable[[], float],
    keep: Callable[[], None],
    *,
    max_passes: int,
    patience: int,
    seed: int,
) -> Iterator[Pass]:
    """Yields pass 0 and every pass after it, until one of them is the last.

    Args:
        train: Batches to learn from, in another order in each pass.
        step: Learns from a batch, and returns the sum of its likelihood's loss in nats.
        held_out: Returns the loss of held-out pairs, in nats per target token.
        keep: Remembers the state; called when no state before had so low a held-out loss.
        max_passes: Most passes.
        patience: Passes without a better held-out loss that end it; one that is not finite does so
            at once.
        seed: Of the orders.
    """
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(batch.target_K.numel() for batch in train)
    best = Pass(0, None, held_out())
    keep()
    yield best
    for number in range(1, max_passes + 1):
        order = torch.randperm(len(train), generator=generator).tolist()
        nll = sum(step(train[index]) for index in order)
        item = Pass(number, nll / tokens, held_out())
        if item.valid_loss < best.valid_loss:
            best = item
            keep()
        yield item
        if number - best.number >= patience or not math.isfinite(item.valid_loss):
            return
