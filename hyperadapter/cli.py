"""The command `hyperadapter <noun> <verb>`: parses, calls, prints.

stdout is results, stderr is log and progress. Exit codes: 0 done, 1 failed, 2 usage, 3 invalid
configuration, 75 interrupted and resumable. Heavy imports stand inside the commands, so that
`--help` answers at once.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from hyperadapter import __version__
from hyperadapter.core.errors import ConfigError, DataError, HyperAdapterError
from hyperadapter.core.heap import keep_freed_memory

if TYPE_CHECKING:
    from hyperadapter.config import RunConfig
    from hyperadapter.evaluation.evaluate import HeldOutSplit

__all__ = ["main"]

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


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
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


@cli.group("config")
def config_group() -> None:
    """Reads and checks configuration files."""


@config_group.command("show")
@with_config
def config_show(config: RunConfig) -> None:
    """Prints the resolved configuration as YAML, with its fingerprint."""
    from hyperadapter.core.schema import fingerprint, to_yaml

    click.echo(f"# fingerprint {fingerprint(config)}\n{to_yaml(config)}", nl=False)


@config_group.command("check")
@with_config
def config_check(config: RunConfig) -> None:
    """Checks a configuration; exit code 3 and the reasons if it cannot be used."""
    from hyperadapter.core.schema import fingerprint

    click.echo(f"valid; fingerprint {fingerprint(config)}")


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
        _print_json(stats)
        return
    for table in pipeline.stats_tables(stats):
        _print_table(*table)


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
        _print_json(report._asdict() | {"bad": [file._asdict() for file in report.bad]})
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

    _print_report(describe.describe_model(**options), describe.tables, as_json)


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
    "--by", type=click.Choice(["params", "flops"]), default="params", help="What is equal."
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

    _print_report(match.match_models(**options), match.match_tables, as_json)


def _print_report(
    report: dict[str, Any], tables: Callable[[dict[str, Any]], Sequence[Any]], as_json: bool
) -> None:
    if as_json:
        _print_json(report)
        return
    for title, columns, rows in tables(report):
        _print_table(title, columns, rows)


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
        _print_json(report.model_dump(mode="json"))
        return
    title = f"{report.family} from {folder} in {out}; import.json names what was dropped"
    _print_table(title, ("", "count"), report.rows())


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

        _print_report(forecast.forecast_run(config, **options), forecast.forecast_tables, as_json)
        return
    given = [name for name, value in options.items() if value is not None]
    if given or as_json:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in (given or ["json"]))
        raise click.UsageError(f"{names.replace('--world-size', '--world')} is for --dry-run")
    from hyperadapter import pipeline

    pipeline.train(config)


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
        _print_json(rows)
    else:
        title = f"{len(rows)} checkpoints of {run_dir}"
        columns = list(rows[0]) if rows else ["step"]
        _print_table(title, columns, [list(row.values()) for row in rows])


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


@cli.command("evaluate")
@with_config
@click.option(
    "--split", type=click.Choice(["valid", "test"]), default="test", help="What to score."
)
@checkpoint_option
@json_option
def evaluate(config: RunConfig, split: HeldOutSplit, checkpoint: str, as_json: bool) -> None:
    """Translates a split and scores every direction."""
    from hyperadapter import pipeline

    scores = pipeline.evaluate(config, split, checkpoint)
    if as_json:
        _print_json(scores.model_dump(mode="json"))
    else:
        _print_table(*pipeline.scores_table(scores))


@cli.command("translate")
@click.option(
    "--run",
    "run_dir",
    default="runs/quickstart",
    show_default=True,
    type=click.Path(path_type=Path),
    help="A run folder with a checkpoint.",
)
@click.option("--src", required=True, metavar="CODE", help="Source language, e.g. de.")
@click.option("--tgt", required=True, metavar="CODE", help="Target language, e.g. en.")
@click.option("--beam-size", type=click.IntRange(min=1), help="Instead of the run's.")
@checkpoint_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU if there is one.",
)
def translate(
    run_dir: Path,
    src: str,
    tgt: str,
    beam_size: int | None,
    checkpoint: str,
    device: Literal["auto", "cpu", "cuda"],
) -> None:
    """Translates lines from stdin to stdout."""
    from hyperadapter.checkpoint.layout import choose_weights
    from hyperadapter.config import RunConfig
    from hyperadapter.core.schema import load_config
    from hyperadapter.evaluation.translate import Translator, choose_device

    keep_freed_memory()
    overrides = () if beam_size is None else (f"evaluation.beam_size={beam_size}",)
    config = load_config(RunConfig, run_dir / "config.yaml", overrides)
    weights = choose_weights(run_dir, checkpoint, config.training.checkpoint)
    translator = Translator.from_weights(weights, run_dir, config, choose_device(device))
    try:
        texts = sys.stdin.buffer.read().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 at byte {error.start}; convert it first") from error
    if texts[-1] == "":  # what follows the last line's end
        texts.pop()
    for line in translator.translate(texts, src, tgt):
        click.echo(line)


@cli.group("track")
def track_group() -> None:
    """Brings run folders' metrics to MLflow, and tells what they say."""


run_folders = click.argument(
    "folders", nargs=-1, required=True, metavar="RUN_DIR...",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)  # fmt: skip


@track_group.command("sync")
@run_folders
@click.option("--uri", default="", help="Another tracking URI, without its password.")
@click.option("--dead-after", "dead_after_s", type=click.FloatRange(min=0), default=600.0,
              help="Seconds of silence after which a RUNNING run has FAILED; 600.")  # fmt: skip
@json_option
def track_sync(folders: tuple[Path, ...], uri: str, dead_after_s: float, as_json: bool) -> int:
    """Sends what MLflow lacks, for run folders or all below a folder; 1 if one of them fails."""
    from hyperadapter.tracking import sync_all

    reports = sync_all(folders, uri, dead_after_s)
    if as_json:
        _print_json([report._asdict() for report in reports])
    else:
        rows = [(report.run_dir, report.sent, report.status or None) for report in reports]
        _print_table("Events sent to MLflow", ("run", "sent", "status"), rows)
    for report in reports:
        if report.error:
            click.echo(f"error: {report.error}", err=True)
    return int(any(report.error for report in reports))


@track_group.command("status")
@run_folders
@json_option
def track_status(folders: tuple[Path, ...], as_json: bool) -> None:
    """Prints what the events of runs say: status, last step, events that are not in MLflow."""
    from hyperadapter.tracking import find_runs, run_status

    found = [run_status(run_dir) for folder in folders for run_dir in find_runs(folder)]
    if as_json:
        _print_json([item._asdict() for item in found])
        return
    columns = ("run", "status", "why", "step", "last event", "silent, s", "not sent")
    _print_table("Runs", columns, [item[: len(columns)] for item in found])


@cli.command("run")
@with_config
@json_option
def run(config: RunConfig, as_json: bool) -> None:
    """Does everything: fetch, clean, tokenise, shard, train, evaluate, summarise."""
    from hyperadapter import pipeline

    scores, summary = pipeline.run(config)
    if as_json:
        _print_json(summary)
        return
    _print_table(*pipeline.scores_table(scores))
    _print_table(*pipeline.summary_table(summary))
    for line in pipeline.where_to_look(config):
        click.echo(line)


def main() -> None:
    """Runs the command and turns errors into messages and exit codes."""
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except HyperAdapterError as error:
        kind = "configuration error" if isinstance(error, ConfigError) else "error"
        click.echo(f"{kind}: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Who read our output has gone, as `head` does; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        click.echo(
            f"error: {place}{error.strerror or error}; check the path and its permissions "
            "(data.folder and run_dir are where files are written)",
            err=True,
        )
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)
