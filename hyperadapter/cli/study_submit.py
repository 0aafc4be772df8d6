"""The command that submits a study to Slurm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperadapter.cli.jobs import for_processes, print_plan, warn_of_sqlite
from hyperadapter.cli.study import study_group
from hyperadapter.cli.study_runs import choose_points, points_option, study_folder
from hyperadapter.core.errors import DataError

if TYPE_CHECKING:
    from hyperadapter.config import RunConfig
    from hyperadapter.study.plan import Plan, Point

__all__ = ["study_submit"]

_THROTTLE = 8


@study_group.command("submit")
@study_folder
@points_option
@click.option("--cluster", required=True, type=click.Path(path_type=Path),
              help="A file of configs/clusters.")  # fmt: skip
@click.option("--array", "throttle", type=click.IntRange(min=1), metavar="N", default=_THROTTLE,
              show_default=True, help="Tasks of the array that run at a time.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes of each run; the site's number.")
@click.option("--pack", type=click.IntRange(min=1), metavar="P", default=1,
              help="Runs that share a node; for sites that give whole nodes only.")  # fmt: skip
@click.option("--after", default="", metavar="JOB", help="Starts when this job has ended well.")
@click.option("--dry-run", is_flag=True, help="Prints the script and submits nothing.")
def study_submit(
    folder: Path,
    patterns: Sequence[str],
    cluster: Path,
    throttle: int,
    nodes: int | None,
    pack: int,
    after: str,
    dry_run: bool,
) -> None:
    """Submits what is not done of a planned study, as one array of jobs."""
    from cluster import jobs
    from cluster.config import ClusterConfig
    from hyperadapter.core.schema import load_config, to_yaml
    from hyperadapter.study.parent import open_parent
    from hyperadapter.study.plan import load_plan, point_config

    if pack > 1 and (nodes or 1) > 1:
        raise click.UsageError("--pack shares one node among runs, and --nodes gives a run several")
    plan, site = load_plan(folder), load_config(ClusterConfig, cluster)
    count = 1 if pack > 1 else nodes or site.nodes
    points = _left(folder, plan, choose_points(plan, patterns))
    if not points:
        return
    processes = site.processes_per_run(count, pack)
    configs = {p.name: for_processes(point_config(folder, p), processes, cluster) for p in points}
    if not dry_run:
        warn_of_sqlite(list(configs.values()))
        _require_data(folder, configs)
        with open_parent(folder, plan):
            pass  # so that MLflow has it before its runs look for it
    shape = jobs.Shape(count, throttle, evaluate=plan.evaluate, pack=pack, name=plan.study)
    runs = [jobs.Run(name, Path(c.run_dir), to_yaml(c)) for name, c in configs.items()]
    print_plan(jobs.submit(site, runs, shape, after=after, dry_run=dry_run))
    tasks = -(-len(runs) // pack)
    click.echo(f"an array of {tasks}, of which {min(throttle, tasks)} run at a time", err=True)


def _left(folder: Path, plan: Plan, points: Sequence[Point]) -> list[Point]:
    """Returns the points that are neither done nor at work, and says how many are."""
    from cluster import jobs
    from hyperadapter.study.status import point_states

    chosen = plan.model_copy(update={"points": tuple(points)})
    states = {state.name: state.state for state in point_states(folder, chosen)}
    run_dirs = {point.name: folder / "runs" / point.name for point in points}
    queued = {job.run_dir for job in jobs.active_jobs(list(run_dirs.values()))}
    left, done, busy = [], 0, 0
    for point in points:
        if states[point.name] == "DONE":
            done += 1
        elif states[point.name] == "RUNNING" or str(run_dirs[point.name].resolve()) in queued:
            busy += 1
        else:
            left.append(point)
    click.echo(
        f"study {plan.study}: of {len(points)} runs {done} are done, {busy} wait or run, "
        f"{len(left)} are left",
        err=True,
    )
    return left


def _require_data(folder: Path, configs: dict[str, RunConfig]) -> None:
    """Checks that the data of all runs is there, each way of making it once.

    Raises:
        DataError: It is not, or was made with other settings.
    """
    from data_pipeline.provenance import require_current

    seen: dict[str, str] = {}
    for name, config in configs.items():
        seen.setdefault(config.data.model_dump_json(), name)
    for name in seen.values():
        try:
            require_current(configs[name].data)
        except DataError as error:
            elsewhere = configs[name].data.shards_folder
            steps = ("tokenizer",) if elsewhere else ("fetch", "clean", "tokenizer", "shard")
            path = folder / "points" / f"{name}.yaml"
            commands = "\n".join(f"  hyperadapter data {step} --config {path}" for step in steps)
            raise DataError(
                f"the data of {name} is not there: {error}\nGPUs do not wait for it: build it "
                f"before (what is current is kept), and submit again:\n{commands}"
            ) from error
