"""Says which parameters the points cannot tell, and what points would.

A fit always returns numbers. These are the ways in which they may mean nothing: sizes that do not
vary, or too little; sizes that vary together; a curvature that is flat in some direction; other
solutions that fit as well; a search that ended at its bounds; an interval as wide as its value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hyperadapter.scaling.bootstrap import interval
from hyperadapter.scaling.fit import Fit
from hyperadapter.scaling.laws import Array

__all__ = ["condition_number", "warnings_of"]

# A power and a floor have three parameters.
_FEWEST_SIZES = 3
_SMALLEST_RANGE = 8.0
_LARGEST_CORRELATION = 0.98
_LARGEST_CONDITION = 1e6
# Solutions whose objective is so little above the best are as good as it.
_AS_GOOD = 1.01
_LARGEST_SPREAD = 0.2


def condition_number(fit: Fit) -> float:
    """Returns the condition number of the Gauss-Newton Hessian, with columns of length 1.

    It has no units. Infinite where some parameters cannot be told apart at all.
    """
    _, jacobian = fit.law.log_loss_and_jacobian(fit.theta, fit.design)
    lengths = np.linalg.norm(jacobian, axis=0)
    if lengths.min() < 1e-12:
        return float("inf")
    number = float(np.linalg.cond(jacobian / lengths)) ** 2
    return number if number < 1e15 else float("inf")


def warnings_of(fit: Fit, samples: Array) -> list[str]:
    """Returns what should be said before anybody trusts a fit.

    Args:
        fit: The fit.
        samples: Its bootstrap values, [samples, P]; may be empty.
    """
    found = [*_sizes(fit), *_pairs(fit), *_mixture(fit)]
    number = condition_number(fit)
    if number > _LARGEST_CONDITION and not found:
        found.append(
            f"the parameters are not identifiable together: the Hessian's condition number is "
            f"{number:.1e} (up to {_LARGEST_CONDITION:.0e} is sound); predictions between the "
            "points may still be good, exponents are not. Add points that spread the sizes further"
        )
    found += [*_other_solutions(fit), *_bounds(fit), *_wide(fit, samples)]
    if fit.points.ignored:
        names = ", ".join(fit.points.ignored)
        found.append(
            f"the points differ in {names}, which the law {fit.law.name!r} does not use: its "
            "parameters mix their effects. Choose another --law (or --mixture for weight), or "
            "points that are alike in it"
        )
    return found


def _sizes(fit: Fit) -> Iterator[str]:
    for term in fit.law.terms:
        sizes = np.unique(fit.points.columns[term.column])
        if len(sizes) < _FEWEST_SIZES:
            listed = " and ".join(f"{size:g}" for size in sizes)
            yield (
                f"{term.exponent} is not identifiable: {term.column} takes {len(sizes)} different "
                f"value{'s' * (len(sizes) > 1)} only ({listed}), so {term.coefficient}, "
                f"{term.exponent} and E cannot be told apart; add points of at least "
                f"{_FEWEST_SIZES} values, {_SMALLEST_RANGE:g} times or more from the least to the "
                "most"
            )
        elif sizes[-1] / sizes[0] < _SMALLEST_RANGE:
            yield (
                f"{term.exponent} is not identifiable well: {term.column} goes from "
                f"{sizes[0]:g} to {sizes[-1]:g}, a factor of {sizes[-1] / sizes[0]:.2g}; add "
                f"points so that it is {_SMALLEST_RANGE:g} or more (up to "
                f"{_SMALLEST_RANGE * sizes[0]:.3g}, or down to {sizes[-1] / _SMALLEST_RANGE:.3g})"
            )


def _pairs(fit: Fit) -> Iterator[str]:
    logs = fit.design.logs
    for second in range(logs.shape[1]):
        for first in range(second):
            pair = logs[:, [first, second]]
            if np.ptp(pair, axis=0).min() == 0:
                continue
            correlation = float(np.corrcoef(pair[:, 0], pair[:, 1])[0, 1])
            if abs(correlation) > _LARGEST_CORRELATION:
                one, two = fit.law.terms[first], fit.law.terms[second]
                yield (
                    f"{one.exponent} is not identifiable apart from {two.exponent}: {one.column} "
                    f"and {two.column} vary together (correlation of logarithms "
                    f"{correlation:.3f}); add points of one {one.column} with several "
                    f"{two.column}, and the other way round"
                )


def _mixture(fit: Fit) -> Iterator[str]:
    number = len(np.unique(fit.design.weights))
    if fit.law.mixture and number < 4:
        yield (
            f"c1, c2 and c3 are not identifiable: weight takes {number} different value"
            f"{'s' * (number > 1)} only; add points so that there are 4 or more, such as 0.1, "
            "0.3, 0.7 and 1"
        )


def _other_solutions(fit: Fit) -> Iterator[str]:
    # A noiseless fit has an objective of 0, to which nothing can be compared.
    as_good = fit.objectives <= _AS_GOOD * fit.objective + 1e-9 * len(fit.points)
    values = fit.law.to_values(fit.solutions[as_good], fit.design.centres)
    for term in fit.law.terms:
        found = values[:, fit.law.index(term.exponent)]
        if np.ptp(found) > _LARGEST_SPREAD * found[0]:
            yield (
                f"{term.exponent} is not identifiable: values from {found.min():.3g} "
                f"to {found.max():.3g} fit equally well; add points of smaller and "
                f"larger {term.column}"
            )


def _bounds(fit: Fit) -> Iterator[str]:
    for name in fit.at_bounds:
        value = fit.values[fit.law.index(name)]
        yield (
            f"{name} ended at {value:.3g}, the end of what is searched: the points do not "
            "determine it, and the other parameters depend on it; add points of smaller and "
            "larger sizes, or choose a law without it"
        )


def _wide(fit: Fit, samples: Array) -> Iterator[str]:
    if not len(samples):
        return
    for term in fit.law.terms:
        index = fit.law.index(term.exponent)
        low, high = interval(samples[:, index])
        if high - low > fit.values[index]:
            yield (
                f"{term.exponent} is not identifiable well: its interval, {low:.3g} to "
                f"{high:.3g}, is wider than its value {fit.values[index]:.3g}; "
                f"add points, above all of smaller and larger {term.column}"
            )
