"""What is measured while training: loss, speed and progress."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperadapter.core.files import read_json, write_json
from hyperadapter.training.engine import StepResult
from hyperadapter.training.world import World

__all__ = ["PROGRESS_FILE", "Meter", "Progress", "Reading", "format_duration", "passes_range"]

PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Reading:
    """Means and rates since the reading before.

    Attributes:
        loss: Smoothed loss, nats per target token.
        nll: Negative log-likelihood, nats per target token.
        grad_norm: Mean global gradient norm before clipping.
        tokens_per_s: Target tokens of all ranks per second.
        steps_per_s: Optimizer steps per second.
        steps: (step, loss, gradient norm) of each of the steps.
    """

    loss: float
    nll: float
    grad_norm: float
    tokens_per_s: float
    steps_per_s: float
    steps: tuple[tuple[int, float, float], ...]

    def metrics(self) -> dict[str, float]:
        """Returns the reading under the names that MLflow shows."""
        return {
            "train/loss": self.loss,
            "train/nll": self.nll,
            "train/grad_norm": self.grad_norm,
            "perf/tokens_per_s": self.tokens_per_s,
            "perf/steps_per_s": self.steps_per_s,
        }


@dataclass
class Meter:
    """Adds up on the device; `read` is the only place that waits for it."""

    world: World
    _sums: list[Tensor] = field(default_factory=list)
    _tokens: list[int] = field(default_factory=list)
    _steps: list[int] = field(default_factory=list)
    _start: float = field(default_factory=time.monotonic)

    def add(self, step: int, result: StepResult, target_tokens: int) -> None:
        """Adds the step that made the count `step`; `target_tokens` are those of all ranks."""
        share = result.grad_norm.to(result.loss.device) / self.world.size
        self._sums.append(torch.stack([result.loss, result.nll, share.to(result.loss.dtype)]))
        self._tokens.append(target_tokens)
        self._steps.append(step)

    @property
    def is_empty(self) -> bool:
        """True if no step was added since the reading before."""
        return not self._steps

    def read(self) -> Reading:
        """Reads and starts anew; every rank must call it at the same step."""
        sums_S3 = self.world.sum(torch.stack(self._sums).double().cpu())
        now = time.monotonic()
        seconds = max(now - self._start, 1e-9)
        loss, nll, norm = sums_S3.sum(dim=0).tolist()
        tokens, steps = sum(self._tokens), len(self._steps)
        losses = (sums_S3[:, 0] / torch.tensor(self._tokens)).tolist()
        reading = Reading(
            loss=loss / tokens,
            nll=nll / tokens,
            grad_norm=norm / steps,
            tokens_per_s=tokens / seconds,
            steps_per_s=steps / seconds,
            steps=tuple(zip(self._steps, losses, sums_S3[:, 2].tolist(), strict=True)),
        )
        self._sums, self._tokens, self._steps, self._start = [], [], [], now
        return reading

    def skip_time(self, seconds: float) -> None:
        """Leaves time that was not spent on training steps out of the rates."""
        self._start += seconds


@dataclass
class Progress:
    """What a run has cost, over all its starts; kept in each checkpoint.

    Attributes:
        wall_s: Seconds from the start of training, validation and checkpoints included.
        target_tokens: Target tokens trained on, over all ranks.
        peak_rss_bytes: Most resident memory of all ranks of one start together.
        widths: Tokens of every sentence's longer side, by direction, over all ranks.
    """

    wall_s: float = 0.0
    target_tokens: int = 0
    peak_rss_bytes: int = 0
    widths: dict[str, int] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """Reads what a checkpoint folder holds."""
        tree = read_json(folder / PROGRESS_FILE)
        return cls(tree["wall_s"], tree["target_tokens"], tree["peak_rss_bytes"], tree["widths"])

    def update(self, world: World) -> None:
        """Adds the time since the last update and the memory of all ranks; all must call it."""
        now = time.monotonic()
        self.wall_s += now - self._since
        self._since = now
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rss = world.sum(torch.tensor([kilobytes * 1024], dtype=torch.int64))
        self.peak_rss_bytes = max(self.peak_rss_bytes, int(rss.item()))

    def save(self, folder: Path) -> None:
        """Writes the numbers into a checkpoint folder."""
        write_json(folder / PROGRESS_FILE, self.metrics_by_name() | {"widths": self.widths})

    def metrics_by_name(self) -> dict[str, float]:
        """Returns the numbers and the speed that follows from them."""
        return {
            "wall_s": self.wall_s,
            "target_tokens": self.target_tokens,
            "tokens_per_s": self.target_tokens / max(self.wall_s, 1e-9),
            "peak_rss_bytes": self.peak_rss_bytes,
        }

    def metrics(self) -> dict[str, float]:
        """Returns the numbers under the names that MLflow shows."""
        return {f"perf/total/{name}": value for name, value in self.metrics_by_name().items()}


def passes_range(passes: NDArray[np.float64]) -> str:
    """Writes how often the directions have been seen, from the least to the most."""
    low, high = passes.min(), passes.max()
    return f"{low:.2f}-{high:.2f}" if high - low >= 0.01 else f"{high:.2f}"


def format_duration(seconds: float) -> str:
    """Writes seconds as h:mm:ss or m:ss."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
