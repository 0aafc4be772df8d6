"""Fits find the laws that points were made from."""

from __future__ import annotations

import numpy as np
import pytest

from hyperadapter.core.errors import DataError
from hyperadapter.scaling.bootstrap import bootstrap
from hyperadapter.scaling.fit import HUBER_DELTA, fit_law, huber_sum, starting_points
from hyperadapter.scaling.points import Points
from tests.unit.scaling.conftest import (
    CORRECTED,
    CORRECTED_ERRORS,
    EXAMPLES,
    ND,
    SIZES,
    grid,
    points_of,
    values_of,
)


def published_points(seed: int) -> Points:
    """240 points over the published range: N 57M to 16B, D 0.8B to 320B, budgets 1e18 to 1e22.

    The noise is that of the published points' residuals: 0.5 % and a few outliers.
    """
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(np.log(5.7e7), np.log(1.6e10), 4000))
    tokens = np.exp(rng.uniform(np.log(8e8), np.log(3.2e11), 4000))
    kept = np.abs(np.log(tokens / params / 20)) < 2.5
    columns = {"params": params[kept][:240], "tokens": tokens[kept][:240]}
    points = points_of(ND, values_of(ND, CORRECTED), columns, 0.005, seed)
    points.loss[:5] *= 1.03
    assert len(points) == 240
    return points


def test_huber_is_a_square_near_zero_and_straight_beyond() -> None:
    delta = HUBER_DELTA
    assert huber_sum(np.array([0.5 * delta, -3 * delta])) == pytest.approx(0.125 + 2.5)
    assert huber_sum(np.array([0.5 * delta, -3 * delta]), np.array([2.0, 0])) == pytest.approx(0.25)


@pytest.mark.parametrize("name", EXAMPLES)
def test_without_noise_a_fit_is_exact(name: str) -> None:
    law, values, columns = EXAMPLES[name]
    fit = fit_law(law, points_of(law, values, columns))
    assert fit.values == pytest.approx(values, rel=1e-4)
    assert fit.at_bounds == ()


@pytest.mark.parametrize("name", ["n", "nd", "joint"])
def test_with_noise_a_fit_is_within_a_few_standard_errors(name: str) -> None:
    law, values, columns = EXAMPLES[name]
    fit = fit_law(law, points_of(law, values, columns, 0.004, seed=3))
    logs = np.log(bootstrap(fit, 25, np.random.default_rng(0)))
    errors = np.abs(np.log(fit.values / values)) / logs.std(axis=0)
    assert errors.max() < 4
    assert np.abs(fit.residuals).mean() == pytest.approx(0.004 * np.sqrt(2 / np.pi), rel=0.4)


def test_points_of_the_published_law_give_its_parameters_back() -> None:
    fit = fit_law(ND, published_points(1))
    for name, value in zip(ND.names, fit.values, strict=True):
        assert abs(value - CORRECTED[name]) < 2 * CORRECTED_ERRORS[name], name


@pytest.mark.parametrize("column", ["params", "tokens"])
def test_units_change_factors_and_nothing_else(column: str) -> None:
    points = points_of(ND, values_of(ND, CORRECTED), SIZES, 0.004)
    scaled = Points(
        points.columns | {column: points.columns[column] / 1e6}, points.loss, points.families, ""
    )
    old, new = (dict(zip(ND.names, fit_law(ND, p).values, strict=True)) for p in (points, scaled))
    term = next(term for term in ND.terms if term.column == column)
    old[term.coefficient] *= 1e-6 ** old[term.exponent]
    assert new == pytest.approx(old, rel=1e-5)


def test_one_outlier_does_not_move_a_fit() -> None:
    points = points_of(ND, values_of(ND, CORRECTED), SIZES, 0.001)
    clean = fit_law(ND, points)
    points.loss[7] *= 1.5
    spoilt = fit_law(ND, points)
    assert spoilt.values[3:] == pytest.approx(clean.values[3:], rel=0.02)
    assert spoilt.residuals[7] == pytest.approx(np.log(1.5), abs=0.01)


def test_no_start_ends_lower() -> None:
    points = points_of(ND, values_of(ND, CORRECTED), SIZES, 0.004)
    fit = fit_law(ND, points)
    near = fit.theta + np.random.default_rng(0).normal(0, 1e-3, (500, len(fit.theta)))
    here = huber_sum(fit.law.log_loss(fit.theta, fit.design) - np.log(points.loss))
    there = huber_sum(fit.law.log_loss(near, fit.design) - np.log(points.loss))
    assert fit.objective == pytest.approx(here * HUBER_DELTA**2)
    assert here <= there.min()
    assert (np.diff(fit.objectives) >= 0).all()


def test_starts_cover_the_grid_and_begin_near_the_answer() -> None:
    points = points_of(ND, values_of(ND, CORRECTED), SIZES, 0.004)
    design = ND.design(points.columns)
    starts = starting_points(ND, design, points.loss)
    assert len(starts) == 256
    assert len(np.unique(starts[:, 3:].round(6), axis=0)) == 256
    objectives = huber_sum(ND.log_loss(starts, design) - np.log(points.loss))
    assert (np.diff(objectives) >= 0).all()
    assert objectives[0] * HUBER_DELTA**2 < 2 * fit_law(ND, points).objective


def test_a_law_without_a_floor_says_that_it_ended_at_a_bound() -> None:
    law, _, columns = EXAMPLES["n"]
    fit = fit_law(law, Points(columns, 40 * columns["params"] ** -0.2, ("",) * 12, "made"))
    assert fit.values[2] == pytest.approx(0.2, rel=1e-3)
    assert fit.at_bounds == ("E",)


def test_too_few_points_are_refused() -> None:
    points = points_of(ND, values_of(ND, CORRECTED), grid(params=[1e7, 1e8, 1e9, 2e9, 4e9],
                                                         tokens=[1e9]))  # fmt: skip
    message = r"made: 5 points for the 5 parameters E, A, B, alpha, beta of the law 'nd'; .* 6,"
    with pytest.raises(DataError, match=message):
        fit_law(ND, points)
