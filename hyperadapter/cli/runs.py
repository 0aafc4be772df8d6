"""Commands that train and use a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hyperadapter.cli.base import (
    cli,
    json_option,
    print_json,
    print_report,
    print_table,
    with_config,
)

if TYPE_CHECKING:
    from hyperadapter.config import RunConfig

__all__ = ["checkpoint_group", "checkpoint_option", "run", "run_option", "train"]


@cli.command("train")
@with_config
@click.option(
    "--dry-run", is_flag=True, help="Prints memory, work, disk and hours, and trains nothing."
)
@click.option("--world", "world_size", type=click.IntRange(min=1), help="Ranks, for --dry-run.")
@click.option("--gpu", metavar="TYPE", help="Such as H100, for --dry-run: does it fit, how long?")
@click.option(
    "--utilisation",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the GPU's peak, for --dry-run; 0.40 by default.",
)
@click.option(
    "--tokens-per-s",
    type=click.FloatRange(0, min_open=True),
    help="Measured target tokens a second of all ranks, for --dry-run.",
)
@json_option
def train(config: RunConfig, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Trains, or resumes, a run; starts training.num_processes ranks unless a launcher did."""
    if dry_run:
        from hyperadapter import forecast

        print_report(forecast.forecast_run(config, **options), forecast.forecast_tables, as_json)
        return
    given = [name for name, value in options.items() if value is not None]
    if given or as_json:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in (given or ["json"]))
        raise click.UsageError(f"{names.replace('--world-size', '--world')} is for --dry-run")
    from hyperadapter import pipeline

    pipeline.train(config)


run_option = click.option(
    "--run",
    "run_dir",
    required=True,
    type=click.Path(path_type=Path),
    help="A run folder with a checkpoint.",
)
checkpoint_option = click.option(
    "--checkpoint",
    default="newest",
    show_default=True,
    metavar="WHICH",
    help="newest, best, the step of a checkpoint, or a weights file.",
)


@cli.group("checkpoint")
def checkpoint_group() -> None:
    """Looks at the checkpoints of a run."""


@checkpoint_group.command("list")
@click.argument("run_dir", type=click.Path(path_type=Path))
@json_option
def checkpoint_list(run_dir: Path, as_json: bool) -> None:
    """Lists a run's complete checkpoints, with the metric that the best are kept by."""
    from hyperadapter import pipeline

    rows = pipeline.checkpoints(run_dir)
    if as_json:
        print_json(rows)
    else:
        title = f"{len(rows)} checkpoints of {run_dir}"
        columns = list(rows[0]) if rows else ["step"]
        print_table(title, columns, [list(row.values()) for row in rows])


@checkpoint_group.command("average")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--last", type=click.IntRange(min=2), help="Average so many of the newest.")
@click.option("--steps", help="Average these, such as 9000,9500,10000.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The weights file to write."
)
def checkpoint_average(run_dir: Path, last: int | None, steps: str | None, out: Path) -> None:
    """Writes the mean of several checkpoints' weights, for `--checkpoint` of other commands."""
    from hyperadapter import pipeline

    if (last is None) == (steps is None):
        raise click.UsageError("give either --last or --steps")
    paths = pipeline.average(run_dir, last, steps.split(",") if steps else [], out)
    click.echo(f"{out} is the mean of {', '.join(path.parent.name for path in paths)}", err=True)


@cli.command("run")
@with_config
@json_option
def run(config: RunConfig, as_json: bool) -> None:
    """Does everything: fetch, clean, tokenise, shard, train, evaluate, summarise."""
    from hyperadapter import pipeline

    scores, summary = pipeline.run(config)
    if as_json:
        print_json(summary)
        return
    for table in pipeline.scores_tables(scores):
        print_table(*table)
    print_table(*pipeline.summary_table(summary))
    for line in pipeline.where_to_look(config):
        click.echo(line)
