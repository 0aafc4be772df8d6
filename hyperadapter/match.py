"""`hyperadapter model match`: the size that makes two models equally large or equally dear.

A comparison is fair at equal parameters or at equal operations. Both are polynomials of degree two
at most in `hyper_dim`, in `bottleneck_dim`, and in `d_model` if the feed-forward width grows along.
So three counts determine the polynomial exactly, and its root, rounded to an allowed size, is the
answer. All of it is arithmetic on integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import floor, isqrt, lcm
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hyperadapter.config import ModelConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import parse_config
from hyperadapter.describe import Table, choose_vocabulary, flops_of, read_model, report_of
from hyperadapter.model.accounting import count_parameters
from hyperadapter.model.vocabulary import Vocabulary

__all__ = [
    "Family",
    "Measure",
    "Size",
    "adapter_parameters",
    "match_models",
    "match_tables",
    "nearest_size",
    "solve",
]

Measure = Literal["params", "adapter_params", "flops"]
Size = Literal["hyper_dim", "bottleneck_dim", "d_model"]

_KEYS: dict[Size, str] = {
    "hyper_dim": "adapter.hyper_network.hyper_dim",
    "bottleneck_dim": "adapter.bottleneck_dim",
    "d_model": "d_model",
}

_WITHOUT_ADAPTERS = ("embedding", "encoder", "decoder")


class Family(NamedTuple):
    """A model at all sizes.

    Attributes:
        model: It, at the size that it has.
        vary: What changes.
        size: What it has.
        step: All sizes are multiples of it.
        name: What errors call it.
    """

    model: ModelConfig
    vary: Size
    size: int
    step: int
    name: str

    @classmethod
    def of(cls, model: ModelConfig, vary: Size, name: str) -> Family:
        """Returns the family of a model.

        Raises:
            ConfigError: The model does not use the size.
        """
        adapter = model.adapter
        if vary == "d_model":
            # The number of heads stays, so that heads grow with the model and sizes lie close.
            ratio = Fraction(model.ffn_dim, model.d_model)
            step = lcm(2, model.num_heads, ratio.denominator)
            return cls(model, vary, model.d_model, step, name)
        if vary == "hyper_dim" and adapter.kind == "hyper" and adapter.hyper_network is not None:
            return cls(model, vary, adapter.hyper_network.hyper_dim, 1, name)
        if vary == "bottleneck_dim" and adapter.kind != "none":
            return cls(model, vary, adapter.bottleneck_dim, 1, name)
        fitting = [*(["bottleneck_dim"] if adapter.kind != "none" else []), "d_model"]
        raise ConfigError(
            f"{name} has adapter.kind {adapter.kind}, which does not use {vary}; vary "
            f"{' or '.join(fitting)}"
        )

    def settings(self, size: int) -> dict[str, int]:
        """Returns the keys of the model that a size sets."""
        settings = {_KEYS[self.vary]: size}
        if self.vary == "d_model":
            settings["ffn_dim"] = self.model.ffn_dim * size // self.model.d_model
        return settings

    def at(self, size: int) -> ModelConfig:
        """Returns the model of a size."""
        tree = self.model.model_dump(mode="json")
        for key, value in self.settings(size).items():
            *groups, last = key.split(".")
            node = tree
            for group in groups:
                node = node[group]
            node[last] = value
        return parse_config(ModelConfig, tree, f"the model with {self.vary} {size}")


def solve(count: Callable[[int], int], target: int) -> int:
    """Returns the largest whole k with count(k) <= target, or 0 if there is none from 1 on.

    Args:
        count: A polynomial of degree two at most with integer values, which rises from k = 1 on.
        target: What to reach.
    """
    one, two, three = count(1), count(2), count(3)
    # Twice the coefficients, which are whole numbers: a k^2 + b k + c = 2 count(k).
    a = three - 2 * two + one
    b = 2 * (two - one) - 3 * a
    c = 2 * one - a - b
    if target < one:
        return 0
    if a == 0:
        return (2 * target - c) // b
    return (isqrt(b * b - 4 * a * (c - 2 * target)) - b) // (2 * a)


def nearest_size(family: Family, count: Callable[[ModelConfig], int], wanted: float) -> int:
    """Returns the size at which a model counts most nearly as wanted; of two, the smaller one.

    Args:
        family: The model.
        count: Rises with the size, as a polynomial of degree two at most.
        wanted: The count that is aimed at.

    Raises:
        ConfigError: The smallest size counts more than that, or all sizes count the same.
    """
    step, vary = family.step, family.vary
    least = count(family.at(step))
    if count(family.at(2 * step)) == least:
        raise ConfigError(
            f"{vary} does not change what is counted of {family.name}, whose adapter.kind is "
            f"{family.model.adapter.kind}; count something else"
        )
    if wanted < least:
        raise ConfigError(
            f"no {vary} fits: even with {vary} {step} the count of {family.name} is {least:,}, "
            f"and {wanted:,.0f} is to be reached; make another of its sizes smaller, or swap the "
            "two"
        )
    below = step * solve(lambda k: count(family.at(step * k)), floor(wanted))
    assert count(family.at(below)) <= wanted < count(family.at(below + step))
    return min((below, below + step), key=lambda size: abs(count(family.at(size)) - wanted))


def adapter_parameters(parts: Mapping[str, int]) -> int:
    """Sums the parameters of adapters, or of what generates them, in `count_parameters`' parts."""
    return sum(count for part, count in parts.items() if part not in _WITHOUT_ADAPTERS)


def match_models(
    path: Path,
    to: Path,
    by: Measure,
    vary: Size,
    overrides: Sequence[str] = (),
    vocab_size: int | None = None,
    num_languages: int | None = None,
    num_directions: int | None = None,
) -> dict[str, Any]:
    """Finds the size of one model at which it counts as much as another one.

    Args:
        path: A run or a model file: the model to change.
        to: A run or a model file: the model to reach.
        by: All parameters, those of adapters, or the operations of forward and backward.
        vary: What to change. With d_model, ffn_dim keeps its ratio and num_heads stays.
        overrides: `key=value` changes of the model at `path`.
        vocab_size: Pieces, if neither is a run.
        num_languages: Languages, if neither is a run.
        num_directions: Trained directions, if neither is a run.

    Returns:
        `models`: reports like `describe_model`'s with `size`, `total` and `difference` to the
        target, of the `target`, the model `before`, its `match`, and the next `smaller` and
        `larger` one (null where there is none); `set`: the match as `key=value`.

    Raises:
        ConfigError: The model does not use the size, or is larger than the target at every size.
    """
    model, of_model = read_model(path, overrides)
    target, of_target = read_model(to, ())
    vocabulary = choose_vocabulary(
        {path: of_model, to: of_target}, vocab_size, num_languages, num_directions
    )
    family = Family.of(model, vary, str(path))

    def count(counted: ModelConfig) -> int:
        return _total(counted, vocabulary, by)

    wanted, step = count(target), family.step
    nearest = nearest_size(family, count, wanted)
    sizes = {
        "before": family.size,
        "match": nearest,
        "smaller": nearest - step or None,
        "larger": nearest + step,
    }
    models: dict[str, dict[str, Any] | None] = {
        "target": _entry(target, vocabulary, by, wanted, None)
    }
    for name, size in sizes.items():
        models[name] = (
            None if size is None else _entry(family.at(size), vocabulary, by, wanted, size)
        )
    prefix = "" if of_model is None else "model."
    return {
        "config": str(path),
        "to": str(to),
        "by": by,
        "vary": vary,
        "set": [f"{prefix}{key}={value}" for key, value in family.settings(nearest).items()],
        "models": models,
    }


def _total(model: ModelConfig, vocabulary: Vocabulary, by: Measure) -> int:
    parameters = count_parameters(model, vocabulary)
    if by == "params":
        return sum(parameters.values())
    if by == "adapter_params":
        return adapter_parameters(parameters)
    return flops_of(model, vocabulary).train


def _entry(
    model: ModelConfig, vocabulary: Vocabulary, by: Measure, wanted: int, size: int | None
) -> dict[str, Any]:
    total = _total(model, vocabulary, by)
    counts = {"size": size, "total": total, "difference": total - wanted}
    return counts | report_of(model, vocabulary)


def match_tables(report: dict[str, Any]) -> list[Table]:
    """Returns a table of parameters and one of operations, each with the distance to the target."""
    models = {name: model for name, model in report["models"].items() if model is not None}
    found, assumed = list(models.values()), models["target"]["assuming"]
    of_size = [f"{name} {m['size']:,}" for name, m in models.items() if name != "target"]
    columns = ("part", f"to {Path(report['to']).stem}", *of_size)
    parameters = _rows(
        [model["parameters"] for model in found],
        ("total", [model["total_parameters"] for model in found]),
        "{:,}",
    )
    flops = _rows(
        [_millions(model["forward_flops_per_tgt_token"]) for model in found],
        ("forward and backward", [m["train_flops_per_tgt_token"] / 1e6 for m in found]),
        "{:,.2f}",
    )
    matched = f", matched by {' '.join(report['set'])}"
    title = f"Parameters{matched if report['by'] != 'flops' else ''}"
    flops_title = (
        f"MFLOP per target token{matched if report['by'] == 'flops' else ''}; sentences of "
        f"{assumed['tokens_per_sentence']} tokens, {assumed['tgt_tokens_per_micro_batch']:,} "
        f"tokens and {assumed['directions_per_micro_batch']} directions a micro-batch"
    )
    return [(title, columns, parameters), (flops_title, columns, flops)]


def _millions(parts: dict[str, float]) -> dict[str, float]:
    return {name: value / 1e6 for name, value in parts.items()}


def _rows(
    parts: Sequence[Mapping[str, float]], total: tuple[str, list[float]], form: str
) -> list[tuple[Any, ...]]:
    """Writes one row for each part and the totals, the target's column first."""
    names = dict.fromkeys(name for column in parts for name in column)
    rows: list[tuple[Any, ...]] = [
        (name, *(form.format(column[name]) if name in column else None for column in parts))
        for name in names
    ]
    last, values = total
    first = values[0]
    rows.append((last, *map(form.format, values)))
    signed = form.replace("{:", "{:+")
    rows.append(("difference", None, *(signed.format(value - first) for value in values[1:])))
    rows.append(
        ("difference, %", None, *(f"{100 * (value / first - 1):+.3f}" for value in values[1:]))
    )
    return rows
