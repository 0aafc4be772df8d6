"""Everything that is said of a set of points: fits, intervals, warnings, and what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hyperadapter.core.errors import DataError
from hyperadapter.scaling.bootstrap import CONFIDENCE, bootstrap, interval
from hyperadapter.scaling.fit import Fit, fit_law
from hyperadapter.scaling.frontier import default_budgets, exponents, has_frontier, optimum
from hyperadapter.scaling.held_out import predict_largest
from hyperadapter.scaling.identify import condition_number, warnings_of
from hyperadapter.scaling.laws import Array, Law
from hyperadapter.scaling.multiplier import Comparison, common_losses, multipliers
from hyperadapter.scaling.points import Points

__all__ = ["Options", "Study", "estimated", "report_of", "study_points"]


@dataclass(frozen=True)
class Options:
    """What is wanted of a study.

    Attributes:
        samples: Bootstrap samples; 0 gives no intervals.
        seed: Of the bootstrap.
        hold_out: How many of the largest sizes are predicted from the others.
        flops: Budgets of the frontier; none are powers of ten about those of the points.
        flops_factor: k in C = k N D.
        at_losses: Losses of the multiplier; none are those in the middle of what both reach.
        baseline: The family that needs more parameters; empty is the first.
    """

    samples: int = 200
    seed: int = 0
    hold_out: int = 0
    flops: tuple[float, ...] = ()
    flops_factor: float = 6.0
    at_losses: tuple[float, ...] = ()
    baseline: str = ""


@dataclass(frozen=True)
class Study:
    """Fits of all families.

    Attributes:
        law: The law.
        fits: By family, the baseline first.
        samples: Bootstrap values by family: [samples, P] each.
        held_out: By family, what `predict_largest` says.
        pairs: The baseline with each other family.
        options: What was asked for.
    """

    law: Law
    fits: Mapping[str, Fit]
    samples: Mapping[str, Array]
    held_out: Mapping[str, list[dict[str, Any]]]
    pairs: tuple[Comparison, ...]
    options: Options


def study_points(law: Law, points: Points, options: Options) -> Study:
    """Fits a law to each family and compares them.

    Raises:
        DataError: A family has too few points, or there is no such baseline.
    """
    groups = points.by_family()
    if options.baseline:
        if options.baseline not in groups:
            raise DataError(
                f"{points.place}: there is no family {options.baseline!r} for --baseline; there "
                f"are {', '.join(map(repr, groups))}"
            )
        groups = {options.baseline: groups[options.baseline]} | groups
    if "" in groups and len(groups) > 1:
        raise DataError(
            f"{points.place}: {len(groups[''])} points have no family and the others have; name "
            "the family of every point, or of none"
        )
    generators = np.random.default_rng(options.seed).spawn(2 * len(groups))
    fits, samples, held_out = {}, {}, {}
    for number, (name, group) in enumerate(groups.items()):
        fits[name] = fit = fit_law(law, group)
        samples[name] = bootstrap(fit, options.samples, generators[2 * number])
        if options.hold_out:
            held_out[name] = predict_largest(
                law, group, options.hold_out, options.samples, generators[2 * number + 1]
            )
    first, *others = groups
    at = {t.column: float(np.median(points.columns[t.column])) for t in law.terms[1:]}
    pairs = tuple(
        Comparison(fits[first], fits[name], samples[first], samples[name], at) for name in others
    )
    return Study(law, fits, samples, held_out, pairs, options)


def estimated(value: float, samples: Array) -> dict[str, float | None]:
    """Returns a value with its interval; None is infinite, or not known."""
    low, high = interval(samples) if len(samples) else (math.nan, math.nan)
    parts = {"estimate": float(value), "low": low, "high": high}
    return {name: part if math.isfinite(part) else None for name, part in parts.items()}


def report_of(study: Study) -> dict[str, Any]:
    """Returns a study as what JSON can hold.

    Without families the fit's `parameters` and all else stand at the top, with families below
    `families` and the family's name.
    """
    report: dict[str, Any] = {
        "law": study.law.name,
        "mixture": study.law.mixture,
        "formula": study.law.formula,
        "confidence": CONFIDENCE if study.options.samples else None,
        "bootstrap_samples": study.options.samples,
        "seed": study.options.seed,
    }
    families = {name: _family(study, name) for name in study.fits}
    warnings = [
        f"{name}: {text}" if name else text
        for name, fit in study.fits.items()
        for text in warnings_of(fit, study.samples[name])
    ]
    warnings += [text for text in map(_missed, study.held_out, study.held_out.values()) if text]
    compared = [_multiplier(pair, study.options.at_losses) for pair in study.pairs]
    for item in compared:
        warnings += item.pop("warnings")
    report |= families.get("", {"families": families})
    return report | {"multipliers": compared, "warnings": warnings}


def _missed(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a warning where most of the largest sizes are not where they were predicted."""
    outside = [r for r in rows if r["low"] is not None and not r["low"] <= r["loss"] <= r["high"]]
    if 2 * len(outside) <= len(rows):
        return ""
    prefix = f"{name}: " if name else ""
    return (
        f"{prefix}{len(outside)} of {len(rows)} losses of the largest sizes are outside the "
        "interval that the others predict: do not extrapolate with this law; look at held_out, "
        "and whether the largest runs were trained and tuned as the others"
    )


def _family(study: Study, name: str) -> dict[str, Any]:
    fit, samples = study.fits[name], study.samples[name]
    size = np.abs(fit.residuals)
    number = condition_number(fit)
    return {
        "points": len(fit.points),
        "parameters": {
            parameter: estimated(fit.values[i], samples[:, i])
            for i, parameter in enumerate(fit.law.names)
        },
        "fit": {
            "objective": fit.objective,
            "residual_rms": float(np.sqrt((size**2).mean())),
            "residual_median": float(np.median(size)),
            "residual_largest": float(size.max()),
            "condition_number": number if math.isfinite(number) else None,
        },
        "held_out": study.held_out.get(name),
        "frontier": _frontier(fit, samples, study.options) if has_frontier(fit.law) else None,
    }


def _frontier(fit: Fit, samples: Array, options: Options) -> dict[str, Any]:
    law, columns = fit.law, fit.points.columns
    budgets = options.flops or default_budgets(
        columns["params"], columns["tokens"], options.flops_factor
    )
    by_params, by_tokens = exponents(law, fit.values)
    sampled = exponents(law, samples)
    rows = []
    for flops in budgets:
        best = optimum(law, fit.values, flops, options.flops_factor)
        drawn = optimum(law, samples, flops, options.flops_factor)
        floors = (fit.values[0], samples[:, 0])
        rows.append(
            {
                "flops": flops,
                "params": estimated(float(best.params), drawn.params),
                "tokens": estimated(float(best.tokens), drawn.tokens),
                "loss": estimated(
                    float(floors[0] + best.reducible_loss), floors[1] + drawn.reducible_loss
                ),
            }
        )
    return {
        "flops_factor": options.flops_factor,
        "a": estimated(float(by_params), sampled[0]),
        "b": estimated(float(by_tokens), sampled[1]),
        "budgets": rows,
    }


def _multiplier(pair: Comparison, at_losses: Sequence[float]) -> dict[str, Any]:
    """Returns the multiplier at the first loss as one number, and at all of them."""
    names = [fit.points.families[0] for fit in (pair.baseline, pair.other)]
    low, high = common_losses(pair)
    warnings = []
    if low >= high:
        warnings.append(
            f"{names[0]} and {names[1]} reach no loss in common ({low:.4g} is the best of the one, "
            f"{high:.4g} the worst of the other), so a multiplier is extrapolated; add larger "
            "models of the worse family or smaller ones of the better"
        )
    losses = list(at_losses)
    if not losses and low < high:
        losses = [low + part * (high - low) for part in (0.5, 0.25, 0.75)]
    outside = [loss for loss in losses if not low <= loss <= high]
    if outside and low < high:
        warnings.append(
            f"multiplier at loss {', '.join(f'{loss:g}' for loss in outside)}: both families reach "
            f"{low:.4g} to {high:.4g} within the measured params; beyond it is extrapolated"
        )
    rows = []
    for loss in losses:
        estimate, samples = multipliers(pair, loss)
        reached = float(np.isfinite(samples).mean()) if len(samples) else None
        rows.append({"loss": loss, **estimated(estimate, samples), "reached": reached})
    empty = {"loss": None, "estimate": None, "low": None, "high": None, "reached": None}
    return {
        "baseline": names[0],
        "other": names[1],
        **(rows[0] if rows else empty),
        "at": dict(pair.at),
        "common_losses": [low, high] if low < high else None,
        "by_loss": rows,
        "warnings": warnings,
    }
