"""Work in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from data_pipeline.workers import num_processes, ordered_map, parallel_map
from hyperadapter.core.errors import ConfigError, DataError, LostBlockError


def square(number: int) -> int:
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise LostBlockError(7, "x.tar", "is cut off", "copy it again")
    return number


def die(number: int) -> int:
    if number == 2:
        os._exit(9)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_once(workers: int) -> None:
    found = dict(parallel_map(square, range(20), "squaring", workers))
    assert found == {number: number * number for number in range(20)}


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_through_whole(workers: int) -> None:
    with pytest.raises(LostBlockError, match=r"x.tar: is cut off; copy it again") as caught:
        list(parallel_map(fail_at_three, range(6), "failing", workers))
    assert (caught.value.block, caught.value.shard) == (7, "x.tar")


def test_a_process_that_dies_is_named() -> None:
    with pytest.raises(DataError, match=r"dying: a worker process died, perhaps because memory"):
        list(parallel_map(die, range(6), "dying", 2))


def test_one_process_for_each_core() -> None:
    assert num_processes(0) == len(os.sched_getaffinity(0))
    assert num_processes(3) == 3


NUMBER = -1


def keep_number(number: int) -> None:
    global NUMBER
    NUMBER = number


def with_number(item: int) -> tuple[int, int, int]:
    time.sleep(0.02 if item % 2 else 0.0)  # results are not ready in order
    return item, NUMBER, os.getpid()


def test_order_is_kept_and_few_items_are_taken() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(30):
            taken.append(item)
            yield item

    found, ahead = [], []
    for result in ordered_map(with_number, items(), "working", 2, keep_number, "less"):
        found.append(result)
        ahead.append(len(taken) - len(found))
    assert [item for item, _, _ in found] == list(range(30))
    assert max(ahead) == 3  # two for each process, less the one that is handed out
    places = {(number, process) for _, number, process in found}
    assert {number for number, _ in places} <= {0, 1}
    assert len({number for number, _ in places}) == len(places)
    assert os.getpid() not in {process for _, process in places}


def mark(folder: Path, item: int) -> int:
    (folder / str(item)).touch()
    return item


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_result_does_not_wait_for_many_more_items(tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:  # as from a slow pipe
        for item in range(30):
            taken.append(item)
            yield item
            wait_for((tmp_path / str(item)).exists)
            time.sleep(0.1)

    results = ordered_map(partial(mark, tmp_path), items(), "x", 4, keep_number, "less")
    assert next(results) == 0
    assert len(taken) < 8  # although two for each process may be under way
    results.close()  # type: ignore[attr-defined]


def test_a_sequence_is_worked_on_while_the_caller_is_busy(tmp_path: Path) -> None:
    results = ordered_map(partial(mark, tmp_path), range(20), "x", 2, keep_number, "less")
    assert next(results) == 0
    wait_for(lambda: len(list(tmp_path.iterdir())) == 20)
    assert list(results) == list(range(1, 20))


def refuse(number: int) -> None:
    raise ConfigError("there is no GPU 7")


def test_what_keeps_a_process_from_beginning_is_said() -> None:
    with pytest.raises(ConfigError, match="there is no GPU 7"):
        list(ordered_map(square, range(6), "x", 2, refuse, "less"))


def test_errors_and_deaths_come_in_order() -> None:
    results = ordered_map(fail_at_three, range(6), "failing", 2, keep_number, "less")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LostBlockError, match=r"x.tar: is cut off"):
        next(results)
    with pytest.raises(DataError, match=r"dying: a worker process died.*, with less if it happens"):
        list(ordered_map(die, range(6), "dying", 2, keep_number, "less"))


def test_an_error_of_the_items_comes_after_what_was_begun_and_no_process_stays() -> None:
    def items() -> Iterator[int]:
        yield from range(6)
        raise LostBlockError(7, "x.tar", "is cut off", "copy it again")

    results = ordered_map(with_number, items(), "x", 4, keep_number, "less")
    found = [next(results) for _ in range(6)]
    assert [item for item, _, _ in found] == list(range(6))
    with pytest.raises(LostBlockError):
        next(results)
    for _, _, process in found:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_who_stops_early_leaves_no_process_behind() -> None:
    results = ordered_map(with_number, iter(range(10**9)), "x", 2, keep_number, "less")
    _, _, process = next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


# The child asks to die with its parent only once that is dead.
ORPHAN = """
import multiprocessing, os, signal, sys, time
from data_pipeline.workers import die_with_parent

def work(parent, began):
    open(began, "w").close()
    while os.getppid() == parent:
        time.sleep(0.01)
    die_with_parent()
    print("survived", flush=True)

if __name__ == "__main__":
    arguments = (os.getpid(), sys.argv[1])
    multiprocessing.get_context("spawn").Process(target=work, args=arguments).start()
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_whose_parent_died_while_it_began_ends(tmp_path: Path) -> None:
    (tmp_path / "orphan.py").write_text(ORPHAN)
    command = [sys.executable, str(tmp_path / "orphan.py"), str(tmp_path / "began")]
    # Returns when the child has closed its end of the pipe as well.
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""
