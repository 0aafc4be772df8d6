"""Intervals: repeatable, and as wide as they say."""

from __future__ import annotations

import numpy as np
import pytest

from hyperadapter.core.errors import DataError
from hyperadapter.scaling.bootstrap import bootstrap, interval
from hyperadapter.scaling.fit import fit_law
from hyperadapter.scaling.points import Points
from tests.unit.scaling.conftest import EXAMPLES, points_of

LAW, VALUES, COLUMNS = EXAMPLES["n"]
THRICE = {"params": np.repeat(COLUMNS["params"], 3)}


def test_a_seed_gives_the_same_samples() -> None:
    fit = fit_law(LAW, points_of(LAW, VALUES, THRICE, 0.005))
    first, again, other = (bootstrap(fit, 4, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).all()


def test_without_noise_intervals_are_points() -> None:
    fit = fit_law(LAW, points_of(LAW, VALUES, THRICE))
    samples = bootstrap(fit, 5, np.random.default_rng(0))
    assert samples == pytest.approx(np.tile(VALUES, (5, 1)), rel=1e-4)


def test_more_points_make_intervals_narrower_by_the_root() -> None:
    widths = []
    for copies in (2, 18):
        columns = {"params": np.repeat(COLUMNS["params"], copies)}
        fit = fit_law(LAW, points_of(LAW, VALUES, columns, 0.005, seed=2))
        samples = bootstrap(fit, 30, np.random.default_rng(0))
        widths.append(np.log(samples).std(axis=0))
    assert widths[0] / widths[1] == pytest.approx(np.full(3, 3.0), rel=0.5)


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    hits = np.zeros(3)
    for seed in range(60):
        fit = fit_law(LAW, points_of(LAW, VALUES, THRICE, 0.005, seed))
        samples = bootstrap(fit, 50, np.random.default_rng(seed))
        spans = np.array([interval(column, 0.9) for column in samples.T])
        hits += (spans[:, 0] <= VALUES) & (spans[:, 1] >= VALUES)
    assert hits.min() >= 48
    assert hits.max() <= 59


def test_intervals_are_percentiles_and_may_be_infinite() -> None:
    values = np.arange(1001.0)
    assert interval(values, 0.9) == (50.0, 950.0)
    values[-100:] = np.inf
    assert interval(values, 0.9) == (50.0, np.inf)


def test_points_that_cannot_be_drawn_are_refused() -> None:
    # One point of four differs in size from the others: most draws of 4 lack one of the others.
    columns = {"params": np.array([1e6, 1e7, 1e8, 1e9])}
    fit = fit_law(LAW, points_of(LAW, VALUES, columns))
    nobody = type("Stuck", (), {"integers": lambda *_: np.zeros(4, dtype=int)})()
    with pytest.raises(DataError, match=r"made: 4 points are too few .* use --bootstrap 0"):
        bootstrap(fit, 1, nobody)


def test_a_size_that_varies_varies_in_every_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    law, values, _ = EXAMPLES["nd"]
    tokens = np.array([1e9] * 11 + [1e11])
    points = points_of(law, values, {"params": np.geomspace(1e7, 1e9, 12), "tokens": tokens})
    drawn: list[float] = []

    def record(*arguments: object) -> tuple[np.ndarray, float]:
        counts = arguments[4]
        assert isinstance(counts, np.ndarray)
        drawn.append(counts[-1])
        assert counts.sum() == 12
        return fit.theta, 0.0

    fit = fit_law(law, Points(points.columns, points.loss, points.families, "made"))
    monkeypatch.setattr("hyperadapter.scaling.bootstrap.refine", record)
    bootstrap(fit, 100, np.random.default_rng(0))
    assert min(drawn) >= 1
