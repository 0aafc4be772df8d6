"""The report of a study as one page of HTML that needs no other file and no network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hyperadapter.core.files import write_text
from hyperadapter.core.schema import fingerprint
from hyperadapter.study.figures import FigureFile, colours_of
from hyperadapter.study.results import SAMPLES_PER_CURVE, Group, Results, Row
from hyperadapter.study.seeds import has_seeds, over_seeds

__all__ = ["best_table", "summary_of", "write_page"]

_STATES = ("DONE", "RUNNING", "STOPPED", "FAILED", "WAITING")
_VALUES_SHOWN = 12

Cell = dict[str, Any]


def write_page(
    results: Results, figures: Sequence[FigureFile], path: Path, command: str = ""
) -> None:
    """Writes the page; the same results give the same page.

    Args:
        results: The study's.
        figures: In the order in which they are shown; they are copied into the page.
        path: Of the page.
        command: How it was made.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names come from users
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    report = results.plan.report
    page = environment.get_template("report.html.j2").render(
        plan=results.plan,
        results=results,
        facts=_facts(results, command),
        states=[(state, results.states.get(state, 0)) for state in _STATES],
        best=[
            (title, name, lines)
            for title, name, lines in (
                ("lowest loss", report.loss, best_table(results, "loss")),
                ("highest score", report.score, best_table(results, "score")),
            )
            if lines
        ],
        seeds=_seeds_table(results) if has_seeds(results) else [],
        figures=[(figure.caption, _data_uri(figure.path)) for figure in figures],
        failures=[row for row in results.rows if row.why],
        diverged=[row for row in results.rows if row.diverged],
        differs=[(key, _values(counts)) for key, counts in results.differs.items()],
        colours=colours_of(results),
        header=_header(results),
        rows=[_cells(results, row) for row in results.rows],
    )
    write_text(path, page)


def summary_of(results: Results) -> dict[str, Any]:
    """Returns what the command prints: states and the best runs of each series."""
    return {
        "study": results.plan.study,
        "states": {state: results.states.get(state, 0) for state in _STATES},
        "strangers": list(results.strangers),
        "older_runs": results.older,
        "best_loss": [_named(results, row) for row in results.best("loss")],
        "best_score": [_named(results, row) for row in results.best("score")],
    }


def _named(results: Results, row: Row) -> dict[str, Any]:
    return {
        "series": results.series(row),
        "point": row.point.name,
        "state": row.state,
        "loss": row.loss if row.loss is None or math.isfinite(row.loss) else None,
        "score": row.score,
        "parameters": row.point.parameters,
        "adapter_parameters": row.point.adapter_parameters,
        "flops": row.flops,
        "tokens": row.tokens,
    }


def best_table(results: Results, measure: Literal["loss", "score"]) -> list[list[str]]:
    """Returns the best run of each series as lines of cells, without a heading."""
    return [
        [
            results.series(row),
            row.point.name,
            row.state,
            _number(row.loss, 4),
            _number(row.score, 2),
            _count(row.point.parameters),
            _count(row.point.adapter_parameters),
            _count(row.flops),
        ]
        for row in results.best(measure)
    ]


def _seeds_table(results: Results) -> list[list[str]]:
    """Returns the means over seeds as lines of cells, the first one the heading."""
    rows = over_seeds(results)
    axes = list(dict.fromkeys(key for row in rows for key in row if key.startswith("axis.")))
    heading = [axis.removeprefix("axis.") for axis in axes]
    heading += ["runs", "done", "diverged", "parameters", "loss", "±", "score", "±"]
    lines = [heading]
    for row in rows:
        counts = [str(row[name]) for name in ("runs", "done", "diverged")]
        means = [_number(row[f"loss_{part}"], 4) for part in ("mean", "std")]
        means += [_number(row[f"score_{part}"], 2) for part in ("mean", "std")]
        lines.append(
            [*(_plain(row.get(axis)) for axis in axes), *counts, _count(row["params"]), *means]
        )
    return lines


def _facts(results: Results, command: str) -> list[tuple[str, str]]:
    plan = results.plan
    newest = datetime.fromtimestamp(results.newest_ms / 1000, UTC)
    facts = [
        ("command", command),
        ("plan", f"{len(plan.points)} points, fingerprint {fingerprint(plan)}"),
        ("MLflow", f"{results.place}, experiment {plan.experiment}"),
        ("newest run", f"{newest:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    if results.strangers:
        names = ", ".join(results.strangers[:_VALUES_SHOWN])
        more = len(results.strangers) - _VALUES_SHOWN
        names += f" and {more} more" if more > 0 else ""
        facts.append(("runs that are no point (any more)", f"{len(results.strangers)}: {names}"))
    if results.older:
        facts.append(("older runs of the same points, left out", str(results.older)))
    if results.thinned:
        shown = f"{results.thinned} show {SAMPLES_PER_CURVE} of their values, evenly spread"
        facts.append(("curves", shown))
    return [(name, text) for name, text in facts if text]


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _values(counts: Mapping[str, int]) -> str:
    texts = [f"{value} ({count})" for value, count in list(counts.items())[:_VALUES_SHOWN]]
    more = len(counts) - _VALUES_SHOWN
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


# The table of all points. Each cell has what is shown, and what it is sorted by.


def _axes(results: Results) -> list[str]:
    return list(dict.fromkeys(axis for row in results.rows for axis in row.point.axes))


def _groups(results: Results) -> list[str]:
    return list(dict.fromkeys(name for row in results.rows for name in row.groups))


def _macros(results: Results) -> list[str]:
    return sorted({name for row in results.rows for name in row.macro})


def _header(results: Results) -> list[str]:
    report = results.plan.report
    header = ["point", *_axes(results), "state", "step", "steps", "parameters", "adapter params."]
    header += ["FLOP", "tokens", "wall, s", report.loss, report.score]
    for group in _groups(results):
        header += [f"{group}: directions", f"{group}: loss", f"{group}: score"]
    return header + _macros(results)


def _cells(results: Results, row: Row) -> list[Cell]:
    point = row.point
    cells = [_cell(point.name, point.name, row.link)]
    cells += [_cell(_plain(point.axes.get(axis)), point.axes.get(axis)) for axis in _axes(results)]
    cells.append(_cell(row.state, row.state))
    cells += [_cell(_count(n), n) for n in (row.step, point.steps)]
    cells += [_cell(_count(n), n) for n in (point.parameters, point.adapter_parameters)]
    cells += [_cell(_count(n) if row.run_id else "", n) for n in (row.flops, row.tokens)]
    cells.append(_cell(_number(row.wall_s, 0), row.wall_s))
    cells += [_cell(_number(row.loss, 4), row.loss), _cell(_number(row.score, 2), row.score)]
    for name in _groups(results):
        group = row.groups.get(name) or Group(0, None, None)
        cells.append(_cell(_number(group.directions, 0), group.directions))
        cells += [_cell(_number(group.loss, 4), group.loss)]
        cells += [_cell(_number(group.score, 2), group.score)]
    for name in _macros(results):
        cells.append(_cell(_number(row.macro.get(name), 3), row.macro.get(name)))
    return cells


def _cell(text: str, key: Any, link: str = "") -> Cell:
    """Returns a cell; numbers are sorted as such, and what is not known comes last."""
    number = isinstance(key, int | float) and not isinstance(key, bool)
    known = key if not number or math.isfinite(key) else None
    return {"text": text, "key": json.dumps(known), "link": link, "number": number}


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:,.{digits}f}" if math.isfinite(value) else str(value)


def _count(value: float | None) -> str:
    """Writes a count with a unit, such as 12.3 M; operations as a power of ten."""
    if value is None:
        return ""
    if value >= 1e12:
        return f"{value:.3g}"
    for unit, size in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if value >= max(size, 1e4):
            return f"{value / size:.3g}{unit}"
    return f"{value:,.0f}"
