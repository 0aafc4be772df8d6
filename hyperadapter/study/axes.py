"""From a study's axes to the values that each point has on them, its name, and its settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import product
from typing import Any

from hyperadapter.core.schema import merge_trees
from hyperadapter.study.config import SEED, Chosen, StudyConfig, Value, value_text

__all__ = [
    "Axes",
    "Tree",
    "combinations",
    "is_chosen",
    "lay",
    "place_of",
    "point_name",
    "run_tree",
    "skip_rules",
]

Axes = dict[str, Value]
"""A point's value by axis, and by those keys of the run that only `points` give."""
Tree = dict[str, Any]
"""A run that is not validated yet."""

_LONGEST_NAME = 80
_SHORT_FROM = 100_000
"""Whole numbers from here on are written as powers of ten: 1.5e6."""


def combinations(study: StudyConfig) -> Iterator[tuple[Axes, str]]:
    """Yields the values of all points in the order of the axes, first the grid's.

    Yields:
        Values by axis, and the rule that leaves the point out; empty if none does.
    """
    names = [names for names, _ in _dimensions(study)]
    rules = skip_rules(study)
    grid = product(*(values for _, values in _dimensions(study)))
    for values in grid if study.axes or not study.points else ():
        flat = {
            n: v
            for group, row in zip(names, values, strict=True)
            for n, v in zip(group, row, strict=True)
        }
        axes = {name: flat[name] for name in study.axis_names}
        yield axes, next((text for text, c in rules.items() if is_chosen(axes, c)), "")
    for given in study.points:
        labels = [(given[n],) if n in given else study.labels(n) for n in study.axis_names]
        keys = {name: value for name, value in given.items() if name not in study.axis_names}
        for row in product(*labels):
            yield dict(zip(study.axis_names, row, strict=True)) | keys, ""


def skip_rules(study: StudyConfig) -> dict[str, Chosen]:
    """Returns what leaves points out of the grid, by what errors and notes call it."""
    return {f"skip {n} {_say(chosen)}": chosen for n, chosen in enumerate(study.skip, 1)}


def _dimensions(study: StudyConfig) -> Iterator[tuple[tuple[str, ...], list[tuple[Value, ...]]]]:
    """Yields the axes that go along with each other, and their values."""
    done: set[str] = set()
    for name in study.axis_names:
        group = next((names for names in study.zip if name in names), (name,))
        if name not in done:
            done.update(group)
            yield group, list(zip(*(study.labels(n) for n in group), strict=True))


def is_chosen(axes: Axes, chosen: Chosen) -> bool:
    """Says whether a point has one of the chosen values on each of their axes."""
    for name, values in chosen.items():
        allowed = values if isinstance(values, tuple) else (values,)
        if value_text(axes[name]) not in map(value_text, allowed):
            return False
    return True


def _say(values: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        many = isinstance(value, tuple)
        return f"[{', '.join(map(value_text, value))}]" if many else value_text(value)

    return f"{{{', '.join(f'{name}: {text(value)}' for name, value in values.items())}}}"


def point_name(axes: Axes) -> str:
    """Returns the name of a point, which its values alone decide.

    It can be the name of a file and of an MLflow run. Digits of a hash stand for what cannot.
    """
    fields = [f"{name}-{_short(value)}" for name, value in axes.items() if name != SEED]
    body, seed = "_".join(fields), f"{SEED}-{_short(axes[SEED])}"
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", body)
    room = _LONGEST_NAME - len(seed) - 1
    if safe != body or len(safe) > room:
        digits = hashlib.sha256(body.encode()).hexdigest()[:8]
        safe = f"{safe[: room - len(digits) - 1]}-{digits}"
    return f"{safe}_{seed}" if safe else seed


def _short(value: Value) -> str:
    large = isinstance(value, int | float) and abs(value) >= _SHORT_FROM
    if not large or value != int(value):
        return value_text(value)
    return str(Decimal(int(value)).normalize()).lower().replace("e+", "e")


def place_of(axes: Axes) -> str:
    """Returns what errors call a point."""
    return f"point {point_name(axes)} {_say(axes)}"


def run_tree(study: StudyConfig, axes: Axes) -> Tree:
    """Returns the run of a point, but for matched sizes and its length."""
    tree = dict(study.run)
    for name, value in axes.items():
        axis = study.axes.get(name)
        if name == SEED:
            tree = lay(tree, {"training.seed": value})
        elif axis is not None:
            tree = lay(tree, axis.options[value_text(value)] if axis.options else {axis.key: value})
        elif name != study.budget.measure:
            tree = lay(tree, {name: value})
    return tree


def lay(tree: Tree, settings: Mapping[str, Any]) -> Tree:
    """Lays values over the keys of a tree, which are dotted; groups are merged.

    A mixture has the keys of its kind only, so that another kind replaces it as a whole.
    """
    top: Tree = {}
    for key, value in settings.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        top = merge_trees(top, value)
    merged = merge_trees(tree, top)
    old, new = _mixing(tree), _mixing(top)
    if new.get("kind", old.get("kind")) != old.get("kind"):
        merged["data"]["stream"]["mixing"] = new
    return merged


def _mixing(tree: Tree) -> Tree:
    node: Any = tree
    for key in ("data", "stream", "mixing"):
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}
