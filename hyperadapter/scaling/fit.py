"""Fits a law: sum of Huber losses of log-losses, from a grid of starting points.

The objective is that of Hoffmann et al. (2022, approach 3): Huber's loss with delta 1e-3 on the
difference between the logarithms of predicted and measured loss, minimised by L-BFGS. We differ in:

  - Losses are summed, not averaged, and divided by delta^2. An average is so small that L-BFGS
    stops early and at wrong exponents, as Besiroglu et al. (2024) found for the published fit.
  - Starting points are a grid over exponents only. Given these, a law is linear in the rest, which
    a batched, re-weighted least-squares step finds for all starts at once. So the grid has no
    units, and only the best starts and a few others, far from them, go to L-BFGS.
  - Sizes are centred (see `laws.py`), which takes most of the correlation out of the search.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize

from hyperadapter.core.errors import DataError
from hyperadapter.scaling.laws import Array, Design, Law
from hyperadapter.scaling.points import Points

__all__ = ["HUBER_DELTA", "Fit", "fit_law", "huber_sum", "refine", "starting_points"]

HUBER_DELTA = 1e-3

# Starts for each exponent, by the number of terms, and for c1, c2, c3 of the mixture.
_EXPONENTS = {1: 40, 2: 16, 3: 8}
_EXPONENT_RANGE = (0.03, 2.0)
_MIXTURE = tuple(product((0.1, 1.0), (0.3, 1.0), (0.5, 2.0)))
_MIXTURE_EXPONENTS = {1: 20, 2: 10, 3: 6}

# How many starts are refined: the best, and others spread over the better half.
_BEST, _SPREAD = 6, 6

_EXPONENT_BOUNDS = (1e-3, 3.0)
_MIXTURE_BOUNDS = (-7.0, 4.0)
_SMALLEST_PART = 1e-5  # of the loss: what is smaller cannot be told from nothing


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: The law.
        points: What it was fitted to.
        design: The same, centred.
        theta: The best parameters in the search's form: [P].
        objective: Sum of Huber losses there.
        solutions: Where the search ended from other starts, the best first: [starts, P].
        objectives: The objectives there: [starts].
        at_bounds: Names of the parameters that ended at the end of what is searched.
    """

    law: Law
    points: Points
    design: Design
    theta: Array
    objective: float
    solutions: Array
    objectives: Array
    at_bounds: tuple[str, ...]

    @property
    def values(self) -> Array:
        """The parameters in the order of `law.names`, in the units of the columns."""
        return self.law.to_values(self.theta, self.design.centres)

    @property
    def residuals(self) -> Array:
        """Logarithms of measured over predicted loss: [points]."""
        result: Array = np.log(self.points.loss) - self.law.log_loss(self.theta, self.design)
        return result


def huber_sum(residuals: Array, counts: Array | float = 1.0) -> Array:
    """Returns the sum over points of Huber's loss, divided by delta^2.

    Args:
        residuals: Differences of log-losses: [..., points].
        counts: How often each point counts: [points].
    """
    size = np.abs(residuals) / HUBER_DELTA
    result: Array = (counts * np.where(size <= 1, 0.5 * size**2, size - 0.5)).sum(axis=-1)
    return result


def fit_law(law: Law, points: Points) -> Fit:
    """Fits a law to points.

    Raises:
        DataError: There are not more points than parameters.
    """
    if len(points) <= len(law.names):
        raise DataError(
            f"{points.place}: {len(points)} points for the {len(law.names)} parameters "
            f"{', '.join(law.names)} of the law {law.name!r}; measure at least "
            f"{len(law.names) + 1}, better twice as many, or choose a law with fewer parameters"
        )
    design = law.design(points.columns)
    log_loss = np.log(points.loss)
    starts = starting_points(law, design, points.loss)
    found = [refine(law, design, log_loss, start) for start in _choose(starts)]
    found.sort(key=lambda item: item[1])
    solutions = np.array([theta for theta, _ in found])
    objectives = np.array([objective for _, objective in found])
    return Fit(
        law=law,
        points=points,
        design=design,
        theta=solutions[0],
        objective=objectives[0],
        solutions=solutions,
        objectives=objectives,
        at_bounds=_at_bounds(law, solutions[0], log_loss),
    )


def starting_points(law: Law, design: Design, loss: Array) -> Array:
    """Returns the whole grid of starts, the best first: [starts, P]."""
    terms = len(law.terms)
    number = (_MIXTURE_EXPONENTS if law.mixture else _EXPONENTS)[terms]
    grid = np.geomspace(*_EXPONENT_RANGE, number)
    exponents = np.array(list(product(grid, repeat=terms)))
    starts = np.zeros((len(exponents), len(law.names)))
    starts[:, 1 + terms : 1 + 2 * terms] = exponents
    if law.mixture:
        shares = np.log(np.array(_MIXTURE))
        starts = np.repeat(starts, len(shares), axis=0)
        starts[:, -3:] = np.tile(shares, (len(exponents), 1))
    starts[:, : 1 + terms] = _heights(law, design, loss, starts)
    objectives = huber_sum(law.log_loss(starts, design) - np.log(loss))
    return starts[np.argsort(objectives, kind="stable")]


def _heights(law: Law, design: Design, loss: Array, starts: Array) -> Array:
    """Returns logarithms of floor and terms that fit best with each start's exponents.

    Relative differences stand for those of logarithms; weights 1/|residual| make the second and
    third round nearly a fit of absolute values, as Huber's loss is.
    """
    logits, _ = law.logits(starts, design)  # heights are 0 in `starts`
    parts = np.exp(logits) / loss[:, None]
    weights = np.ones(parts.shape[:2])
    for _ in range(3):
        weighted = parts * weights[..., None]
        normal = np.einsum("smk,sml->skl", weighted, parts)
        scale = np.sqrt(np.einsum("skk->sk", normal))
        normal = normal / (scale[:, :, None] * scale[:, None, :]) + 1e-10 * np.eye(len(normal[0]))
        heights = np.linalg.solve(normal, (weighted.sum(axis=1) / scale)[..., None])[..., 0] / scale
        heights = np.maximum(heights, 1e-3 * loss.min())
        residuals = np.einsum("smk,sk->sm", parts, heights) - 1
        weights = 1 / np.maximum(np.abs(residuals), HUBER_DELTA)
    result: Array = np.log(heights)
    return result


def _choose(starts: Array) -> Array:
    """Returns the best starts, and some that are spread over the better half."""
    others = np.linspace(_BEST, len(starts) // 2, _SPREAD, dtype=int)
    return starts[[*range(_BEST), *others]]


def _bounds(law: Law, log_loss: Array) -> list[tuple[float, float]]:
    """Returns between what the search stays; wide, so that only what means nothing reaches it."""
    terms = len(law.terms)
    low, high = float(log_loss.min()), float(log_loss.max())
    floor = (low + np.log(_SMALLEST_PART), high)
    height = (low + np.log(_SMALLEST_PART), high + 5)
    mixture = [_MIXTURE_BOUNDS] * (3 if law.mixture else 0)
    return [floor, *[height] * terms, *[_EXPONENT_BOUNDS] * terms, *mixture]


def _at_bounds(law: Law, theta: Array, log_loss: Array) -> tuple[str, ...]:
    bounds = _bounds(law, log_loss)
    near = [min(x - low, high - x) < 1e-6 for x, (low, high) in zip(theta, bounds, strict=True)]
    return tuple(name for name, hit in zip(law.names, near, strict=True) if hit)


def refine(
    law: Law, design: Design, log_loss: Array, start: Array, counts: Array | float = 1.0
) -> tuple[Array, float]:
    """Minimises the sum of Huber losses from one start with L-BFGS-B.

    Args:
        law: The law.
        design: The points.
        log_loss: Logarithms of the measured losses: [points].
        start: Parameters in the search's form: [P].
        counts: How often each point counts: [points].

    Returns:
        The parameters and the sum of Huber losses, not divided by delta^2.
    """

    def objective(theta: Array) -> tuple[float, Array]:
        predicted, jacobian = law.log_loss_and_jacobian(theta, design)
        scaled = (predicted - log_loss) / HUBER_DELTA
        value = float(huber_sum(predicted - log_loss, counts))
        slope = (counts * np.clip(scaled, -1, 1)) @ jacobian / HUBER_DELTA
        return value, slope

    bounds = _bounds(law, log_loss)
    low, high = np.array(bounds).T
    result = minimize(
        objective,
        np.clip(start, low, high),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 3000, "maxfun": 6000, "ftol": 1e-13, "gtol": 1e-6, "maxcor": 20},
    )
    return result.x, float(result.fun) * HUBER_DELTA**2
