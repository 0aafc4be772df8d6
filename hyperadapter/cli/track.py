"""Commands about metrics and MLflow."""

from __future__ import annotations

from pathlib import Path

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table, run_folders

__all__ = ["track_group"]


@cli.group("track")
def track_group() -> None:
    """Brings run folders' metrics to MLflow, and tells what they say."""


@track_group.command("sync")
@run_folders
@click.option("--uri", default="", help="Another tracking URI, without its password.")
@click.option("--dead-after", "dead_after_s", type=click.FloatRange(min=0), default=600.0,
              help="Seconds of silence after which a RUNNING run has FAILED; 600.")  # fmt: skip
@json_option
def track_sync(folders: tuple[Path, ...], uri: str, dead_after_s: float, as_json: bool) -> int:
    """Sends what MLflow lacks, for run folders or all below a folder; 1 if one of them fails."""
    from hyperadapter.tracking import sync_all

    reports = sync_all(folders, uri, dead_after_s)
    if as_json:
        print_json([report._asdict() for report in reports])
    else:
        rows = [(report.run_dir, report.sent, report.status or None) for report in reports]
        print_table("Events sent to MLflow", ("run", "sent", "status"), rows)
    for report in reports:
        if report.error:
            click.echo(f"error: {report.error}", err=True)
    return int(any(report.error for report in reports))


@track_group.command("status")
@run_folders
@json_option
def track_status(folders: tuple[Path, ...], as_json: bool) -> None:
    """Prints what the events of runs say: status, last step, events that are not in MLflow."""
    from hyperadapter.tracking import find_runs, run_status

    found = [run_status(run_dir) for folder in folders for run_dir in find_runs(folder)]
    if as_json:
        print_json([item._asdict() for item in found])
        return
    columns = ("run", "status", "why", "step", "last event", "silent, s", "not sent")
    print_table("Runs", columns, [item[: len(columns)] for item in found])
