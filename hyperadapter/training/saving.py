"""Checkpoints that are written while training goes on.

    every rank   copies its pieces to host memory                       training waits for this only
    every rank   writes them, in a thread
    main rank    joins the weights, writes checksums, gives the checkpoint its name, in a thread

The ranks agree between two steps on how far all of them are, and only while something is written:
threads take part in no collective. A rank that cannot write ends the run on all ranks.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hyperadapter.checkpoint import layout
from hyperadapter.checkpoint.pieces import Piece, join_weights, optimizer_files, write_pieces
from hyperadapter.checkpoint.weights import WeightsInfo, save_weights
from hyperadapter.config import CheckpointConfig
from hyperadapter.core.errors import CheckpointError, HyperAdapterError
from hyperadapter.core.files import translate_disk_full
from hyperadapter.training.meters import Progress
from hyperadapter.training.world import World
from hyperadapter.training.zero import ZeroState

__all__ = ["Saver"]

log = logging.getLogger(__name__)


class Saver:
    """Saves the checkpoints of a run, one at a time.

    Args:
        world: All ranks.
        run_dir: The run folder.
        config: What is kept.

    Attributes:
        saved_step: Step of the newest complete checkpoint, 0 without one; the same on all ranks.
        blocked_s: Seconds that training has waited; the reader may set it back.
    """

    def __init__(self, world: World, run_dir: Path, config: CheckpointConfig) -> None:
        self.saved_step = 0
        self.blocked_s = 0.0
        self._world = world
        self._run_dir = run_dir
        self._config = config
        self._copy = _HostCopy()
        self._thread = threading.Thread()
        self._error: HyperAdapterError | None = None
        self._step = 0
        self._part = Path()
        # What the main rank does when all ranks have written; None when nothing is under way.
        self._commit: Callable[[], None] | None = None
        self._committing = False

    def start(
        self,
        step: int,
        state: ZeroState,
        info: WeightsInfo,
        progress: Progress,
        values: Mapping[str, str | int],
    ) -> None:
        """Begins a checkpoint; every rank must call it.

        Args:
            step: Optimizer steps done.
            state: Of this rank.
            info: Metadata of the weights.
            progress: What training has cost.
            values: The manifest's other entries, see `layout.commit`.

        Raises:
            DiskFullError, CheckpointError: The one before it could not be written, or this one if
                `background` is off.
        """
        self.finish()
        started = time.monotonic()
        self._step, rank = step, self._world.rank
        self._part = layout.checkpoint_folder(self._run_dir, step).with_suffix(".part")
        self._world.from_main(lambda: self._make_folder(progress))
        own = (piece.share(rank, self._world.size) for piece in state.pieces())
        pieces, steps = self._copy.take(own), state.steps
        self.blocked_s += time.monotonic() - started
        self._commit = lambda: self._complete(info, values)
        self._committing = False
        size = self._world.size
        self._run(lambda: write_pieces(self._part, rank, size, pieces, steps))
        if not self._config.background:
            self.finish()

    def advance(self) -> None:
        """Goes on with what is under way, if all ranks are ready; every rank must call it.

        Raises:
            DiskFullError, CheckpointError: On all ranks, if one of them could not write.
        """
        if self._commit is None or self._world.any(self._thread.is_alive()):
            return
        if self._world.any(self._error is not None):
            self._give_up()
        if not self._committing:
            self._committing = True
            if self._world.is_main:
                self._run(self._commit)
            return
        self._commit = None
        self.saved_step = self._step

    def finish(self) -> None:
        """Waits until nothing is under way; every rank must call it.

        Raises:
            DiskFullError, CheckpointError: As `advance`.
        """
        started = time.monotonic()
        while self._commit is not None:
            self._join()
            self._world.barrier()
            self.advance()
        self.blocked_s += time.monotonic() - started

    def _join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        """Runs something in a thread; its error is kept."""
        place = self._part

        def guarded() -> None:
            try:
                with translate_disk_full(place):
                    work()
            except HyperAdapterError as error:
                self._error = error
            except Exception as error:  # whatever it is, the other ranks must learn of it
                log.exception("saving %s failed", place)
                self._error = CheckpointError(
                    f"{place} cannot be written: {type(error).__name__}: {error}"
                )

        self._thread = threading.Thread(target=guarded, name="saving", daemon=True)
        self._thread.start()

    def _give_up(self) -> None:
        errors = self._world.gather(self._error)
        self._commit, self._error = None, None
        if self._world.is_main:
            shutil.rmtree(self._part, ignore_errors=True)
        self._world.barrier()
        raise next(error for error in errors if error is not None)

    def _make_folder(self, progress: Progress) -> None:
        with translate_disk_full(self._part):
            layout.new_part_folder(self._run_dir, self._step)
            progress.save(self._part)

    def _complete(self, info: WeightsInfo, values: Mapping[str, str | int]) -> None:
        ranks = self._world.size
        weights = join_weights(self._part, ranks)
        save_weights(self._part / layout.WEIGHTS_FILE, weights, info.to_metadata())
        names = optimizer_files(ranks)
        folder = layout.commit(self._part, step=self._step, values=values, names=names)
        layout.prune(self._run_dir, self._config)
        log.info("saved %s", folder)


class _HostCopy:
    """Memory for one copy of a rank's pieces; it is taken once and used for every checkpoint."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Copies pieces to the host as fp32; they are valid until the next call."""
        live = list(pieces)
        tensors = [tensor for piece in live for tensor in (piece.weight, *piece.moments.values())]
        numel = sum(tensor.numel() for tensor in tensors)
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if self._buffer.numel() != numel:
            self._buffer = torch.empty(numel, pin_memory=on_gpu)
        room = iter(torch.split(self._buffer, [tensor.numel() for tensor in tensors]))
        copies = [
            piece._replace(
                weight=_copied(piece.weight, next(room)),
                moments={key: _copied(value, next(room)) for key, value in piece.moments.items()},
            )
            for piece in live
        ]
        if on_gpu:
            torch.cuda.synchronize()
        return copies


def _copied(value: Tensor, room: Tensor) -> Tensor:
    return room.copy_(value, non_blocking=True)
