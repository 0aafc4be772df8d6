"""Work on many items in several processes: the data pipeline's one door to multiprocessing."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from data_pipeline.progress import track
from hyperadapter.core.errors import DataError

__all__ = ["die_with_parent", "num_processes", "ordered_map", "parallel_map"]

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

_PR_SET_PDEATHSIG = 1
_BEGUN_PER_WORKER = 2  # of an iterator's items, begun and not yet handed out


def num_processes(wanted: int) -> int:
    """Returns how many processes to use: `wanted`, or one for each core if it is 0."""
    return wanted or len(os.sched_getaffinity(0))


def die_with_parent() -> None:
    """Makes this process end with the one that started it, and leaves Ctrl-C to that one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None  # what calls this was started by multiprocessing
    if os.getppid() != parent.pid:  # it died while this process began, before the kernel was asked
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def parallel_map(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], task: str, workers: int = 0
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yields every item with `function(item)`, in the order in which they are done.

    Give the largest items first. With one process, or one item, all is done in this process.

    Args:
        function: A function at the top level of a module, whose argument and result can be pickled.
        items: What to work on.
        task: What is being done, for the progress, such as "cleaning".
        workers: Processes; 0 means one for each core.

    Raises:
        DataError: A process died.
        Exception: What the function raised; no further item is begun.
    """
    yield from track(_map(function, items, task, workers), len(items), task)


def _map(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], task: str, workers: int
) -> Iterator[tuple[ItemT, ResultT]]:
    count = min(num_processes(workers), len(items))
    if count <= 1:
        for item in items:
            yield item, function(item)
        return
    with _executor(count, task, "a lower data.num_workers", die_with_parent) as executor:
        waiting: dict[Future[ResultT], ItemT] = {
            executor.submit(function, item): item for item in items
        }
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()


def ordered_map(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    task: str,
    workers: int,
    begin: Callable[[int], None],
    remedy: str,
) -> Iterator[ResultT]:
    """Yields `function(item)` in the order of the items.

    The items of a sequence are all begun at once, and worked on however long the caller is busy
    with a result. Of an iterator few are held at a time: two for each process are under way. What
    is done is handed out before the next item is waited for.

    Args:
        function: As in `parallel_map`.
        items: What to work on, however many; they are taken in this process.
        task: What is being done, for errors.
        workers: Processes.
        begin: What each process does first, given its number from 0; it can be pickled.
        remedy: What to run with if a process dies again, such as "fewer --processes".

    Raises:
        DataError: A process died.
        Exception: What the function, `begin` or the items raised, after the results of all items
            before; no further item is begun.
    """
    numbers = multiprocessing.get_context("spawn").SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    room = len(items) if isinstance(items, Sequence) else _BEGUN_PER_WORKER * workers
    begun: deque[Future[ResultT]] = deque()
    with _executor(workers, task, remedy, _begin, numbers, begin) as executor:
        for future in _submit(executor, function, items):
            begun.append(future)
            while begun and (len(begun) >= room or begun[0].done()):
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def _submit(
    executor: ProcessPoolExecutor, function: Callable[[ItemT], ResultT], items: Iterable[ItemT]
) -> Iterator[Future[ResultT]]:
    """Begins the items as they are asked for. What ends them too early takes its turn: it is the
    outcome of a last one."""
    try:
        for item in items:
            yield executor.submit(_work, function, item)
    except Exception as error:
        failed: Future[ResultT] = Future()
        failed.set_exception(error)
        yield failed


# What kept this process from beginning; the executor would only say that it is broken.
_problem: Exception | None = None


def _begin(numbers: Any, begin: Callable[[int], None]) -> None:
    global _problem
    die_with_parent()
    try:
        begin(numbers.get())
    except Exception as error:
        _problem = error


def _work(function: Callable[[ItemT], ResultT], item: ItemT) -> ResultT:
    if _problem is not None:
        raise _problem
    return function(item)


@contextmanager
def _executor(
    count: int, task: str, remedy: str, initializer: Callable[..., None], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Yields processes that end with the block, at once if it ends by an error."""
    executor = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=initializer,
        initargs=arguments,
    )
    try:
        yield executor
    except BrokenProcessPool as error:
        raise DataError(
            f"{task}: a worker process died, perhaps because memory ran out; run the same command "
            f"again, with {remedy} if it happens twice"
        ) from error
    except BaseException:
        # Else leaving would wait for what the processes are at (Python 3.14: terminate_workers).
        for process in list(executor._processes.values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)
