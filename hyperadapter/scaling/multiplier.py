"""How many times more parameters one family needs for the loss of another.

Solved for N, the law says which size reaches a loss l when the other sizes are given:

    N(l) = (A / (l - E - rest))^(1/alpha)

The multiplier of a baseline over another family is N_baseline(l) / N_other(l): the other reaches
with N what the baseline reaches with m N. Baziotis et al. (2022) say "up to 12 times" of
direction adapters over hyper-adapters; `params` then has to be what they count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hyperadapter.scaling.fit import Fit
from hyperadapter.scaling.laws import Array

__all__ = ["Comparison", "common_losses", "multipliers", "size_at_loss"]


@dataclass(frozen=True)
class Comparison:
    """Two fits of one law.

    Attributes:
        baseline: The family that needs m N.
        other: The family that needs N.
        baseline_samples: Bootstrap values of `baseline`: [samples, P].
        other_samples: Bootstrap values of `other`, as many.
        at: Sizes besides N that both share, by name.
    """

    baseline: Fit
    other: Fit
    baseline_samples: Array
    other_samples: Array
    at: Mapping[str, float]


def size_at_loss(fit: Fit, values: Array, loss: float, at: Mapping[str, float]) -> Array:
    """Returns the N that reaches a loss; infinite where no N does.

    Args:
        fit: Says which law it is.
        values: Parameters: [..., P].
        loss: The loss, nats per token.
        at: The other sizes by name; mixture weights are taken as 1.
    """
    law = fit.law
    rest = values[..., 0].copy()
    for term in law.terms[1:]:
        factor = values[..., law.index(term.coefficient)]
        rest += factor * at[term.column] ** -values[..., law.index(term.exponent)]
    gap = np.maximum(loss - rest, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(np.log(values[..., law.index("A")] / gap) / values[..., law.index("alpha")])


def multipliers(pair: Comparison, loss: float) -> tuple[float, Array]:
    """Returns the multiplier at a loss, and its bootstrap values; infinite where there is none.

    Families are drawn independently, so that sample i of one goes with sample i of the other. Where
    neither family reaches the loss there is no multiplier; such samples are left out.
    """
    estimate = _ratio(pair, pair.baseline.values, pair.other.values, loss)
    samples = _ratio(pair, pair.baseline_samples, pair.other_samples, loss)
    return float(estimate), samples[~np.isnan(samples)]


def _ratio(pair: Comparison, baseline: Array, other: Array, loss: float) -> Array:
    with np.errstate(invalid="ignore"):
        result: Array = size_at_loss(pair.baseline, baseline, loss, pair.at) / size_at_loss(
            pair.other, other, loss, pair.at
        )
    return result


def common_losses(pair: Comparison) -> tuple[float, float]:
    """Returns the losses that both families reach within their measured N, lowest first.

    The first is above the second where there are none.
    """
    ends = []
    for fit in (pair.baseline, pair.other):
        sizes = fit.points.columns["params"]
        columns = {name: np.full(2, value) for name, value in pair.at.items()}
        columns |= {"params": np.array([sizes.max(), sizes.min()]), "weight": np.ones(2)}
        ends.append(fit.law.predict(fit.values, columns))
    return max(float(low) for low, _ in ends), min(float(high) for _, high in ends)
