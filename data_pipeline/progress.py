"""Progress of long work: a bar when stderr is a terminal, log lines when it is not."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["quiet", "track"]

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
_LOG_EVERY_S = 10.0
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps `track` silent, where the parts of a work are nobody's business but the caller's."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def track(items: Iterable[ItemT], total: int, task: str) -> Iterator[ItemT]:
    """Yields the items and reports how many of `total` are done.

    Args:
        items: What to work on; an item counts as done when the next one is asked for.
        total: How many there are.
        task: What is being done, such as "cleaning".
    """
    if _QUIET.get():
        yield from items
        return
    if sys.stderr.isatty():
        from rich.console import Console  # only a terminal needs it
        from rich.progress import track as rich_track

        yield from rich_track(
            items, task, total=total, console=Console(stderr=True), transient=True
        )
        return
    started = reported = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == total or now - reported >= _LOG_EVERY_S:
            reported = now
            log.info("%s: %d of %d in %.1f s", task, done, total, now - started)
