"""The whole job, phase by phase: fetch, clean, tokenise, shard, train, evaluate, summarise.

A phase that is done is skipped, so that the same command goes on wherever it was stopped.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.local import EXIT_INTERRUPTED, launched_externally, run_ranks
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import Interrupted, TrainingError
from hyperadapter.core.files import read_json, write_json, write_text
from hyperadapter.core.schema import fingerprint, to_yaml

if TYPE_CHECKING:
    from hyperadapter.evaluation.evaluate import EvaluationResult

__all__ = [
    "clean",
    "drops_table",
    "evaluate",
    "fetch",
    "plan",
    "run",
    "scores_table",
    "shard",
    "stats",
    "stats_table",
    "summary_table",
    "tokenizer",
    "train",
    "where_to_look",
]

log = logging.getLogger(__name__)

Table = tuple[str, Sequence[str], Sequence[Sequence[Any]]]
Result = TypeVar("Result")


def fetch(config: RunConfig) -> None:
    """Downloads and checks the corpora's packages."""
    from data_pipeline.fetch import fetch as fetch_sources

    fetch_sources(config.data)


def clean(config: RunConfig) -> None:
    """Builds the clean corpus."""
    from data_pipeline.corpus import build_clean_corpus

    build_clean_corpus(config.data)


def tokenizer(config: RunConfig) -> None:
    """Trains the SentencePiece model."""
    from data_pipeline import tokenizer as module

    module.run(config.data)


def shard(config: RunConfig) -> None:
    """Writes the shards."""
    from data_pipeline import shards as module

    module.run(config.data)


def plan(config: RunConfig, world_size: int, steps: range) -> Iterator[dict[str, Any]]:
    """Yields what each global step holds: its hash and its target tokens per direction."""
    from data_pipeline.stream import TrainStream
    from hyperadapter.training.preflight import check_world

    check_world(config, world_size)
    training = config.training
    stream = TrainStream(
        Path(config.data.folder) / "shards",
        config.data,
        micro_batch_tokens=training.micro_batch_tokens,
        micro_batches_per_step=training.micro_batches_per_step,
        seed=training.seed,
        world_size=world_size,
    )
    names = [str(direction) for direction in config.data.resolved_directions()]
    for step in steps:
        planned = stream.plan.step(step)
        yield {
            "step": step,
            "hash": planned.hash,
            "target_tokens": planned.target_tokens,
            "tokens": dict(zip(names, planned.tokens_per_direction.tolist(), strict=True)),
        }


def train(config: RunConfig) -> None:
    """Trains here if a launcher gave this process a rank, else starts the ranks and waits.

    Raises:
        Interrupted: A signal stopped training; it can be resumed.
        TrainingError: A rank failed; it has said why.
    """
    if launched_externally() or config.training.num_processes == 1:
        from hyperadapter.training.trainer import train as train_rank

        train_rank(config)
        return
    # Checked once here, so that a mistake is reported once and not by every rank.
    from hyperadapter.training.preflight import freeze_config

    freeze_config(config)
    path = Path(config.run_dir) / "config.yaml"
    command = [sys.executable, "-m", "hyperadapter", "train", "--config", str(path)]
    code = run_ranks(command, config.training.num_processes)
    if code == EXIT_INTERRUPTED:
        raise Interrupted(f"training in {config.run_dir} was stopped; the same command resumes")
    if code:
        raise TrainingError(f"training in {config.run_dir} failed with exit code {code}, see above")
