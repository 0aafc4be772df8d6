"""Token sequences of different lengths, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenizer import EOS_ID

__all__ = ["Ragged"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Token sequences of different lengths in one flat array.

    Attributes:
        tokens: All tokens, any integer type, `[total]`.
        starts: Where each sequence begins in `tokens`, `[rows]`; any order, overlaps allowed.
        lengths: How many tokens it has, `[rows]`.
    """

    tokens: NDArray[Any]
    starts: Ints
    lengths: Ints

    @classmethod
    def from_lengths(cls, tokens: NDArray[Any], lengths: NDArray[Any]) -> Ragged:
        """Makes rows of sequences that lie one after another."""
        lengths = lengths.astype(np.int64)
        return cls(tokens, np.cumsum(lengths) - lengths, lengths)

    @classmethod
    def from_sequences(cls, sequences: Sequence[NDArray[Any]]) -> Ragged:
        """Makes rows of separate sequences of pieces, and appends the end mark to each."""
        parts = [part for sequence in sequences for part in (sequence, [EOS_ID])]
        lengths = np.array([len(sequence) + 1 for sequence in sequences], np.int64)
        flat = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return cls.from_lengths(flat.astype(np.int64), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self, index: NDArray[Any] | slice) -> Ragged:
        """Selects rows without copying tokens."""
        return Ragged(self.tokens, self.starts[index], self.lengths[index])

    def flat(self) -> NDArray[Any]:
        """Returns the tokens of all rows, one row after another, `[sum of lengths]`."""
        ends = np.cumsum(self.lengths)
        total = int(ends[-1]) if len(ends) else 0
        index = np.repeat(self.starts - (ends - self.lengths), self.lengths)
        index += np.arange(total)
        return self.tokens.take(index)
