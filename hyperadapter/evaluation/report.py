"""Figures of a run: scores by direction, and curves over steps. The caller saves them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hyperadapter.core.languages import parse_direction
from hyperadapter.evaluation.compare import Comparison
from hyperadapter.evaluation.results import DirectionResult, EvaluationResult
from hyperadapter.evaluation.score import METRIC_NAMES, Metric

__all__ = [
    "build_curve_figure",
    "build_direction_figure",
    "build_matrix_figure",
    "comparison_figures",
    "score_matrix",
]

# Told apart by colour-blind readers, and in print (Okabe and Ito 2008).
_BLANK_COLOUR = "#D9D9D9"
_MODEL_COLOUR, _COPY_COLOUR = "#0072B2", "#E69F00"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BAR_INCHES = 0.26
_CELL_INCHES = 0.5
_MOST_LABELLED = 40  # languages a side; figures in smaller cells cannot be read
_DARK = 0.5  # brightness below which a cell's figure is white


def _new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def build_direction_figure(result: EvaluationResult, metric: Metric = "chrf") -> Figure:
    """Draws one bar for each direction, the best first, and the floor that copying the source sets.

    Args:
        result: An evaluation.
        metric: What to draw; its signatures stand below.
    """
    items = sorted(result.directions, key=lambda item: item.model.value(metric))
    figure, axes = _new_figure(7.0, 1.6 + _BAR_INCHES * len(items))
    places = range(len(items))
    values = [item.model.value(metric) for item in items]
    bars = axes.barh(places, values, height=0.75, color=_MODEL_COLOUR, label="model")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=7)
    copies = [item.copy_source.value(metric) for item in items]
    axes.barh(places, copies, height=0.3, color=_COPY_COLOUR, label="copy of the source")
    axes.set_yticks(places, [item.direction for item in items], fontsize=8)
    axes.set_xlim(0, max(1.0, *values, *copies) * 1.12)
    axes.set_ylim(-0.6, len(items) - 0.4)
    axes.set_xlabel(f"{METRIC_NAMES[metric]}\n{_signatures(items, metric)}", fontsize=7)
    axes.set_title(f"{result.split} split, step {result.step}", fontsize=10)
    figure.legend(loc="outside upper right", ncols=2, fontsize=8)
    return figure


def _signatures(items: Sequence[DirectionResult], metric: Metric) -> str:
    """Writes the distinct signatures, one a line."""
    scores = [item.model.score(metric) for item in items]
    return "\n".join(dict.fromkeys(score.signature for score in scores))


def build_curve_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]], label: str, title: str
) -> Figure:
    """Draws values over steps, such as training and validation loss.

    Args:
        curves: Points (step, value) by name; values that are not finite leave a gap.
        label: Of the vertical axis, with its unit, such as "loss (nats per token)".
        title: Of the figure.
    """
    figure, axes = _new_figure(7.0, 4.2)
    for index, (name, points) in enumerate(curves.items()):
        steps = [step for step, _ in points]
        values = [value if math.isfinite(value) else math.nan for _, value in points]
        marker = "o" if len(points) < 30 else ""
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(steps, values, label=name, color=colour, marker=marker, markersize=3, lw=1.2)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=8)
    return figure


def score_matrix(result: EvaluationResult, metric: Metric = "chrf") -> dict[str, float]:
    """Returns the scores by direction, for `build_matrix_figure`."""
    return {item.direction: item.model.value(metric) for item in result.directions}


def build_matrix_figure(
    values: Mapping[str, float],
    label: str,
    title: str,
    marked: Collection[str] = (),
    diverging: bool = False,
) -> Figure:
    """Draws values by direction as a matrix: a row for each source, a column for each target.

    Args:
        values: By direction, such as `en-de`; directions that are missing stay blank.
        label: Of the colours, with signatures or unit.
        title: Of the figure.
        marked: Directions whose figure gets a star.
        diverging: The values are differences: colours part at 0.
    """
    directions = {parse_direction(name): value for name, value in values.items()}
    languages = dict.fromkeys(code for direction in directions for code in direction)
    rows, columns = (
        [code for code in languages if any(d[side] == code for d in directions)] for side in (0, 1)
    )
    table = np.full((len(rows), len(columns)), np.nan)
    for (src, tgt), value in directions.items():
        table[rows.index(src), columns.index(tgt)] = value
    width, height = (_CELL_INCHES * max(len(codes), 6) for codes in (columns, rows))
    figure, axes = _new_figure(2.2 + width, 1.8 + height)
    limit = float(np.nanmax(np.abs(table))) or 1.0
    norm = Normalize(-limit, limit) if diverging else None
    axes.set_facecolor(_BLANK_COLOUR)
    image = axes.imshow(table, cmap="RdBu" if diverging else "viridis", norm=norm, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel("target")
    axes.set_ylabel("source")
    axes.set_title(title, fontsize=9)
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, shrink=0.9).set_label(label, fontsize=7)
    if max(len(rows), len(columns)) <= _MOST_LABELLED:
        names = {parse_direction(name): "*" for name in marked}
        form = "{:+.1f}{}" if diverging else "{:.1f}{}"
        colours = image.to_rgba(table)
        for direction, value in directions.items():
            red, green, blue, _ = colours[rows.index(direction.src), columns.index(direction.tgt)]
            axes.text(
                columns.index(direction.tgt), rows.index(direction.src),
                form.format(value, names.get(direction, "")),
                ha="center", va="center", fontsize=6,
                color="white" if 0.3 * red + 0.6 * green + 0.1 * blue < _DARK else "black",
            )  # fmt: skip
    return figure


def comparison_figures(comparisons: Sequence[Comparison]) -> dict[str, Figure]:
    """Draws the scores of all runs, and how each differs from the baseline, as matrices.

    Returns:
        Figures by name: `scores_0_<run>` for the baseline, `scores_<n>_<run>` for the others, and
        `difference_<n>_<run>`, with a star at the directions that differ significantly.
    """
    first = comparisons[0]
    metric = METRIC_NAMES[first.metric]
    label = "\n".join((metric, *first.signatures))
    scores = {item.direction: item.baseline for item in first.directions}
    title = f"{first.baseline}, {first.split}"
    figures = {f"scores_0_{Path(first.baseline).name}": build_matrix_figure(scores, label, title)}
    for number, item in enumerate(comparisons, 1):
        name = f"{number}_{Path(item.run).name}"
        scores = {entry.direction: entry.score for entry in item.directions}
        figures[f"scores_{name}"] = build_matrix_figure(scores, label, f"{item.run}, {item.split}")
        figures[f"difference_{name}"] = build_matrix_figure(
            {entry.direction: entry.difference for entry in item.directions},
            f"{metric} of the run less the baseline",
            f"{item.run} against\n{item.baseline}, {item.split}",
            marked=[e.direction for e in item.directions if e.verdict != "no difference"],
            diverging=True,
        )
    return figures
