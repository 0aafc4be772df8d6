"""Means over seeds: none where a run diverged, all runs counted."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from hyperadapter.study.figures import _draw_values
from hyperadapter.study.page import _count, write_page
from hyperadapter.study.results import Results, Row
from hyperadapter.study.seeds import has_seeds, over_seeds, write_seeds_csv
from tests.unit.study.report_material import make_point, make_results


def results_of(*losses: float) -> Results:
    """A configuration with one seed for each loss, and another one with a single seed."""
    rows = [
        Row(make_point(f"a{n}", "hyper", 1, n), "DONE", step=100, loss=loss, score=10.0 + n)
        for n, loss in enumerate(losses)
    ]
    rows.append(
        Row(make_point("b", "none", 1, 0), "DONE", run_id="b", step=100, loss=2.5, score=9.0)
    )
    return make_results(tuple(rows))


def test_means_and_spreads_are_those_of_the_finished_runs(tmp_path: Path) -> None:
    results = results_of(2.0, 3.0, 4.0)
    first, second = over_seeds(results)
    assert (first["runs"], first["done"], first["diverged"]) == (3, 3, 0)
    assert (first["loss_mean"], first["loss_std"]) == (3.0, 1.0)
    assert (first["score_mean"], first["score_std"]) == (11.0, 1.0)
    assert (second["runs"], second["loss_mean"], second["loss_std"]) == (1, 2.5, None)
    assert (first["axis.kind"], first["family"], first["params"]) == ("hyper", "hyper", 101_000)
    write_seeds_csv(results, tmp_path / "configs.csv")
    with open(tmp_path / "configs.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["loss_mean"] for row in rows] == ["3.0", "2.5"]
    assert rows[1]["loss_std"] == ""
    write_page(results, [], tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Over seeds" in page
    assert "3.0000" in page


def test_there_is_no_mean_where_a_seed_diverged() -> None:
    [first, _] = over_seeds(results_of(2.0, math.nan, 4.0))
    assert (first["runs"], first["done"], first["diverged"]) == (3, 3, 1)
    assert first["loss_mean"] is None
    assert first["score_mean"] == 11.0


@pytest.mark.parametrize(("bad", "means"), [(2.2, 2), (9.0e3, 1), (math.nan, 1)])
def test_figures_draw_no_mean_of_the_seeds_that_went_well(bad: float, means: int) -> None:
    results = results_of(2.0, bad)
    values = {row.point.name: row.loss for row in results.rows}
    panel = Figure().subplots()
    colours = {"hyper": "C0", "none": "C1"}
    _draw_values(panel, results, colours, "loss", lambda row: row.point.parameters, values)
    lines = [line for line in panel.lines if line.get_linestyle() == "-" and len(line.get_xdata())]
    assert len(lines) == means


def test_a_study_of_single_runs_has_no_means() -> None:
    assert not has_seeds(results_of(2.0))
    assert has_seeds(results_of(2.0, 3.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""), (0, "0"), (714, "714"), (9_999, "9,999"), (10_000, "10 k"), (26_450, "26.4 k"),
        (269_952, "270 k"), (2_930_496, "2.93 M"), (7.5e9, "7.5 G"), (1.1e13, "1.1e+13"),
    ],
)  # fmt: skip
def test_counts_are_written_with_the_right_unit(value: float | None, text: str) -> None:
    assert _count(value) == text
