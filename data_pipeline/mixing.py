"""How often each direction is seen: its share of the tokens.

Temperature sampling (Arivazhagan et al. 2019): a sentence is of direction d with probability

    p_d = n_d^(1/T) / sum_k n_k^(1/T),   n_d sentence pairs

T = 1 is proportional to the data, T -> infinity uniform. UniMax (Chung et al. 2023) shares a budget
of tokens equally, except that no direction gets more than a number of passes over its data; what
it leaves goes to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import (
    ExplicitMixing,
    MixingConfig,
    TemperatureMixing,
    UniMaxMixing,
)
from hyperadapter.core.errors import ConfigError

__all__ = ["mixture", "temperature_weights", "token_shares", "unimax_shares"]

Floats = NDArray[np.float64]


def mixture(
    config: MixingConfig,
    names: Sequence[str],
    sentences: NDArray[Any],
    tokens: NDArray[Any],
    tokens_per_step: float,
) -> Floats:
    """Returns each direction's share of the tokens; the shares sum to 1.

    Args:
        config: The kind of mixture.
        names: Of the directions, such as `en-de`, `[num_directions]`.
        sentences: Sentence pairs of each, all above 0.
        tokens: Tokens of one pass over each.
        tokens_per_step: Of an optimizer step, for a cap on passes.

    Raises:
        ConfigError: UniMax cannot keep its cap, because there is too little text for so many steps.
    """
    sentences, tokens = np.asarray(sentences, np.float64), np.asarray(tokens, np.float64)
    if isinstance(config, TemperatureMixing):
        return token_shares(temperature_weights(sentences, config.temperature), tokens / sentences)
    if isinstance(config, ExplicitMixing):
        weights = np.array([config.weights.get(name, 0.0) for name in names])
        return np.asarray(weights / weights.sum(), np.float64)
    if isinstance(config, UniMaxMixing):
        budget = config.steps * tokens_per_step
        most = config.max_passes * tokens
        if most.sum() < budget:
            raise ConfigError(
                f"data.stream: unimax with max_passes {config.max_passes:g} allows "
                f"{most.sum():,.0f} tokens, but {config.steps:,} steps take {budget:,.0f}; raise "
                "max_passes, lower steps, or add text"
            )
        return unimax_shares(most / budget)
    return np.full(len(names), 1.0 / len(names))


def temperature_weights(counts: NDArray[Any], temperature: float) -> Floats:
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


def token_shares(probabilities: Floats, tokens_per_sentence: Floats) -> Floats:
    """Returns each direction's share of the tokens when sentences are drawn with `probabilities`.

    q_d = p_d l_d / sum_k p_k l_k with l_d the mean length.
    """
    tokens = probabilities * tokens_per_sentence
    return np.asarray(tokens / tokens.sum(), np.float64)


def unimax_shares(most: Floats) -> Floats:
    """Returns the most equal shares that sum to 1 with share d at most `most[d]`.

    Args:
        most: Largest share of each direction; together at least 1.
    """
    shares = np.zeros(len(most))
    rest = 1.0
    order = np.argsort(most, kind="stable")
    for place, index in enumerate(order):
        shares[index] = min(most[index], rest / (len(order) - place))
        rest -= shares[index]
    return np.asarray(shares / shares.sum(), np.float64)
