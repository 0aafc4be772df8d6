"""The best sizes for a budget, against trying them all."""

from __future__ import annotations

import numpy as np
import pytest

from hyperadapter.scaling.frontier import default_budgets, exponents, has_frontier, optimum
from hyperadapter.scaling.laws import LAWS
from tests.unit.scaling.conftest import CORRECTED, EXAMPLES, ND, values_of

VALUES = values_of(ND, CORRECTED)


@pytest.mark.parametrize("flops", [1e18, 5.76e23])
@pytest.mark.parametrize("factor", [6.0, 3.5])
def test_no_other_size_is_better(flops: float, factor: float) -> None:
    best = optimum(ND, VALUES, flops, factor)
    assert factor * best.params * best.tokens == pytest.approx(flops)
    params = np.geomspace(best.params / 100, best.params * 100, 20001)
    losses = ND.predict(VALUES, {"params": params, "tokens": flops / factor / params})
    assert params[losses.argmin()] == pytest.approx(best.params, rel=2e-3)
    assert losses.min() == pytest.approx(VALUES[0] + best.reducible_loss, rel=1e-7)


def test_the_corrected_law_trains_with_about_20_tokens_a_parameter() -> None:
    # Besiroglu et al. (2024): a of 0.51, and about 20 at the budget of Chinchilla.
    best = optimum(ND, VALUES, 5.76e23)
    assert float(best.tokens / best.params) == pytest.approx(20, abs=6)
    assert exponents(ND, VALUES)[0] == pytest.approx(0.513, abs=1e-3)


def test_the_exponents_are_the_slopes() -> None:
    near, far = (optimum(ND, VALUES, flops) for flops in (1e20, 1e22))
    a, b = exponents(ND, VALUES)
    assert np.log(far.params / near.params) / np.log(100) == pytest.approx(a)
    assert np.log(far.tokens / near.tokens) / np.log(100) == pytest.approx(b)
    assert a + b == pytest.approx(1)


def test_many_parameters_at_once() -> None:
    both = optimum(ND, np.stack([VALUES, VALUES * 1.1]), 1e20)
    assert both.params[0] == pytest.approx(float(optimum(ND, VALUES, 1e20).params))
    assert both.params[1] == pytest.approx(float(optimum(ND, VALUES * 1.1, 1e20).params))


def test_the_joint_law_has_the_frontier_of_its_n_and_d() -> None:
    law, values, _ = EXAMPLES["joint"]
    same = {n: v for n, v in zip(law.names, values, strict=True) if n in ND.names}
    expected = optimum(ND, values_of(ND, same), 1e20)
    assert optimum(law, values, 1e20) == expected
    assert has_frontier(law)
    assert not has_frontier(LAWS["n"])


def test_budgets_begin_among_the_points_and_go_beyond() -> None:
    params, tokens = np.array([1e7, 1e8, 1e9]), np.array([1e9, 1e10, 1e11])
    assert default_budgets(params, tokens) == pytest.approx([1e18, 1e19, 1e20, 1e21, 1e22, 1e23])
