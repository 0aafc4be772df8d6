"""Which known language can stand in for a new one: with whose rows its text has the least loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from data_pipeline.progress import track
from hyperadapter.extension.model import ExtendedModel, Rows
from hyperadapter.model.batch import Batch

__all__ = ["Relative", "mean_loss", "rank_by_loss"]


class Relative(NamedTuple):
    """A known language, and the loss of the new one's text with its rows, in nats per token."""

    code: str
    loss: float


@torch.no_grad()
def mean_loss(extended: ExtendedModel, batches: Sequence[Batch], rows: Rows | None = None) -> float:
    """Returns the negative log-likelihood of batches, in nats per target token.

    Args:
        extended: The model.
        batches: Of the new language.
        rows: Instead of its own new rows.
    """
    rows = extended.rows() if rows is None else rows
    total = torch.zeros((), dtype=torch.float64, device=extended.model.embedding.weight.device)
    for batch in batches:
        total += extended.loss(batch, rows, 0.0).nll
    return float(total) / sum(batch.target_K.numel() for batch in batches)


def rank_by_loss(extended: ExtendedModel, batches: Sequence[Batch]) -> list[Relative]:
    """Ranks the known languages as stand-ins, the best first.

    Args:
        extended: The model.
        batches: A sample of the new language's text, in one or both directions.
    """
    found = [
        Relative(code, mean_loss(extended, batches, extended.rows_of(code)))
        for code in track(extended.candidates, len(extended.candidates), "looking for relatives")
    ]
    return sorted(found, key=lambda relative: relative.loss)
