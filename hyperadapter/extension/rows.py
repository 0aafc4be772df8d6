"""The rows of a model's tensors that belong to one language, and models with other rows there.

What belongs to languages or directions are rows of tensors: tags in the embedding, language
embeddings of a hyper-network, stored adapters (`hyperadapter.model.parts.named_rows`).

Shape legend: X rows of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import LossSums, Seq2Seq

__all__ = ["LanguageRows", "Rows"]

Rows = dict[str, Tensor]
"""By parameter: rows [X, ...]."""


class LanguageRows:
    """A model, and which of its rows are a language's.

    Args:
        model: The model.
        places: By parameter: numbers of the rows.
    """

    def __init__(self, model: Seq2Seq, places: Mapping[str, Sequence[int]]) -> None:
        self.model = model
        device = model.embedding.weight.device
        self._places = {
            name: torch.tensor(list(rows), device=device) for name, rows in places.items()
        }

    @property
    def _weights(self) -> Rows:
        weights: Rows = dict(self.model.named_parameters())
        return weights

    def rows(self) -> Rows:
        """Returns a copy of the rows."""
        return {name: self._weights[name].detach()[places] for name, places in self._places.items()}

    @torch.no_grad()
    def set_rows(self, rows: Mapping[str, Tensor]) -> None:
        """Replaces rows."""
        for name, values in rows.items():
            self._weights[name].index_copy_(0, self._places[name], values)

    @contextmanager
    def replaced(self, rows: Mapping[str, Tensor]) -> Iterator[None]:
        """Puts other rows into the model for a while."""
        own = self.rows()
        try:
            self.set_rows(rows)
            yield
        finally:
            self.set_rows(own)

    def overrides(self, rows: Mapping[str, Tensor]) -> Rows:
        """Returns whole tensors with other rows, through which gradients reach the rows."""
        return {
            name: self._weights[name].index_copy(0, self._places[name], values)
            for name, values in rows.items()
        }

    def loss(
        self, batch: Batch, rows: Mapping[str, Tensor], label_smoothing: float = 0.0
    ) -> LossSums:
        """Computes the loss of a batch with other rows; gradients reach them."""
        sums: LossSums = functional_call(self.model, self.overrides(rows), (batch, label_smoothing))
        return sums

    @torch.no_grad()
    def mean_loss(
        self, batches: Sequence[Batch], rows: Mapping[str, Tensor] | None = None
    ) -> float:
        """Returns the negative log-likelihood of batches, in nats per target token.

        Args:
            batches: Of the language.
            rows: Instead of its own.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.model.embedding.weight.device)
        with self.replaced(rows or {}):
            for batch in batches:
                total += self.model(batch).loss
        return float(total) / sum(batch.target_K.numel() for batch in batches)
