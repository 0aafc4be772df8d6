"""Commands about jobs of a Slurm cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table, run_folders
from hyperadapter.core.errors import ConfigError

if TYPE_CHECKING:
    from cluster.jobs import Job, Plan
    from hyperadapter.config import RunConfig

__all__ = ["for_processes", "jobs_group", "print_plan", "submit", "warn_of_sqlite"]


@cli.command("submit")
@click.option("--config", "paths", required=True, multiple=True, metavar="FILE",
              type=click.Path(path_type=Path),
              help="A run; may be repeated with --array.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Changes one value of every run; may be repeated.")  # fmt: skip
@click.option("--cluster", "cluster", required=True, type=click.Path(path_type=Path),
              help="A file of configs/clusters.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes of each run; the site's number.")
@click.option("--array", "throttle", type=click.IntRange(min=1), metavar="N",
              help="One array of all runs, of which N run at a time.")  # fmt: skip
@click.option("--after", default="", metavar="JOB", help="Starts when this job has ended well.")
@click.option("--evaluate", is_flag=True, help="Scores the test split when training is done.")
@click.option("--dry-run", is_flag=True, help="Prints the script and submits nothing.")
def submit(
    paths: Sequence[Path],
    overrides: Sequence[str],
    cluster: Path,
    nodes: int | None,
    throttle: int | None,
    after: str,
    evaluate: bool,
    dry_run: bool,
) -> None:
    """Submits training to Slurm and returns; a job saves, requeues and resumes by itself."""
    from cluster import jobs
    from cluster.config import ClusterConfig
    from hyperadapter.config import RunConfig
    from hyperadapter.core.schema import load_config, to_yaml

    if len(paths) > 1 and throttle is None:
        raise click.UsageError("several runs are an array; say with --array how many run at a time")
    site = load_config(ClusterConfig, cluster)
    count = nodes or site.nodes
    processes = site.processes_per_run(count)
    # The file's own number of processes is for another machine and need not fit the changes.
    changes = [*overrides, "training.num_processes=1"]
    loaded = [load_config(RunConfig, path, changes) for path in paths]
    configs = [for_processes(config, processes, cluster) for config in loaded]
    warn_of_sqlite(configs)
    runs = [jobs.Run(c.name, Path(c.run_dir), to_yaml(c)) for c in configs]
    shape = jobs.Shape(nodes=count, throttle=throttle, evaluate=evaluate)
    print_plan(jobs.submit(site, runs, shape, after=after, dry_run=dry_run))


def for_processes(config: RunConfig, count: int, cluster: Path) -> RunConfig:
    """Returns a run with as many processes as a cluster gives it.

    Raises:
        ConfigError: They cannot share its steps.
    """
    from hyperadapter.config import RunConfig, check_world_size
    from hyperadapter.core.schema import parse_config

    try:
        check_world_size(config.training, count)
    except ValueError as error:
        raise ConfigError(
            f"{config.name}: nodes and GPUs or tasks of {cluster} make {count} processes, but "
            f"{error}; use another --nodes (or --pack of a study)"
        ) from error
    tree = config.model_dump(mode="json")
    tree["training"]["num_processes"] = count
    return parse_config(RunConfig, tree, config.name)


def warn_of_sqlite(configs: Sequence[RunConfig]) -> None:
    """Warns of jobs that would all write to one file of SQLite over a network."""
    from hyperadapter.tracking import resolve_uri

    uris = {resolve_uri(Path(c.run_dir), c.tracking.uri) for c in configs if c.tracking.enabled}
    files = sorted(uri for uri in uris if uri.startswith("sqlite:"))
    if files and len(configs) > 1:
        click.echo(
            f"warning: the jobs send their metrics to {files[0]}, a file of SQLite, which network "
            "file systems may damage when several nodes write; set tracking.uri or "
            "MLFLOW_TRACKING_URI to a server, or tracking.enabled=false and send them afterwards: "
            "hyperadapter track sync FOLDER --uri URI",
            err=True,
        )


def print_plan(plan: Plan) -> None:
    """Prints the jobs of a submission, or the script if nothing was submitted."""
    if not plan.jobs:
        click.echo(plan.script, nl=False)
    for job, folder in zip(plan.jobs, plan.submissions, strict=False):
        click.echo(f"{job}\t{folder}")


@cli.group("jobs")
def jobs_group() -> None:
    """Looks at submitted runs, cancels them, and submits them again."""


@jobs_group.command("status")
@run_folders
@click.option("--lines", type=click.IntRange(min=0), default=10, show_default=True,
              help="Last lines of the log of what failed.")  # fmt: skip
@json_option
def jobs_status(folders: Sequence[Path], lines: int, as_json: bool) -> None:
    """Shows Slurm's and the run's state; runs that died without a word are set to FAILED."""
    from cluster import jobs
    from cluster.snapshot import find_submissions

    found = jobs.look(folders)
    if _bury(found):
        found = jobs.look(folders)
    if as_json:
        print_json([job._asdict() for job in found])
        return
    columns = ("run", "job", "Slurm", "run says", "step", "requeued", "nodes", "code", "why")
    print_table(f"{len(found)} jobs", columns, found)
    places = {str(folder.parents[1]): folder for folder in find_submissions(folders)}
    for job in jobs.failed(found) if lines else []:
        click.echo(f"{job.run_dir}, on {job.nodes or 'no node'}: {job.why or job.state}")
        for line in jobs.last_lines(places[job.run_dir], lines):
            click.echo(f"  {line}")


def _bury(found: Sequence[Job]) -> bool:
    """Sets runs to FAILED in MLflow that say RUNNING while Slurm says that their job is over."""
    from cluster.jobs import active

    alive = {job.run_dir for job in active(found)}
    dead = [
        Path(job.run_dir)
        for job in found
        if job.run_status == "RUNNING" and job.run_dir not in alive
    ]
    if not dead:
        return False
    from cluster.snapshot import CONFIG_FILE, find_submissions
    from hyperadapter.config import RunConfig
    from hyperadapter.core.schema import load_config
    from hyperadapter.tracking import mark_dead, sync_all

    # Slurm knows that it is over, so no silence is waited for; the lock is looked at all the same.
    for folder in find_submissions(dead):
        run_dir = folder.parents[1]
        if not load_config(RunConfig, folder / CONFIG_FILE).tracking.enabled:
            mark_dead(run_dir, dead_after_s=0)
            continue
        for report in sync_all([run_dir], dead_after_s=0):
            if report.error:
                click.echo(f"error: {report.error}", err=True)
    return True


@jobs_group.command("logs")
@click.argument("run_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--lines", type=click.IntRange(min=1), default=50, show_default=True, help="Last so many."
)
def jobs_logs(run_dir: Path, lines: int) -> None:
    """Prints the last lines of the newest job's log, with the log's path on stderr."""
    from cluster.jobs import last_lines, log_file
    from cluster.snapshot import find_submissions

    for folder in find_submissions([run_dir]):
        click.echo(f"{log_file(folder)}", err=True)
        for line in last_lines(folder, lines):
            click.echo(line)


@jobs_group.command("cancel")
@run_folders
@click.option("--dry-run", is_flag=True, help="Says what would be cancelled.")
def jobs_cancel(folders: Sequence[Path], dry_run: bool) -> None:
    """Cancels the jobs that wait or run; training saves first, so that retry goes on."""
    from cluster import jobs

    for job in jobs.cancel(folders, dry_run=dry_run):
        click.echo(f"{job.job}\t{job.run_dir}")


@jobs_group.command("retry")
@run_folders
@click.option("--failed", "only_failed", is_flag=True, help="Not those that were cancelled.")
@click.option("--dry-run", is_flag=True, help="Says what would be submitted.")
def jobs_retry(folders: Sequence[Path], only_failed: bool, dry_run: bool) -> None:
    """Submits again what is not done, with the code and configuration of then."""
    from cluster import jobs

    for run_dir, job in jobs.retry(folders, only_failed, dry_run=dry_run).items():
        click.echo(f"{job}\t{run_dir}")
