"""Figures of a run: scores by direction, and curves over steps. The caller saves them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hyperadapter.evaluation.evaluate import DirectionResult, EvaluationResult
from hyperadapter.evaluation.score import METRIC_NAMES, Metric

__all__ = ["build_curve_figure", "build_direction_figure"]

# Told apart by colour-blind readers, and in print (Okabe and Ito 2008).
_MODEL_COLOUR, _COPY_COLOUR = "#0072B2", "#E69F00"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BAR_INCHES = 0.26


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
