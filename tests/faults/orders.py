"""What the harness asks of the ranks, and what they did: files in one folder.

    orders.json         all orders of a campaign; the ranks look at it before each step
    done-<id>.json      step, rank and time at which an order was carried out

A rank marks an order as done before it carries it out, so that no restart repeats it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["FOLDER_VARIABLE", "Inbox", "Order", "done", "give"]

FOLDER_VARIABLE = "HYPERADAPTER_FAULTS"
_ORDERS = "orders.json"


@dataclass(frozen=True)
class Order:
    """One thing that a rank does to itself.

    Attributes:
        id: Unique in a campaign.
        rank: Who does it.
        point: Where, see `command.py`.
        action: What, see `command.py`.
        step: The first step, counted from 1, at which it is done.
        steps: It goes on for so many steps; 0: it is done once; -1: at that step, every time.
        skip: Passes of the point that are left alone first.
    """

    id: str
    rank: int
    point: str
    action: str
    step: int
    steps: int = 0
    skip: int = 0


def give(folder: Path, orders: Sequence[Order]) -> None:
    """Replaces the orders of a campaign."""
    part = folder / f"{_ORDERS}.new"
    part.write_text(json.dumps([asdict(order) for order in orders]))
    os.replace(part, folder / _ORDERS)


def _mark(folder: Path, order: Order) -> Path:
    return folder / f"done-{order.id}.json"


def done(folder: Path, order: Order) -> dict[str, Any] | None:
    """Returns step, rank and time of an order that was carried out, else None."""
    try:
        value: dict[str, Any] = json.loads(_mark(folder, order).read_text())
    except FileNotFoundError:
        return None
    return value


class Inbox:
    """A rank's view of its orders."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._read_ns = 0
        self._orders: list[Order] = []
        self._passes: dict[str, int] = {}

    def _refresh(self) -> None:
        try:
            changed_ns = (self._folder / _ORDERS).stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns != self._read_ns:
            tree = json.loads((self._folder / _ORDERS).read_text())
            self._orders = [Order(**item) for item in tree if item["rank"] == self._rank]
            self._read_ns = changed_ns

    def due(self, point: str, step: int) -> Order | None:
        """Returns what is to be done now, and marks it."""
        self._refresh()
        for order in self._orders:
            if order.point == point and self._is_due(order, step):
                return order
        return None

    def _is_due(self, order: Order, step: int) -> bool:
        mark = _mark(self._folder, order)
        if order.steps < 0:
            if step != order.step:
                return False
        elif mark.exists():
            first = json.loads(mark.read_text())["step"]
            return bool(first <= step < first + order.steps)
        elif step < order.step:
            return False
        count = self._passes[order.id] = self._passes.get(order.id, 0) + 1
        if count <= order.skip:
            return False
        part = mark.with_suffix(".new")
        fact = {"step": step, "rank": self._rank, "time": time.time()}
        part.write_text(json.dumps(fact))
        os.replace(part, mark)
        return True
