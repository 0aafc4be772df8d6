"""Points made from known laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hyperadapter.scaling.laws import LAWS, Array, Law
from hyperadapter.scaling.points import Points

# Besiroglu et al. (2024): the corrected fit of Hoffmann et al.'s points.
CORRECTED = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
# Their bootstrap's standard errors, from table 1 of the paper.
CORRECTED_ERRORS = {"E": 0.03, "A": 124.58, "B": 1293.23, "alpha": 0.02, "beta": 0.02}

ND = LAWS["nd"]
JOINT_VALUES = (1.2, 300.0, 40.0, 900.0, 0.33, 0.3, 0.36)
MIXTURE_VALUES = (1.2, 300.0, 900.0, 0.33, 0.36, 0.4, 0.6, 1.5)


def values_of(law: Law, named: Mapping[str, float]) -> Array:
    return np.array([named[name] for name in law.names])


def points_of(
    law: Law,
    values: Array | Sequence[float],
    columns: Mapping[str, Array],
    noise: float = 0.0,
    seed: int = 0,
) -> Points:
    """Losses of a law with log-normal noise; `noise` is its standard deviation."""
    loss = law.predict(np.asarray(values, dtype=float), columns)
    drawn = np.random.default_rng(seed).normal(0, noise, len(loss)) if noise else 0.0
    return Points(columns, loss * np.exp(drawn), ("",) * len(loss), "made")


def grid(**sizes: Sequence[float]) -> dict[str, Array]:
    """Every combination of the sizes."""
    mesh = np.meshgrid(*(np.asarray(values, dtype=float) for values in sizes.values()))
    return {name: part.ravel() for name, part in zip(sizes, mesh, strict=True)}


SIZES = grid(params=np.geomspace(1e7, 1e9, 6), tokens=np.geomspace(1e9, 1e11, 5))
JOINT_SIZES = grid(
    params=np.geomspace(1e7, 1e9, 5),
    hyper_params=np.geomspace(1e5, 1e8, 4),
    tokens=np.geomspace(1e9, 1e11, 4),
)
MIXTURE_SIZES = grid(
    params=np.geomspace(1e7, 1e9, 5),
    tokens=np.geomspace(1e9, 1e11, 3),
    weight=[0.05, 0.2, 0.5, 0.8, 1.0],
)
EXAMPLES = {
    "n": (LAWS["n"], np.array([1.5, 300.0, 0.35]), grid(params=np.geomspace(1e6, 1e10, 12))),
    "nd": (ND, values_of(ND, CORRECTED), SIZES),
    "joint": (LAWS["joint"], np.array(JOINT_VALUES), JOINT_SIZES),
    "mixture": (ND.with_mixture(), np.array(MIXTURE_VALUES), MIXTURE_SIZES),
}
