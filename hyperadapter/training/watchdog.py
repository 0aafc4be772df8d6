"""Ends a process that makes no progress, after showing where it stands."""

from __future__ import annotations

import faulthandler
from types import TracebackType
from typing import Self

__all__ = ["Watchdog"]

_STDERR = 2  # the file, whatever sys.stderr is


class Watchdog:
    """Ends this process if it is not touched for `seconds`; 0: never.

    The stacks of all threads go to stderr, and the exit code is 1. The timer is C code that needs
    no interpreter, so it also sees a process that hangs inside a library. A rank that hangs keeps
    the others waiting in a collective, so their watchdogs end them too.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> Self:
        self.touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Watches no more."""
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def touch(self) -> None:
        """Says that there was progress."""
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=_STDERR)
