"""Commands that plan studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from hyperadapter.cli.base import cli, json_option, print_report

__all__ = ["study_group"]


@cli.group("study")
def study_group() -> None:
    """Plans, runs and reports many runs that differ in a few settings."""


@study_group.command("plan")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Changes one value of the study, e.g. --set size=full; may be repeated.",
)
@click.option("--gpu", metavar="TYPE", help="Such as H100: for how long, and do the runs fit?")
@click.option(
    "--utilisation",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the GPU's peak; 0.40 by default.",
)
@click.option("--drop", is_flag=True, help="Points that have begun may leave the list.")
@click.option("--dry-run", is_flag=True, help="Prints the runs and writes nothing.")
@json_option
def study_plan(
    path: Path,
    overrides: Sequence[str],
    gpu: str | None,
    utilisation: float | None,
    drop: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Makes the list of a study's runs from a file of configs/studies, or adds to it."""
    from hyperadapter.study import planning
    from hyperadapter.study.config import load_study

    planned = planning.plan_study(load_study(path, overrides), gpu, utilisation, drop)
    if not dry_run:
        planning.write_plan(planned)
    print_report(planning.plan_report(planned), planning.plan_tables, as_json)
    for note in planned.notes:
        click.echo(note, err=True)
