"""Measured points: read from a CSV file or from MLflow runs, and checked.

params        parameters of the main network (or whatever size is compared), N
hyper_params  parameters of the hyper-network, H
tokens        training tokens, D
weight        share of the training mixture, in (0, 1]
loss          nats per token on held-out text
family        which models belong to one law (optional)
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hyperadapter.core.errors import DataError, nearest
from hyperadapter.scaling.laws import LAWS, Array, Law

__all__ = [
    "COLUMNS",
    "RUN_COLUMNS",
    "Points",
    "choose_law",
    "read_csv",
    "read_rows",
    "rows_of_runs",
]

log = logging.getLogger(__name__)

COLUMNS = ("params", "hyper_params", "tokens", "weight", "loss")

# Where a run of ours has them; --column names another metric, parameter or tag.
RUN_COLUMNS = {
    "params": "model/num_parameters",
    "hyper_params": "model/num_hyper_parameters",
    "tokens": "perf/total/target_tokens",
    "loss": "valid/macro/nll",
}

Row = Mapping[str, str]


@dataclass(frozen=True)
class Points:
    """Points of one or more families.

    Attributes:
        columns: The sizes that the law needs, by name: [points] each, positive.
        loss: Measured losses, nats per token: [points], positive.
        families: The family of each point; empty text where there are none.
        place: Where they come from, for messages.
        ignored: Columns that differ between the points and that the law does not use.
    """

    columns: Mapping[str, Array]
    loss: Array
    families: tuple[str, ...]
    place: str
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of points."""
        return len(self.loss)

    def take(self, chosen: Array | Sequence[bool]) -> Points:
        """Returns the points for which `chosen` is true."""
        mask = np.asarray(chosen, dtype=bool)
        columns = {name: values[mask] for name, values in self.columns.items()}
        families = tuple(f for f, keep in zip(self.families, mask, strict=True) if keep)
        return Points(columns, self.loss[mask], families, self.place, self.ignored)

    def by_family(self) -> dict[str, Points]:
        """Returns the points of each family, in the order in which families first appear."""
        return {
            name: self.take([family == name for family in self.families])
            for name in dict.fromkeys(self.families)
        }


def choose_law(name: str | None, header: Iterable[str], mixture: bool = False) -> Law:
    """Returns the named law, or the richest one for which there are columns."""
    names = set(header)
    if name is None:
        fitting = [key for key, law in LAWS.items() if set(law.columns) <= names]
        name = fitting[-1] if fitting else "n"
    return LAWS[name].with_mixture() if mixture else LAWS[name]


def read_csv(
    path: Path, law: str | None, mixture: bool = False, sources: Mapping[str, str] | None = None
) -> tuple[Law, Points]:
    """Reads points from a CSV file with a header line; other columns than ours are left alone.

    Args:
        path: The file, in UTF-8.
        law: Name of the law, or None for the richest one that the columns allow.
        mixture: Whether the law has mixture weights.
        sources: The file's names of our columns, where they differ.

    Raises:
        DataError: A column is missing, or a number is not one, not finite or not positive.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [
                (
                    f"{path}:{reader.line_num}",
                    {key: value or "" for key, value in row.items() if key},
                )
                for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file in UTF-8 ({error}); export it as such") from error
    if double := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: the header has {', '.join(double)} twice; keep one of them")
    named = {name: name for name in (*COLUMNS, "family")} | dict(sources or {})
    return read_rows(rows, named, law, mixture, str(path))


def rows_of_runs(
    runs: Sequence[tuple[Mapping[str, str], Mapping[str, float], Mapping[str, str]]],
    place: str,
    loss: str,
) -> list[tuple[str, Row]]:
    """Turns MLflow runs into rows: parameters, last values of metrics, and tags side by side.

    Args:
        runs: Parameters, metrics and tags of each run.
        place: Where they come from, for messages.
        loss: Name of the loss; runs that lack it, such as mere evaluations, are left out.
    """
    rows: list[tuple[str, Row]] = []
    for number, (params, metrics, tags) in enumerate(runs, 1):
        name = tags.get("mlflow.runName", f"number {number}")
        texts = {key: repr(value) for key, value in metrics.items()}
        row = {**tags, **params, **texts}
        if loss in row:
            rows.append((f"{place}, run {name}", row))
    if len(rows) < len(runs):
        log.warning(
            "%s: %d of %d finished runs have no %r and are left out; --column loss=NAME names "
            "another metric",
            *(place, len(runs) - len(rows), len(runs), loss),
        )
    return rows


def read_rows(
    rows: Sequence[tuple[str, Row]],
    sources: Mapping[str, str],
    law_name: str | None,
    mixture: bool,
    place: str,
) -> tuple[Law, Points]:
    """Turns rows of text into points.

    Args:
        rows: Each row's place, for messages, and its texts.
        sources: The rows' names of our columns.
        law_name: As for `read_csv`.
        mixture: As for `read_csv`.
        place: Where all rows come from.

    Raises:
        DataError: As for `read_csv`.
    """
    if not rows:
        raise DataError(
            f"{place} has no points; a CSV file needs a header line and a line for each "
            "point, an experiment needs finished runs that have the loss"
        )
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    law = choose_law(
        law_name, (ours for ours, theirs in sources.items() if theirs in header), mixture
    )
    for name in (*law.columns, "loss"):
        source = sources.get(name, name)
        if source not in header:
            raise DataError(
                f"{place} has no column {source!r}{nearest(source, header)}, which the law "
                f"{law.name!r} needs; it has {', '.join(header[:40])}. Name it with "
                f"--column {name}=NAME, or choose another --law"
            )
    columns = {
        name: np.array([_number(row[1], sources.get(name, name), row[0]) for row in rows])
        for name in (*law.columns, "loss")
    }
    for (where, _), weight in zip(rows, columns.get("weight", ()), strict=False):
        if weight > 1:
            raise DataError(f"{where}: weight {weight:g} is over 1; give shares, not percentages")
    family = sources.get("family", "family")
    families = tuple(row.get(family, "") for _, row in rows)
    others = (name for name in COLUMNS if name not in columns)
    ignored = tuple(
        o for o in others if len({row.get(sources.get(o, o), "") for _, row in rows}) > 1
    )
    loss = columns.pop("loss")
    return law, Points(columns, loss, families, place, ignored)


def _number(row: Row, column: str, place: str) -> float:
    text = row.get(column, "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise DataError(
            f"{place}: {column} is {text!r}, where a positive number is needed; correct the point "
            "or leave it out"
        )
    return value
