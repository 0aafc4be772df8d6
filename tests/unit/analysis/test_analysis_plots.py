"""Pictures: what stands in them, not how they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperadapter.analysis import plots
from hyperadapter.analysis.distances import DistanceTable, cosine_distances

LANGUAGES = ("en", "uk", "de", "ru")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Catches the figures that are saved, by file name."""
    caught: dict[str, Any] = {}
    monkeypatch.setattr(plots, "_save", lambda figure, path: caught.update({path.name: figure}))
    return caught


def table() -> DistanceTable:
    vectors = np.array([[1.0, 0], [0, 1], [1, 0.1], [0.2, 1]])
    return DistanceTable(
        "encoder", "cka", LANGUAGES, ("encoder.0",), cosine_distances(vectors)[None]
    )


def test_rows_of_the_heat_map_lie_beside_their_leaves(figures: dict[str, Any]) -> None:
    paths = plots.plot_relatedness(table(), Path("out"))
    assert [path.name for path in paths] == ["encoder_cka_tree.png", "encoder_cka_map.png"]
    tree, heat, *_ = figures["encoder_cka_tree.png"].axes
    rows = [label.get_text() for label in heat.get_yticklabels()]
    assert {frozenset(rows[:2]), frozenset(rows[2:])} == {
        frozenset(("en", "de")),
        frozenset(("uk", "ru")),
    }
    values = heat.images[0].get_array()
    order = [LANGUAGES.index(code) for code in rows]
    np.testing.assert_allclose(values, table().mean[np.ix_(order, order)])
    # Leaf i of the tree is at 10 i + 5 and row i of the map at i, both counted from above.
    assert tree.get_ylim() == (40, 0)
    assert heat.get_ylim() == (3.5, -0.5)
    merges = sorted(min(line[:, 1]) for line in tree.collections[0].get_segments())
    assert merges[0] == 5


def test_families_have_colours_in_map_and_labels(figures: dict[str, Any]) -> None:
    plots.plot_relatedness(table(), Path("out"))
    [axes] = figures["encoder_cka_map.png"].axes
    colours = {text.get_text(): text.get_color() for text in axes.texts}
    assert colours["en"] == colours["de"] != colours["uk"] == colours["ru"]
    _, heat, *_ = figures["encoder_cka_tree.png"].axes
    assert {label.get_text(): label.get_color() for label in heat.get_xticklabels()} == colours


def test_many_families_differ_by_marker() -> None:
    codes = ["de", "fr", "uk", "fi", "tr", "ar", "ja", "ko", "el", "hy"]
    styles = plots._family_styles(codes)
    assert len(set(styles.values())) == len(styles) > len(plots._COLOURS)


def test_a_matrix_is_a_picture_with_its_numbers(tmp_path: Path) -> None:
    path = plots.plot_matrix(
        np.array([[0.0, 2.5], [-1, 0]]),
        np.ones((2, 2)),
        ["de", "uk"],
        "costs",
        ("of", "by"),
        tmp_path / "x.png",
    )
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_matrix_of_zeros_can_be_drawn(figures: dict[str, Any]) -> None:
    plots.plot_matrix(
        np.zeros((2, 2)), np.ones((2, 2)), ["de", "uk"], "costs", ("of", "by"), Path("x.png")
    )
    axes = figures["x.png"].axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.00"] * 4
