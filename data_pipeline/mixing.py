"""How often each direction is seen.

Temperature sampling (Arivazhagan et al. 2019): a sentence is of direction d with probability

    p_d = n_d^(1/T) / sum_k n_k^(1/T),   n_d sentence pairs

T = 1 is proportional to the data, T -> infinity uniform.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["temperature_weights", "token_shares"]


def temperature_weights(counts: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Returns the probability of each direction (or language); one without data gets 0.

    Args:
        counts: Sentence pairs, or any other measure of size, `[num]`.
        temperature: T, at least 1.
    """
    counts = np.asarray(counts, np.float64)
    if not counts.any():
        return np.zeros_like(counts)
    relative = counts / counts.max()
    powered = np.where(relative > 0, relative ** (1.0 / temperature), 0.0)
    return np.asarray(powered / powered.sum(), np.float64)


def token_shares(
    probabilities: NDArray[np.float64], tokens_per_sentence: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns each direction's share of the tokens when sentences are drawn with `probabilities`.

    q_d = p_d l_d / sum_k p_k l_k with l_d the mean length.
    """
    tokens = probabilities * tokens_per_sentence
    return np.asarray(tokens / tokens.sum(), np.float64)
