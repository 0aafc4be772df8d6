"""The event file of a run folder: what happened, one JSON object a line, in order of time.

`events.jsonl` is the truth about a run's metrics; MLflow gets a copy (hyperadapter/tracking).
`tracking.json` beside it remembers how far that has come. Both survive a crash at any point: a
half-written line is ended when the file is opened again, and skipped by who reads; the offset is
replaced atomically. Several processes may write, because a line is one append.

Every event has `time_ms` and one of:

    {"step": 10, "metrics": {"train/loss": 7.1}}  NaN and infinity are texts: "nan", "inf", "-inf"
    {"status": "RUNNING", "reason": ""}           or FINISHED, FAILED, KILLED; why, where known
    {"params": {...}}, {"tags": {...}}            facts about the run
    {"artifact": "plots/bleu.png", "folder": ""}  a file, relative to the run folder if inside
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hyperadapter.core.errors import DataError
from hyperadapter.core.files import read_json, translate_disk_full, write_json

__all__ = [
    "EVENTS_FILE",
    "STATE_FILE",
    "Event",
    "EventWriter",
    "SendState",
    "count_events",
    "newest_event",
    "newest_metric",
    "read_events",
    "read_metric",
]

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
STATE_FILE = "tracking.json"

_BLOCK_BYTES = 1 << 20


class Event(NamedTuple):
    """One line of the event file.

    Attributes:
        value: The object; empty where the line is damaged.
        end: The byte offset behind the line.
    """

    value: dict[str, Any]
    end: int


class EventWriter:
    """Appends events to a run folder's file; safe to use from several threads.

    Raises:
        DiskFullError: The disk is full.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVENTS_FILE
        self._lock = threading.Lock()
        with translate_disk_full(self._path):
            run_dir.mkdir(parents=True, exist_ok=True)
            # Without a buffer a line is one append, and none is kept back that did not fit.
            self._stream = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        self._torn = _ends_in_half_a_line(self._path)
        if self._torn:
            log.warning("%s: it ends in a half-written event, which is left out", self._path)

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._stream.closed

    def write(self, **fields: Any) -> None:
        """Appends one event, by default with the time of now; others see it at once."""
        event = {"time_ms": time.time_ns() // 1_000_000, **fields}
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._lock, translate_disk_full(self._path):
            # Never cut the file: another process may have written behind the half line.
            left = memoryview(b"\n" + line if self._torn else line)
            size = len(left)
            try:
                while left:
                    left = left[self._stream.write(left) :]
            finally:
                if len(left) < size:
                    self._torn = len(left) > 0

    def write_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends numbers of one step; NaN and infinity, which JSON lacks, become text."""
        numbers: dict[str, float | str] = {}
        for key, value in metrics.items():
            number = float(value)
            numbers[key] = number if math.isfinite(number) else str(number)
        self.write(step=int(step), metrics=numbers)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._stream.close()


def _ends_in_half_a_line(path: Path) -> bool:
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return stream.read(1) not in (b"", b"\n")


def read_events(run_dir: Path, offset: int = 0) -> Iterator[Event]:
    """Yields the events from a byte offset on; a line still being written is left out."""
    with open(run_dir / EVENTS_FILE, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield Event(_parse(line), offset)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:  # not JSON, or not even UTF-8
        value = {}
    return value if isinstance(value, dict) else {}


def count_events(run_dir: Path, offset: int = 0) -> int:
    """Returns the number of whole lines from a byte offset on, without a look into them."""
    with open(run_dir / EVENTS_FILE, "rb") as stream:
        stream.seek(offset)
        return sum(block.count(b"\n") for block in iter(partial(stream.read, _BLOCK_BYTES), b""))


def newest_event(run_dir: Path, key: str) -> dict[str, Any]:
    """Returns the newest event that has a key, such as "status"; empty if there is none."""
    needle = json.dumps(key).encode()
    for line in _lines_from_the_end(run_dir / EVENTS_FILE):
        if needle in line and key in (event := _parse(line)):
            return event
    return {}


def newest_metric(run_dir: Path, name: str) -> tuple[int, float] | None:
    """Returns the step and the value of a metric's newest event; None if there is none."""
    needle = json.dumps(name, ensure_ascii=False).encode()
    for line in _lines_from_the_end(run_dir / EVENTS_FILE):
        if needle in line and name in (event := _parse(line)).get("metrics", {}):
            return int(event["step"]), float(event["metrics"][name])
    return None


def _lines_from_the_end(path: Path) -> Iterator[bytes]:
    """Yields the whole lines of a file, the last one first."""
    with open(path, "rb") as stream:
        start = stream.seek(0, os.SEEK_END)
        first: bytes | None = None  # the first line of what was read, which may go on before it
        while start:
            end, start = start, max(0, start - _BLOCK_BYTES)
            stream.seek(start)
            lines = (stream.read(end - start) + (first or b"")).split(b"\n")
            if first is None:
                lines[-1] = b""  # a line still being written
            yield from reversed(lines[1:])
            first = lines[0]
        if first:
            yield first


def read_metric(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Returns a metric as (step, value); of a step that was repeated after a resume, the last."""
    needle = json.dumps(name, ensure_ascii=False).encode()
    values = {}
    with open(run_dir / EVENTS_FILE, "rb") as stream:
        for line in stream:
            if needle in line and line.endswith(b"\n"):  # to parse all of a long file takes minutes
                event = _parse(line)
                if name in event.get("metrics", {}):
                    values[event["step"]] = float(event["metrics"][name])
    return sorted(values.items())


@dataclass(frozen=True, slots=True)
class SendState:
    """How far a run folder's events have been sent, and where to.

    Attributes:
        key: Our own name of the run at the receiver, made before the run is.
        name: What the run is called.
        experiment: The group of runs that it is in.
        uri: Address of the receiver, without password.
        run_id: The receiver's name of the run; empty until it is made.
        sent_bytes: All events before this offset have been received.
        parent: Key of the run that this one is shown below; empty: none.
    """

    key: str
    name: str
    experiment: str
    uri: str
    run_id: str = ""
    sent_bytes: int = 0
    parent: str = ""

    @staticmethod
    def load(run_dir: Path) -> SendState | None:
        """Reads the state of a run folder, if it has one.

        Raises:
            DataError: The file is damaged.
        """
        path = run_dir / STATE_FILE
        if not path.exists():
            return None
        try:
            return SendState(**read_json(path))
        except TypeError as error:
            raise DataError(
                f"{path} is not what was written ({error}); delete it, and a new MLflow run gets "
                "all events from the start"
            ) from error

    def save(self, run_dir: Path) -> None:
        """Replaces the state of a run folder."""
        write_json(run_dir / STATE_FILE, asdict(self))
