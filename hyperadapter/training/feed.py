"""The batches of a run's steps: the same on all ranks, whatever becomes of the shards.

A rank that cannot read a block says so before the step; all ranks then leave that block out from
this step on, and the run folder remembers it, so that a resumed run does the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from data_pipeline.stream.loaders import iter_batches
from data_pipeline.stream.streams import LostBlocksError, StepBatches, TrainStream
from hyperadapter.core.files import read_json, write_json
from hyperadapter.training.engine import World

__all__ = ["QUARANTINE_FILE", "Feed", "Mixture"]

log = logging.getLogger(__name__)

QUARANTINE_FILE = "quarantine.json"


class Feed:
    """Brings the batches of one step after the other.

    Attributes:
        waited_s: Seconds that training has waited for data; the reader may set it back.
    """

    def __init__(self, stream: TrainStream, world: World, run_dir: Path, data: str) -> None:
        """Leaves out what earlier starts of the run left out; every rank must call it.

        Args:
            stream: This rank's data.
            world: All ranks.
            run_dir: Where the quarantine is written.
            data: Fingerprint of the shards; the quarantine of other shards means nothing.
        """
        self.waited_s = 0.0
        self._stream = stream
        self._world = world
        self._data = data
        self._path = run_dir / QUARANTINE_FILE
        self._steps: Generator[StepBatches, None, None] | None = None
        self._reasons: dict[int, str] = {}
        for entry in world.gather(self._load() if world.is_main else [])[0]:
            stream.quarantine({entry["block"]: entry["reason"]}, entry["step"])
            self._reasons[entry["block"]] = entry["reason"]

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._steps is not None:
            self._steps.close()

    def get(self, step: int) -> StepBatches:
        """Returns this rank's share of a step; every rank must ask for the same step.

        Raises:
            CorruptShardError: More is lost than `data.stream.max_lost_fraction`.
            DataError: The data do not come.
        """
        while True:
            started = time.monotonic()
            if self._steps is None:
                self._steps = iter_batches(self._stream, step)
            batches, lost = None, {}
            try:
                batches = next(self._steps)
            except LostBlocksError as error:
                lost = error.blocks
                self._steps = None
            self.waited_s += time.monotonic() - started
            if not self._world.any(bool(lost)):
                assert batches is not None
                return batches
            self._leave_out(lost, step)

    def _leave_out(self, lost: dict[int, str], step: int) -> None:
        """Agrees with all ranks on what is lost, and starts reading anew."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        everything = {k: v for part in self._world.gather(lost) for k, v in part.items()}
        for reason in everything.values():
            log.warning("from step %d on a block is left out: %s", step, reason)
        self._reasons |= everything
        # First, so that the file also tells why a run ended.
        if self._world.is_main:
            self._save(self._stream.quarantined | dict.fromkeys(everything, step))
        self._stream.quarantine(everything, step)

    def _load(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        tree = read_json(self._path)
        if tree["data"] != self._data:
            log.warning("%s is of other shards and is not used", self._path)
            return []
        entries: list[dict[str, Any]] = tree["blocks"]
        log.warning(
            "%d blocks are left out as before, see %s; delete it if the shards are whole again",
            len(entries), self._path,
        )  # fmt: skip
        return entries

    def _save(self, blocks: dict[int, int]) -> None:
        entries = [
            {"block": block, "step": step, "reason": self._reasons.get(block, "")}
            for block, step in sorted(blocks.items())
        ]
        write_json(self._path, {"data": self._data, "blocks": entries})

    @property
    def quarantine_file(self) -> Path | None:
        """The record of what is left out, if anything is."""
        return self._path if self._reasons else None

    def metrics(self) -> dict[str, float]:
        """Returns what is lost."""
        stream = self._stream
        return {
            "data/lost_blocks": float(len(stream.quarantined)),
            "data/lost_sentence_pairs": float(stream.lost_sentences),
            "data/lost_fraction": stream.lost_fraction,
        }


class Mixture:
    """What share each direction has had of the tokens, beside what was planned."""

    def __init__(self, stream: TrainStream, names: list[str]) -> None:
        """Begins with nothing; `names` are those of the directions."""
        self._stream = stream
        self._names = names
        self._widths = np.zeros(len(names), np.int64)

    def restore(self, widths: dict[str, int]) -> None:
        """Goes on from what `widths` returned."""
        self._widths = np.array([widths[name] for name in self._names], np.int64)

    def add(self, batches: StepBatches) -> None:
        """Adds one step of all ranks."""
        self._widths += batches.widths_per_direction

    def widths(self) -> dict[str, int]:
        """Returns the tokens so far, those of the longer side of each sentence, by direction."""
        return dict(zip(self._names, self._widths.tolist(), strict=True))

    def metrics(self, step: int) -> dict[str, float]:
        """Returns passes, realised and planned share of each direction before a step.

        `data/mixture_error` is half the sum of the differences: the share of tokens that went to
        other directions than planned.
        """
        total = max(int(self._widths.sum()), 1)
        realised = self._widths / total
        planned = self._stream.planned_shares(step)
        metrics = {"data/mixture_error": float(np.abs(realised - planned).sum() / 2)}
        passes = self._stream.passes(step)
        for name, share, plan, count in zip(self._names, realised, planned, passes, strict=True):
            metrics[f"data/share/{name}"] = float(share)
            metrics[f"data/planned_share/{name}"] = float(plan)
            metrics[f"data/passes/{name}"] = float(count)
        return metrics
