"""Commands that run the points of a study, and say how far they are."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperadapter.cli.base import json_option, print_json, print_table
from hyperadapter.cli.study import study_group
from hyperadapter.core.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from hyperadapter.study.plan import Plan, Point

__all__ = ["choose_points", "points_option", "study_folder", "study_run", "study_status"]

study_folder = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
points_option = click.option(
    "--points", "patterns", multiple=True, metavar="PATTERN",
    help="Only these, such as 'hyper_dim-8_*'; may be repeated.",
)  # fmt: skip


def choose_points(plan: Plan, patterns: Sequence[str]) -> list[Point]:
    """Returns the points whose names match a pattern; all without patterns.

    Raises:
        ConfigError: A pattern matches none.
    """
    for pattern in patterns:
        if not fnmatch.filter([point.name for point in plan.points], pattern):
            raise ConfigError(
                f"--points {pattern!r} matches no point of the study {plan.study}; `hyperadapter "
                "study status` lists them"
            )
    return [
        point
        for point in plan.points
        if not patterns or any(fnmatch.fnmatchcase(point.name, pattern) for pattern in patterns)
    ]


@study_group.command("run")
@study_folder
@click.option("--local", "workers", type=click.IntRange(min=1), required=True, metavar="N",
              help="Runs at a time on this machine.")  # fmt: skip
@points_option
def study_run(folder: Path, workers: int, patterns: Sequence[str]) -> None:
    """Runs what is not done of a planned study on this machine, data included."""
    from hyperadapter.study.local import run_points
    from hyperadapter.study.plan import load_plan
    from hyperadapter.study.status import LOG_FILE

    plan = load_plan(folder)
    failed = run_points(folder, plan, workers, choose_points(plan, patterns))
    if failed:
        raise TrainingError(
            f"{len(failed)} runs failed: {', '.join(failed)}; `hyperadapter study status {folder}` "
            f"says why, {LOG_FILE} in each run folder says more, and the same command tries them "
            "again"
        )
    click.echo(f"done; for figures and tables: hyperadapter study report {folder}", err=True)


@study_group.command("status")
@study_folder
@points_option
@json_option
def study_status(folder: Path, patterns: Sequence[str], as_json: bool) -> None:
    """Says how far the runs of a study are, by their folders."""
    from hyperadapter.study.plan import load_plan
    from hyperadapter.study.status import point_states

    plan = load_plan(folder)
    chosen = choose_points(plan, patterns)
    states = point_states(folder, plan.model_copy(update={"points": tuple(chosen)}))
    if as_json:
        print_json([state._asdict() for state in states])
        return
    counts = {name: sum(s.state == name for s in states) for name in dict.fromkeys(
        state.state for state in states)}  # fmt: skip
    title = f"Study {plan.study}: " + ", ".join(f"{n} {name}" for name, n in counts.items())
    rows = [
        (
            s.name,
            s.state,
            s.step,
            s.steps,
            *(None if v is None else f"{v:.4g}" for v in (s.loss, s.score)),
            s.why,
        )
        for s in states
    ]
    columns = ("point", "state", "step", "of", plan.report.loss, plan.report.score, "why")
    print_table(title, columns, rows)
