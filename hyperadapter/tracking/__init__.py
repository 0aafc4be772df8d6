"""Metrics and plots of a run: written to the run folder first, sent to MLflow from there.

    training  ->  RUN_DIR/events.jsonl  ->  background thread  ->  MLflow
                  (the truth, one event      (from a persisted
                   a line)                    byte offset)

Training waits for nothing but a line appended to a local file. While MLflow is away the events stay
where they are; they are sent when it is back, when the run is resumed, or by `sync`. One run folder
is one MLflow run, however often it is interrupted.

After a resume from a checkpoint older than the last event, the steps in between are logged a second
time, with their new timestamps: both traces are kept, because both happened.
"""

from hyperadapter.tracking.sender import pending_events
from hyperadapter.tracking.sync import (
    DEAD_AFTER_S,
    RunStatus,
    SyncReport,
    find_runs,
    mark_dead,
    run_status,
    sync,
    sync_all,
)
from hyperadapter.tracking.system import NodeReading, SystemSampler, metrics_by_node
from hyperadapter.tracking.tracker import NullTracker, Status, TrackedRun, Tracker
from hyperadapter.tracking.uri import redact, resolve_uri, ui_command

__all__ = [
    "DEAD_AFTER_S",
    "NodeReading",
    "NullTracker",
    "RunStatus",
    "Status",
    "SyncReport",
    "SystemSampler",
    "TrackedRun",
    "Tracker",
    "find_runs",
    "mark_dead",
    "metrics_by_node",
    "pending_events",
    "redact",
    "resolve_uri",
    "run_status",
    "sync",
    "sync_all",
    "ui_command",
]
