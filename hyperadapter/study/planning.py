"""`hyperadapter study plan`: what every run of a study needs, and the list of them.

A study may be planned again, with more points or fewer. Names depend on a point's values only, and
what was trained is never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from hyperadapter.checkpoint.layout import complete_checkpoints
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.files import write_text
from hyperadapter.core.schema import load_config, to_yaml
from hyperadapter.describe import Table
from hyperadapter.forecast import forecast_run
from hyperadapter.study.config import StudyConfig
from hyperadapter.study.plan import PLAN_FILE, Plan, Point, load_plan
from hyperadapter.study.points import StudyPoint, study_points
from hyperadapter.training.preflight import experiment_fingerprint, identity

__all__ = ["Planned", "plan_report", "plan_study", "plan_tables", "write_plan"]

log = logging.getLogger(__name__)


class Planned(NamedTuple):
    """A plan that is not written yet.

    Attributes:
        study: What was planned.
        plan: The list of runs.
        configs: Their configurations, by name.
        notes: What was left out, and what else should be known.
    """

    study: StudyConfig
    plan: Plan
    configs: dict[str, RunConfig]
    notes: list[str]


def plan_study(
    study: StudyConfig, gpu: str | None = None, utilisation: float | None = None
) -> Planned:
    """Resolves and counts all runs of a study; nothing is written.

    Args:
        study: The study.
        gpu: A type of GPU, for hours and whether runs fit.
        utilisation: Share of its peak that is reached; by default the forecast's.

    Raises:
        ConfigError: A point is not valid, the folder is another study's, or what was trained there
            is another experiment than what is planned now.
    """
    folder = Path(study.folder)
    before = _plan_before(study, folder)
    key = uuid4().hex if before is None else before.key
    old = {} if before is None else {point.name: point for point in before.points}
    found = study_points(study, key, tuple(old))
    points, too_large = list[Point](), list[str]()
    for point in found.points:
        report = forecast_run(point.config, gpu=gpu, utilisation=utilisation)
        points.append(_planned_point(point, report))
        if gpu is not None and not report["gpu"]["fits"]:
            too_large.append(point.name)
        if point.name not in old or old[point.name].fingerprint != points[-1].fingerprint:
            _check_untrained(point.config, folder)
    first = found.points[0].config
    plan = Plan(
        study=study.name,
        description=study.description,
        key=key,
        experiment=study.name,
        uri=first.tracking.uri,
        tracked=first.tracking.enabled,
        evaluate=study.evaluate,
        report=study.report,
        gpu="" if gpu is None else gpu.upper(),
        points=tuple(points),
    )
    configs = {point.name: point.config for point in found.points}
    notes = [f"{count} points left out by {rule}" for rule, count in found.left_out.items()]
    gone = [name for name in old if name not in configs]
    if gone:
        notes.append(
            f"{len(gone)} points are in the study no more, such as {gone[0]}; their folders stay"
        )
    if too_large:
        notes.append(
            f"{len(too_large)} points do not fit on one {plan.gpu}, such as {too_large[0]}; see "
            "`hyperadapter train --dry-run` with its file of points"
        )
    return Planned(study, plan, configs, notes)


def _plan_before(study: StudyConfig, folder: Path) -> Plan | None:
    if not (folder / PLAN_FILE).exists():
        return None
    before = load_plan(folder)
    if before.study != study.name:
        raise ConfigError(
            f"{folder} belongs to the study {before.study!r}, not to {study.name!r}; give this one "
            "another folder (--set folder=...)"
        )
    return before


def _planned_point(point: StudyPoint, report: dict[str, Any]) -> Point:
    hours = report["gpu"]["hours"] * report["world_size"] if "gpu" in report else None
    return Point(
        name=point.name,
        axes=point.axes,
        fingerprint=experiment_fingerprint(point.config),
        parameters=point.counts.parameters,
        adapter_parameters=point.counts.adapter_parameters,
        steps=report["run"]["steps"],
        tokens=report["run"]["tgt_tokens"],
        flops=report["run"]["flops"],
        bytes_per_rank=report["bytes_per_rank"]["total"],
        disk_bytes=report["disk"]["needed_bytes"],
        gpu_hours=hours,
    )


def _check_untrained(config: RunConfig, folder: Path) -> None:
    """Checks that a run folder holds no checkpoint of another experiment."""
    path = Path(config.run_dir) / "config.yaml"
    if not path.exists() or not complete_checkpoints(Path(config.run_dir)):
        return
    trained, now = (dict(_leaves(identity(c))) for c in (load_config(RunConfig, path), config))
    changed = [
        f"{key}: {trained.get(key)!r} was trained, {now.get(key)!r} is planned"
        for key in sorted(trained.keys() | now.keys())
        if trained.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"point {config.name} has checkpoints of another experiment in {config.run_dir}:\n  "
            + "\n  ".join(changed)
            + f"\nrestore the values to go on in {folder}, or give the changed study another "
            "folder and name (--set folder=... --set name=...)"
        )


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def write_plan(planned: Planned) -> None:
    """Writes a study, the configurations of its runs and, last, their list."""
    folder = Path(planned.study.folder)
    _write_changed(folder / "study.yaml", to_yaml(planned.study))
    for name, config in planned.configs.items():
        _write_changed(folder / "points" / f"{name}.yaml", to_yaml(config))
    _write_changed(folder / PLAN_FILE, planned.plan.model_dump_json(indent=2) + "\n")
    log.info("planned %d runs in %s", len(planned.plan.points), folder)


def _write_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def plan_report(planned: Planned) -> dict[str, Any]:
    """Returns a plan as plain values, with totals and notes."""
    plan = planned.plan
    hours = [point.gpu_hours for point in plan.points if point.gpu_hours is not None]
    totals = {
        "points": len(plan.points),
        "tokens": sum(point.tokens for point in plan.points),
        "flops": sum(point.flops for point in plan.points),
        "disk_bytes": sum(point.disk_bytes for point in plan.points),
        "gpu_hours": sum(hours) if hours else None,
    }
    return {
        "folder": planned.study.folder,
        **plan.model_dump(mode="json"),
        "totals": totals,
        "notes": planned.notes,
    }


def plan_tables(report: dict[str, Any]) -> list[Table]:
    """Returns the table of all points, with a row of totals."""
    totals, gpu = report["totals"], report["gpu"]
    hours = f"hours of {gpu}" if gpu else "GPU hours"
    counted = ("parameters", "of adapters", "steps", "tokens", "PFLOP", "GB a rank", "disk, GB")
    columns = ("point", *counted, hours)
    rows = [
        (
            *(point[key] for key in ("name", "parameters", "adapter_parameters", "steps")),
            *_shared(point),
        )
        for point in report["points"]
    ]
    rows.append((f"{totals['points']} points", None, None, None, *_shared(totals)))
    return [(f"{report['study']} in {report['folder']}", columns, rows)]


def _shared(counts: Mapping[str, Any]) -> tuple[Any, ...]:
    memory, hours = counts.get("bytes_per_rank"), counts["gpu_hours"]
    return (
        counts["tokens"],
        f"{counts['flops'] / 1e15:,.3f}",
        None if memory is None else f"{memory / 1e9:.3f}",
        f"{counts['disk_bytes'] / 1e9:.3f}",
        None if hours is None else f"{hours:,.2f}",
    )
