"""The configuration of a study: which runs it has, and what its report shows.

A file of configs/studies may hold several sizes of the same study, such as one for CPUs: `size`
names the one that is laid over the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hyperadapter.core.errors import ConfigError, nearest
from hyperadapter.core.schema import (
    StrictModel,
    apply_overrides,
    merge_trees,
    parse_config,
    read_config_tree,
)

__all__ = [
    "SEED",
    "AxisConfig",
    "BudgetConfig",
    "Chosen",
    "MatchConfig",
    "ReportConfig",
    "StudyConfig",
    "Value",
    "load_study",
    "value_text",
]

Value = bool | int | float | str
"""A value on an axis: a number, a text, or the label of an option."""
Chosen = dict[str, Value | tuple[Value, ...]]
"""By axis, the value or the values that a point must have."""

SEED = "seed"
"""The axis of `seeds`, which every point has."""


_OF_THE_STUDY = {
    "name": "points are named by their values",
    "run_dir": "it is in the study's folder",
    "tracking": "all runs are told of in one place; set it in `run`",
    "training.seed": "use `seeds`",
}
"""Keys of the run that no point may set, and why."""


def value_text(value: Value) -> str:
    """Returns a value as it is written in a study: true, 64, 0.5, hyper."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


class AxisConfig(StrictModel):
    """One thing that differs: a key with its values, or labels that stand for several settings."""

    key: str = Field(default="", description="A key of the run, such as model.d_model")
    values: tuple[Value, ...] = Field(default=(), description="Values of the key")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="By label, keys of the run and their values"
    )

    @model_validator(mode="after")
    def _one_form(self) -> AxisConfig:
        if bool(self.options) == bool(self.key or self.values) or bool(self.key) != bool(
            self.values
        ):
            raise ValueError("an axis has either a key and values, or options")
        if len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"{self.key}: a value is given twice in {list(self.values)}")
        return self

    @property
    def labels(self) -> tuple[Value, ...]:
        """The values, or the labels of the options."""
        return self.values or tuple(self.options)


class MatchConfig(StrictModel):
    """Makes points as large, or as dear, as others that differ from them in some axes only."""

    where: Chosen = Field(description="The points that are changed")
    to: dict[str, Value] = Field(
        min_length=1, description="Axes in which the point to be matched differs from them"
    )
    by: Literal["params", "adapter_params", "flops"] = Field(description="What is made equal")
    vary: Literal["hyper_dim", "bottleneck_dim", "d_model"] = Field(description="What is changed")
    times: float = Field(default=1.0, gt=0, description="Share of the other's count that is aimed")


class BudgetConfig(StrictModel):
    """How long runs train: an axis of that name, and what goes along with the length."""

    tokens: tuple[float, ...] = Field(default=(), description="Target tokens, padding included")
    flops: tuple[float, ...] = Field(default=(), description="Operations of training")
    tokens_per_parameter: tuple[float, ...] = Field(
        default=(), description="Target tokens for each parameter of the model"
    )
    warmup: float | None = Field(
        default=None, ge=0, le=1, description="Share of the steps that warm up; null: as the run"
    )
    decay: float | None = Field(
        default=None, ge=0, le=1, description="Share of the steps that decay (wsd); null: as it is"
    )
    validations: int | None = Field(
        default=None, ge=1, description="Validations of a run, evenly spread; null: as it is"
    )
    checkpoints: int | None = Field(
        default=None, ge=1, description="Checkpoints of a run, evenly spread; null: as it is"
    )

    @model_validator(mode="after")
    def _one_measure(self) -> BudgetConfig:
        given = [
            name for name in ("tokens", "flops", "tokens_per_parameter") if getattr(self, name)
        ]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}")
        if (self.warmup or 0) + (self.decay or 0) > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are more than all steps")
        for name in given:
            if any(not value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must be above 0")
        return self

    @property
    def measure(self) -> Literal["", "tokens", "flops", "tokens_per_parameter"]:
        """The one that is given; empty if none is, and the length stays the run's."""
        if self.tokens:
            return "tokens"
        if self.flops:
            return "flops"
        return "tokens_per_parameter" if self.tokens_per_parameter else ""


class ReportConfig(StrictModel):
    """What the report shows."""

    series: str = Field(default="", description="Axis that gets a colour each; empty: none")
    loss: str = Field(default="valid/macro/nll", description="Metric of the loss, lower is better")
    score: str = Field(
        default="test/macro/bleu", description="Metric of the quality, higher is better"
    )
    groups: dict[str, int] = Field(
        default={"HIGH": 1_000_000, "MED": 100_000, "LOW": 10_000, "VERY LOW": 0},
        min_length=1,
        description="Least training pairs of a direction of each resource group",
    )

    @field_validator("groups")
    @classmethod
    def _all_have_a_group(cls, groups: dict[str, int]) -> dict[str, int]:
        if min(groups.values()) != 0:
            raise ValueError(
                f"groups begin at {min(groups.values())} pairs, so that smaller directions would "
                "be in none; let the last one begin at 0"
            )
        return groups


class StudyConfig(StrictModel):
    """Many runs that differ in a few settings."""

    name: str = Field(min_length=1, description="Of the study, and of its MLflow experiment")
    description: str = Field(default="", description="What it asks, for the report")
    folder: str = Field(min_length=1, description="The study folder; its runs are in it")
    run: dict[str, Any] = Field(description="The run that all points start from, with `extends`")
    axes: dict[str, AxisConfig] = Field(default_factory=dict, description="What differs, by name")
    zip: tuple[tuple[str, ...], ...] = Field(
        default=(), description="Axes that go along with each other; all others make a grid"
    )
    points: tuple[dict[str, Value], ...] = Field(
        default=(), description="Further points: values by axis or by key of the run"
    )
    skip: tuple[Chosen, ...] = Field(default=(), description="Points of the grid to leave out")
    require: tuple[str, ...] = Field(
        default=(), description="What must hold for a point, such as `hyper_dim <= model.d_model`"
    )
    match: tuple[MatchConfig, ...] = Field(
        default=(), description="Points to be made equally large"
    )
    budget: BudgetConfig = BudgetConfig()
    seeds: tuple[int, ...] = Field(default=(1,), min_length=1, description="Of training, per point")
    evaluate: bool = Field(default=True, description="Translate and score the test split as well")
    report: ReportConfig = ReportConfig()

    @field_validator("axes")
    @classmethod
    def _names_are_free(cls, axes: dict[str, AxisConfig]) -> dict[str, AxisConfig]:
        for name in axes:
            if name == SEED or not name.replace("_", "").isalnum():
                raise ValueError(
                    f"an axis cannot be called {name!r}; use letters, digits and _, not {SEED!r}"
                )
        return axes

    @model_validator(mode="after")
    def _axes_exist(self) -> StudyConfig:
        known = self.axis_names
        if self.budget.measure in self.axes:
            raise ValueError(f"the axis {self.budget.measure!r} is that of the budget; rename it")
        places: dict[str, Sequence[str]] = {f"zip {list(names)}": names for names in self.zip}
        for number, rule in enumerate(self.match, 1):
            places[f"match {number}"] = (*rule.where, *rule.to)
        for number, chosen in enumerate(self.skip, 1):
            places[f"skip {number}"] = tuple(chosen)
        if self.report.series:
            places["report.series"] = (self.report.series,)
        for place, names in places.items():
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"{place}: {name!r} is no axis{nearest(name, known)}; there are "
                        f"{', '.join(known)}"
                    )
        self._check_zip()
        self._check_labels()
        self._check_points()
        self._check_keys()
        return self

    def _check_labels(self) -> None:
        """Checks labels that rules and points name; axes of keys may have any value."""
        places: dict[str, dict[str, Any]] = {}
        for number, rule in enumerate(self.match, 1):
            places |= {f"match {number}, where": rule.where, f"match {number}, to": rule.to}
        places |= {f"skip {number}": chosen for number, chosen in enumerate(self.skip, 1)}
        places |= {f"points {number}": given for number, given in enumerate(self.points, 1)}
        for place, named in places.items():
            for name, values in named.items():
                labels = self.axes[name].options if name in self.axes else {}
                for value in values if isinstance(values, tuple) else (values,):
                    text = value_text(value)
                    if labels and text not in labels:
                        raise ValueError(
                            f"{place}: {text!r} is no option of the axis {name!r}"
                            f"{nearest(text, labels)}; there are {', '.join(labels)}"
                        )

    def _check_points(self) -> None:
        for number, given in enumerate(self.points, 1):
            for name in given:
                if name not in self.axis_names and "." not in name:
                    raise ValueError(
                        f"points {number}: {name!r} is neither an axis"
                        f"{nearest(name, self.axis_names)} nor a key of the run, which has its "
                        f"groups, such as model.d_model; axes are {', '.join(self.axis_names)}"
                    )
            missing = [name for name in self.axes if name not in given]
            if missing:
                raise ValueError(f"points {number} has no value for the axis {missing[0]!r}")

    def _check_keys(self) -> None:
        """Checks that no point sets what the study does."""
        places = {
            f"axes.{name}": (axis.key, *(key for option in axis.options.values() for key in option))
            for name, axis in self.axes.items()
        }
        for number, given in enumerate(self.points, 1):
            places[f"points {number}"] = tuple(given)
        reserved = dict(_OF_THE_STUDY)
        if self.budget.measure:
            reserved["training.max_steps"] = f"the budget's {self.budget.measure} decide it"
        for place, keys in places.items():
            for key in keys:
                for owned, why in reserved.items():
                    if key == owned or key.startswith(f"{owned}."):
                        raise ValueError(f"{place} cannot set {key}: {why}")

    def _check_zip(self) -> None:
        zipped = [name for names in self.zip for name in names]
        twice = sorted({name for name in zipped if zipped.count(name) > 1})
        if twice:
            raise ValueError(f"zip has the axis {twice[0]!r} twice")
        for names in self.zip:
            lengths = {name: len(self.labels(name)) for name in names}
            if len(set(lengths.values())) > 1:
                found = ", ".join(f"{name} {count}" for name, count in lengths.items())
                raise ValueError(f"axes of one zip need equally many values: {found}")

    @property
    def axis_names(self) -> tuple[str, ...]:
        """All axes: those of `axes`, the budget's if it has one, and `seed`."""
        budget = (self.budget.measure,) if self.budget.measure else ()
        return (*self.axes, *budget, SEED)

    def labels(self, axis: str) -> tuple[Value, ...]:
        """Returns the values of an axis."""
        if axis == SEED:
            return self.seeds
        if axis == self.budget.measure:
            values: tuple[float, ...] = getattr(self.budget, axis)
            return values
        return self.axes[axis].labels


def load_study(path: Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Reads a study of one size, its `extends:` parents and `key=value` overrides.

    Raises:
        ConfigError: A file is missing, a key is unknown, a value is not allowed, or there is no
            such size.
    """
    tree = read_config_tree(path)
    apply_overrides(tree, overrides)
    sizes, size = tree.pop("sizes", None), tree.pop("size", None)
    if sizes is not None:
        if not isinstance(sizes, dict) or not all(isinstance(s, dict) for s in sizes.values()):
            raise ConfigError(f"{path}: sizes must hold a group of keys for each size")
        if size not in sizes:
            raise ConfigError(
                f"{path}: size {size!r} is none of {', '.join(sizes)}; choose one with "
                f"--set size={next(iter(sizes), '...')}"
            )
        tree = merge_trees(tree, sizes[size])
        apply_overrides(tree, [o for o in overrides if not o.startswith(("size=", "sizes."))])
    elif size is not None:
        raise ConfigError(f"{path} has no sizes, so that size {size!r} means nothing; leave it out")
    return parse_config(StudyConfig, tree, str(path))
