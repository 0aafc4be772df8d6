"""From a study to its points: the resolved configuration of every run.

    axes -> values of a point -> its settings -> matched size -> length -> a valid run

A point that a rule leaves out is counted, and so is one that is there already.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.config import UniMaxMixing
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import flat_params, parse_config
from hyperadapter.study.axes import Axes, combinations, lay, place_of, point_name, skip_rules
from hyperadapter.study.budgets import budget_settings
from hyperadapter.study.config import StudyConfig
from hyperadapter.study.requirements import Requirement, parse_requirement
from hyperadapter.study.sizes import Counts, Sizes

__all__ = ["StudyPoint", "StudyPoints", "study_points"]


class StudyPoint(NamedTuple):
    """One run of a study.

    Attributes:
        name: Of its files and of its MLflow run.
        axes: Its value on each axis, and on keys of the run that only it sets.
        config: The run.
        counts: Of its model.
        miss: How far its matched size is from what was aimed at, as a share of it.
    """

    name: str
    axes: Axes
    config: RunConfig
    counts: Counts
    miss: float


class StudyPoints(NamedTuple):
    """All runs of a study.

    Attributes:
        points: Those that were known first, then the others in the order of the axes.
        left_out: Points that are not, by the rule that left them out.
    """

    points: list[StudyPoint]
    left_out: dict[str, int]


def study_points(study: StudyConfig, parent: str = "", known: Sequence[str] = ()) -> StudyPoints:
    """Resolves all points of a study.

    Args:
        study: The study.
        parent: The key of the MLflow run that shows the others below it.
        known: Names of the points of an earlier plan, which keep their places; and of two points
            of the same configuration, the one that is known stays.

    Raises:
        ConfigError: A point is no valid run (the message names it), a rule is wrong, or nothing is
            left.
    """
    requirements = [parse_requirement(text, study) for text in study.require]
    sizes, points = Sizes(study), list[StudyPoint]()
    seen: dict[str, Axes] = {}
    configs: set[str] = set()
    rules = [*skip_rules(study), *(f"require {rule.text}" for rule in requirements)]
    left_out = Counter(dict.fromkeys(rules, 0))
    place = {name: number for number, name in enumerate(known)}
    for axes, skipped_by in sorted(
        combinations(study), key=lambda found: place.get(point_name(found[0]), len(place))
    ):
        if skipped_by:
            left_out[skipped_by] += 1
            continue
        name = point_name(axes)
        if name in seen:
            _check_same(seen[name], axes)
            left_out["the same values on all axes as another point"] += 1
            continue
        seen[name] = axes
        point = _resolve(study, sizes, axes, parent)
        failed = _first_failed(requirements, point)
        same = _what_matters(point.config)
        if failed is not None:
            left_out[f"require {failed.text}"] += 1
        elif same in configs:
            left_out["the same configuration as another point"] += 1
        else:
            configs.add(same)
            points.append(point)
    if not points:
        raise ConfigError(f"the study {study.name} has no points: {_said(left_out)}")
    return StudyPoints(points, dict(left_out))


def _said(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} left out by {rule}" for rule, count in left_out.items())


def _check_same(first: Axes, second: Axes) -> None:
    if place_of(first) != place_of(second):
        raise ConfigError(
            f"{place_of(first)} and {place_of(second)} have the same name; write one of their "
            "values otherwise"
        )


def _resolve(study: StudyConfig, sizes: Sizes, axes: Axes, parent: str) -> StudyPoint:
    name, place = point_name(axes), place_of(axes)
    tree = sizes.tree(axes)
    unlimited = sizes.run(tree, axes)
    counts = sizes.counts(unlimited)
    try:
        settings: dict[str, Any] = dict(
            budget_settings(
                study.budget, axes.get(study.budget.measure), unlimited.training, counts
            )
        )
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    if study.budget.measure and isinstance(unlimited.data.stream.mixing, UniMaxMixing):
        settings["data.stream.mixing.steps"] = settings["training.max_steps"]
    settings |= {
        "name": name,
        "run_dir": str(Path(study.folder) / "runs" / name),
        "tracking.experiment": study.name,
        "tracking.parent": parent,
    }
    config = parse_config(RunConfig, lay(tree, settings), place)
    return StudyPoint(name, axes, config, counts, sizes.misses.get(name, 0.0))


def _first_failed(requirements: list[Requirement], point: StudyPoint) -> Requirement | None:
    if not requirements:
        return None
    training, counts = point.config.training, point.counts
    values: dict[str, Any] = {
        **flat_params(point.config),
        "parameters": counts.parameters,
        "adapter_parameters": counts.adapter_parameters,
        "flops": training.max_steps * counts.step_flops,
        "tokens": training.max_steps * training.global_batch_tokens,
        **point.axes,
    }
    try:
        return next((rule for rule in requirements if not rule.holds(values)), None)
    except ConfigError as error:
        raise ConfigError(f"{place_of(point.axes)}: {error}") from error


def _what_matters(config: RunConfig) -> str:
    """Returns a run as text, without its name and what its kind of adapters does not use."""
    tree = config.model_dump(mode="json", exclude={"name", "run_dir"})
    adapter = tree["model"]["adapter"]
    if adapter["kind"] == "none":
        tree["model"]["adapter"] = {"kind": "none"}
    elif adapter["kind"] != "hyper":
        adapter["hyper_network"] = None
    return json.dumps(tree, sort_keys=True)
