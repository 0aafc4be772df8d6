"""The parameter multiplier between families of which it is known."""

from __future__ import annotations

import numpy as np
import pytest

from hyperadapter.scaling.bootstrap import bootstrap, interval
from hyperadapter.scaling.fit import fit_law
from hyperadapter.scaling.laws import LAWS, Array
from hyperadapter.scaling.multiplier import Comparison, common_losses, multipliers, size_at_loss
from tests.unit.scaling.conftest import EXAMPLES, ND, SIZES, points_of

LAW, VALUES, COLUMNS = EXAMPLES["n"]
AT = {"tokens": 1e10}


def compare(times: float, noise: float = 0.0, samples: int = 0) -> Comparison:
    """The baseline has the loss at `times` N that the other has at N."""
    values = EXAMPLES["nd"][1]
    baseline = values * [1, times ** values[3], 1, 1, 1]
    fits = [
        fit_law(ND, points_of(ND, v, SIZES, noise, i)) for i, v in enumerate((baseline, values))
    ]
    drawn = [bootstrap(fit, samples, np.random.default_rng(9)) for fit in fits]
    return Comparison(fits[0], fits[1], drawn[0], drawn[1], AT)


def test_twelve_times_is_found_without_noise() -> None:
    pair = compare(12)
    for loss in np.linspace(*common_losses(pair), 5):
        assert multipliers(pair, loss)[0] == pytest.approx(12, rel=2e-3)


def test_twelve_times_is_in_the_interval() -> None:
    pair = compare(12, noise=0.002, samples=30)
    estimate, samples = multipliers(pair, float(np.mean(common_losses(pair))))
    low, high = interval(samples)
    assert low < 12 < high
    assert low < estimate < high
    assert high / low < 1.6
    assert len(samples) == 30


def test_the_size_at_a_loss_has_that_loss() -> None:
    fit = fit_law(LAWS["joint"], points_of(*EXAMPLES["joint"]))
    at = {"hyper_params": 3e6, "tokens": 2e10}
    params = size_at_loss(fit, fit.values, 2.0, at)
    columns = {name: np.array([value]) for name, value in at.items()}
    assert fit.law.predict(fit.values, columns | {"params": params[None]}) == pytest.approx([2.0])


def test_common_losses_are_those_within_the_measured_sizes() -> None:
    pair = compare(12)
    low, high = common_losses(pair)

    def loss(fit_values: Array, params: float) -> float:
        columns = {"params": np.array([params]), "tokens": np.array([1e10])}
        return float(ND.predict(fit_values, columns)[0])

    assert low == pytest.approx(loss(pair.baseline.values, 1e9))
    assert high == pytest.approx(loss(pair.other.values, 1e7))


def test_a_loss_that_nobody_or_one_reaches() -> None:
    fit = fit_law(LAW, points_of(LAW, VALUES, COLUMNS))
    higher = np.tile(VALUES * [1.2, 1, 1], (3, 1))
    pair = Comparison(fit, fit, higher, np.tile(VALUES, (3, 1)), {})
    estimate, samples = multipliers(pair, 1.6)  # floors: 1.5 and 1.8
    assert estimate == pytest.approx(1)
    assert np.isinf(samples).all()
    estimate, samples = multipliers(pair, 1.4)
    assert np.isnan(estimate)
    assert len(samples) == 0
