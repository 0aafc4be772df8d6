"""Commands that look into a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_report, print_table
from hyperadapter.cli.runs import checkpoint_option, run_option

__all__ = ["analyse_group"]


@cli.group("analyse")
def analyse_group() -> None:
    """Shows what a run has learnt about its languages."""


permutations_option = click.option(
    "--permutations",
    type=click.IntRange(min=99),
    default=9999,
    show_default=True,
    help="Of the languages, for p-values.",
)
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=1, show_default=True, help="Of the permutations."
)


@analyse_group.command("relatedness")
@run_option
@checkpoint_option
@click.option(
    "--distances",
    "distances_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A square CSV matrix of distances with language codes, such as URIEL's.",
)
@permutations_option
@seed_option
@json_option
def relatedness(
    run_dir: Path,
    checkpoint: str,
    distances_file: Path | None,
    permutations: int,
    seed: int,
    as_json: bool,
) -> None:
    """Compares languages' embeddings and adapters; writes RUN_DIR/analysis/relatedness."""
    from hyperadapter.analysis.relatedness import (
        Options,
        analyse_relatedness,
        relatedness_tables,
    )

    report = analyse_relatedness(run_dir, Options(checkpoint, permutations, seed), distances_file)
    if as_json:
        print_json(report)
        return
    for table in relatedness_tables(report):
        print_table(*table)


def _codes(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    """Turns `da,nb` into codes of the table."""
    from hyperadapter.core.languages import parse_language

    return tuple(parse_language(code) for code in text.split(",") if code.strip())


@analyse_group.command("swap")
@run_option
@checkpoint_option
@click.option(
    "--direction-side",
    "side",
    type=click.Choice(["src", "tgt"]),
    default="tgt",
    show_default=True,
    help="Where the languages stand; the pivot is on the other side.",
)
@click.option(
    "--languages",
    default="",
    callback=_codes,
    metavar="CODES",
    help="Between which, such as da,nb,sv; all by default.",
)
@click.option(
    "--max-sentences",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Of the validation split, per direction.",
)
@click.option("--bleu", is_flag=True, help="Also translates them and computes BLEU and chrF.")
@permutations_option
@seed_option
@json_option
def swap(
    run_dir: Path, checkpoint: str, permutations: int, seed: int, as_json: bool, **options: Any
) -> None:
    """Measures languages with others' adapters; writes RUN_DIR/analysis/swap."""
    from hyperadapter.analysis.relatedness import Options
    from hyperadapter.analysis.swap import SwapOptions, analyse_swap, swap_tables

    given = SwapOptions(**options)
    report = analyse_swap(run_dir, given, Options(checkpoint, permutations, seed))
    if as_json:
        print_json(report)
        return
    for table in swap_tables(report):
        print_table(*table)


@analyse_group.command("interpolate")
@run_option
@checkpoint_option
@click.option("--language", default="", metavar="CODE", help="An unseen language to mix.")
@click.option(
    "--pairs",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Its sentence pairs: one .tsv or .jsonl file, or twice for two aligned files.",
)
@click.option("--columns", metavar="SRC-TGT", help="What the files' columns are, such as en-nb.")
@click.option(
    "--test",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Pairs to measure on; without it some of --pairs are held out.",
)
@click.option(
    "--languages",
    default="",
    callback=_codes,
    metavar="CODES",
    help="Of the run, to leave out one at a time, such as da,sv; all by default.",
)
@click.option(
    "--sentences",
    type=click.IntRange(min=10),
    default=100,
    show_default=True,
    help="Pairs to learn from, at most.",
)
@click.option(
    "--distances",
    "distances_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A square CSV matrix of distances, which give weights without learning.",
)
@click.option("--bleu", is_flag=True, help="Also translates and computes BLEU and chrF++.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Of the choice of sentences and the order of batches.",
)
@json_option
def interpolate(
    run_dir: Path, language: str, columns: str | None, as_json: bool, **options: Any
) -> None:
    """Mixes a language from others; writes RUN_DIR/analysis/interpolate.

    With --language, --pairs and --columns an unseen one; without them each language of the run from
    the others.
    """
    from hyperadapter.core.languages import parse_direction, parse_language
    from hyperadapter.extension.interpolate import InterpolateOptions, analyse_interpolate
    from hyperadapter.extension.interpolate_report import interpolate_tables
    from hyperadapter.extension.subjects import Unseen

    pairs, test = options.pop("pairs"), options.pop("test")
    unseen = None
    if language and pairs and columns:
        if options["languages"]:
            raise click.UsageError("--languages are those of the run; leave it away with --pairs")
        unseen = Unseen(parse_language(language), parse_direction(columns), pairs, test)
    elif language or pairs or columns or test:
        raise click.UsageError(
            "an unseen language needs --language, --pairs and --columns; without them all, "
            "languages of the run are left out"
        )
    report = analyse_interpolate(run_dir, InterpolateOptions(unseen, **options))
    print_report(report, interpolate_tables, as_json)
