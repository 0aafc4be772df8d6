"""Pictures of a study: terms with their points, residuals, frontier, multiplier, held-out sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hyperadapter.core.files import atomic_open
from hyperadapter.scaling.bootstrap import interval
from hyperadapter.scaling.fit import Fit
from hyperadapter.scaling.frontier import has_frontier, optimum
from hyperadapter.scaling.laws import Array
from hyperadapter.scaling.multiplier import Comparison, common_losses, multipliers
from hyperadapter.scaling.summary import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_study"]

_LABELS = {
    "params": "parameters N",
    "hyper_params": "hyper-network parameters H",
    "tokens": "training tokens D",
}
_CURVE_POINTS = 60
_MARKERS = "os^Dv<>P"


def plot_study(study: Study, folder: Path) -> list[Path]:
    """Draws all pictures that a study has material for.

    Args:
        study: The study.
        folder: Where the pictures go; it is made.

    Returns:
        Their paths.
    """
    figures = {"fit": _plot_fit(study), "residuals": _plot_residuals(study)}
    if has_frontier(study.law):
        figures["frontier"] = _plot_frontier(study)
    if any(study.held_out.values()):
        figures["held_out"] = _plot_held_out(study)
    compared = [pair for pair in study.pairs if np.less(*common_losses(pair))]
    if compared:
        figures["multiplier"] = _plot_multiplier(compared)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        _save(figure, paths[-1])
    return paths


def _plot_fit(study: Study) -> Figure:
    """Draws for each term the losses less all other terms, and the term with its interval."""
    figure, panels = _new_figure(len(study.law.terms))
    for index, (term, panel) in enumerate(zip(study.law.terms, panels, strict=True)):
        for number, (name, fit) in enumerate(study.fits.items()):
            sizes, losses = _partial(fit, index)
            curve = np.geomspace(sizes.min(), sizes.max(), _CURVE_POINTS)
            _draw_points(panel, sizes, losses, number, name)
            panel.plot(curve, _term(fit, fit.values, index, curve), color=f"C{number}")
            if len(study.samples[name]):
                drawn = _term(fit, study.samples[name][:, None], index, curve)
                _draw_band(panel, curve, drawn, number)
        label = _LABELS[term.column]
        panel.set_xlabel(
            "effective parameters f(w) N" if study.law.mixture and not index else label
        )
        _scale_sizes(panel, np.concatenate([_partial(f, index)[0] for f in study.fits.values()]))
        panel.set_title(f"E + {term.coefficient} x^-{term.exponent}", fontsize="medium")
    panels[0].set_ylabel("loss less the other terms,\nnats per token")
    _finish(figure, panels[0], study, f"Fit of {study.law.formula}")
    return figure


def _partial(fit: Fit, index: int) -> tuple[Array, Array]:
    """Returns the (effective) sizes of a term and the losses without the other terms."""
    logits, share_logs = fit.law.logits(fit.theta, fit.design)
    powers = np.exp(logits)
    sizes = fit.points.columns[fit.law.terms[index].column]
    others = powers[:, 1:].sum(axis=1) - powers[:, 1 + index]
    return sizes * np.exp(share_logs) if index == 0 else sizes, fit.points.loss - others


def _term(fit: Fit, values: Array, index: int, sizes: Array) -> Array:
    law, term = fit.law, fit.law.terms[index]
    factor, exponent = (values[..., law.index(n)] for n in (term.coefficient, term.exponent))
    result: Array = values[..., 0] + factor * sizes**-exponent
    return result


def _plot_residuals(study: Study) -> Figure:
    """Draws measured over predicted loss against what was predicted, and against each size."""
    figure, panels = _new_figure(1 + len(study.law.terms))
    for number, (name, fit) in enumerate(study.fits.items()):
        percent = 100 * np.expm1(fit.residuals)
        predicted = fit.points.loss / np.exp(fit.residuals)
        _draw_points(panels[0], predicted, percent, number, name)
        for panel, term in zip(panels[1:], study.law.terms, strict=True):
            _draw_points(panel, fit.points.columns[term.column], percent, number, name)
    for panel, term in zip(panels[1:], study.law.terms, strict=True):
        panel.set_xlabel(_LABELS[term.column])
        columns = [fit.points.columns[term.column] for fit in study.fits.values()]
        _scale_sizes(panel, np.concatenate(columns))
    for panel in panels:
        panel.axhline(0, color="0.5", linewidth=1)
    panels[0].set_xlabel("predicted loss, nats per token")
    panels[0].set_ylabel("measured over predicted, %")
    _finish(figure, panels[0], study, "Residuals")
    return figure


def _plot_frontier(study: Study) -> Figure:
    """Draws the sizes of least loss over the budget, and the budgets and sizes of the points."""
    figure, panels = _new_figure(2)
    factor = study.options.flops_factor
    for number, (name, fit) in enumerate(study.fits.items()):
        columns = fit.points.columns
        spent = factor * columns["params"] * columns["tokens"]
        budgets = np.geomspace(spent.min(), 100 * spent.max(), _CURVE_POINTS)
        for panel, column in zip(panels, ("params", "tokens"), strict=True):
            _draw_points(panel, spent, columns[column], number, name)
            best = getattr(optimum(fit.law, fit.values, budgets, factor), column)
            panel.plot(budgets, best, color=f"C{number}")
            if len(study.samples[name]):
                drawn = optimum(fit.law, study.samples[name][:, None], budgets, factor)
                _draw_band(panel, budgets, getattr(drawn, column), number)
            panel.set(xscale="log", yscale="log", ylabel=_LABELS[column])
            panel.set_xlabel(f"operations, {factor:g} N D")
    _finish(figure, panels[0], study, "Compute-optimal sizes (lines) and points")
    return figure


def _plot_multiplier(pairs: list[Comparison]) -> Figure:
    figure, (panel,) = _new_figure(1)
    for number, pair in enumerate(pairs):
        losses = np.linspace(*common_losses(pair), _CURVE_POINTS)
        found = [multipliers(pair, loss) for loss in losses]
        names = [fit.points.families[0] for fit in (pair.baseline, pair.other)]
        panel.plot(losses, [value for value, _ in found], label=f"{names[0]} for {names[1]}")
        if len(pair.other_samples):
            bands = np.array([interval(samples) for _, samples in found])
            low, high = np.where(np.isfinite(bands), bands, np.nan).T
            panel.fill_between(losses, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
    panel.axhline(1, color="0.5", linewidth=1)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("loss, nats per token")
    panel.set_ylabel("times the parameters")
    panel.legend(frameon=False)
    figure.suptitle("Parameters for equal loss")
    return figure


def _plot_held_out(study: Study) -> Figure:
    figure, (panel,) = _new_figure(1)
    ends: list[float] = []
    for number, (name, rows) in enumerate(study.held_out.items()):
        table = {key: np.array([row[key] for row in rows], dtype=float) for key in rows[0]}
        predicted, loss = table["predicted"], table["loss"]
        _draw_points(panel, predicted, loss, number, name)
        panel.hlines(loss, table["low"], table["high"], color=f"C{number}", alpha=0.5)
        ends += [*predicted, *loss]
    panel.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.5", linewidth=1)
    panel.set_xlabel("predicted loss and its interval")
    panel.set_ylabel("measured loss")
    _finish(figure, panel, study, "Largest sizes, predicted from the others")
    return figure


def _scale_sizes(panel: Axes, sizes: Array) -> None:
    """Makes the axis of sizes logarithmic, with as many labels as fit beside each other."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    panel.set_xscale("log")
    if sizes.max() / sizes.min() < 1000:
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:.0e}"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _draw_points(panel: Axes, x: Array, y: Array, number: int, name: str) -> None:
    marker = _MARKERS[number % len(_MARKERS)]
    style: dict[str, Any] = {"s": 14, "alpha": 0.7, "linewidths": 0, "color": f"C{number}"}
    panel.scatter(x, y, marker=marker, label=name, **style)


def _draw_band(panel: Axes, x: Array, drawn: Array, number: int) -> None:
    low, high = np.array([interval(column) for column in drawn.T]).T
    panel.fill_between(x, low, high, color=f"C{number}", alpha=0.2, linewidth=0)


def _new_figure(columns: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 3.8 * columns, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _finish(figure: Figure, first: Axes, study: Study, title: str) -> None:
    figure.suptitle(title)
    if "" not in study.fits:
        first.legend(frameon=False)


def _save(figure: Figure, path: Path) -> None:
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=120)
