"""Batches ahead of time: prepared by a thread, or by processes, while the model works.

Steps are pure functions of their number, so the number of processes changes nothing but speed: the
chunks of the plan go round the processes in turn. A process that dies is started again at the step
that is wanted. Nothing waits for ever: a batch that does not come ends the run with an error.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from data_pipeline.config import DataConfig
from data_pipeline.stream.streams import StepBatches, TrainStream
from data_pipeline.workers import die_with_parent
from hyperadapter.core.errors import DataError

__all__ = ["StoppedWaitingError", "iter_batches"]

log = logging.getLogger(__name__)

_PREFETCH_STEPS = 4
_POLL_S = 0.2
_WARN_EVERY_S = 30.0
_MAX_RESTARTS = 3
_STEPS_OF_A_GOOD_RESTART = 100
_STOP_S = 5.0

Item = StepBatches | BaseException


class StoppedWaitingError(Exception):
    """A batch was not there yet when somebody asked to give up."""


def iter_batches(
    stream: TrainStream, first_step: int, give_up: Callable[[], bool] = lambda: False
) -> Generator[StepBatches, None, None]:
    """Yields the batches of `first_step`, `first_step + 1`, ... without end.

    Closing the iterator stops what works for it.

    Args:
        stream: This rank's data.
        first_step: Where to begin.
        give_up: Asked while a batch is waited for.

    Raises:
        LostBlocksError: As `TrainStream.step`.
        DataError: A batch did not come within `data.stream.stall_s`, or a process died too often.
        StoppedWaitingError: `give_up` said so.
    """
    count = stream.config.stream.workers
    lanes: list[_Lane]
    if count:
        lanes = [_ProcessLane(stream, number, count) for number in range(count)]
    else:
        lanes = [_ThreadLane(stream)]
    started: list[_Lane] = []
    try:
        for lane in lanes:
            lane.start(first_step)
            started.append(lane)
        step = first_step
        while True:
            lane = lanes[stream.plan.chunk_of(step) % len(lanes)]
            item = _wait(lane, step, stream.config.stream.stall_s, give_up)
            if isinstance(item, BaseException):
                raise item
            yield item
            step += 1
    finally:
        for lane in started:
            lane.stop()


class _Lane(Protocol):
    """Prepares the batches of some chunks in order."""

    def start(self, step: int) -> None:
        """Begins with the first step of its chunks that is not before `step`."""

    def get(self, step: int, timeout_s: float) -> Item:
        """Returns its next batch, or what went wrong; raises `queue.Empty` after a while."""

    def stop(self) -> None:
        """Ends the work; what is prepared is lost."""


def _wait(lane: _Lane, step: int, stall_s: float, give_up: Callable[[], bool]) -> Item:
    started = warned = time.monotonic()
    while True:
        try:
            return lane.get(step, _POLL_S)
        except queue.Empty:
            if give_up():
                raise StoppedWaitingError from None
            now = time.monotonic()
            if now - started > stall_s:
                raise DataError(
                    f"the batches of step {step} did not come within data.stream.stall_s "
                    f"{stall_s:g} s: the disk or server of the shards is stuck or far too slow. "
                    "The same command resumes from the last checkpoint"
                ) from None
            if now - warned > _WARN_EVERY_S:
                warned = now
                log.warning("waiting for the data of step %d since %.0f s", step, now - started)


class _ThreadLane:
    """All chunks, in a thread of this process."""

    def __init__(self, stream: TrainStream) -> None:
        self._stream = stream
        self._ready: queue.Queue[Item] = queue.Queue(_PREFETCH_STEPS)
        self._stop = threading.Event()

    def start(self, step: int) -> None:
        thread = threading.Thread(
            target=self._work, args=(step,), name="data-prefetch", daemon=True
        )
        self._thread = thread
        thread.start()

    def _work(self, step: int) -> None:
        try:
            while not self._stop.is_set():
                _put(self._ready, self._stream.step(step), self._stop)
                step += 1
        except BaseException as error:
            _put(self._ready, error, self._stop)

    def get(self, step: int, timeout_s: float) -> Item:
        return self._ready.get(timeout=timeout_s)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(_STOP_S)  # it may be stuck in a read that never ends


def _put(ready: queue.Queue[Item], item: Item, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_S)
            return
        except queue.Full:
            continue


@dataclass(frozen=True)
class _Job:
    """What a process needs to make the same stream."""

    folder: Path
    config: DataConfig
    micro_batch_tokens: int
    micro_batches_per_step: int
    seed: int
    rank: int
    world_size: int
    quarantined: dict[int, int]
    lane: int
    lanes: int

    def build(self) -> TrainStream:
        stream = TrainStream(
            self.folder,
            self.config,
            micro_batch_tokens=self.micro_batch_tokens,
            micro_batches_per_step=self.micro_batches_per_step,
            seed=self.seed,
            rank=self.rank,
            world_size=self.world_size,
        )
        stream.quarantine(self.quarantined, {})
        return stream


class _ProcessLane:
    """Every so many-th chunk, in a process of its own."""

    def __init__(self, stream: TrainStream, number: int, lanes: int) -> None:
        self._job = _Job(
            folder=stream.folder,
            config=stream.config,
            micro_batch_tokens=stream.shape.micro_batch_tokens,
            micro_batches_per_step=stream.shape.micro_batches_per_step,
            seed=stream.seed,
            rank=stream.rank,
            world_size=stream.world_size,
            quarantined=stream.quarantined,
            lane=number,
            lanes=lanes,
        )
        self._restarts = self._good_steps = 0

    def start(self, step: int) -> None:
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_serve, args=(self._job, step, sender), daemon=True, name="data-worker"
        )
        self._process.start()
        sender.close()  # so that the end of the process is the end of the pipe
        self._ready: queue.Queue[Item] = queue.Queue(_PREFETCH_STEPS)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_receive, args=(receiver, self._ready, self._stop), daemon=True
        )
        self._thread.start()

    def get(self, step: int, timeout_s: float) -> Item:
        item = self._ready.get(timeout=timeout_s)
        if not isinstance(item, EOFError):
            self._good_steps += 1
            if self._good_steps == _STEPS_OF_A_GOOD_RESTART:
                self._restarts = 0
            return item
        self._process.join(_STOP_S)
        died = f"data worker {self._job.lane} died with exit code {self._process.exitcode}"
        if self._restarts >= _MAX_RESTARTS:
            return DataError(
                f"{died} for the {self._restarts + 1}th time, perhaps because memory ran out; "
                "lower data.stream.memory_bytes or data.stream.workers. The same command resumes"
            )
        self._restarts, self._good_steps = self._restarts + 1, 0
        log.warning("%s; starting it again at step %d", died, step)
        self.stop()
        self.start(step)
        raise queue.Empty

    def stop(self) -> None:
        self._stop.set()
        self._process.terminate()
        self._process.join(_STOP_S)
        if self._process.is_alive():  # stopped, or stuck in a read
            self._process.kill()
            self._process.join(_STOP_S)
        self._thread.join(_STOP_S)


def _receive(receiver: Connection, ready: queue.Queue[Item], stop: threading.Event) -> None:
    with receiver:
        while not stop.is_set():
            try:
                item = receiver.recv()
            except (EOFError, OSError):
                item = EOFError()
            _put(ready, item, stop)
            if isinstance(item, BaseException):
                return


def _serve(job: _Job, step: int, sender: Connection) -> None:
    """Sends the batches of every so many-th chunk; runs in a process of its own."""
    die_with_parent()
    try:
        stream = job.build()
        while True:
            chunk = stream.plan.chunk_of(step)
            if chunk % job.lanes == job.lane:
                sender.send(stream.step(step))
                step += 1
            else:
                step = stream.plan.steps_of(chunk).stop
    except BrokenPipeError:
        pass  # nobody wants more
    except BaseException as error:
        sender.send(error)
