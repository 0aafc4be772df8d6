"""The whole job, phase by phase: fetch, clean, tokenise, shard, train, evaluate, summarise.

A phase that is done is skipped, so that the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.local import EXIT_INTERRUPTED, launched_externally, run_ranks
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    TrainingError,
)
from hyperadapter.core.events import read_metric
from hyperadapter.core.files import locked, read_json, write_json
from hyperadapter.core.heap import keep_freed_memory

if TYPE_CHECKING:
    from data_pipeline.config import DataConfig
    from hyperadapter.evaluation.results import EvaluationResult, HeldOutSplit
    from hyperadapter.evaluation.test_sets import TestSet
    from hyperadapter.tracking import Tracker

__all__ = [
    "average",
    "checkpoints",
    "clean",
    "evaluate",
    "evaluate_test_set",
    "fetch",
    "plan",
    "run",
    "scores_tables",
    "shard",
    "stats",
    "stats_tables",
    "summary_table",
    "tokenizer",
    "train",
    "where_to_look",
]

log = logging.getLogger(__name__)

Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]
Result = TypeVar("Result")


@contextmanager
def _data_folder(config: RunConfig) -> Iterator[DataConfig]:
    """Holds the data folder, which several runs may share, while a step is made in it.

    Raises:
        DataError: Another process works in it.
    """
    folder = Path(config.data.folder)
    with locked(folder) as free:
        if not free:
            raise DataError(
                f"another process builds data in {folder}; run the same command again when it is "
                "done, or choose another data.folder"
            )
        yield config.data


def fetch(config: RunConfig) -> None:
    """Downloads and checks the corpora's packages."""
    from data_pipeline.fetching.fetch import fetch as fetch_sources

    with _data_folder(config) as data:
        fetch_sources(data)


def clean(config: RunConfig) -> None:
    """Builds the clean corpus."""
    from data_pipeline.cleaning.corpus import build_clean_corpus

    with _data_folder(config) as data:
        build_clean_corpus(data)


def tokenizer(config: RunConfig) -> None:
    """Trains the SentencePiece model."""
    from data_pipeline import tokenizer as module

    with _data_folder(config) as data:
        module.run(data)


def shard(config: RunConfig) -> None:
    """Writes the shards."""
    from data_pipeline.shards import writer as module

    with _data_folder(config) as data:
        module.run(data)


def plan(config: RunConfig, world_size: int, steps: range) -> Iterator[dict[str, Any]]:
    """Yields what each global step holds: hash, sentences, padding, target tokens by direction."""
    from data_pipeline.stream.streams import TrainStream, shards_folder
    from hyperadapter.training.preflight import check_world

    check_world(config, world_size)
    training = config.training
    stream = TrainStream(
        shards_folder(config.data),
        config.data,
        micro_batch_tokens=training.micro_batch_tokens,
        micro_batches_per_step=training.micro_batches_per_step,
        seed=training.seed,
        world_size=world_size,
    )
    names = [str(direction) for direction in config.data.resolved_directions()]
    for step in steps:
        planned = stream.step_plan(step)
        yield {
            "step": step,
            "hash": planned.hash,
            "sentences": sum(len(refs) for refs in planned.micro_batches),
            "padding": round(planned.padding, 4),
            "target_tokens": planned.target_tokens,
            "tokens": dict(zip(names, planned.tokens_per_direction.tolist(), strict=True)),
        }


def train(config: RunConfig) -> None:
    """Trains here if a launcher gave this process a rank, else starts the ranks and waits.

    Raises:
        Interrupted: A signal stopped training; it can be resumed.
        TrainingError: A rank failed; it has said why.
    """
    from hyperadapter.training.trainer import train as train_rank

    if launched_externally():
        train_rank(config)
        return
    # Checked once here, so that a mistake is reported once and not by every rank.
    from hyperadapter.training.preflight import check_world, freeze_config, lock_run

    check_world(config, config.training.num_processes)
    # Rank 0 takes the lock again; a second start must change nothing in the folder of the first.
    with lock_run(Path(config.run_dir)):
        freeze_config(config)
    finished = _finished(config)
    if finished is not None:
        log.info("%s is trained already", finished)
        return
    if config.training.num_processes == 1:
        train_rank(config)
        return
    path = Path(config.run_dir) / "config.yaml"
    command = [sys.executable, "-m", "hyperadapter", "train", "--config", str(path)]
    code = run_ranks(command, config.training.num_processes)
    if code == EXIT_INTERRUPTED:
        raise Interrupted(f"training in {config.run_dir} was stopped; the same command resumes")
    if code:
        from hyperadapter.training.trainer import open_tracker

        # A rank that was killed could not say so.
        open_tracker(config).finish("FAILED", reason=f"exit code {code}")
        kind = ConfigError if code == ConfigError.exit_code else TrainingError
        raise kind(f"training in {config.run_dir} failed with exit code {code}, see above")


def _finished(config: RunConfig) -> Path | None:
    """Returns the checkpoint of a run's last step, if it is there and whole."""
    from hyperadapter.checkpoint import layout

    checkpoints = layout.complete_checkpoints(Path(config.run_dir))
    if not checkpoints or checkpoints[-1][0] < config.training.max_steps:
        return None
    try:
        layout.verify(checkpoints[-1][1])
    except CheckpointError:
        return None  # training sets it aside
    return checkpoints[-1][1]


def stats(config: RunConfig) -> dict[str, Any]:
    """Counts the clean corpus, and its tokens if there is a tokenizer; plots them beside it."""
    from data_pipeline import stats_plots
    from data_pipeline.cleaning.corpus import clean_folder
    from data_pipeline.stats import corpus_stats, tokenizer_stats

    clean = clean_folder(config.data)
    result = corpus_stats(clean)
    plots = {"corpus.png": stats_plots.plot_corpus, "drops.png": stats_plots.plot_drops}
    if (clean.parent / "tokenizer").is_dir():
        tokens = tokenizer_stats(config.data)
        for name, pair in tokens.pop("pairs").items():
            result["pairs"][name] |= pair
        result |= {"languages": tokens["languages"], "vocab_size": tokens["vocab_size"]}
        plots["languages.png"] = stats_plots.plot_tokenizer
    for name, plot in plots.items():
        plot(result, clean.parent / name)
        log.info("plotted %s", clean.parent / name)
    return result


def evaluate(
    config: RunConfig,
    split: HeldOutSplit,
    checkpoint: str = "newest",
    directions: Sequence[str] = (),
) -> EvaluationResult:
    """Translates and scores a split; scores and figures also go to MLflow.

    Averages and figures are of all directions of the configuration only.
    """
    from hyperadapter.evaluation.evaluate import covers_all
    from hyperadapter.evaluation.evaluate import evaluate as evaluate_run
    from hyperadapter.evaluation.report import build_curve_figure
    from hyperadapter.evaluation.tables import flat_metrics
    from hyperadapter.evaluation.translate import choose_device
    from hyperadapter.training.trainer import open_tracker

    run_dir = Path(config.run_dir)
    device = choose_device(config.training.device)
    keep_freed_memory()
    result = evaluate_run(run_dir, config, split, directions, device, checkpoint)
    with open_tracker(config, owns_status=False) as tracker:
        if not covers_all(config, directions):
            tracker.log_metrics(flat_metrics(result, whole=False), result.step)
            return result
        _log_evaluation(tracker, result, "evaluation")
        curves = {
            "training": read_metric(run_dir, "train/nll"),
            "validation, mean of directions": read_metric(run_dir, "valid/macro/nll"),
        }
        figure = build_curve_figure(curves, "negative log-likelihood (nats per token)", config.name)
        tracker.log_figure(figure, "loss")
    return result


def evaluate_test_set(
    config: RunConfig, test_set: TestSet, checkpoint: str = "newest"
) -> EvaluationResult:
    """Translates and scores a test set that was brought along; scores also go to MLflow."""
    from hyperadapter.evaluation.evaluate import evaluate_test_set as evaluate_run
    from hyperadapter.evaluation.translate import choose_device
    from hyperadapter.training.trainer import open_tracker

    device = choose_device(config.training.device)
    keep_freed_memory()
    result = evaluate_run(Path(config.run_dir), config, test_set, device, checkpoint)
    with open_tracker(config, owns_status=False) as tracker:
        _log_evaluation(tracker, result, f"evaluation/{test_set.name}")
    return result


def _log_evaluation(tracker: Tracker, result: EvaluationResult, folder: str) -> None:
    """Logs scores, rates and figures; `folder` is the place of scores.json in MLflow."""
    from hyperadapter.evaluation.report import (
        build_direction_figure,
        build_matrix_figure,
        score_matrix,
    )
    from hyperadapter.evaluation.results import SCORES_FILE, evaluation_folder
    from hyperadapter.evaluation.tables import flat_metrics

    split = result.split
    tracker.log_metrics(flat_metrics(result), result.step)
    tracker.log_figure(build_direction_figure(result), f"directions_{split}")
    title = f"{split}, step {result.step}"
    figure = build_matrix_figure(score_matrix(result), "chrF", title)
    tracker.log_figure(figure, f"matrix_{split}")
    tracker.log_artifact(evaluation_folder(tracker.run_dir, split) / SCORES_FILE, folder)


def checkpoints(run_dir: Path) -> list[dict[str, Any]]:
    """Returns step, bytes, processes and validation metric of a run's complete checkpoints."""
    from hyperadapter.checkpoint import layout
    from hyperadapter.core.schema import load_config

    config = load_config(RunConfig, run_dir / "config.yaml").training.checkpoint
    ranks = {step: n for n, (step, _) in enumerate(layout.best_checkpoints(run_dir, config), 1)}
    rows = []
    for step, folder in layout.complete_checkpoints(run_dir):
        manifest = layout.read_manifest(folder)
        rows.append(
            {
                "step": step,
                "megabytes": round(sum(file.bytes for file in manifest.files.values()) / 1e6, 1),
                "processes": manifest.world_size,
                "zero_stage": manifest.zero_stage,
                f"rank by {config.best_metric}": ranks.get(step),
                "folder": str(folder),
            }
        )
    return rows


def average(run_dir: Path, last: int | None, steps: Sequence[str], out: Path) -> list[Path]:
    """Writes the mean of some checkpoints' weights, and returns their weights files.

    Raises:
        CheckpointError: There are fewer checkpoints than asked for.
    """
    from hyperadapter.checkpoint import layout
    from hyperadapter.checkpoint.average import average_weights
    from hyperadapter.core.schema import load_config

    config = load_config(RunConfig, run_dir / "config.yaml").training.checkpoint
    if last is not None:
        found = [str(step) for step, _ in layout.complete_checkpoints(run_dir)]
        if len(found) < last:
            raise CheckpointError(
                f"{run_dir} has {len(found)} checkpoints, fewer than {last}; average fewer, or "
                "keep more of them (training.checkpoint.keep)"
            )
        steps = found[-last:]
    paths = [layout.choose_weights(run_dir, step, config) for step in steps]
    average_weights(paths, out)
    return paths


def run(config: RunConfig) -> tuple[EvaluationResult, dict[str, Any]]:
    """Runs all phases and writes RUN_DIR/summary.json.

    Returns:
        The scores on the test split, and the summary.
    """
    _check_before_anything(config)
    run_dir = Path(config.run_dir)
    clock = _PhaseClock(run_dir / "phases.json")
    clock.run("fetch", lambda: fetch(config))
    clock.run("clean", lambda: clean(config))
    clock.run("tokenizer", lambda: tokenizer(config))
    clock.run("shard", lambda: shard(config))
    clock.run("train", lambda: train(config))
    result = clock.run("evaluate", lambda: evaluate(config, "test"))
    summary = _summary(config, result, clock.seconds)
    write_json(run_dir / "summary.json", summary)
    return result, summary


def _check_before_anything(config: RunConfig) -> None:
    """Finds what would end the job later, or would replace the data of another experiment.

    Raises:
        ConfigError: The run cannot end well.
    """
    from hyperadapter.evaluation.translate import choose_device
    from hyperadapter.training import preflight

    if launched_externally():
        raise ConfigError(
            "`hyperadapter run` starts the processes of training itself; under torchrun or srun "
            "use `hyperadapter train`, and the data and evaluate commands in one process"
        )
    if not config.data.sources:
        raise ConfigError(
            "`hyperadapter run` makes everything from data.sources, which is empty; with "
            "data.shards_folder use `hyperadapter data tokenizer` and `hyperadapter train`"
        )
    if config.data.split.test_fraction == 0 or config.data.split.valid_fraction == 0:
        raise ConfigError(
            "data.split.test_fraction and data.split.valid_fraction must be above 0 for "
            "`hyperadapter run`, which validates and scores"
        )
    preflight.check_identity(config)
    preflight.check_world(config, config.training.num_processes)
    choose_device(config.training.device)


class _PhaseClock:
    """Adds up what each phase took over all starts of the command."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = read_json(path) if path.exists() else {}

    def run(self, phase: str, work: Callable[[], Result]) -> Result:
        log.info("phase: %s", phase)
        started = time.monotonic()
        try:
            return work()
        finally:
            took = time.monotonic() - started
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + took, 2)
            write_json(self.path, self.seconds)


def _summary(
    config: RunConfig, result: EvaluationResult, seconds: dict[str, float]
) -> dict[str, Any]:
    from hyperadapter.checkpoint.layout import newest_checkpoint
    from hyperadapter.training.meters import Progress

    progress = Progress.load(newest_checkpoint(Path(config.run_dir)))
    bleu = [item.model.bleu.value for item in result.directions]
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "name": config.name,
        "fingerprint": result.fingerprint,
        "directions": len(result.directions),
        "steps": result.step,
        "train_wall_s": round(progress.wall_s, 1),
        "target_tokens": progress.target_tokens,
        "tokens_per_s": round(progress.target_tokens / progress.wall_s, 1),
        "num_processes": config.training.num_processes,
        "macro_bleu": round(sum(bleu) / len(bleu), 2),
        **{name: round(value, 2) for name, value in result.macro.items()},
        "phase_wall_s": seconds,
        "peak_rss_bytes": {"train_all_ranks": progress.peak_rss_bytes, "other_phases": own},
    }


def stats_tables(result: dict[str, Any]) -> Iterator[Table]:
    """Yields sentence pairs, lengths, what was dropped, languages and leaks."""
    rows = [
        (
            pair,
            *(item[split] for split in ("train", "valid", "test")),
            item["near_duplicates"],
            item["mean_words_a"],
            item["mean_words_b"],
            *(item.get(f"tokens_{side}") for side in "ab"),
        )
        for pair, item in result["pairs"].items()
    ]
    columns = ["pair", "train", "valid", "test", "near-dup.", "words a", "words b"]
    columns += ["tokens a", "tokens b"]
    yield "Sentence pairs, mean words a sentence and tokens in train", columns, rows
    if "languages" in result:
        yield _languages_table(result)
    if result["leak_tests"]:
        rows = [(n, t["num_sentences"], t["num_found"]) for n, t in result["leak_tests"].items()]
        yield "Test sets that must not leak", ("name", "sentences", "found in train, dropped"), rows
    if result["unknown_languages"]:
        rows = [(f"{s}: {c}", n) for s, codes in result["unknown_languages"].items()
                for c, n in codes.items()]  # fmt: skip
        yield "Files in languages that are not in the table", ("source and code", "files"), rows
    if result["ignored_files"]:
        rows = [(f"{s}: {c}", n) for s, kinds in result["ignored_files"].items()
                for c, n in kinds.items()]  # fmt: skip
        yield "Files of other kinds, which are not read", ("source and kind", "files"), rows
    title = f"{result['num_read']:,} texts read, {result['num_kept']:,} kept; dropped by reason"
    yield title, ("reason", "texts"), list(result["dropped"].items())


def _languages_table(result: dict[str, Any]) -> Table:
    rows = [
        (
            code,
            item["script"],
            100 * item["coverage"],
            None if item["in_script"] is None else 100 * item["in_script"],
            item["pieces_per_word"],
            item["pieces_per_character"],
            "/".join(str(value) for value in item["length"].values()),
        )
        for code, item in result["languages"].items()
    ]
    columns = ("language", "script", "covered, %", "in script, %", "pieces/word", "pieces/char.")
    title = f"Fit of the tokenizer ({result['vocab_size']:,} pieces); length in tokens as "
    return title + "p50/p90/p99", (*columns, "length"), rows


def scores_tables(result: EvaluationResult) -> Iterator[Table]:
    """Yields scores and rates of every direction, and averages; titles carry the signatures."""
    from hyperadapter.evaluation import tables

    rows = tables.table_rows(result)
    title = f"Scores of the {result.split} split at step {result.step:,}"
    yield "\n".join([title, *tables.signature_lines(result)]), *_cells(rows)
    if rows := tables.quality_rows(result):
        yield "\n".join(["Rates, in %", *tables.quality_notes(result)]), *_cells(rows)
    if rows := tables.group_rows(result):
        title = "Means over groups of directions"
        if any(group.mixed for group in result.groups.values()):
            title += " (*: over different tokenizers; compare with the same directions only)"
        yield title, *_cells(rows)


def _cells(rows: Sequence[dict[str, Any]]) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    return tuple(rows[0]), [tuple(row.values()) for row in rows]


def summary_table(summary: dict[str, Any]) -> Table:
    """Returns what the run took."""
    rows: list[tuple[str, Any]] = [
        (f"{phase}, s", seconds) for phase, seconds in summary["phase_wall_s"].items()
    ]
    rows.append(("target tokens/s in training", summary["tokens_per_s"]))
    peak = summary["peak_rss_bytes"]["train_all_ranks"] / 1e9
    rows.append(("peak memory of all training processes, GB", peak))
    return "What it took", ("", "value"), rows


def where_to_look(config: RunConfig) -> Iterable[str]:
    """Yields where the results lie, and the command that shows the run in MLflow."""
    from hyperadapter.tracking import resolve_uri, ui_command

    run_dir = Path(config.run_dir)
    yield f"summary  {run_dir / 'summary.json'}"
    yield f"plots    {run_dir / 'plots'}"
    yield f"text     {run_dir / 'evaluation'}"
    if config.tracking.enabled:
        yield f"MLflow   {ui_command(resolve_uri(run_dir, config.tracking.uri))}"
    src, tgt = config.data.resolved_directions()[-1]
    yield f"use it   hyperadapter translate --run {run_dir} --src {src} --tgt {tgt} < in > out"
