"""Shares of the directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.mixing import temperature_weights, token_shares, unimax_shares

counts = st.lists(st.integers(1, 10**12), min_size=1, max_size=20).map(np.array)


@given(counts)
def test_temperature_one_is_proportional(sizes: NDArray[Any]) -> None:
    np.testing.assert_allclose(temperature_weights(sizes, 1), sizes / sizes.sum())


@given(counts, st.floats(1, 100))
def test_ratio_of_two_directions(sizes: NDArray[Any], temperature: float) -> None:
    weights = temperature_weights(sizes, temperature)
    assert weights.sum() == pytest.approx(1)
    expected = (sizes[0] / sizes[-1]) ** (1 / temperature)
    assert weights[0] / weights[-1] == pytest.approx(expected)


def test_high_temperature_is_uniform_over_what_exists() -> None:
    weights = temperature_weights(np.array([1_000_000, 0, 1]), 1e9)
    np.testing.assert_allclose(weights, [0.5, 0, 0.5], atol=1e-6)
    assert temperature_weights(np.array([0, 0]), 5).tolist() == [0, 0]


def test_longer_sentences_take_more_of_the_tokens() -> None:
    np.testing.assert_allclose(
        token_shares(np.array([0.5, 0.5]), np.array([10.0, 30.0])), [0.25, 0.75]
    )


@given(st.lists(st.floats(0.001, 3), min_size=1, max_size=20).map(np.array))
def test_unimax_is_as_equal_as_its_caps_allow(most: NDArray[Any]) -> None:
    most = most * max(1.0, 1.0001 / most.sum())
    shares = unimax_shares(most)
    assert shares.sum() == pytest.approx(1)
    assert np.all(shares <= most + 1e-9)
    free = shares < most - 1e-9
    if free.any():  # who has not reached its cap has the largest share, all alike
        np.testing.assert_allclose(shares[free], shares.max())
