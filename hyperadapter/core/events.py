"""The event file of a run folder: what happened, one JSON object a line, in order of time.

`events.jsonl` is the truth about a run's metrics; MLflow gets a copy (hyperadapter/tracking.py).
`tracking.json` beside it remembers how far that has come. Both survive a crash at any point: a
half-written line is dropped when the file is opened again, the offset is replaced atomically.

Every event has `time_ms` and one of:

    {"step": 10, "metrics": {"train/loss": 7.1}}  NaN and infinity are texts: "nan", "inf", "-inf"
    {"status": "RUNNING"}                         or FINISHED, FAILED, KILLED
    {"params": {...}}, {"tags": {...}}            facts about the run
    {"artifact": "plots/bleu.png", "folder": ""}  a file, relative to the run folder if inside
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hyperadapter.core.files import read_json, translate_disk_full, write_json

__all__ = [
    "EVENTS_FILE",
    "STATE_FILE",
    "Event",
    "EventWriter",
    "SendState",
    "read_events",
    "read_metric",
]

log = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
STATE_FILE = "tracking.json"


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
            self._stream = open(self._path, "ab+")  # noqa: SIM115 (lives as long as the writer)
            self._drop_half_line()

    def _drop_half_line(self) -> None:
        self._stream.seek(0)
        whole = 0
        for line in self._stream:
            if line.endswith(b"\n"):
                whole += len(line)
            else:
                log.warning("%s: dropped a half-written event of %d bytes", self._path, len(line))
        self._stream.truncate(whole)

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._stream.closed

    def write(self, **fields: Any) -> None:
        """Appends one event with the time of now; other processes see it at once."""
        event = {"time_ms": time.time_ns() // 1_000_000, **fields}
        line = json.dumps(event, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._lock, translate_disk_full(self._path):
            self._stream.write(line)
            self._stream.flush()

    def write_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Appends numbers of one step; NaN and infinity, which JSON lacks, become text."""
        numbers = {key: float(value) for key, value in metrics.items()}
        texts = {key: str(number) for key, number in numbers.items() if not math.isfinite(number)}
        self.write(step=int(step), metrics=numbers | texts)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._stream.close()


def read_events(run_dir: Path, offset: int = 0) -> Iterator[Event]:
    """Yields the events from a byte offset on; a line still being written is left out."""
    with open(run_dir / EVENTS_FILE, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                value = json.loads(line)
            except ValueError:  # not JSON, or not even UTF-8
                value = {}
            yield Event(value if isinstance(value, dict) else {}, offset)


def read_metric(run_dir: Path, name: str) -> list[tuple[int, float]]:
    """Returns a metric as (step, value); of a step that was repeated after a resume, the last."""
    values = {
        event.value["step"]: float(event.value["metrics"][name])
        for event in read_events(run_dir)
        if name in event.value.get("metrics", {})
    }
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
    """

    key: str
    name: str
    experiment: str
    uri: str
    run_id: str = ""
    sent_bytes: int = 0

    @staticmethod
    def load(run_dir: Path) -> SendState | None:
        """Reads the state of a run folder, if it has one."""
        path = run_dir / STATE_FILE
        return SendState(**read_json(path)) if path.exists() else None

    def save(self, run_dir: Path) -> None:
        """Replaces the state of a run folder."""
        write_json(run_dir / STATE_FILE, asdict(self))
