"""Brings the events of a run folder to MLflow: in a thread while it trains, at once for `sync`.

What has arrived is remembered as a byte offset into the event file. Sending is idempotent, so that
a doubt is settled by sending again: MLflow stores one row for each (metric, step, value,
timestamp), and the timestamp is that of the event. Two senders of one folder (a compute node
without network and a `sync` on the login node) do no harm either.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hyperadapter.core.errors import DataError, DiskFullError
from hyperadapter.core.events import (
    EVENTS_FILE,
    STATE_FILE,
    SendState,
    count_events,
    read_events,
)
from hyperadapter.tracking.store import METRICS_PER_REQUEST, MlflowRun
from hyperadapter.tracking.uri import brief, redact

__all__ = ["Sender", "pending_events", "prepare_state"]

log = logging.getLogger(__name__)

_LONGEST_RETRY_S = 60.0
_SIGN_OF_LIFE_EVERY_S = 30.0
_PATIENCE_S = 5.0


def pending_events(run_dir: Path) -> int:
    """Returns the number of events in a run folder that are not in MLflow."""
    state = SendState.load(run_dir)
    return count_events(run_dir, state.sent_bytes if state is not None else 0)


def prepare_state(
    run_dir: Path, name: str, experiment: str, uri: str, key: str = "", parent: str = ""
) -> SendState:
    """Continues the state of a run folder, or begins one where the place has changed.

    The key stays the folder's: a place that was left and is used again has one run of it.

    Args:
        run_dir: The run folder.
        name: Of the run.
        experiment: Where it is shown.
        uri: A resolved tracking URI.
        key: Our name of the run; empty: as before, or drawn.
        parent: Key of the run that it is shown below; empty: as before.
    """
    old = SendState.load(run_dir)
    key = key or (old.key if old is not None else uuid.uuid4().hex)
    parent = parent or (old.parent if old is not None else "")
    if old is not None and (old.uri, old.experiment, old.key) == (redact(uri), experiment, key):
        if old.parent != parent:
            old = replace(old, parent=parent)
            old.save(run_dir)
        return old
    if old is not None and old.run_id:
        log.warning(
            "%s was tracked in experiment %r at %s and is now in %r at %s, which gets all events "
            "from the start",
            *(run_dir, old.experiment, old.uri, experiment, redact(uri)),
        )
    fresh = SendState(key, name, experiment, redact(uri), parent=parent)
    fresh.save(run_dir)
    return fresh


class Sender:
    """Sends the events of a run folder.

    Args:
        run_dir: The run folder; it has a state.
        uri: A resolved tracking URI, with its password.
        send_every_s: Pause between two looks at the event file, in the thread.
        shows_life: The thread sets the event file's time, as a sign that the run is alive.
    """

    def __init__(
        self, run_dir: Path, uri: str, send_every_s: float = 2.0, shows_life: bool = False
    ) -> None:
        self._run_dir = run_dir
        self._uri = uri
        self._send_every_s = send_every_s
        self._shows_life = shows_life
        self._shown_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._closing = threading.Event()
        self._last_words: Mapping[str, Any] = {}
        self._mlflow = MlflowRun(run_dir, uri)
        self._connected = False
        self._lost = False
        self._disk_full = False
        self._state = SendState("", "", "", "")

    # The thread.

    def start(self) -> None:
        """Starts sending in the background."""
        self._thread.start()

    def finish(self, timeout_s: float, last_words: Mapping[str, Any] | None = None) -> None:
        """Sends what is left and ends the thread, or leaves it after `timeout_s`.

        A server that was lost before gets a few seconds only.

        Args:
            timeout_s: The longest wait.
            last_words: A status event that could not be written into the file.
        """
        self._last_words = last_words or {}
        end = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(min(timeout_s, _PATIENCE_S))
        while self._thread.is_alive() and not self._lost and time.monotonic() < end:
            self._thread.join(0.1)

    def _run(self) -> None:
        pause_s = self._send_every_s
        while True:
            closing = self._closing.is_set()  # before sending, so that the last events are seen
            lost = self._lost
            try:
                self._show_life()
                waiting = pending_events(self._run_dir) if lost else 0
                for _ in self.send():
                    pass
                if closing and self._last_words:
                    self._mlflow.set_status(self._last_words)
            except Exception as error:  # whatever it is, training must go on
                self._tell_lost(error, again=lost)
                self._lost = True
                pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
            else:
                if lost:
                    place = redact(self._uri)
                    log.info("MLflow at %s is back; sent %d waiting events", place, waiting)
                self._lost = False
                pause_s = self._send_every_s
            if closing and (not self._lost or lost):
                return
            if closing:
                time.sleep(0.5)
            else:
                self._closing.wait(pause_s)

    def _tell_lost(self, error: Exception, again: bool) -> None:
        log.log(
            logging.DEBUG if again else logging.WARNING,
            "MLflow at %s cannot be reached (%s); training goes on, events are kept in %s and sent "
            "when it is back",
            *(redact(self._uri), brief(error), self._run_dir / EVENTS_FILE),
        )

    def _show_life(self) -> None:
        now = time.monotonic()
        if self._shows_life and now - self._shown_at >= _SIGN_OF_LIFE_EVERY_S:
            os.utime(self._run_dir / EVENTS_FILE)
            self._shown_at = now

    # Sending.

    def send(self) -> Iterator[None]:
        """Sends all whole events after the persisted offset, one at each step of the iterator.

        Metrics of several events travel together, so that an event may arrive some steps later.
        Raises what MLflow raises.
        """
        try:
            if not self._connected:
                self._connect()
            yield from self._send_events()
        except Exception:
            self._connected = False  # connect anew, with the state as it is then
            raise

    def _connect(self) -> None:
        state = SendState.load(self._run_dir)
        if state is None:
            raise DataError(f"{self._run_dir / STATE_FILE} is gone; resuming the run makes it anew")
        state = self._mlflow.connect(state)
        path = self._run_dir / EVENTS_FILE
        if state.sent_bytes > path.stat().st_size:
            log.warning("%s is shorter than what was sent of it: sending it from the start", path)
            state = replace(state, sent_bytes=0)
        self._keep(state)
        self._connected = True
        self._lost = False

    def _send_events(self) -> Iterator[None]:
        end = self._state.sent_bytes
        metrics: list[Any] = []
        for event in read_events(self._run_dir, end):
            end = event.end
            if "metrics" in event.value:
                metrics.extend(self._mlflow.metrics_of(event.value))
                if len(metrics) < METRICS_PER_REQUEST:
                    yield
                    continue
            self._mlflow.log_metrics(metrics)
            metrics = []
            if not event.value:
                path = self._run_dir / EVENTS_FILE
                log.warning("%s: skipped a damaged line that ends at byte %d", path, end)
            elif "metrics" not in event.value:
                self._mlflow.log_event(event.value)
            self._advance(end)
            yield
        self._mlflow.log_metrics(metrics)
        if end > self._state.sent_bytes:
            self._advance(end)

    def _advance(self, offset: int) -> None:
        self._keep(replace(self._state, sent_bytes=offset))
        self._show_life()

    def _keep(self, state: SendState) -> None:
        """Remembers what has arrived; a full disk costs sending it twice, nothing more."""
        self._state = state
        try:
            state.save(self._run_dir)
        except DiskFullError as error:
            if not self._disk_full:
                log.warning("%s; until then the same events are sent again and again", error)
            self._disk_full = True
