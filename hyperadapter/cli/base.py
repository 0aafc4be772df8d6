"""What all commands share: the root, options, and how results are printed."""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from hyperadapter import __version__

__all__ = [
    "cli",
    "json_option",
    "print_json",
    "print_report",
    "print_table",
    "run_folders",
    "with_config",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def with_config(command: Command) -> Command:
    """Adds --config and --set, and passes the resolved run as `config`."""

    @click.option(
        "--config",
        "path",
        required=True,
        type=click.Path(path_type=Path),
        help="A file of configs/runs, or the config.yaml of a run folder.",
    )
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Changes one value, e.g. --set training.seed=2; may be repeated.",
    )
    @functools.wraps(command)
    def wrapper(path: Path, overrides: Sequence[str], **arguments: Any) -> Any:
        from hyperadapter.config import RunConfig
        from hyperadapter.core.schema import load_config

        return command(load_config(RunConfig, path, overrides), **arguments)

    return wrapper  # type: ignore[return-value]


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Prints JSON instead of a table."
)


run_folders = click.argument(
    "folders",
    nargs=-1,
    required=True,
    metavar="RUN_DIR...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table whose first column is text and whose others are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    # Never cut a number, even where lines then wrap; a pipe has no width at all.
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    Console(width=max(width, console.width)).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def print_report(
    report: dict[str, Any], tables: Callable[[dict[str, Any]], Sequence[Any]], as_json: bool
) -> None:
    """Prints a report as JSON or as the tables that `tables` makes of it."""
    if as_json:
        print_json(report)
        return
    for title, columns, rows in tables(report):
        print_table(title, columns, rows)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hyperadapter")
@click.option("-v", "--verbose", is_flag=True, help="Also logs details.")
def cli(verbose: bool) -> None:
    """Trains and uses multilingual translation models with hyper-adapters."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    level = logging.DEBUG if verbose else logging.INFO if rank == "0" else logging.WARNING
    prefix = "" if rank == "0" else f"rank {rank} "
    logging.basicConfig(
        level=level,
        format=f"%(asctime)s {prefix}%(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for name in ("matplotlib", "alembic", "mlflow", "git", "urllib3", "DeepSpeed", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)
