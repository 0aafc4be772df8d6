"""Figures of a study: loss curves, and final loss and score against what a run is and costs.

A series has the same colour everywhere. Each point is shown: filled if its run is done, hollow if
it is not; the mean over seeds stands on a bar from the least to the most. What diverged, or is far
off the others, is a triangle at the edge of the panel, not left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal, NamedTuple

from hyperadapter.core.files import atomic_open
from hyperadapter.study.results import TRAIN_LOSS, Results, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FigureFile", "colours_of", "plot_results"]

# Told apart by colour-blind readers, and in print (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MAP = "cividis"  # for more series than that: even for the colour-blind (Nunez et al. 2018)
_LEGEND_ENTRIES = 12
_OFF_SCALE = 3.0  # times the median: a run that went wrong
_DPI = 110

Measure = Literal["loss", "score"]
_SIZES: dict[str, Callable[[Row], float]] = {
    "parameters": lambda row: row.point.parameters,
    "adapter parameters": lambda row: row.point.adapter_parameters,
    "training operations (FLOP)": lambda row: row.flops,
}


class FigureFile(NamedTuple):
    """A figure that was drawn.

    Attributes:
        path: A PNG.
        caption: What it shows.
    """

    path: Path
    caption: str


def plot_results(results: Results, folder: Path) -> list[FigureFile]:
    """Draws all figures that there are values for.

    Args:
        results: The study's.
        folder: Where the figures go; it is made.
    """
    plan = results.plan.report
    drawn: list[tuple[str, Figure, str]] = []
    for name, metric in dict.fromkeys((("loss_curves", plan.loss), ("train_curves", TRAIN_LOSS))):
        if results.curves.get(metric):
            caption = f"{metric} over target tokens and over training operations, one line a run."
            drawn.append((name, _curves(results, metric), caption))
    measured = [m for m in _measures() if _values(results.rows, m)]
    if measured:
        caption = (
            "Final loss and score against parameters, adapter parameters and training operations. "
            "Filled: done; hollow: not (yet); bars: range over seeds; triangles: diverged, or off "
            "the scale."
        )
        drawn.append(("sizes", _sizes(results, measured), caption))
    groups = list(dict.fromkeys(name for row in results.rows for name in row.groups))
    for measure in measured if groups else ():
        size = _widest_size(results.rows)
        caption = f"{_label(results, measure)} by resource group against {size}."
        drawn.append((f"groups_{measure}", _groups(results, measure, groups, size), caption))
    files = []
    for name, figure, caption in drawn:
        files.append(FigureFile(folder / f"{name}.png", caption))
        with warnings.catch_warnings(), atomic_open(files[-1].path, "wb") as stream:
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return files


def colours_of(results: Results) -> dict[str, str]:
    """Returns the colour of each series, in the order of the plan."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    names = list(dict.fromkeys(results.series(row) for row in results.rows))
    if len(names) <= len(_COLOURS):
        return dict(zip(names, _COLOURS, strict=False))
    return {
        name: to_hex(colormaps[_MAP](0.95 * n / (len(names) - 1))) for n, name in enumerate(names)
    }


def _measures() -> tuple[Measure, ...]:
    return "loss", "score"


def _values(rows: Sequence[Row], measure: Measure) -> list[float]:
    return [value for row in rows if (value := getattr(row, measure)) is not None]


def _label(results: Results, measure: Measure) -> str:
    name: str = getattr(results.plan.report, measure)
    unit = ", nats per token" if name.endswith("nll") else ""
    return f"{name}{unit}"


# Curves.


def _curves(results: Results, metric: str) -> Figure:
    """Draws a metric over tokens and over operations, in proportion to the steps."""
    from matplotlib.collections import LineCollection

    figure, ((left, right),) = _new_figure(1, 2)
    colours, curves = colours_of(results), results.curves[metric]
    rows = {row.point.name: row for row in results.rows}
    ceiling = _curve_ceiling([c.values[i] for c in curves.values()] for i in (0, -1))
    alpha = max(0.12, min(0.9, 30 / len(curves)))
    for panel, total in ((left, "tokens"), (right, "flops")):
        lines: dict[str, list[list[tuple[float, float]]]] = {}
        lost: dict[str, list[float]] = {}
        for name, curve in curves.items():
            row = rows[name]
            scale = getattr(row, total) / max(row.step or 0, 1)
            points = [(scale * step, v) for step, v in zip(curve.steps, curve.values, strict=True)]
            points = [(x, y) for x, y in points if x > 0]
            seen = [(x, y if y <= ceiling else math.nan) for x, y in points]
            if seen:
                lines.setdefault(results.series(row), []).append(seen)
            first_lost = next((x for x, y in points if not y <= ceiling), None)
            if first_lost is not None:
                lost.setdefault(results.series(row), []).append(first_lost)
        for series, segments in lines.items():
            panel.add_collection(
                LineCollection(segments, colors=colours[series], alpha=alpha, linewidths=1.2)
            )
            if max(map(len, segments)) < 3:  # too short for a line to be seen
                panel.plot(*_columns(segments), "o", color=colours[series], markersize=3)
        panel.set(xscale="log", yscale="log")
        panel.autoscale()
        for series, xs in lost.items():
            _draw_edge(panel, xs, "loss", colours[series])
    left.set(xlabel="target tokens")
    right.set(xlabel="training operations (FLOP)")
    unit = ", nats per token" if metric.endswith("nll") else ""
    left.set(ylabel=f"{_text(metric)}{unit}")
    _finish(figure, [left, right], results, colours)
    return figure


def _columns(segments: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    points = [point for segment in segments for point in segment]
    return [x for x, _ in points], [y for _, y in points]


def _curve_ceiling(ends: Iterable[Sequence[float]]) -> float:
    """Returns what is off the scale, by what curves begin with and end with."""
    finite = [[value for value in values if math.isfinite(value)] for values in ends]
    return max((_OFF_SCALE * median(values) for values in finite if values), default=math.inf)


# Final values.


class _Place(NamedTuple):
    """Points of one configuration over its seeds."""

    x: float
    values: list[float]


def _sizes(results: Results, measured: Sequence[Measure]) -> Figure:
    figure, panels = _new_figure(len(measured), len(_SIZES))
    colours = colours_of(results)
    for line, measure in zip(panels, measured, strict=True):
        for panel, (label, size) in zip(line, _SIZES.items(), strict=True):
            values = {row.point.name: getattr(row, measure) for row in results.rows}
            _draw_values(panel, results, colours, measure, size, values)
            panel.set_xlabel(label)
        line[0].set_ylabel(_text(_label(results, measure)))
    _finish(figure, [panel for line in panels for panel in line], results, colours)
    return figure


def _groups(results: Results, measure: Measure, groups: Sequence[str], size: str) -> Figure:
    """Draws a panel for each group."""
    columns = min(4, len(groups))
    figure, panels = _new_figure(math.ceil(len(groups) / columns), columns)
    colours = colours_of(results)
    flat = [panel for line in panels for panel in line]
    for group, panel in zip(groups, flat, strict=False):
        values = {
            row.point.name: getattr(row.groups[group], measure)
            for row in results.rows
            if group in row.groups
        }
        _draw_values(panel, results, colours, measure, _SIZES[size], values)
        counts = sorted({r.groups[group].directions for r in results.rows if group in r.groups})
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        panel.set_title(_text(f"{group} ({number} directions)"), fontsize="medium")
        panel.set_xlabel(size)
    for panel in flat[len(groups) :]:
        panel.remove()
    for line in panels:
        line[0].set_ylabel(_text(_label(results, measure)))
    _finish(figure, flat[: len(groups)], results, colours)
    return figure


def _widest_size(rows: Sequence[Row]) -> str:
    """Returns the size that differs most between the points."""

    def spread(size: Callable[[Row], float]) -> float:
        sizes = [value for row in rows if (value := size(row)) > 0]
        return max(sizes) / min(sizes) if sizes else 0.0

    return max(_SIZES, key=lambda name: spread(_SIZES[name]))


def _draw_values(
    panel: Axes,
    results: Results,
    colours: Mapping[str, str],
    measure: Measure,
    size: Callable[[Row], float],
    values: Mapping[str, float | None],
) -> None:
    """Draws the values of all points, and the means over the seeds of those that are done."""
    found = ((row, values.get(row.point.name)) for row in results.rows)
    least = _least_size(results, size)
    shown = [(row, max(size(row), least), y) for row, y in found if y is not None]
    finite = [y for _, _, y in shown if math.isfinite(y)]
    ceiling = _OFF_SCALE * median(finite) if finite and measure == "loss" else math.inf
    alpha = max(0.25, min(0.8, 60 / max(len(shown), 1)))
    places: dict[str, dict[object, _Place]] = {}
    for series, colour in colours.items():
        for done in (True, False):
            some = [
                (x, y)
                for row, x, y in shown
                if results.series(row) == series and (row.state == "DONE") == done
            ]
            inside = [(x, y) for x, y in some if math.isfinite(y) and y <= ceiling]
            panel.plot(
                *_columns([inside]), "o", color=colour, fillstyle="full" if done else "none",
                markersize=4, alpha=alpha,
            )  # fmt: skip
            outside = [x for x, y in some if not (math.isfinite(y) and y <= ceiling)]
            _draw_edge(panel, outside, measure, colour)
    # A mean of those seeds that went well would be too good.
    bad = {row.config for row, _, y in shown if not (math.isfinite(y) and y <= ceiling)}
    for row, x, y in shown:
        if row.state == "DONE" and row.config not in bad:
            by_config = places.setdefault(results.series(row), {})
            by_config.setdefault(row.config, _Place(x, [])).values.append(y)
    for series, by_config in places.items():
        _draw_means(panel, sorted(by_config.values()), colours[series])
    panel.set_xscale("log")
    if any(not size(row) for row, _, _ in shown):
        panel.axvline(2 * least, color="0.5", linestyle=":", linewidth=1)
        panel.set_xlim(left=least / 2)
        panel.annotate(
            "none", (least, 1.0), xycoords=panel.get_xaxis_transform(), fontsize=7, color="0.4",
            ha="center", va="top", xytext=(0, -8), textcoords="offset points",
        )  # fmt: skip


def _least_size(results: Results, size: Callable[[Row], float]) -> float:
    """Returns where a size of 0 stands on a logarithmic axis: left of all others."""
    return min((value for row in results.rows if (value := size(row)) > 0), default=1.0) / 4


def _draw_means(panel: Axes, places: Sequence[_Place], colour: str) -> None:
    xs = [place.x for place in places]
    means = [fmean(place.values) for place in places]
    lows, highs = ([of(place.values) for place in places] for of in (min, max))
    several = max(len(place.values) for place in places) > 1
    if several:
        panel.vlines(xs, lows, highs, color=colour, linewidth=1.2)
    # Where other axes differ too, several means stand over one size: a line would say nothing.
    line = "-" if len(set(xs)) == len(xs) else "none"
    marker = "_" if several else "none"
    panel.plot(xs, means, linestyle=line, color=colour, linewidth=1.2, marker=marker, markersize=9)


def _draw_edge(panel: Axes, xs: Sequence[float], measure: Measure, colour: str) -> None:
    """Draws triangles at the edge where bad values lie."""
    if not xs:
        return
    top = measure == "loss"
    (markers,) = panel.plot(
        xs, [1.0 if top else 0.0] * len(xs), "^" if top else "v", color=colour, markersize=7,
        transform=panel.get_xaxis_transform(), clip_on=False, markeredgecolor="white",
    )  # fmt: skip
    markers.set_in_layout(False)


# Common parts.


def _new_figure(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.6 * columns, 0.6 + 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [list(line) for line in figure.subplots(rows, columns, squeeze=False)]
    return figure, panels


def _finish(
    figure: Figure, panels: Sequence[Axes], results: Results, colours: Mapping[str, str]
) -> None:
    """Adds grids, and one legend for all panels: of some series where there are very many."""
    from matplotlib.lines import Line2D

    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
        panel.tick_params(which="both", labelsize=8)
        _plain_ticks(panel)
    names = list(_some(list(colours), _LEGEND_ENTRIES))
    if names == [""]:
        return
    figure.legend(
        [Line2D([], [], color=colours[name], marker="o", markersize=4) for name in names],
        [_text(name) or "(none)" for name in names],
        title=_text(results.plan.report.series),
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )


def _plain_ticks(panel: Axes) -> None:
    """Writes 200k, and 2 and 3 on an axis of losses, where matplotlib would write powers."""
    from matplotlib.ticker import EngFormatter, LogFormatter, LogLocator, ScalarFormatter

    low, high = panel.get_xlim()
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    if high / low < 100:
        panel.xaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0) if high / low > 8 else (2, 3, 5)))
        panel.xaxis.set_minor_formatter(EngFormatter(sep=""))
    if panel.get_yscale() == "log":
        panel.yaxis.set_major_formatter(ScalarFormatter())
        panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 1)))


def _some(names: Sequence[str], most: int) -> Iterator[str]:
    if len(names) <= most:
        yield from names
        return
    for number in range(most):
        yield names[round(number * (len(names) - 1) / (most - 1))]


def _text(text: str) -> str:
    """Keeps a name from being read as mathematics, and from filling the figure."""
    short = text if len(text) <= 40 else f"{text[:39]}…"
    return short.replace("$", r"\$").replace("\n", " ")
