"""Means over the seeds of each configuration; runs that diverged are counted, not left out."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hyperadapter.core.files import atomic_open
from hyperadapter.study.results import Results, Row

__all__ = ["has_seeds", "over_seeds", "write_seeds_csv"]


def has_seeds(results: Results) -> bool:
    """Says whether any configuration has more than one seed."""
    configs = [row.config for row in results.rows]
    return len(set(configs)) < len(configs)


def over_seeds(results: Results) -> list[dict[str, Any]]:
    """Returns a row of each configuration, in the plan's order.

    Each has its values on the axes, `runs`, `done`, `diverged`, `parameters`, and mean and sample
    standard deviation of loss and score over the finished runs. A mean is None unless all finished
    runs have a number: that of those which went well would be too good.
    """
    groups: dict[Any, list[Row]] = {}
    for row in results.rows:
        groups.setdefault(row.config, []).append(row)
    rows = []
    for config, members in groups.items():
        done = [row for row in members if row.state == "DONE"]
        entry: dict[str, Any] = {f"axis.{axis}": value for axis, value in config}
        entry |= {
            "family": results.series(members[0]),
            "runs": len(members),
            "done": len(done),
            "diverged": sum(row.diverged for row in members),
            "params": members[0].point.parameters,
        }
        for measure in ("loss", "score"):
            mean, spread = _mean([getattr(row, measure) for row in done])
            entry |= {f"{measure}_mean": mean, f"{measure}_std": spread}
        rows.append(entry)
    return rows


def _mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    if not numbers or len(numbers) < len(values):
        return None, None
    return fmean(numbers), stdev(numbers) if len(numbers) > 1 else None


def write_seeds_csv(results: Results, path: Path) -> None:
    """Writes the rows to a file; what is None becomes an empty cell."""
    rows = over_seeds(results)
    header = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_open(path) as stream:
        writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
