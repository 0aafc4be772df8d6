"""Commands that turn bitext into shards, and look after shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table, with_config

if TYPE_CHECKING:
    from hyperadapter.config import RunConfig

__all__ = ["data_group"]


@cli.group("data")
def data_group() -> None:
    """Turns raw bitext into shards, step by step; steps that are done are skipped."""


@data_group.command("fetch")
@with_config
def data_fetch(config: RunConfig) -> None:
    """Downloads the corpora's packages and checks their checksums."""
    from hyperadapter import pipeline

    pipeline.fetch(config)


@data_group.command("clean")
@with_config
def data_clean(config: RunConfig) -> None:
    """Reads, cleans, deduplicates and splits; counts every rejected pair under its reason."""
    from hyperadapter import pipeline

    pipeline.clean(config)


@data_group.command("tokenizer")
@with_config
def data_tokenizer(config: RunConfig) -> None:
    """Trains one SentencePiece model on temperature-sampled text."""
    from hyperadapter import pipeline

    pipeline.tokenizer(config)


@data_group.command("shard")
@with_config
def data_shard(config: RunConfig) -> None:
    """Writes WebDataset shards of tokens, and their manifest."""
    from hyperadapter import pipeline

    pipeline.shard(config)


@data_group.command("stats")
@with_config
@json_option
def data_stats(config: RunConfig, as_json: bool) -> None:
    """Prints pairs, lengths and drop reasons of the cleaned corpus, and plots them."""
    from hyperadapter import pipeline

    stats = pipeline.stats(config)
    if as_json:
        print_json(stats)
        return
    for table in pipeline.stats_tables(stats):
        print_table(*table)


@data_group.command("plan")
@with_config
@click.option("--world-size", type=click.IntRange(min=1), default=1, help="Processes of the run.")
@click.option("--steps", default="0:10", metavar="A:B", help="Steps A to B-1.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def data_plan(config: RunConfig, world_size: int, steps: str, as_json: bool) -> None:
    """Prints what each global step holds, and its hash; needs shards but no model."""
    from hyperadapter import pipeline

    first, separator, last = steps.partition(":")
    if not (separator and first.isdigit() and last.isdigit()) or int(first) >= int(last):
        raise click.BadParameter(f"{steps!r} is not of the form A:B, A < B", param_hint="--steps")
    for row in pipeline.plan(config, world_size, range(int(first), int(last))):
        if as_json:
            click.echo(json.dumps(row))
        else:
            tokens = "  ".join(f"{name} {count}" for name, count in row["tokens"].items())
            click.echo(f"{row['step']:>8}  {row['hash'][:16]}  {row['target_tokens']}  {tokens}")


@data_group.command("verify")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--workers", type=click.IntRange(min=0), default=0, help="0: one for each core.")
@json_option
def data_verify(folder: Path, workers: int, as_json: bool) -> int:
    """Reads every byte of the shards in FOLDER; names each bad file and ends with 1 if any is."""
    from data_pipeline.shards.tools import verify

    report = verify(folder, workers)
    if as_json:
        print_json(report._asdict() | {"bad": [file._asdict() for file in report.bad]})
        return int(bool(report.bad))
    for file in report.bad:
        click.echo(f"BAD {file.path}: {file.reason}")
    click.echo(
        f"{len(report.bad)} bad files; {report.shards:,} shards of {report.pairs:,} pairs of all "
        f"splits with {report.sentences:,} sentence pairs, {report.num_bytes / 1e6:,.1f} MB"
    )
    return int(bool(report.bad))


@data_group.command("merge")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("folders", nargs=-1, required=True)
def data_merge(out: Path, folders: tuple[str, ...]) -> None:
    """Puts the shards in FOLDERS (folders or URLs) together in OUT, by manifest, without a copy."""
    from data_pipeline.shards.tools import merge

    merge(folders, out)


@data_group.command("split")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--pairs", metavar="A-B,C-D", help="Language pairs to take.")
@click.option("--parts", type=click.IntRange(min=1), help="Deal all pairs out to so many parts.")
def data_split(folder: Path, out: Path, pairs: str | None, parts: int | None) -> None:
    """Takes some language pairs of the shards in FOLDER to OUT, by manifest, without a copy."""
    from data_pipeline.shards.tools import split_pairs, split_parts

    if (pairs is None) == (parts is None):
        raise click.UsageError("give either --pairs or --parts")
    if pairs is not None:
        split_pairs(folder, out, [pair.strip() for pair in pairs.split(",")])
    else:
        split_parts(folder, out, parts or 1)
