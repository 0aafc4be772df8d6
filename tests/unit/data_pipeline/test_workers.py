"""Work in several processes."""

from __future__ import annotations

import os

import pytest

from data_pipeline.workers import num_processes, parallel_map
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
