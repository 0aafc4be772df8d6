"""The command that writes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table
from hyperadapter.cli.runs import checkpoint_option

if TYPE_CHECKING:
    from hyperadapter.serving.bundle import StorageType

__all__ = ["export"]


@cli.command("export")
@click.option(
    "--run",
    "run_dir",
    required=True,
    type=click.Path(path_type=Path),
    help="A run folder with a checkpoint.",
)
@checkpoint_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--directions", metavar="LIST", help="Such as en-de,de-en; by default those that were trained."
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="How numbers are stored; they are used in fp32.",
)
@click.option(
    "--fold",
    is_flag=True,
    help="Writes one direction without adapters instead, for transformers (M2M100's format); "
    "parallel adapters only.",
)
@json_option
def export(
    run_dir: Path,
    checkpoint: str,
    out: Path,
    directions: str | None,
    dtype: StorageType,
    fold: bool,
    as_json: bool,
) -> None:
    """Writes a bundle that translates: weights, adapters, tokenizer, card, no hyper-network."""
    from hyperadapter.serving.export import ExportReport, export_bundle
    from hyperadapter.serving.m2m100 import FoldReport, export_m2m100

    wanted = None if directions is None else [text.strip() for text in directions.split(",")]
    report: ExportReport | FoldReport
    if fold:
        if dtype != "fp32":
            raise click.UsageError("--dtype is for bundles; convert what --fold writes")
        report = export_m2m100(run_dir, out, which=checkpoint, directions=wanted)
    else:
        report = export_bundle(run_dir, out, which=checkpoint, directions=wanted, dtype=dtype)
    if as_json:
        print_json(report.model_dump())
        return
    print_table(str(out), ["", "" if fold else "bytes"], report.rows())
