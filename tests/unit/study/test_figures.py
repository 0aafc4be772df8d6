"""Figures: drawn, not blank, one colour a series everywhere, and nothing left out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from hyperadapter.study.figures import colours_of, plot_results
from hyperadapter.study.results import Group, Results, Row
from tests.unit.study.report_material import HOSTILE, make_point, make_results


def make_row(kind: str, width: int, seed: int, loss: float, state: str = "DONE") -> Row:
    groups = {"HIGH": Group(2, loss + 1, 20 - loss), "LOW": Group(1, loss + 2, None)}
    point = make_point(f"{kind}-{width}-{seed}", kind, width, seed)
    return Row(
        point, state, run_id="r", step=100, tokens=9e5, flops=point.flops, loss=loss,
        score=30 - 3 * loss, groups=groups,
    )  # type: ignore[arg-type]  # fmt: skip


def study(*more: Row) -> Results:
    rows = [
        make_row(kind, width, seed, 4 - width / 4 + seed / 20)
        for kind in ("none", HOSTILE, "_hyper")
        for width in (1, 2, 4)
        for seed in (1, 2)
    ]
    return make_results((*rows, *more))


def pixels(path: Path) -> np.ndarray:
    return np.round(imread(path)[..., :3] * 255).astype(int)


def count(path: Path, colour: str) -> int:
    wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    return int((pixels(path) == wanted).all(axis=-1).sum())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    files = plot_results(study(), tmp_path_factory.mktemp("figures"))
    assert all(file.caption for file in files)
    return {file.path.name: file.path for file in files}


def test_all_figures_show_every_series_in_its_colour(drawn: dict[str, Path]) -> None:
    assert list(drawn) == ["loss_curves.png", "sizes.png", "groups_loss.png", "groups_score.png"]
    colours = colours_of(study())
    assert len(set(colours.values())) == 3
    for path in drawn.values():
        for colour in colours.values():
            assert count(path, colour) > 20, (path.name, colour)


def test_the_same_results_give_the_same_files(drawn: dict[str, Path], tmp_path: Path) -> None:
    for file in plot_results(study(), tmp_path):
        assert file.path.read_bytes() == drawn[file.path.name].read_bytes()


@pytest.mark.parametrize("loss", [math.nan, 500.0])
def test_what_went_wrong_is_marked_and_does_not_squeeze_the_rest(
    drawn: dict[str, Path], tmp_path: Path, loss: float
) -> None:
    results = study(make_row("bad", 2, 1, loss, "FAILED"))
    files = {file.path.name: file.path for file in plot_results(results, tmp_path)}
    colours = colours_of(results)
    for name in ("loss_curves.png", "sizes.png", "groups_loss.png"):
        assert count(files[name], colours["bad"]) > 20, name
        alone, with_it = (count(of[name], colours["none"]) for of in (drawn, files))
        assert with_it > 0.7 * alone, name


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    waiting = Row(make_point("a", "none", 1, 1), "WAITING")
    assert plot_results(make_results((waiting,)), tmp_path) == []


def test_many_series_get_a_map_of_colours_and_a_short_legend(tmp_path: Path) -> None:
    rows = [replace(make_row(f"kind {n}", 1, 1, 3.0), groups={}) for n in range(30)]
    assert len(set(colours_of(make_results(tuple(rows))).values())) == 30
    shapes = [
        pixels(plot_results(make_results(tuple(some)), tmp_path / str(len(some)))[1].path).shape
        for some in (rows, rows[:12])
    ]
    assert shapes[0] == shapes[1]


def test_a_study_without_series_has_one_colour_and_no_legend(tmp_path: Path) -> None:
    results = make_results(study().rows, report={})
    assert colours_of(results) == {"": "#0072B2"}
    assert plot_results(results, tmp_path)
