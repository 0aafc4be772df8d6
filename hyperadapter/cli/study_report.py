"""The command that reports on a study."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperadapter.cli.base import json_option, print_json, print_table
from hyperadapter.cli.study import study_group
from hyperadapter.core.errors import ConfigError

if TYPE_CHECKING:
    from hyperadapter.study.plan import Plan

__all__ = ["study_report"]

log = logging.getLogger(__name__)


@study_group.command("report")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--uri", default="", help="Where MLflow is; where the study's runs are, by default.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the report goes; FOLDER/report by default.",
)
@click.option("--no-log", is_flag=True, help="Does not log the report to MLflow.")
@json_option
def study_report(folder: Path, uri: str, out: Path | None, no_log: bool, as_json: bool) -> None:
    """Makes a page, figures and CSV files of the runs of the study in FOLDER."""
    from hyperadapter.study.figures import plot_results
    from hyperadapter.study.page import best_table, summary_of, write_page
    from hyperadapter.study.parent import study_uri
    from hyperadapter.study.plan import load_plan
    from hyperadapter.study.results import read_results, write_csv
    from hyperadapter.study.seeds import has_seeds, write_seeds_csv
    from hyperadapter.tracking import redact

    plan = load_plan(folder)
    if not plan.tracked and not uri:
        raise ConfigError(
            f"the runs of {plan.study} are not tracked (tracking.enabled is false), so MLflow has "
            f"nothing to report; send their events with `hyperadapter track sync {folder} --uri "
            "URI`, and give the same --uri here"
        )
    _warn_of_unsent(folder, plan)
    place = plan.model_copy(update={"uri": uri}) if uri else plan
    results = read_results(plan, study_uri(folder, place))
    out = out or folder / "report"
    figures = plot_results(results, out)
    page = out / "index.html"
    command = f"hyperadapter study report {folder}{f' --uri {redact(uri)}' if uri else ''}"
    write_page(results, figures, page, command)
    files = [page, *write_csv(results, out), *(figure.path for figure in figures)]
    if has_seeds(results):
        write_seeds_csv(results, out / "configs.csv")
        files.append(out / "configs.csv")
    if not no_log and plan.tracked:
        _log(folder, plan, files, done=set(results.states) == {"DONE"})
    if as_json:
        print_json(summary_of(results) | {"files": [str(path) for path in files]})
        return
    states = ", ".join(f"{count} {state}" for state, count in sorted(results.states.items()))
    columns = [plan.report.series or "series", "point", "state", "loss", "score", "parameters"]
    columns += ["adapter params.", "FLOP"]
    for measure, rows in (
        ("loss", best_table(results, "loss")),
        ("score", best_table(results, "score")),
    ):
        if rows:
            print_table(f"{plan.study}, best by {measure}", columns, rows)
    click.echo(f"points   {states}")
    if results.strangers or results.older:
        click.echo(
            f"beside   {len(results.strangers)} runs that are no point, {results.older} older runs"
        )
    click.echo(f"report   {page}")


def _warn_of_unsent(folder: Path, plan: Plan) -> None:
    """Says which runs know more than MLflow."""
    from hyperadapter.core.events import EVENTS_FILE
    from hyperadapter.tracking import pending_events

    folders = [folder / "runs" / point.name for point in plan.points]
    begun = [path for path in folders if (path / EVENTS_FILE).exists()]
    unsent = [path for path in begun if pending_events(path)]
    if plan.tracked and unsent:
        click.echo(
            f"warning: {len(unsent)} runs have events that are not in MLflow, such as "
            f"{unsent[0].name}; runs at work send them by themselves, for others: hyperadapter "
            f"track sync {folder}",
            err=True,
        )


def _log(folder: Path, plan: Plan, files: list[Path], done: bool) -> None:
    """Logs the report to the study's MLflow run, which ends when all runs are done."""
    from hyperadapter.study.parent import open_parent

    with open_parent(folder, plan, owns_status=done) as tracker:
        for path in files:
            tracker.log_artifact(path, "report")
