"""The laws: their values, derivatives and forms."""

from __future__ import annotations

import numpy as np
import pytest

from hyperadapter.scaling.laws import LAWS
from tests.unit.scaling.conftest import CORRECTED, EXAMPLES, MIXTURE_VALUES, ND, values_of


def test_a_law_is_what_its_formula_says() -> None:
    columns = {"params": np.array([7e10]), "tokens": np.array([1.4e12])}
    expected = 1.8172 + 482.01 * 7e10**-0.3478 + 2085.43 * 1.4e12**-0.3658
    assert ND.predict(values_of(ND, CORRECTED), columns) == pytest.approx([expected], rel=1e-12)
    assert ND.formula == "L = E + A N^-alpha + B D^-beta"
    assert "f(w) = w + c1 w^c2 (1-w)^c3" in ND.with_mixture().formula


def test_the_mixture_multiplies_the_main_network() -> None:
    law = ND.with_mixture()
    e, a, b, alpha, beta, c1, c2, c3 = MIXTURE_VALUES
    n, d, w = 1e8, 1e10, 0.3
    share = w + c1 * w**c2 * (1 - w) ** c3
    columns = {"params": np.array([n, n]), "tokens": np.array([d, d]), "weight": np.array([w, 1])}
    expected = [e + a * (f * n) ** -alpha + b * d**-beta for f in (share, 1.0)]
    assert law.predict(np.array(MIXTURE_VALUES), columns) == pytest.approx(expected, rel=1e-12)


def test_the_joint_law_at_one_hyper_network_is_the_law_without_it() -> None:
    law, values, sizes = EXAMPLES["joint"]
    columns = sizes | {"hyper_params": np.full(len(sizes["params"]), 1e6)}
    e, a, c, b, alpha, gamma, beta = values
    rest = ND.predict(np.array([e + c * 1e6**-gamma, a, b, alpha, beta]), columns)
    assert law.predict(values, columns) == pytest.approx(rest, rel=1e-12)


@pytest.mark.parametrize("name", EXAMPLES)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    law, values, columns = EXAMPLES[name]
    design = law.design(columns)
    theta = law.to_theta(values, design.centres)
    log_loss, jacobian = law.log_loss_and_jacobian(theta, design)
    assert log_loss == pytest.approx(law.log_loss(theta, design), rel=1e-12)
    step = 1e-6 * np.eye(len(theta))
    ends = law.log_loss(theta + step, design) - law.log_loss(theta - step, design)
    assert jacobian == pytest.approx(ends.T / 2e-6, abs=1e-8)


@pytest.mark.parametrize("name", EXAMPLES)
def test_search_form_and_values_are_inverse(name: str) -> None:
    law, values, columns = EXAMPLES[name]
    centres = law.design(columns).centres
    many = np.stack([values, 1.1 * values])
    assert law.to_values(law.to_theta(many, centres), centres) == pytest.approx(many, rel=1e-12)


@pytest.mark.parametrize("name", EXAMPLES)
def test_many_sets_of_parameters_at_once(name: str) -> None:
    law, values, columns = EXAMPLES[name]
    both = law.predict(np.stack([values, 1.1 * values]), columns)
    assert both[0] == pytest.approx(law.predict(values, columns), rel=1e-12)
    assert both[1] == pytest.approx(law.predict(1.1 * values, columns), rel=1e-12)


def test_the_names_are_those_of_the_papers() -> None:
    assert LAWS["nd"].names == ("E", "A", "B", "alpha", "beta")
    assert LAWS["joint"].names == ("E", "A", "C", "B", "alpha", "gamma", "beta")
    assert LAWS["n"].with_mixture().columns == ("params", "weight")
