"""Warnings: there where a parameter cannot be known, and not elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from hyperadapter.scaling.fit import fit_law
from hyperadapter.scaling.identify import condition_number, warnings_of
from hyperadapter.scaling.laws import Array
from hyperadapter.scaling.points import Points
from tests.unit.scaling.conftest import (
    EXAMPLES,
    MIXTURE_SIZES,
    MIXTURE_VALUES,
    ND,
    grid,
    points_of,
)

VALUES = EXAMPLES["nd"][1]
NONE: Array = np.empty((0, 5))


def warn(columns: dict[str, Array], noise: float = 0.002, samples: Array = NONE) -> list[str]:
    return warnings_of(fit_law(ND, points_of(ND, VALUES, columns, noise)), samples)


@pytest.mark.parametrize("name", EXAMPLES)
def test_good_points_give_no_warning(name: str) -> None:
    law, values, columns = EXAMPLES[name]
    fit = fit_law(law, points_of(law, values, columns, 0.001))
    assert warnings_of(fit, NONE) == []


def test_a_single_number_of_tokens() -> None:
    found = warn(grid(params=np.geomspace(1e7, 1e9, 12), tokens=[1e10]))
    assert found[0].startswith(
        "beta is not identifiable: tokens takes 1 different value only (1e+10), so B, beta and E "
        "cannot be told apart; add points of at least 3 values"
    )


def test_two_sizes() -> None:
    found = warn(grid(params=[1e7, 1e9], tokens=np.geomspace(1e9, 1e11, 6)))
    assert found[0].startswith("alpha is not identifiable: params takes 2 different values only")


def test_a_small_range_says_how_far_to_go() -> None:
    found = warn(grid(params=np.geomspace(1e8, 4e8, 5), tokens=np.geomspace(1e9, 1e11, 5)))
    assert (
        "alpha is not identifiable well: params goes from 1e+08 to 4e+08, a factor of 4; add "
        "points so that it is 8 or more (up to 8e+08, or down to 5e+07)"
    ) in found


def test_sizes_that_grow_together() -> None:
    params = np.geomspace(1e7, 1e9, 12)
    found = warn({"params": params, "tokens": 20 * params})
    assert found[0].startswith(
        "alpha is not identifiable apart from beta: params and tokens vary together (correlation "
        "of logarithms 1.000); add points of one params with several tokens"
    )


def test_few_mixture_weights() -> None:
    law = ND.with_mixture()
    columns = grid(
        params=np.geomspace(1e7, 1e9, 5), tokens=np.geomspace(1e9, 1e11, 3), weight=[0.5, 1]
    )
    fit = fit_law(law, points_of(law, MIXTURE_VALUES, columns, 0.001))
    assert any("weight takes 2 different values only" in text for text in warnings_of(fit, NONE))
    assert len(np.unique(MIXTURE_SIZES["weight"])) >= 4


def test_a_search_that_ended_at_its_bounds() -> None:
    # Loss rises with data: no law of ours can say that.
    columns = EXAMPLES["nd"][2]
    points = points_of(ND, VALUES, columns)
    rising = Points(columns, points.loss * columns["tokens"] ** 0.2, points.families, "made")
    fit = fit_law(ND, rising)
    assert set(fit.at_bounds) == {"B", "beta"}
    found = warnings_of(fit, NONE)
    for name in fit.at_bounds:
        assert any(text.startswith(f"{name} ended at ") for text in found)


def test_other_solutions_as_good() -> None:
    fit = fit_law(ND, points_of(ND, VALUES, EXAMPLES["nd"][2], 0.002))
    fit.solutions[1, 3] *= 1.5
    found = warnings_of(fit, NONE)
    assert len(found) == 1
    assert "fit equally well; add points of smaller and larger params" in found[0]
    fit.objectives[1] *= 2
    assert warnings_of(fit, NONE) == []


def test_an_interval_wider_than_its_value() -> None:
    wide = np.tile(VALUES, (50, 1))
    wide[:, 4] = np.linspace(0.1, 0.9, 50)
    (text,) = warn(EXAMPLES["nd"][2], 0.001, wide)
    assert text.startswith("beta is not identifiable well: its interval, ")


def test_what_the_law_ignores() -> None:
    points = points_of(ND, VALUES, EXAMPLES["nd"][2], 0.001)
    fit = fit_law(ND, Points(points.columns, points.loss, points.families, "", ("hyper_params",)))
    (text,) = warnings_of(fit, NONE)
    assert "differ in hyper_params, which the law 'nd' does not use" in text


def test_the_condition_number_has_no_units_and_is_infinite_for_a_single_size() -> None:
    columns = EXAMPLES["nd"][2]
    points = points_of(ND, VALUES, columns, 0.002)
    scaled = Points(columns | {"params": columns["params"] / 1e6}, points.loss, points.families, "")
    one, two = (condition_number(fit_law(ND, p)) for p in (points, scaled))
    assert one == pytest.approx(two, rel=1e-2)
    assert 10 < one < 1e6
    flat = grid(params=np.geomspace(1e7, 1e9, 12), tokens=[1e10])
    assert condition_number(fit_law(ND, points_of(ND, VALUES, flat))) == float("inf")
