"""Pictures of distances, of what swaps cost, and of mixtures; colours of codes are families."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyperadapter.analysis.distances import DistanceTable, classical_mds, linkage
from hyperadapter.core.files import atomic_open
from hyperadapter.core.languages import family_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["plot_matrix", "plot_relatedness", "plot_weights"]

Array = NDArray[np.float64]
# Told apart by colour-blind readers, and in print (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dv<>P"
_CELL_INCHES = 0.3
_LEAST_CELL_INCHES = 0.13  # a line of the labels' type
_SIDE_INCHES = 8.0  # from which on cells get smaller
_MOST_FIGURES = 25  # languages a side; numbers in smaller cells cannot be read
_DARK = 0.65  # share of the strongest colour beyond which a cell's number is white


def plot_relatedness(table: DistanceTable, folder: Path) -> list[Path]:
    """Draws the dendrogram with the heat map, and the map, of one table of distances.

    Returns:
        The paths of the pictures.
    """
    figures = {"tree": _plot_tree(table), "map": _plot_map(table)}
    paths = []
    for kind, figure in figures.items():
        paths.append(folder / f"{table.name}_{kind}.png")
        _save(figure, paths[-1])
    return paths


def _plot_tree(table: DistanceTable) -> Figure:
    """Draws the dendrogram, and beside it the distances in the order of its leaves."""
    from scipy.cluster import hierarchy

    merges, order = linkage(table.mean)
    languages = [table.languages[leaf] for leaf in order]
    styles = _family_styles(table.languages)
    side = _side_inches(len(languages), _CELL_INCHES)
    figure = _new_figure(3.2 + side, 0.9 + side)
    tree, heat = figure.subplots(1, 2, width_ratios=(2.0, side))
    hierarchy.dendrogram(
        merges, orientation="left", no_labels=True, color_threshold=0.0, ax=tree,
        above_threshold_color="0.4",
    )  # fmt: skip
    # SciPy puts leaf i at 10 i + 5, from below; rows of an image lie at i, from above.
    tree.set_ylim(10 * len(languages), 0)
    tree.spines[["top", "right", "left"]].set_visible(False)
    tree.tick_params(labelsize=7)
    tree.set_xlabel("distance", fontsize=8)
    values = table.mean[np.ix_(order, order)]
    image = heat.imshow(values, cmap="viridis_r", aspect="auto")
    _label_axes(heat, languages, languages, styles)
    figure.colorbar(image, ax=heat, shrink=0.8).ax.tick_params(labelsize=7)
    _add_legend(figure, styles)
    figure.suptitle(f"{_title(table)}: average linkage", fontsize=10)
    return figure


def _plot_map(table: DistanceTable) -> Figure:
    points, share = classical_mds(table.mean)
    styles = _family_styles(table.languages)
    figure = _new_figure(6.4, 5.6)
    axes = figure.subplots()
    for code, point in zip(table.languages, points, strict=True):
        colour, marker = styles[family_of(code)]
        axes.scatter(point[0], point[1], s=26, color=colour, marker=marker, linewidths=0)
        axes.annotate(code, point, (4, 3), textcoords="offset points", fontsize=8, color=colour)
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    reach = 0.6 * float(np.ptp(points, axis=0).max()) or 1.0  # a tenth more than the points need
    axes.set(xlim=(middle[0] - reach, middle[0] + reach))
    axes.set(ylim=(middle[1] - reach, middle[1] + reach), aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.2)
    _add_legend(figure, styles)
    figure.suptitle(f"{_title(table)}: map, {100 * share:.0f}% of it shown", fontsize=10)
    return figure


def plot_matrix(
    costs: Array,
    values: Array,
    languages: Sequence[str],
    title: str,
    axes_names: tuple[str, str],
    path: Path,
) -> Path:
    """Draws values as numbers and what they cost as colours, which part at 0.

    Args:
        costs: Of values against those of the diagonal; positive is worse [n, n].
        values: What is written into the cells [n, n].
        languages: Of rows and columns.
        title: Says the unit.
        axes_names: Of the rows and the columns.
        path: Of the picture.

    Returns:
        The path.
    """
    from matplotlib.colors import Normalize

    styles = _family_styles(languages)
    side = _side_inches(max(len(languages), 5), 1.3 * _CELL_INCHES)
    figure = _new_figure(1.2 + side, 1.0 + side)
    axes = figure.subplots()
    limit = float(np.abs(costs).max()) or 1.0
    image = axes.imshow(costs, cmap="RdBu_r", norm=Normalize(-limit, limit))
    _label_axes(axes, languages, languages, styles)
    axes.set_ylabel(axes_names[0], fontsize=8)
    axes.set_xlabel(axes_names[1], fontsize=8)
    if len(languages) <= _MOST_FIGURES:
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(costs[row, column]) > _DARK * limit else "black"
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour
            )
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    _add_legend(figure, styles)
    figure.suptitle(title, fontsize=9)
    _save(figure, path)
    return path


def plot_weights(
    weights: Array, rows: Sequence[str], columns: Sequence[str], title: str, path: Path
) -> Path:
    """Draws of what each language is made: weights as colours, and as numbers in per cent.

    Args:
        weights: From 0 to 1; NaN where a language is no part of another [n, m].
        rows: The n languages that are mixed.
        columns: The m languages that they are made of.
        title: Of the picture.
        path: Of the picture.

    Returns:
        The path.
    """
    from matplotlib.colors import Normalize

    styles = _family_styles([*rows, *columns])
    width = _side_inches(max(len(columns), 5), 1.3 * _CELL_INCHES)
    figure = _new_figure(1.2 + width, 1.0 + _side_inches(len(rows), 1.3 * _CELL_INCHES))
    axes = figure.subplots()
    image = axes.imshow(weights, cmap="Blues", norm=Normalize(0.0, 1.0), aspect="auto")
    _label_axes(axes, rows, columns, styles)
    axes.set_ylabel("language", fontsize=8)
    axes.set_xlabel("is made of", fontsize=8)
    if max(weights.shape) <= _MOST_FIGURES:
        for (row, column), value in np.ndenumerate(weights):
            if np.isfinite(value):
                colour = "white" if value > _DARK else "black"
                axes.text(
                    column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6,
                    color=colour,
                )  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.8).ax.tick_params(labelsize=7)
    _add_legend(figure, styles)
    figure.suptitle(title, fontsize=9)
    _save(figure, path)
    return path


def _side_inches(count: int, cell_inches: float) -> float:
    return 1.2 + max(min(cell_inches * count, _SIDE_INCHES), _LEAST_CELL_INCHES * count)


def _title(table: DistanceTable) -> str:
    what = {"cosine": "cosine distance", "cka": "1 - CKA"}[table.measure]
    return f"{table.view.replace('_', ', ')}, {what}"


def _family_styles(languages: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Gives every family a colour, and a marker once the colours are used up."""
    families = sorted({family_of(code) for code in languages})
    count = len(_COLOURS)
    return {
        family: (_COLOURS[i % count], _MARKERS[i // count % len(_MARKERS)])
        for i, family in enumerate(families)
    }


def _label_axes(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], styles: dict[str, tuple[str, str]]
) -> None:
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    labels: list[Text] = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    for label in labels:
        label.set_color(styles[family_of(label.get_text())][0])


def _add_legend(figure: Figure, styles: dict[str, tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    marks: list[Any] = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=family)
        for family, (colour, marker) in styles.items()
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=5, fontsize=7, frameon=False)


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=120)
