"""What the runs of a study have come to, by MLflow: a row for each point, and loss curves.

A run belongs to the point whose name it has; of several the newest counts. What cannot be matched
is counted, never dropped in silence.

The names of metrics are those of a run: `valid/macro/nll` is the mean over directions of
`valid/<direction>/nll`, and is computed from these where it was not logged itself.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from hyperadapter.core.errors import LanguageError, TrackingError, nearest
from hyperadapter.core.files import atomic_open
from hyperadapter.core.languages import parse_direction
from hyperadapter.study.config import SEED, Value
from hyperadapter.study.plan import Plan, Point
from hyperadapter.tracking.runs import Curve, RunReader, StoredRun
from hyperadapter.tracking.uri import redact

__all__ = [
    "SAMPLES_PER_CURVE",
    "TRAIN_LOSS",
    "Group",
    "Results",
    "Row",
    "link_of",
    "read_results",
    "write_csv",
]

TRAIN_LOSS = "train/nll"
SAMPLES_PER_CURVE = 500  # more than a figure has room for

_TOKENS, _WALL = "perf/total/target_tokens", "perf/total/wall_s"
_HYPER = "model/num_hyper_parameters"
_PAIRS = "data/train_pairs/"
_REASON_TAG = "hyperadapter.status_reason"
# Where runs differ by their nature.
_OWN_PARAMS = ("name", "run_dir", "tracking.")

State = Literal["DONE", "RUNNING", "FAILED", "STOPPED", "WAITING"]


@dataclass(frozen=True)
class Group:
    """Means over some directions of a run; None where nothing was measured.

    Attributes:
        directions: How many.
        loss: Mean of the report's loss.
        score: Mean of the report's score.
    """

    directions: int
    loss: float | None
    score: float | None


@dataclass(frozen=True)
class Row:
    """A point and what its run has done; None stands for what is not known (yet).

    Attributes:
        point: As planned.
        state: DONE, RUNNING, FAILED, STOPPED, or WAITING where MLflow has no run.
        why: Why it failed or stopped.
        run_id: MLflow's name of the run; empty without one.
        link: Its page; empty where MLflow has none of its own.
        step: Newest step logged.
        tokens: Target tokens trained on, without padding; before the first count as planned, for
            the steps done.
        flops: As planned, for the steps done.
        wall_s: Seconds of training.
        hyper_parameters: Of the hyper-network; 0 without one.
        loss: Newest value of the report's loss; not finite where the run diverged.
        score: Newest value of the report's score.
        macro: All other means over directions, by the metric's name.
        groups: By resource group, then by direction into and out of the pivot language.
    """

    point: Point
    state: State
    why: str = ""
    run_id: str = ""
    link: str = ""
    step: int | None = None
    tokens: float = 0.0
    flops: float = 0.0
    wall_s: float | None = None
    hyper_parameters: int = 0
    loss: float | None = None
    score: float | None = None
    macro: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)

    @property
    def config(self) -> tuple[tuple[str, Value], ...]:
        """What the runs of all its seeds have in common."""
        return tuple((axis, value) for axis, value in self.point.axes.items() if axis != SEED)

    @property
    def diverged(self) -> bool:
        """Whether its last loss is no number."""
        return self.loss is not None and not math.isfinite(self.loss)


@dataclass(frozen=True)
class Results:
    """Everything that a report shows.

    Attributes:
        plan: The study.
        place: Where MLflow is, without password.
        rows: One of each point, in the plan's order.
        curves: By metric and point.
        differs: Parameters with more than one value: how many runs have each value.
        strangers: Names of runs of the study that are no point of it, or trained something else.
        older: How many runs are left out because their point has a newer one.
        newest_ms: When the newest run began or ended, in ms since 1970.
    """

    plan: Plan
    place: str
    rows: tuple[Row, ...]
    curves: Mapping[str, Mapping[str, Curve]]
    differs: Mapping[str, Mapping[str, int]]
    strangers: tuple[str, ...]
    older: int
    newest_ms: int

    @property
    def states(self) -> dict[str, int]:
        """How many points are in each state."""
        return dict(Counter(row.state for row in self.rows))

    def series(self, row: Row) -> str:
        """Returns the name under which a row gets its colour; empty if the study has no series."""
        axis = self.plan.report.series
        return str(row.point.axes.get(axis, "")) if axis else ""

    @property
    def thinned(self) -> int:
        """How many curves show some of their values only."""
        curves = [curve for by_point in self.curves.values() for curve in by_point.values()]
        return sum(curve.logged > len(curve.steps) for curve in curves)

    def best(self, measure: Literal["loss", "score"]) -> list[Row]:
        """Returns the best row of each series, those of finished runs where there are any."""
        sign = 1 if measure == "loss" else -1
        best: dict[str, Row] = {}
        for row in self.rows:
            value = getattr(row, measure)
            if value is None or not math.isfinite(value):
                continue
            old = best.get(self.series(row))
            rank = (row.state != "DONE", sign * value)
            if old is None or rank < (old.state != "DONE", sign * getattr(old, measure)):
                best[self.series(row)] = row
        return list(best.values())


def read_results(plan: Plan, uri: str) -> Results:
    """Reads all runs of a study.

    Args:
        plan: The study.
        uri: A resolved tracking URI.

    Raises:
        TrackingError: MLflow cannot be reached, or has no run of the study.
    """
    report = plan.report
    reader = RunReader(uri)
    prefixes = {"model/", "perf/total/", _PAIRS, TRAIN_LOSS}
    prefixes |= {f"{metric.split('/')[0]}/" for metric in (report.loss, report.score)}
    runs = reader.runs(plan.experiment, plan.key, sorted(prefixes))
    if not runs:
        raise TrackingError(
            f"MLflow at {redact(uri)} has no run of the study {plan.study!r} in the experiment "
            f"{plan.experiment!r}; start it with `hyperadapter study run`, send what waits in run "
            "folders with `hyperadapter track sync`, or name another place with --uri"
        )
    points = {point.name: point for point in plan.points}
    newest = {run.name: run for run in runs}  # the oldest come first
    matched = {
        name: newest[name]
        for name, point in points.items()
        if name in newest and newest[name].tags.get("fingerprint", "") in ("", point.fingerprint)
    }
    strangers = sorted(newest.keys() - matched.keys())
    names = {run.run_id: name for name, run in matched.items()}
    curves = {
        metric: {
            names[run_id]: curve
            for run_id, curve in reader.curves(list(names), metric, SAMPLES_PER_CURVE).items()
        }
        for metric in dict.fromkeys((report.loss, TRAIN_LOSS))
    }
    rows = tuple(_row(plan, point, matched.get(name), uri) for name, point in points.items())
    _check_metrics(plan, rows, matched)
    return Results(
        plan=plan,
        place=redact(uri),
        rows=rows,
        curves=curves,
        differs=_differences(list(matched.values())),
        strangers=tuple(strangers),
        older=len(runs) - len(newest),
        newest_ms=max(run.end_ms or run.start_ms for run in runs),
    )


def _check_metrics(plan: Plan, rows: Sequence[Row], runs: Mapping[str, StoredRun]) -> None:
    """Checks that the metrics of the report exist, as soon as there is a run that would have them.

    Raises:
        TrackingError: One does not; the message names those that there are.
    """
    done = [row for row in rows if row.state == "DONE"]
    wanted = {"report.loss": plan.report.loss}
    wanted |= {"report.score": plan.report.score} if plan.evaluate else {}
    for (key, metric), measure in zip(wanted.items(), ("loss", "score"), strict=False):
        if done and all(getattr(row, measure) is None for row in done):
            names = sorted(runs[done[0].point.name].metrics)
            shown = ", ".join(name for name in names if "/macro/" in name) or ", ".join(names[:20])
            raise TrackingError(
                f"no run of the study {plan.study!r} has the metric {metric!r} of {key}"
                f"{nearest(metric, names)}; there are {shown}. Plan the study again with one of "
                f"them (--set {key}=...)"
            )


def _row(plan: Plan, point: Point, run: StoredRun | None, uri: str) -> Row:
    if run is None:
        return Row(point, "WAITING")
    report, metrics = plan.report, run.metrics
    step = max(run.steps.values(), default=0)
    share = min(1.0, step / point.steps)
    loss, score = (_macro(metrics, metric) for metric in (report.loss, report.score))
    scored = not plan.evaluate or any(
        key.startswith("test/") and when >= point.steps for key, when in run.steps.items()
    )
    state, why = _state(run, step >= point.steps, scored)
    macro = {
        key: value
        for key, value in sorted(metrics.items())
        if key.split("/")[1:2] == ["macro"] and key not in (report.loss, report.score)
    }
    return Row(
        point=point,
        state=state,
        why=why,
        run_id=run.run_id,
        link=link_of(uri, run.experiment_id, run.run_id),
        step=step,
        tokens=metrics.get(_TOKENS, point.tokens * share),
        flops=point.flops * share,
        wall_s=metrics.get(_WALL),
        hyper_parameters=int(metrics.get(_HYPER, 0)),
        loss=loss,
        score=score,
        macro=macro,
        groups=_groups(plan, metrics, run.params.get("data.pivot", "")),
    )


def _state(run: StoredRun, trained: bool, scored: bool) -> tuple[State, str]:
    why = run.tags.get(_REASON_TAG, "")
    if run.status == "FAILED":
        return "FAILED", why or "no reason was given"
    if trained and scored and run.status == "FINISHED":
        return "DONE", ""
    if run.status in ("RUNNING", "SCHEDULED"):
        return "RUNNING", ""
    return "STOPPED", why or ("trained, but not scored" if trained else "stopped before its end")


def link_of(uri: str, experiment_id: str, run_id: str) -> str:
    """Returns the page of a run: of a server only, and without user, password or query."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return ""
    place = parts.netloc.rpartition("@")[2]
    base = urlunsplit((parts.scheme, place, parts.path.rstrip("/"), "", ""))
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}"


# Means over directions.


def _by_direction(metrics: Mapping[str, float], macro: str) -> dict[str, float]:
    """Returns, by direction, what a mean such as `valid/macro/nll` is over; may be empty."""
    split, middle, name = (*macro.split("/", 2), "", "")[:3]
    if middle != "macro":
        return {}
    begin, end = f"{split}/", f"/{name}"
    found = {
        key[len(begin) : -len(end)]: value
        for key, value in metrics.items()
        if key.startswith(begin) and key.endswith(end)
    }
    found.pop("macro", None)
    return found


def _macro(metrics: Mapping[str, float], name: str) -> float | None:
    if name in metrics:
        return metrics[name]
    return _mean(_by_direction(metrics, name).values())


def _mean(values: Any) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _groups(plan: Plan, metrics: Mapping[str, float], pivot: str) -> dict[str, Group]:
    """Returns the means by training pairs, and into and out of the pivot language."""
    losses, scores = (
        _by_direction(metrics, name) for name in (plan.report.loss, plan.report.score)
    )
    members: dict[str, list[str]] = {name: [] for name in plan.report.groups}
    members |= {f"into {pivot}": [], f"out of {pivot}": []} if pivot else {}
    least_pairs = sorted(plan.report.groups.items(), key=lambda group: -group[1])
    for direction in sorted(losses.keys() | scores.keys()):
        pairs = metrics.get(_PAIRS + direction)
        if pairs is not None:
            group = next((name for name, least in least_pairs if pairs >= least), None)
            members.get(group or "", []).append(direction)
        src, tgt = _sides(direction)
        if pivot and tgt == pivot:
            members[f"into {pivot}"].append(direction)
        elif pivot and src == pivot:
            members[f"out of {pivot}"].append(direction)
    return {
        name: Group(
            len(directions),
            _mean(losses.get(direction) for direction in directions),
            _mean(scores.get(direction) for direction in directions),
        )
        for name, directions in members.items()
        if directions
    }


@cache  # every run has the same ones, and what is none takes long to say so
def _sides(direction: str) -> tuple[str, str]:
    try:
        return parse_direction(direction)
    except LanguageError:
        return "", ""


def _differences(runs: Sequence[StoredRun]) -> dict[str, dict[str, int]]:
    """Returns the parameters with more than one value, and how many runs have each."""
    keys = sorted({key for run in runs for key in run.params})
    counts = {
        key: Counter(run.params.get(key, "(not given)") for run in runs)
        for key in keys
        if not key.startswith(_OWN_PARAMS)
    }
    return {
        key: dict(sorted(count.items(), key=_numerically))
        for key, count in counts.items()
        if len(count) > 1
    }


def _numerically(item: tuple[str, int]) -> tuple[float, str]:
    try:
        return float(item[0]), ""
    except ValueError:
        return math.inf, item[0]


# CSV.


def write_csv(results: Results, folder: Path) -> list[Path]:
    """Writes the rows to points.csv, and to fit.csv what a scaling law can be fitted to.

    Both have the columns of `hyperadapter scaling fit`. While points are still without a loss that
    is a number, only the second one can be fitted. `hyper_params` is there where all runs have a
    hyper-network: the law of it knows no 0.

    Returns:
        Their paths.
    """
    rows = [(row, _cells(results, row)) for row in results.rows]
    fits = [
        cells
        for row, cells in rows
        if row.state == "DONE" and row.loss is not None and math.isfinite(row.loss)
    ]
    law = ("point", "params", "hyper_params", "tokens", "loss", "family")
    fit = [{name: cells[name] for name in law} for cells in fits]
    paths = [folder / "points.csv", folder / "fit.csv"]
    for path, table in zip(paths, ([cells for _, cells in rows], fit), strict=True):
        if any(not cells["hyper_params"] for cells in table):
            for cells in table:
                cells.pop("hyper_params")
        header = list(dict.fromkeys(name for cells in table for name in cells)) or list(law)
        with atomic_open(path) as stream:
            writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return paths


def _cells(results: Results, row: Row) -> dict[str, Any]:
    """Returns the columns of a row; what is None becomes an empty cell."""
    point = row.point
    cells: dict[str, Any] = {
        "point": point.name,
        "family": results.series(row),
        "state": row.state,
        "step": row.step,
        "steps": point.steps,
        "params": point.parameters,
        "hyper_params": row.hyper_parameters,
        "adapter_params": point.adapter_parameters,
        "flops": row.flops,
        "tokens": row.tokens if row.run_id else point.tokens,
        "loss": row.loss,
        "score": row.score,
        "wall_s": row.wall_s,
    }
    cells |= {f"axis.{axis}": value for axis, value in point.axes.items()}
    cells |= {f"macro.{name}": value for name, value in row.macro.items()}
    for name, group in row.groups.items():
        cells |= {
            f"loss.{name}": group.loss,
            f"score.{name}": group.score,
            f"directions.{name}": group.directions,
        }
    return cells | {"fingerprint": point.fingerprint, "link": row.link, "why": row.why}
