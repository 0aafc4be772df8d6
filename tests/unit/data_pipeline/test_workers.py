"""Work in several processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from data_pipeline.workers import num_processes, ordered_map, parallel_map
from hyperadapter.core.errors import DataError, LostBlockError


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
    assert max(ahead) <= 4  # two for each process
    assert ahead[10] == 4  # also while the caller is busy
    places = {(number, process) for _, number, process in found}
    assert {number for number, _ in places} <= {0, 1}
    assert len({number for number, _ in places}) == len(places)
    assert os.getpid() not in {process for _, process in places}


def test_errors_and_deaths_come_in_order() -> None:
    results = ordered_map(fail_at_three, range(6), "failing", 2, keep_number, "less")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LostBlockError, match=r"x.tar: is cut off"):
        next(results)
    with pytest.raises(DataError, match=r"dying: a worker process died.*, with less if it happens"):
        list(ordered_map(die, range(6), "dying", 2, keep_number, "less"))


def test_an_error_of_the_items_comes_through_and_no_process_stays() -> None:
    def items() -> Iterator[int]:
        yield from range(6)
        raise LostBlockError(7, "x.tar", "is cut off", "copy it again")

    results = ordered_map(with_number, items(), "x", 2, keep_number, "less")
    _, _, process = next(results)
    with pytest.raises(LostBlockError):
        list(results)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_who_stops_early_leaves_no_process_behind() -> None:
    results = ordered_map(with_number, iter(range(10**9)), "x", 2, keep_number, "less")
    _, _, process = next(results)
    results.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
