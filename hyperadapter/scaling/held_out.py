"""The test of a law: the largest sizes left out, predicted from the others, and compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from hyperadapter.core.errors import DataError
from hyperadapter.scaling.bootstrap import bootstrap, interval
from hyperadapter.scaling.fit import fit_law
from hyperadapter.scaling.laws import Law
from hyperadapter.scaling.points import Points

__all__ = ["predict_largest"]


def predict_largest(
    law: Law, points: Points, sizes: int, samples: int, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """Fits a law without the largest sizes and predicts their losses.

    The interval is for a new run: that of the law, with a residual of a fitted point added.

    Args:
        law: The law.
        points: All points.
        sizes: How many of the largest values of `params` are left out.
        samples: Bootstrap samples; without them there is no interval.
        generator: Draws them.

    Returns:
        For each point left out its sizes, `loss`, `predicted`, `low`, `high`, and `error`, which is
        measured over predicted loss less 1.

    Raises:
        DataError: Nothing is left, or too little for a fit.
    """
    different = np.unique(points.columns["params"])
    if sizes >= len(different):
        raise DataError(
            f"{points.place}: --hold-out {sizes} leaves none of {len(different)} different values "
            "of params; leave out fewer"
        )
    out = points.columns["params"] >= different[-sizes]
    fit, tested = fit_law(law, points.take(~out)), points.take(out)
    predicted = law.predict(fit.values, tested.columns)
    low, high = np.full((2, len(tested)), np.nan)
    if samples:
        values = bootstrap(fit, samples, generator)
        noise = generator.choice(fit.residuals, (samples, len(tested)))
        drawn = law.predict(values, tested.columns) * np.exp(noise)
        low, high = np.array([interval(column) for column in drawn.T]).T
    return [
        {name: float(values[i]) for name, values in tested.columns.items()}
        | {
            "loss": float(tested.loss[i]),
            "predicted": float(predicted[i]),
            "low": float(low[i]) if samples else None,
            "high": float(high[i]) if samples else None,
            "error": float(tested.loss[i] / predicted[i] - 1),
        }
        for i in range(len(tested))
    ]
