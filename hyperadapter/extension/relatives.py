"""Which known language can stand in for a new one: with whose rows its text has the least loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from data_pipeline.progress import track
from hyperadapter.extension.model import ExtendedModel
from hyperadapter.model.batch import Batch

__all__ = ["Relative", "rank_by_loss"]


class Relative(NamedTuple):
    """A known language, and the loss of the new one's text with its rows, in nats per token."""

    code: str
    loss: float


def rank_by_loss(extended: ExtendedModel, batches: Sequence[Batch]) -> list[Relative]:
    """Ranks the known languages as stand-ins, the best first.

    Args:
        extended: The model.
        batches: A sample of the new language's text, in one or both directions.
    """
    found = [
        Relative(code, extended.mean_loss(batches, extended.rows_of(code)))
        for code in track(extended.candidates, len(extended.candidates), "looking for relatives")
    ]
    return sorted(found, key=lambda relative: relative.loss)
