"""The command that writes a model for those who only translate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from hyperadapter.cli.base import cli, json_option, print_json, print_table
from hyperadapter.cli.runs import checkpoint_option, run_option

if TYPE_CHECKING:
    from hyperadapter.serving.bundle import StorageType
    from hyperadapter.serving.ctranslate2 import Quantization
    from hyperadapter.serving.ctranslate2_export import CTranslate2Report
    from hyperadapter.serving.export import ExportReport
    from hyperadapter.serving.m2m100 import FoldReport

__all__ = ["export"]

Format = Literal["bundle", "m2m100", "ctranslate2"]
_QUANTIZATIONS = (
    "float32", "float16", "bfloat16", "int16",
    "int8", "int8_float32", "int8_float16", "int8_bfloat16",
)  # fmt: skip


@cli.command("export")
@run_option
@checkpoint_option
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(get_args(Format)),
    default="bundle",
    show_default=True,
    help="bundle: all directions, for hyperadapter.load; m2m100: one, for transformers; "
    "ctranslate2: one, the fastest on a CPU.",
)
@click.option(
    "--directions",
    metavar="LIST",
    help="Such as en-de,de-en; by default, for a bundle, those that were trained.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="How a bundle's numbers are stored; they are used in fp32.",
)
@click.option(
    "--quantization",
    type=click.Choice(_QUANTIZATIONS),
    default="float32",
    show_default=True,
    help="How CTranslate2's matrices are stored and multiplied.",
)
@json_option
def export(
    run_dir: Path,
    checkpoint: str,
    out: Path,
    kind: Format,
    directions: str | None,
    dtype: StorageType,
    quantization: Quantization,
    as_json: bool,
) -> None:
    """Writes a model that translates, without hyper-network and optimizer."""
    if dtype != "fp32" and kind != "bundle":
        raise click.UsageError(f"--dtype is for --format bundle, not {kind}")
    if quantization != "float32" and kind != "ctranslate2":
        raise click.UsageError(f"--quantization is for --format ctranslate2, not {kind}")
    wanted = None if directions is None else [text.strip() for text in directions.split(",")]
    report: ExportReport | FoldReport | CTranslate2Report
    if kind == "m2m100":
        from hyperadapter.serving.m2m100 import export_m2m100

        report = export_m2m100(run_dir, out, which=checkpoint, directions=wanted)
    elif kind == "ctranslate2":
        from hyperadapter.serving.ctranslate2_export import export_ctranslate2

        report = export_ctranslate2(
            run_dir, out, which=checkpoint, directions=wanted, quantization=quantization
        )
    else:
        from hyperadapter.serving.export import export_bundle

        report = export_bundle(run_dir, out, which=checkpoint, directions=wanted, dtype=dtype)
    if as_json:
        print_json(report.model_dump())
        return
    print_table(str(out), ["", "bytes" if kind == "bundle" else ""], report.rows())
