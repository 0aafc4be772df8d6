"""Commands about scaling laws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table

if TYPE_CHECKING:
    from hyperadapter.scaling.laws import Law
    from hyperadapter.scaling.points import Points

__all__ = ["scaling_group"]

Table = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]


@cli.group("scaling")
def scaling_group() -> None:
    """Fits scaling laws to measured losses."""


def _sources(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Turns COLUMN=NAME options into a dictionary."""
    from hyperadapter.scaling.points import COLUMNS

    sources = {}
    for text in given:
        ours, equals, theirs = text.partition("=")
        if not equals or ours not in COLUMNS or not theirs:
            raise click.BadParameter(f"{text!r} is not COLUMN=NAME, COLUMN one of {COLUMNS}")
        sources[ours] = theirs
    return sources


@scaling_group.command("fit")
@click.option(
    "--csv",
    "csv_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A CSV file with columns such as params, tokens, loss.",
)
@click.option("--experiment", help="An MLflow experiment; its finished runs are the points.")
@click.option("--uri", default="", help="Where MLflow is; MLFLOW_TRACKING_URI by default.")
@click.option(
    "--law",
    type=click.Choice(["n", "nd", "joint"]),
    help="The law; by default the richest one for which there are columns.",
)
@click.option("--mixture", is_flag=True, help="N counts as f(weight) N.")
@click.option(
    "--column",
    "sources",
    multiple=True,
    metavar="COLUMN=NAME",
    callback=_sources,
    help="The name of a column, metric, parameter or tag; may be repeated.",
)
@click.option("--family-column", default="family", metavar="NAME", help="Names the family.")
@click.option("--baseline", default="", help="The family that the others are compared to.")
@click.option(
    "--at-loss",
    "at_losses",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    help="A loss for the multiplier; may be repeated.",
)
@click.option(
    "--hold-out",
    type=click.IntRange(min=0),
    default=0,
    help="Predicts the K largest params from the others.",
)
@click.option(
    "--flops",
    multiple=True,
    type=click.FloatRange(0, min_open=True),
    help="A budget for the frontier; may be repeated.",
)
@click.option(
    "--flops-factor",
    type=click.FloatRange(0, min_open=True),
    default=6.0,
    help="k in C = k N D; 6.",
)
@click.option(
    "--bootstrap",
    "samples",
    type=click.IntRange(min=0),
    default=200,
    help="Samples for the intervals; 200.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the bootstrap; 0.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder for fit.json and pictures.",
)
@json_option
def scaling_fit(
    csv_path: Path | None, experiment: str | None, out: Path | None, as_json: bool, **options: Any
) -> None:  # fmt: skip
    """Fits a law to the points of a CSV file or of MLflow runs."""
    if (csv_path is None) == (experiment is None):
        raise click.UsageError("give either --csv or --experiment")
    from hyperadapter.core.files import write_json
    from hyperadapter.scaling.plots import plot_study
    from hyperadapter.scaling.summary import Options, report_of, study_points

    law, points = _read(csv_path, experiment, options)
    study = study_points(law, points, Options(**options))
    report = report_of(study)
    if out is not None:
        write_json(out / "fit.json", report)
        plot_study(study, out)
    if as_json:
        print_json(report)
    else:
        for title, columns, rows in _tables(report):
            print_table(title, columns, rows)
    for text in report["warnings"]:
        click.echo(f"warning: {text}", err=True)


def _read(path: Path | None, experiment: str | None, options: dict[str, Any]) -> tuple[Law, Points]:
    """Reads the points, and takes the options of reading out of `options`."""
    from hyperadapter.scaling.points import RUN_COLUMNS, read_csv, read_rows, rows_of_runs

    uri, law, mixture = (options.pop(name) for name in ("uri", "law", "mixture"))
    sources = options.pop("sources") | {"family": options.pop("family_column")}
    if path is not None:
        return read_csv(path, law, mixture, sources)
    from hyperadapter.tracking import resolve_uri
    from hyperadapter.tracking.runs import read_runs

    assert experiment is not None
    place = f"MLflow experiment {experiment!r}"
    # Without any URI the database is beside run folders, as for runs/NAME.
    runs = read_runs(resolve_uri(Path("runs") / "any", uri), experiment)
    names = RUN_COLUMNS | sources
    return read_rows(rows_of_runs(runs, place, names["loss"]), names, law, mixture, place)


def _tables(report: dict[str, Any]) -> Iterator[Table]:
    for name, family in report.get("families", {"": report}).items():
        prefix = f"{name}: " if name else ""
        rows = [(key, *_three(value)) for key, value in family["parameters"].items()]
        percent = 100 * family["fit"]["residual_rms"]
        title = f"{prefix}{report['formula']}, {family['points']} points, residual {percent:.2f}%"
        yield title, ("parameter", "estimate", "low", "high"), rows
        if family["held_out"]:
            yield _held_out(prefix, family["held_out"])
        if family["frontier"]:
            yield from _frontier(prefix, family["frontier"])
    for pair in report["multipliers"]:
        title = f"Parameters of {pair['baseline']} for the loss of {pair['other']}"
        rows = [(_number(row["loss"]), *_three(row, "inf")) for row in pair["by_loss"]]
        if rows:
            yield title, ("loss", "times", "low", "high"), rows


def _held_out(prefix: str, found: list[dict[str, Any]]) -> Table:
    sizes = [name for name in found[0] if name in ("params", "hyper_params", "tokens", "weight")]
    names = (*sizes, "loss", "predicted", "low", "high")
    rows = [(*(_number(r[name]) for name in names), f"{100 * r['error']:+.2f}") for r in found]
    title = f"{prefix}largest sizes, predicted from the others"
    return title, (*names, "error, %"), rows


def _frontier(prefix: str, found: dict[str, Any]) -> Iterator[Table]:
    rows: list[tuple[str, ...]] = [
        ("a: N ~ C^a", *_three(found["a"])),
        ("b: D ~ C^b", *_three(found["b"])),
    ]
    title = f"{prefix}compute-optimal sizes for C = {found['flops_factor']:g} N D"
    yield title, ("exponent", "estimate", "low", "high"), rows
    names = ("params", "tokens", "loss")
    rows = [
        (_number(row["flops"]), *(_span(row[name]) for name in names)) for row in found["budgets"]
    ]
    yield f"{prefix}by budget, with intervals", ("C", "N", "D", "loss"), rows


def _number(value: float | None, unknown: str = "-") -> str:
    return unknown if value is None else f"{value:.4g}"


def _three(value: dict[str, Any], unknown: str = "-") -> tuple[str, str, str]:
    estimate, low, high = (value[key] for key in ("estimate", "low", "high"))
    return _number(estimate, unknown), _number(low, unknown), _number(high, unknown)


def _span(value: dict[str, Any]) -> str:
    estimate, low, high = _three(value)
    return estimate if value["low"] is None else f"{estimate} ({low}-{high})"
