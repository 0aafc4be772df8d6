"""The command that translates: a pipe, or files in many directions."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hyperadapter.cli.base import cli
from hyperadapter.cli.runs import checkpoint_option
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.heap import keep_freed_memory

if TYPE_CHECKING:
    from hyperadapter.config import EvaluationConfig
    from hyperadapter.core.languages import Direction
    from hyperadapter.evaluation.pool import DecodingSpec
    from hyperadapter.serving.source import ModelSource
    from hyperadapter.serving.translation_jobs import OutputFormat

__all__ = ["translate"]

log = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])
_LOG_EVERY_S = 10.0
_SEARCH = (
    "beam_size",
    "length_penalty",
    "max_length_ratio",
    "max_length_extra",
    "coverage_penalty",
    "no_repeat_ngram",
    "batch_sentences",
)
_DRAWS = ("temperature", "top_k", "top_p", "seed")


def _search_options(command: Command) -> Command:
    """Adds what decides the translations; without a value, it is as in the run or bundle."""
    options: list[tuple[str, type, str]] = [
        ("--beam-size", int, "Hypotheses kept; 1 is greedy."),
        ("--length-penalty", float, "Scores are divided by length to this power."),
        ("--max-length-ratio", float, "Longest output over the input, in pieces."),
        ("--max-length-extra", int, "Pieces allowed on top of the ratio."),
        ("--coverage-penalty", float, "Weight of source positions that nothing attends to."),
        ("--no-repeat-ngram", int, "Runs of so many pieces are produced once at most."),
        ("--batch-sentences", int, "Sentences decoded together."),
        ("--temperature", float, "Of --sample: below 1 is nearer to greedy."),
        ("--top-k", int, "Of --sample: draw from so many of the best pieces."),
        ("--top-p", float, "Of --sample: draw from the fewest pieces of this probability."),
        ("--seed", int, "Of --sample."),
    ]
    for name, kind, text in reversed(options):
        command = click.option(name, type=kind, help=text)(command)
    sample = click.option(
        "--sample/--no-sample",
        default=None,
        help="Draws translations piece by piece, or searches for the best.",
    )
    return sample(command)


@cli.command("translate")
@click.option(
    "--run",
    "run_dir",
    default="runs/quickstart",
    show_default=True,
    type=click.Path(path_type=Path),
    help="A run folder, or a bundle or CTranslate2 folder of `hyperadapter export`.",
)
@click.option("--src", required=True, metavar="CODES", help="Source languages, e.g. de or de,fr.")
@click.option("--tgt", required=True, metavar="CODES", help="Target languages, e.g. en.")
@click.option(
    "--input", metavar="FILE", help="Instead of stdin; {src} and {tgt} stand for languages."
)
@click.option("--output", metavar="FILE", help="Of --input; likewise.")
@click.option("--overwrite", is_flag=True, help="Replaces outputs made from something else.")
@click.option("--prefixes", metavar="FILE", help="What each translation begins with, line by line.")
@click.option("--n-best", type=int, default=1, show_default=True, help="Translations a sentence.")
@click.option(
    "--scores", is_flag=True, help="Writes line number, score and text; so does --n-best."
)
@click.option("--json", "as_json", is_flag=True, help="Writes a JSON object for each sentence.")
@_search_options
@click.option("--processes", type=int, help="That translate; the run's number if not given.")
@checkpoint_option
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU if there is one.",
)
def translate(
    run_dir: Path, src: str, tgt: str, checkpoint: str, n_best: int, **options: Any
) -> None:
    """Translates lines: from stdin to stdout, or files in every direction of --src and --tgt.

    Files are gone on with where they were left, and not translated twice.
    """
    _check_options(options)
    from hyperadapter.evaluation.pool import DecodingSpec
    from hyperadapter.evaluation.translate import choose_device
    from hyperadapter.serving.source import find_model
    from hyperadapter.serving.translation_jobs import choose_directions, name_file

    keep_freed_memory()
    model = find_model(run_dir, checkpoint)
    if model.kind != "run" and checkpoint != "newest":
        raise click.UsageError(
            f"{run_dir} is a {model.kind}, which has no checkpoints to choose from"
        )
    evaluation = _search_settings(model.evaluation, options)
    model.check_search(evaluation, n_best, options["prefixes"] is not None)
    directions = choose_directions(*([c.strip() for c in t.split(",")] for t in (src, tgt)))
    for direction in directions:
        model.check(direction)
    spec = DecodingSpec(model.load, evaluation, choose_device(options["device"]).type, n_best)
    table = n_best > 1 or options["scores"]
    written_as: OutputFormat = "json" if options["as_json"] else "table" if table else "text"
    if options["input"] is not None:
        _translate_files(model, spec, directions, written_as, options)
        return
    if len(directions) > 1:
        raise click.UsageError("several directions need --input and --output")
    prefixes = options["prefixes"] and name_file(options["prefixes"], directions[0])
    _translate_stdin(spec, directions[0], written_as, prefixes)


def _check_options(options: Mapping[str, Any]) -> None:
    if (options["input"] is None) != (options["output"] is None):
        raise click.UsageError("--input and --output belong together")
    if options["overwrite"] and options["output"] is None:
        raise click.UsageError("--overwrite is for --output")
    if options["scores"] and options["as_json"]:
        raise click.UsageError("--json has the scores; leave out --scores")


def _search_settings(evaluation: EvaluationConfig, options: Mapping[str, Any]) -> EvaluationConfig:
    """Lays the options over a run's settings.

    Raises:
        ConfigError: A value is not allowed.
    """
    from hyperadapter.config import EvaluationConfig
    from hyperadapter.core.schema import parse_config

    tree = evaluation.model_dump(mode="json")
    tree |= {name: options[name] for name in _SEARCH if options[name] is not None}
    if options["processes"] is not None:
        tree["num_processes"] = options["processes"]
    draws = {name: options[name] for name in _DRAWS if options[name] is not None}
    if options["sample"] is False:
        tree["sampling"] = None
    if options["sample"] or (draws and tree["sampling"]):
        tree["sampling"] = (tree["sampling"] or {}) | draws
    elif draws:
        raise click.UsageError(f"{', '.join(map(_option, draws))} is for --sample")
    try:
        return parse_config(EvaluationConfig, tree, "the command line")
    except ConfigError as error:
        text = str(error).replace("num_processes: ", "--processes: ")
        for name in (*_SEARCH, *_DRAWS):
            text = text.replace(f"  sampling.{name}: ", f"  {_option(name)}: ")
            text = text.replace(f"  {name}: ", f"  {_option(name)}: ")
        raise ConfigError(text) from error


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _translate_files(
    model: ModelSource,
    spec: DecodingSpec,
    directions: list[Direction],
    written_as: OutputFormat,
    options: Mapping[str, Any],
) -> None:
    from hyperadapter.evaluation.text_files import translate_files
    from hyperadapter.serving.translation_jobs import RENDERS, Patterns, plan_jobs

    patterns = Patterns(options["input"], options["output"], options["prefixes"])
    jobs = plan_jobs(patterns, directions, spec, model.identity(), written_as, options["overwrite"])
    num_processes = spec.evaluation.num_processes
    left = 0
    for job in jobs:
        lines, done = job.output.look()
        left += job.source.lines - lines
        if done:
            log.info("%s is there already, from the same text and settings", job.output.path)
        elif lines:
            log.info("%s goes on after line %d of %d", job.output.path, lines, job.source.lines)
    with _progress(left, sys.stderr.isatty(), num_processes) as advance:
        for count in translate_files(spec, jobs, RENDERS[written_as], num_processes):
            advance(count)


def _translate_stdin(
    spec: DecodingSpec, direction: Direction, written_as: OutputFormat, prefixes: Path | None
) -> None:
    from hyperadapter.evaluation.text_files import decode_lines, iter_text, translate_lines
    from hyperadapter.serving.translation_jobs import RENDERS

    lines = decode_lines(sys.stdin.buffer, "stdin")
    forced = None if prefixes is None else iter_text(prefixes, "--prefixes")
    stdout = sys.stdout.buffer
    num_processes = spec.evaluation.num_processes
    shown = sys.stderr.isatty() and not sys.stdout.isatty()
    render = RENDERS[written_as]
    with _progress(None, shown, num_processes) as advance:
        for text, count in translate_lines(spec, direction, lines, forced, render, num_processes):
            stdout.write(text.encode("utf-8"))
            stdout.flush()
            advance(count)


@contextmanager
def _progress(
    total: int | None, shown: bool, num_processes: int
) -> Iterator[Callable[[int], None]]:
    """Yields what is told of sentences that are done; shows a bar, or logs now and then."""
    started = reported = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, reported
        done += count
        if shown:
            bar.update(task, advance=count, rate=f"{_rate(done, started):.1f} sentences/s")
        elif time.monotonic() - reported >= _LOG_EVERY_S:
            reported = time.monotonic()
            of = "" if total is None else f" of {total:,}"
            log.info("%s%s sentences, %.1f sentences/s", f"{done:,}", of, _rate(done, started))

    if shown:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), "{task.fields[rate]}", TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True)
        task = bar.add_task("translating", total=total, rate="")
        with bar:
            yield advance
    else:
        yield advance
    log.info(
        "%s sentences in %.1f s: %.1f sentences/s on %d %s",
        *(f"{done:,}", time.monotonic() - started, _rate(done, started), num_processes),
        "process" if num_processes == 1 else "processes",
    )


def _rate(done: int, started: float) -> float:
    return done / max(time.monotonic() - started, 1e-9)
