"""Run folders after the fact: sending what MLflow lacks, and finding runs that died silently.

A process that is killed by SIGKILL, or whose node is lost, says nothing, and its run stays RUNNING.
Three things together show it: the last status is RUNNING, nobody holds the run folder's lock, and
there has been no sign of life for a while. The lock alone is not enough, because a shared file
system may not show it to other nodes. A sign of life is any event, and the time of the event file,
which the sending thread sets twice a minute however long a step takes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from data_pipeline.progress import track
from hyperadapter.core.errors import ConfigError, DataError, HyperAdapterError, TrackingError
from hyperadapter.core.events import (
    EVENTS_FILE,
    STATE_FILE,
    EventWriter,
    SendState,
    newest_event,
)
from hyperadapter.core.files import locked
from hyperadapter.tracking.sender import Sender, pending_events, prepare_state
from hyperadapter.tracking.uri import brief, redact, resolve_uri

__all__ = [
    "DEAD_AFTER_S",
    "RunStatus",
    "SyncReport",
    "find_runs",
    "mark_dead",
    "run_status",
    "sync",
    "sync_all",
]

log = logging.getLogger(__name__)

DEAD_AFTER_S = 600.0


class RunStatus(NamedTuple):
    """What a run folder's events say.

    Attributes:
        run_dir: The run folder.
        status: RUNNING, FINISHED, FAILED or KILLED; empty if no training was tracked there.
        reason: Why it ended so, where that is known.
        step: Of the newest metrics.
        last_event: When the newest event was written, in UTC.
        silent_s: Seconds since the last sign of life.
        unsent: Events that are not in MLflow.
        uri: Where they are sent, without password.
        mlflow_run: MLflow's id of the run; empty until it is made.
    """

    run_dir: str
    status: str
    reason: str
    step: int | None
    last_event: str
    silent_s: float
    unsent: int
    uri: str
    mlflow_run: str


class SyncReport(NamedTuple):
    """What `sync_all` did with one folder.

    Attributes:
        run_dir: The folder.
        sent: Events sent.
        status: The run's status, empty if there is none.
        error: Why the folder failed; empty if it did not.
    """

    run_dir: str
    sent: int
    status: str
    error: str


def find_runs(folder: Path) -> list[Path]:
    """Returns the folder itself if it is a run's, else the run folders below it, sorted.

    Raises:
        DataError: There are none.
    """
    found = sorted(_walk(folder))
    if not found:
        raise DataError(
            f"there is no {EVENTS_FILE} in {folder} or below; name the folder of a run that was "
            "started with tracking, or the folder of such folders"
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if EVENTS_FILE in files:
            yield Path(path)
            folders.clear()  # a run's checkpoints and data hold no runs


def _state(run_dir: Path) -> SendState:
    state = SendState.load(run_dir)
    if state is None or not (run_dir / EVENTS_FILE).exists():
        raise DataError(
            f"{run_dir} has no {EVENTS_FILE} and {STATE_FILE}; name the folder of a run that was "
            "started with tracking"
        )
    return state


def run_status(run_dir: Path) -> RunStatus:
    """Reads what the events of a run folder say; asks nobody.

    Raises:
        DataError: The folder has no events.
    """
    state = _state(run_dir)
    last = newest_event(run_dir, "status")
    when = newest_event(run_dir, "time_ms").get("time_ms", 0) / 1000
    return RunStatus(
        run_dir=str(run_dir),
        status=last.get("status", ""),
        reason=last.get("reason", ""),
        step=newest_event(run_dir, "step").get("step"),
        last_event=datetime.fromtimestamp(when, UTC).isoformat(timespec="seconds"),
        silent_s=round(_silent_s(run_dir), 1),
        unsent=pending_events(run_dir),
        uri=state.uri,
        mlflow_run=state.run_id,
    )


def _silent_s(run_dir: Path) -> float:
    return max(0.0, time.time() - (run_dir / EVENTS_FILE).stat().st_mtime)


def mark_dead(run_dir: Path, dead_after_s: float = DEAD_AFTER_S) -> bool:
    """Writes FAILED into the events of a run that died without a word.

    It ended with its last sign of life. The next start of the run says RUNNING again.

    Args:
        run_dir: The run folder.
        dead_after_s: Seconds without a sign of life.

    Returns:
        Whether the run was found dead.
    """
    if newest_event(run_dir, "status").get("status") != "RUNNING":
        return False
    silent_s = _silent_s(run_dir)
    if silent_s < dead_after_s:
        return False
    with locked(run_dir) as free:  # held while writing, so that no start comes in between
        if not free:
            return False
        reason = f"no sign of life for {silent_s:.0f} s: its processes were killed, or its node"
        writer = EventWriter(run_dir)
        writer.write(status="FAILED", reason=reason, time_ms=int((time.time() - silent_s) * 1000))
        writer.close()
    log.warning("%s: %s; its status is FAILED now", run_dir, reason)
    return True


def sync(run_dir: Path, uri: str = "", dead_after_s: float = DEAD_AFTER_S) -> int:
    """Sends the events of a run folder that are not in MLflow yet; safe at any time.

    Args:
        run_dir: The run folder.
        uri: Another tracking URI than the run was started with: everything goes to the run's MLflow
            run there. A password comes from the environment, see `resolve_uri`.
        dead_after_s: A run that says RUNNING without a sign of life for so long has FAILED.

    Returns:
        The number of events sent.

    Raises:
        ConfigError: The URI needs a password, or is not one of a database or server.
        DataError: The folder has no events.
        TrackingError: MLflow cannot be reached; what was sent until then is remembered.
    """
    state = _state(run_dir)
    try:
        uri = resolve_uri(run_dir, uri or state.uri)
    except ConfigError as error:
        raise ConfigError(f"{run_dir}: {error}") from error
    if redact(uri) != state.uri:
        prepare_state(run_dir, state.name, state.experiment, uri)
    mark_dead(run_dir, dead_after_s)
    pending = pending_events(run_dir)
    try:
        for _ in track(Sender(run_dir, uri).send(), pending, f"sending {run_dir}"):
            pass
    except Exception as error:
        raise TrackingError(
            f"MLflow at {redact(uri)} cannot be reached ({brief(error)}); "
            f"{pending_events(run_dir)} of {pending} events remain in {run_dir / EVENTS_FILE}; "
            "run the same command again when it is back"
        ) from error
    return pending


def sync_all(
    folders: Sequence[Path], uri: str = "", dead_after_s: float = DEAD_AFTER_S
) -> list[SyncReport]:
    """Sends the events of many run folders; one that fails does not hold up the others.

    Args:
        folders: Run folders, and folders with run folders below.
        uri: As for `sync`.
        dead_after_s: As for `sync`.
    """
    reports = []
    for folder in folders:
        try:
            runs = find_runs(folder)
        except DataError as error:
            reports.append(SyncReport(str(folder), 0, "", str(error)))
            continue
        for run_dir in runs:
            try:
                sent = sync(run_dir, uri, dead_after_s)
                status = newest_event(run_dir, "status").get("status", "")
                reports.append(SyncReport(str(run_dir), sent, status, ""))
            except (HyperAdapterError, OSError) as error:
                reports.append(SyncReport(str(run_dir), 0, "", str(error)))
    return reports
