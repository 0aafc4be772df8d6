"""Reports: their form, held-out sizes, families and their warnings; and the pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperadapter.core.errors import DataError
from hyperadapter.scaling import plots
from hyperadapter.scaling.held_out import predict_largest
from hyperadapter.scaling.points import Points
from hyperadapter.scaling.summary import Options, Study, estimated, report_of, study_points
from tests.unit.scaling.conftest import EXAMPLES, ND, SIZES, points_of

VALUES = EXAMPLES["nd"][1]
POINTS = points_of(ND, VALUES, SIZES, 0.002)
QUICK = Options(samples=4)


def families(times: float = 12) -> Points:
    """Points of a baseline that needs `times` the parameters, and of another family."""
    worse = points_of(ND, VALUES * [1, times ** VALUES[3], 1, 1, 1], SIZES, 0.002, 5)
    columns = {n: np.concatenate([worse.columns[n], POINTS.columns[n]]) for n in POINTS.columns}
    names = ("direction",) * len(worse) + ("hyper",) * len(POINTS)
    return Points(columns, np.concatenate([worse.loss, POINTS.loss]), names, "made")


@cache
def compared() -> Study:
    return study_points(ND, families(), replace(QUICK, hold_out=1))


def test_a_report_is_json_with_every_parameter() -> None:
    study = study_points(ND, POINTS, replace(QUICK, hold_out=1))
    report = json.loads(json.dumps(report_of(study), allow_nan=False))
    assert list(report["parameters"]) == ["E", "A", "B", "alpha", "beta"]
    for value in report["parameters"].values():
        assert value["low"] <= value["high"]
    assert report["parameters"]["alpha"]["estimate"] == pytest.approx(VALUES[3], rel=0.05)
    assert report["law"] == "nd"
    assert (report["points"], report["bootstrap_samples"], report["seed"]) == (30, 4, 0)
    assert report["fit"]["residual_rms"] == pytest.approx(0.002, rel=0.4)
    assert report["frontier"]["a"]["estimate"] == pytest.approx(0.51, abs=0.02)
    assert report["warnings"] == []
    assert report["multipliers"] == []
    for row in report["held_out"]:
        assert row["params"] == 1e9
        assert row["low"] < row["high"]
        assert abs(row["error"]) < 0.02


def test_without_a_bootstrap_there_are_no_intervals() -> None:
    report = report_of(study_points(ND, POINTS, Options(samples=0, hold_out=1)))
    assert report["parameters"]["E"]["low"] is None
    assert report["confidence"] is None
    assert report["held_out"][0]["high"] is None
    json.dumps(report, allow_nan=False)


def test_families_and_their_multiplier() -> None:
    report = report_of(compared())
    assert list(report["families"]) == ["direction", "hyper"]
    assert "parameters" not in report
    (pair,) = report["multipliers"]
    assert (pair["baseline"], pair["other"]) == ("direction", "hyper")
    assert pair["estimate"] == pytest.approx(12, rel=0.15)
    assert pair["low"] < pair["estimate"] < pair["high"]
    low, high = pair["common_losses"]
    assert [row["loss"] for row in pair["by_loss"]] == pytest.approx(
        [low + part * (high - low) for part in (0.5, 0.25, 0.75)]
    )
    assert pair["at"] == {"tokens": 1e10}
    json.dumps(report, allow_nan=False)


def test_the_baseline_can_be_named() -> None:
    study = study_points(ND, families(), Options(samples=0, baseline="hyper", at_losses=(2.6,)))
    (pair,) = report_of(study)["multipliers"]
    assert (pair["baseline"], pair["loss"]) == ("hyper", 2.6)
    assert pair["estimate"] == pytest.approx(1 / 12, rel=0.15)
    with pytest.raises(DataError, match=r"no family 'x' for --baseline; .* 'direction', 'hyper'"):
        study_points(ND, families(), Options(baseline="x"))


def test_a_multiplier_out_of_reach_is_told() -> None:
    study = study_points(ND, families(1e5), Options(samples=0))
    report = report_of(study)
    assert report["multipliers"][0]["estimate"] is None
    assert "direction and hyper reach no loss in common" in report["warnings"][0]
    far = report_of(study_points(ND, families(), Options(samples=0, at_losses=(1.9,))))
    assert far["warnings"][0].startswith("multiplier at loss 1.9: both families reach ")


def test_points_of_no_family_among_others_are_refused() -> None:
    points = families()
    mixed = replace(points, families=("", *points.families[1:]))
    with pytest.raises(DataError, match="made: 1 points have no family and the others have"):
        study_points(ND, mixed, QUICK)


def test_warnings_name_the_family() -> None:
    points = families()
    narrow = points.take([f == "hyper" or n < 3e7 for f, n in zip(
        points.families, points.columns["params"], strict=True)])  # fmt: skip
    found = report_of(study_points(ND, narrow, Options(samples=0)))["warnings"]
    assert any(t.startswith("direction: alpha is not identifiable: params takes 2") for t in found)
    assert not any(t.startswith("hyper:") for t in found)


def test_infinity_is_null() -> None:
    assert estimated(2.0, np.array([1.0, np.inf])) == {"estimate": 2.0, "low": 1.0, "high": None}


def test_the_largest_sizes_are_predicted_without_seeing_them() -> None:
    spoilt = replace(POINTS, loss=POINTS.loss.copy())
    largest = spoilt.columns["params"] > 3e8
    spoilt.loss[largest] *= 1.2
    rows = predict_largest(ND, spoilt, 2, 5, np.random.default_rng(0))
    assert len(rows) == largest.sum() == 10
    assert all(row["error"] == pytest.approx(0.2, abs=0.03) for row in rows)
    study = study_points(ND, spoilt, Options(samples=5, hold_out=2))
    found = [text for text in report_of(study)["warnings"] if "do not extrapolate" in text]
    assert found[0].startswith("10 of 10 losses of the largest sizes are outside the interval")
    with pytest.raises(DataError, match=r"--hold-out 6 leaves none of 6 different values"):
        predict_largest(ND, POINTS, 6, 0, np.random.default_rng(0))


def test_all_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.update({path.stem: figure}))
    plots.plot_study(compared(), tmp_path)
    assert set(drawn) == {"fit", "residuals", "frontier", "held_out", "multiplier"}
    assert [len(figure.axes) for figure in drawn.values()] == [2, 3, 2, 1, 1]
    texts = [text.get_text() for text in drawn["fit"].axes[0].get_legend().get_texts()]
    assert texts == ["direction", "hyper"]
    offsets = drawn["residuals"].axes[1].collections[1].get_offsets()
    assert np.asarray(offsets)[:, 0] == pytest.approx(SIZES["params"])


@pytest.mark.parametrize("name", ["n", "mixture"])
def test_pictures_of_other_laws(name: str, tmp_path: Path) -> None:
    law, values, columns = EXAMPLES[name]
    study = study_points(law, points_of(law, values, columns, 0.002), Options(samples=0))
    figure = plots._plot_fit(study)
    assert len(figure.axes) == len(law.terms)
    if name == "n":
        paths = plots.plot_study(study, tmp_path / "new")
        assert [path.name for path in paths] == ["fit.png", "residuals.png"]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
