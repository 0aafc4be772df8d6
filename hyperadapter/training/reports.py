"""What a run says of itself: lines in the log, and metrics for the tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from data_pipeline.stream.streams import TrainStream, ValidStream
from hyperadapter.config import TrainingConfig
from hyperadapter.model.batch import Batch
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.tracking import Tracker
from hyperadapter.tracking.system import SystemSampler, metrics_by_node
from hyperadapter.training.engine import Engine
from hyperadapter.training.feed import Feed, Mixture
from hyperadapter.training.meters import Reading, format_duration, passes_range
from hyperadapter.training.watchdog import Watchdog
from hyperadapter.training.world import World

__all__ = ["Reports", "Validation", "validate"]

log = logging.getLogger(__name__)


class Validation(NamedTuple):
    """The loss on the validation split.

    Attributes:
        losses: Nats per target token, by direction; those without text left are not in it.
        num_directions: Those that should be.
        lost_blocks: Blocks that could not be read.
    """

    losses: Mapping[str, float]
    num_directions: int
    lost_blocks: int

    def metrics(self) -> dict[str, float]:
        """Returns the losses and, if no direction is missing, their mean."""
        metrics = {f"valid/{name}/nll": value for name, value in self.losses.items()}
        metrics["data/valid_lost_blocks"] = float(self.lost_blocks)
        if len(self.losses) == self.num_directions:
            metrics["valid/macro/nll"] = sum(self.losses.values()) / len(self.losses)
        return metrics


def validate(
    engine: Engine, valid: ValidStream, vocabulary: Vocabulary, world: World, watchdog: Watchdog
) -> Validation:
    """Computes the loss per direction; every rank must call it."""
    names = [str(direction) for direction in vocabulary.directions]
    sums = torch.zeros(2, len(names), dtype=torch.float64)
    for item in valid:
        nll = engine.evaluate(Batch.from_micro_batch(item.micro_batch, world.device))
        if item.counts:
            direction = int(item.micro_batch.direction_P[0])
            sums[0, direction] += nll.item()
            sums[1, direction] += item.micro_batch.num_tgt_tokens
        watchdog.touch()
    nll, tokens = world.sum(sums)
    losses = {
        name: value
        for name, value, count in zip(names, (nll / tokens).tolist(), tokens.tolist(), strict=True)
        if count
    }
    lost = frozenset[int]().union(*world.gather(valid.lost_blocks))
    return Validation(losses, len(valid.directions), len(lost))


@dataclass
class Reports:
    """Writes the log and the metrics of a run.

    Attributes:
        config: The run's training.
        tracker: Metrics; silent on all ranks but the main one.
        stream: For the passes over the data.
        world: All ranks.
        first: Step at which this start of the run began.
        sampler: Reads the state of this rank's node.
    """

    config: TrainingConfig
    tracker: Tracker
    stream: TrainStream
    world: World
    first: int
    sampler: SystemSampler
    _started: float = field(default_factory=time.monotonic)

    def reading(self, reading: Reading, step: int, rate: float, more: Mapping[str, float]) -> None:
        """Reports loss, speed and the nodes since the reading before; every rank must call it."""
        nodes = metrics_by_node(self.world.gather((self.sampler.node, self.sampler.read())))
        metrics = reading.metrics() | {"train/learning_rate": rate} | dict(more) | nodes
        self.tracker.log_metrics(metrics, step)
        elapsed = time.monotonic() - self._started
        left = elapsed / max(step - self.first, 1) * (self.config.max_steps - step)
        log.info(
            "step %d/%d  loss %.3f  nll %.3f nats/token  lr %.2e  norm %.2f  "
            "%s target tokens/s on %d  passes %s  %s left",
            step, self.config.max_steps, reading.loss, reading.nll, rate, reading.grad_norm,
            f"{reading.tokens_per_s:,.0f}", self.world.size,
            passes_range(self.stream.passes(step)), format_duration(left),
        )  # fmt: skip

    def data(self, feed: Feed, mixture: Mixture, step: int, per_direction: bool) -> None:
        """Reports what was lost and the mixture; every direction's share where asked for."""
        metrics = feed.metrics() | {"perf/data_wait_s": feed.waited_s}
        feed.waited_s = 0.0
        for name, value in mixture.metrics(step).items():
            if per_direction or name == "data/mixture_error":
                metrics[name] = value
        self.tracker.log_metrics(metrics, step)
        if per_direction and feed.quarantine_file is not None:
            self.tracker.log_artifact(feed.quarantine_file, "data")

    def validation(self, result: Validation, step: int) -> None:
        """Reports the validation loss of all directions, their mean and the worst."""
        metrics, losses = result.metrics(), result.losses
        self.tracker.log_metrics(metrics, step)
        if "valid/macro/nll" not in metrics:
            log.warning(
                "step %d  %d of %d directions lost all validation text; there is no mean without "
                "them", step, result.num_directions - len(losses), result.num_directions,
            )  # fmt: skip
            return
        worst = max(losses, key=losses.__getitem__)
        log.info(
            "step %d  validation nll %.3f nats/token, mean of %d directions (worst %s %.3f)",
            step, metrics["valid/macro/nll"], len(losses), worst, losses[worst],
        )  # fmt: skip
