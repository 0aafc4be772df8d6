"""`hyperadapter study plan`: what every run of a study needs, and the list of them.

A study may be planned again, with more points or fewer. Names depend on a point's values only, and
what was trained is never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from hyperadapter.checkpoint.layout import complete_checkpoints
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.events import EVENTS_FILE, SendState
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

_MISS = 0.02
"""From here on it is said that a matched size is off."""


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
    study: StudyConfig,
    gpu: str | None = None,
    utilisation: float | None = None,
    drop: bool = False,
) -> Planned:
    """Resolves and counts all runs of a study; nothing is written.

    Args:
        study: The study.
        gpu: A type of GPU, for hours and whether runs fit.
        utilisation: Share of its peak that is reached; by default the forecast's.
        drop: Whether points that have begun may leave the list.

    Raises:
        ConfigError: A point is not valid, the folder is another study's, what has begun there is
            another experiment than what is planned now or would leave the list, or two points
            would make different data in one folder.
    """
    folder = Path(study.folder)
    before = _plan_before(study, folder)
    key = _key(folder) if before is None else before.key
    old = {} if before is None else {point.name: point for point in before.points}
    found = study_points(study, key, tuple(old))
    points, too_large = list[Point](), list[str]()
    for point in found.points:
        report = forecast_run(point.config, gpu=gpu, utilisation=utilisation)
        points.append(_planned_point(point, report))
        if gpu is not None and not report["gpu"]["fits"]:
            too_large.append(point.name)
        _check_begun(point.config, folder)
    _check_data(found.points)
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
    begun = [name for name in gone if _begun_config(folder / "runs" / name) is not None]
    if begun and not drop:
        raise ConfigError(
            f"{len(begun)} points that have begun would leave the study {study.name}, such as "
            f"{begun[0]}: a new axis, or another value, gives points other names. Say --drop if "
            "that is meant (their folders stay), or give the changed study another folder and name"
        )
    off = [point for point in points if abs(point.miss) > _MISS]
    if off:
        worst = max(off, key=lambda point: abs(point.miss))
        notes.append(
            f"{len(off)} points are more than {_MISS:.0%} off what they are matched to, "
            f"{worst.name} by {worst.miss:+.1%}: sizes are whole numbers; larger models come closer"
        )
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
        miss=point.miss,
        steps=report["run"]["steps"],
        tokens=report["run"]["tgt_tokens"],
        flops=report["run"]["flops"],
        bytes_per_rank=report["bytes_per_rank"]["total"],
        disk_bytes=report["disk"]["needed_bytes"],
        gpu_hours=hours,
    )


def _key(folder: Path) -> str:
    """Returns the key of the study's MLflow run, which outlives a lost list."""
    state = SendState.load(folder / "parent")
    return uuid4().hex if state is None else state.key


def _begun_config(run_dir: Path) -> Path | None:
    """Returns the configuration with which a run has begun or was submitted; None if it was not."""
    if (run_dir / EVENTS_FILE).exists() or complete_checkpoints(run_dir):
        return run_dir / "config.yaml"
    submitted = [p for p in run_dir.glob("submit/*/config.yaml") if p.parent.name.isdigit()]
    return max(submitted, key=lambda path: int(path.parent.name), default=None)


def _check_begun(config: RunConfig, folder: Path) -> None:
    """Checks that a run has not begun as another experiment."""
    path = _begun_config(Path(config.run_dir))
    if path is None or not path.exists():
        return
    begun, now = (dict(_leaves(identity(c))) for c in (load_config(RunConfig, path), config))
    changed = [
        f"{key}: {begun.get(key)!r} there, {now.get(key)!r} is planned"
        for key in sorted(begun.keys() | now.keys())
        if begun.get(key) != now.get(key)
    ]
    if changed:
        raise ConfigError(
            f"point {config.name} has begun as another experiment in {config.run_dir}:\n  "
            + "\n  ".join(changed)
            + f"\nrestore the values to go on in {folder}; or give the changed study another "
            "folder and name (--set folder=... --set name=...); or cancel the run's job if it has "
            f"one, and delete {config.run_dir}"
        )


def _check_data(points: Sequence[StudyPoint]) -> None:
    """Checks that no point would replace the data of another one."""
    made: dict[str, tuple[str, str]] = {}
    for point in points:
        data = point.config.data
        how = data.model_dump_json(exclude={"stream", "tags", "num_workers", "directions"})
        first, before = made.setdefault(data.folder, (point.name, how))
        if how != before:
            raise ConfigError(
                f"{first} and {point.name} would make different data in one folder, {data.folder}, "
                "and replace each other's; give each option of that axis a data.folder of its own"
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
