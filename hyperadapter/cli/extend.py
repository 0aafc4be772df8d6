"""The command that adds a language to a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table
from hyperadapter.cli.runs import checkpoint_option, run_option

__all__ = ["extend"]


@cli.command("extend")
@run_option
@checkpoint_option
@click.option("--language", "code", required=True, metavar="CODE", help="To add, such as nb.")
@click.option(
    "--pairs",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="A .tsv or .jsonl file of pairs; or, given twice, two aligned files.",
)
@click.option(
    "--columns", required=True, metavar="A-B", help="Languages of the columns, such as en-nb."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The new run folder.")
@click.option(
    "--valid",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Held-out pairs, as --pairs; by default some of those are held out.",
)
@click.option(
    "--init",
    default="loss",
    show_default=True,
    help="What the new rows begin as: loss (the relative that understands the pairs best), mixture "
    "(learnt weights of all), mean, distances, random, or a language's code.",
)
@click.option(
    "--distances",
    "distances_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="For --init distances: a square CSV matrix with language codes, such as URIEL's.",
)
@click.option(
    "--fit",
    "parts",
    default="",
    metavar="PARTS",
    help="Fit these parts of the model too, such as hyper_heads,decoder; or all. Other languages' "
    "translations change then.",
)
@click.option("--keep-tag", is_flag=True, help="Do not fit the tag: it stays the relative's.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), help="Of the new rows, by size."
)
@click.option(
    "--parts-learning-rate", type=click.FloatRange(0, min_open=True), help="Of the parts."
)
@click.option("--passes", "max_passes", type=click.IntRange(min=1), help="Most passes over pairs.")
@click.option("--patience", type=click.IntRange(min=1), help="Passes without a gain that end it.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the order of pairs, and of dropout.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU if there is one.",
)
@json_option
def extend(
    run_dir: Path, out: Path, code: str, columns: str, as_json: bool, **options: Any
) -> None:
    """Adds a language to a trained run by fitting its embedding to a few pairs."""
    from hyperadapter.core.languages import parse_direction
    from hyperadapter.extension import extend as extension

    files = extension.PairFiles(options["pairs"], parse_direction(columns), valid=options["valid"])
    given = extension.ExtendOptions(
        checkpoint=options["checkpoint"],
        init=options["init"],
        distances_file=options["distances_file"],
        device=options["device"],
        fit=_fit_options(options),
    )
    report = extension.extend(run_dir, out, code, files, given)
    if as_json:
        print_json(report)
        return
    for table in extension.extension_tables(report):
        print_table(*table)


def _fit_options(options: dict[str, Any]) -> Any:
    from hyperadapter.extension.fitting import FitOptions
    from hyperadapter.model.parts import PARTS

    names = [name.strip() for name in options["parts"].split(",") if name.strip()]
    parts = PARTS if names == ["all"] else tuple(names)
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        raise click.BadParameter(
            f"{', '.join(unknown)} is no part of a model; write {', '.join(PARTS)}, or all",
            param_hint="--fit",
        )
    keys = ("learning_rate", "parts_learning_rate", "max_passes", "patience", "seed")
    chosen = {key: options[key] for key in keys if options[key] is not None}
    return FitOptions(parts=parts, tag=not options["keep_tag"], **chosen)
