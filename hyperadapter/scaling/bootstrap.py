"""Intervals by drawing points with replacement and fitting again.

Percentiles of the refits are the interval (Efron 1979). Points are drawn one by one, so that runs
count as independent; checkpoints of one run do not, and give intervals that are too narrow.
"""

from __future__ import annotations

import numpy as np

from data_pipeline.progress import track
from hyperadapter.core.errors import DataError
from hyperadapter.scaling.fit import Fit, refine
from hyperadapter.scaling.laws import Array

__all__ = ["CONFIDENCE", "bootstrap", "interval"]

CONFIDENCE = 0.95

_STARTS = 2  # the fit itself, and the next solution that differs from it
_MOST_DRAWS = 1000


def bootstrap(fit: Fit, samples: int, generator: np.random.Generator) -> Array:
    """Fits a law again to points drawn with replacement.

    A draw with fewer different points than parameters, or with one value only of a size that has
    several, says nothing and is drawn again.

    Args:
        fit: The fit of all points, from whose solutions the refits start.
        samples: How many refits.
        generator: Draws the points.

    Returns:
        The refitted values in the order of `law.names`: [samples, P].
    """
    log_loss = np.log(fit.points.loss)
    starts = _different(fit)
    values = np.empty((samples, len(fit.law.names)))
    for sample in track(range(samples), samples, "fitting to drawn points"):
        counts = _draw(fit, generator)
        found = [refine(fit.law, fit.design, log_loss, start, counts) for start in starts]
        theta, _ = min(found, key=lambda item: item[1])
        values[sample] = fit.law.to_values(theta, fit.design.centres)
    return values


def _different(fit: Fit) -> list[Array]:
    """Returns the best solution and others, worse or equal, that are not the same."""
    starts: list[Array] = []
    for theta in fit.solutions:
        if all(np.abs(theta - other).max() > 0.05 for other in starts):
            starts.append(theta)
    return starts[:_STARTS]


def _draw(fit: Fit, generator: np.random.Generator) -> Array:
    """Returns how often each point is drawn."""
    number = len(fit.points)
    varies = np.ptp(fit.design.logs, axis=0) > 0
    for _ in range(_MOST_DRAWS):
        counts = np.bincount(generator.integers(0, number, number), minlength=number)
        drawn = fit.design.logs[counts > 0]
        enough = len(drawn) >= len(fit.law.names)
        if enough and np.all((np.ptp(drawn, axis=0) > 0) == varies):
            return counts.astype(np.float64)
    raise DataError(
        f"{fit.points.place}: {number} points are too few and too alike to draw from them with "
        "replacement; add points, or use --bootstrap 0"
    )


def interval(values: Array, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Returns the percentile interval of bootstrap values, which may be infinite but not NaN."""
    tail = 50 * (1 - confidence)
    # Interpolation between two infinities would give NaN.
    low, high = np.percentile(values, [tail, 100 - tail], method="nearest")
    return float(low), float(high)
