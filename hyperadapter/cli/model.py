"""Commands about models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_report, print_table

Command = TypeVar("Command", bound=Callable[..., Any])

__all__ = ["model_group"]


@cli.group("model")
def model_group() -> None:
    """Describes, matches and imports models."""


def with_vocabulary(command: Command) -> Command:
    """Adds --set, and the sizes that a model file does not know and a run does."""
    for option in (
        click.option("--num-directions", type=click.IntRange(min=1), help="For a model file."),
        click.option("--num-languages", type=click.IntRange(min=2), help="For a model file."),
        click.option("--vocab-size", type=click.IntRange(min=1), help="Pieces, for a model file."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Changes one value."
        ),
    ):
        command = option(command)
    return command


@model_group.command("describe")
@click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="A run, or a file of configs/models with the three options below.",
)
@with_vocabulary
@json_option
def model_describe(as_json: bool, **options: Any) -> None:
    """Prints parameters by part and FLOPs per target token, counted from the configuration."""
    from hyperadapter import describe

    print_report(describe.describe_model(**options), describe.tables, as_json)


@model_group.command("match")
@click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="The model whose size is sought: a run, or a file of configs/models.",
)
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), help="The model to be equal to."
)
@click.option(
    "--by",
    type=click.Choice(["params", "adapter_params", "flops"]),
    default="params",
    help="What is equal.",
)
@click.option(
    "--vary",
    type=click.Choice(["hyper_dim", "bottleneck_dim", "d_model"]),
    required=True,
    help="The size that changes.",
)
@with_vocabulary
@json_option
def model_match(as_json: bool, **options: Any) -> None:
    """Solves for the size that makes one model equal to another one, for a fair comparison."""
    from hyperadapter import match

    print_report(match.match_models(**options), match.match_tables, as_json)


@model_group.command("import")
@click.option(
    "--from",
    "folder",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A Hugging Face folder of M2M100 or NLLB-200.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--languages", metavar="CODES", help="Tags to keep, e.g. de,fr; by default all.")
@json_option
def model_import(folder: Path, out: Path, languages: str | None, as_json: bool) -> None:
    """Turns M2M100 or NLLB-200 into weights, a tokenizer and a model file of ours."""
    from hyperadapter.checkpoint.huggingface import import_huggingface

    report = import_huggingface(folder, out, languages.split(",") if languages else None)
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    title = f"{report.family} from {folder} in {out}; import.json names what was dropped"
    print_table(title, ("", "count"), report.rows())
