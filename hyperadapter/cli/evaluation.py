"""Commands that score a run, and compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table, with_config
from hyperadapter.cli.runs import checkpoint_option

if TYPE_CHECKING:
    from hyperadapter.config import RunConfig
    from hyperadapter.evaluation.compare import ComparedMetric, Comparison
    from hyperadapter.evaluation.results import EvaluationResult, HeldOutSplit

__all__ = ["compare", "evaluate"]

csv_option = click.option(
    "--csv", "csv_path", type=click.Path(path_type=Path), help="Also writes the table to this file."
)


@cli.command("evaluate")
@with_config
@click.option(
    "--split", type=click.Choice(["valid", "test"]), help="What to score; by default test."
)
@click.option(
    "--directions",
    metavar="LIST",
    help="Only these, such as en-de,en-fr; also some that were not trained. The scores of the "
    "whole run stay as they are.",
)
@click.option(
    "--test-set",
    "test_set",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A .tsv or .jsonl file of pairs instead of a split; or, given twice, sources and "
    "references.",
)
@click.option("--direction", metavar="SRC-TGT", help="Of the --test-set, such as en-de.")
@click.option("--name", help="Of the --test-set's results; by default the file's.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="That decode; instead of evaluation.num_processes.",
)
@checkpoint_option
@csv_option
@json_option
def evaluate(
    config: RunConfig,
    split: HeldOutSplit | None,
    directions: str | None,
    processes: int | None,
    checkpoint: str,
    csv_path: Path | None,
    as_json: bool,
    **test_set: object,
) -> None:
    """Translates a split, or a test set of your own, and scores every direction."""
    from hyperadapter import pipeline

    if processes is not None:
        settings = config.evaluation.model_copy(update={"num_processes": processes})
        config = config.model_copy(update={"evaluation": settings})
    if any(value not in (None, ()) for value in test_set.values()):
        if split or directions is not None:
            raise click.UsageError("--split and --directions are not for a --test-set")
        result = _evaluate_test_set(config, checkpoint, **test_set)  # type: ignore[arg-type]
    else:
        chosen = [] if directions is None else [text.strip() for text in directions.split(",")]
        result = pipeline.evaluate(config, split or "test", checkpoint, chosen)
    if csv_path is not None:
        from hyperadapter.evaluation.tables import csv_rows, write_csv

        write_csv(csv_path, csv_rows(result))
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    for table in pipeline.scores_tables(result):
        print_table(*table)


def _evaluate_test_set(
    config: RunConfig,
    checkpoint: str,
    test_set: Sequence[Path],
    direction: str | None,
    name: str | None,
) -> EvaluationResult:
    from hyperadapter import pipeline
    from hyperadapter.evaluation.test_sets import read_test_set

    if not test_set or direction is None:
        missing = "--direction" if test_set else "--test-set"
        raise click.UsageError(f"a test set needs --test-set and --direction; {missing} is missing")
    return pipeline.evaluate_test_set(config, read_test_set(test_set, direction, name), checkpoint)


@cli.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--split", default="test", show_default=True, help="test, valid, or the name of a test set."
)
@click.option(
    "--metric",
    type=click.Choice(["bleu", "chrf", "chrfpp"]),
    default="chrf",
    show_default=True,
    help="What to compare.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=100),
    help="Resamples; by default 1000, or 40 for each direction if that is more.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=12345, show_default=True, help="Of resampling."
)
@csv_option
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="A folder for heat maps."
)
@json_option
def compare(
    runs: tuple[Path, ...],
    split: str,
    metric: ComparedMetric,
    samples: int | None,
    seed: int,
    csv_path: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Compares runs with the first one by paired bootstrap resampling."""
    from hyperadapter.evaluation.compare import (
        compare_runs,
        comparison_rows,
        comparison_tables,
    )

    comparisons = compare_runs(runs, split, metric, samples, seed)
    if csv_path is not None:
        from hyperadapter.evaluation.tables import write_csv

        write_csv(csv_path, comparison_rows(comparisons))
    if out is not None:
        _draw(comparisons, out)
    if as_json:
        print_json([item.model_dump(mode="json") for item in comparisons])
        return
    for table in comparison_tables(comparisons):
        print_table(*table)


def _draw(comparisons: Sequence[Comparison], out: Path) -> None:
    from hyperadapter.core.files import atomic_open
    from hyperadapter.evaluation.report import comparison_figures

    for name, figure in comparison_figures(comparisons).items():
        with atomic_open(out / f"{name}.png", "wb") as stream:
            figure.savefig(stream, format="png", dpi=150)
