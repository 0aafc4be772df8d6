"""What must hold for a point: comparisons such as `hyper_dim <= model.d_model`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hyperadapter.core.errors import ConfigError, nearest
from hyperadapter.study.config import StudyConfig, Value

__all__ = ["COMPUTED", "Requirement", "parse_requirement"]

COMPUTED = ("parameters", "adapter_parameters", "flops", "tokens")
"""Counts of a point that a comparison may name."""

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|==|!=|<|>)\s*([^<>=!]+?)\s*")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TEXT = re.compile(r"'([^']*)'|\"([^\"]*)\"")


class Operand(NamedTuple):
    """One side of a comparison: a name that points have values of, or a value."""

    name: str = ""
    value: Value | None = None


class Requirement(NamedTuple):
    """A comparison of two operands."""

    text: str
    left: Operand
    sign: str
    right: Operand

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Says whether it holds; what a point does not have, such as null, is not compared.

        Args:
            values: By axis, by key of the run, and the computed ones.

        Raises:
            ConfigError: A key is unknown, or a number is compared to a text.
        """
        left, right = (self._value(side, values) for side in (self.left, self.right))
        if left is None or right is None:
            return True
        alike = _kind(left) == _kind(right)
        if not alike or (_kind(left) != "number" and self.sign not in ("==", "!=")):
            raise ConfigError(
                f"require {self.text!r} compares the {_kind(left)} {left!r} to the "
                f"{_kind(right)} {right!r}; numbers have an order, and others are equal or not"
            )
        return _OPERATORS[self.sign](left, right)

    def _value(self, side: Operand, values: Mapping[str, Any]) -> Any:
        name = side.name
        if not name:
            return side.value
        if name in values:
            return values[name]
        *groups, _ = name.split(".")
        parents = [".".join(groups[: n + 1]) for n in range(len(groups))]
        if any(parent in values and values[parent] is None for parent in parents):
            return None  # such as a hyper_network that a dense model does not have
        raise ConfigError(
            f"require {self.text!r}: the run has no key {name!r}{nearest(name, values)}"
        )


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "truth value"
    return "number" if isinstance(value, int | float) else "text"


def parse_requirement(text: str, study: StudyConfig) -> Requirement:
    """Reads a comparison.

    Raises:
        ConfigError: It has another form, or names what there is not.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"require {text!r} must compare two things by one of {' '.join(_OPERATORS)}, such as "
            "'hyper_dim <= model.d_model'"
        )
    left, sign, right = found.groups()
    return Requirement(text, _operand(left, text, study), sign, _operand(right, text, study))


def _operand(word: str, text: str, study: StudyConfig) -> Operand:
    quoted = _TEXT.fullmatch(word)
    if quoted is not None:
        return Operand(value=quoted.group(1) if quoted.group(1) is not None else quoted.group(2))
    if _NUMBER.fullmatch(word):
        return Operand(value=float(word))
    if word in ("true", "false"):
        return Operand(value=word == "true")
    names = (*study.axis_names, *COMPUTED)
    if word in names or "." in word:
        return Operand(name=word)
    labels = [label for name in study.axis_names for label in study.labels(name)]
    if word in labels:
        return Operand(value=word)
    raise ConfigError(
        f"require {text!r}: {word!r} is no axis{nearest(word, names)}; there are "
        f"{', '.join(names)}, keys of the run with their groups, and texts in quotes"
    )
