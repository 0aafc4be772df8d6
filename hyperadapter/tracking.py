"""Metrics and plots of a run: written to the run folder first, sent to MLflow from there.

    training  ->  RUN_DIR/events.jsonl  ->  background thread  ->  MLflow
                  (the truth, one event      (from a persisted
                   a line)                    byte offset)

Training waits for nothing but a line appended to a local file. While MLflow is away the events stay
where they are; they are sent when it is back, when the run is resumed, or by `sync`. One run folder
is one MLflow run, however often it is interrupted.

Sending is idempotent, so that a doubt is settled by sending again: MLflow stores one row for each
(metric, step, value, timestamp), and the timestamp is that of the event. Two senders of one folder
(a compute node without network and a `sync` on the login node) do no harm either.

After a resume from a checkpoint older than the last event, the steps in between are logged a second
time, with their new timestamps: both traces are kept, because both happened.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from hyperadapter.core.errors import (
    ConfigError,
    DataError,
    HyperAdapterError,
    Interrupted,
    TrackingError,
)
from hyperadapter.core.events import EVENTS_FILE, STATE_FILE, EventWriter, SendState, read_events
from hyperadapter.core.files import atomic_open

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

__all__ = [
    "NullTracker",
    "Status",
    "TrackedRun",
    "Tracker",
    "pending_events",
    "redact",
    "resolve_uri",
    "sync",
    "ui_command",
]

log = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Param = str | int | float | bool | None

# MLflow's limits, by its documentation: the server refuses what is more or longer.
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
_KEY_CHARS = 250
_PARAM_CHARS = 6000

_SEND_EVERY_S = 2.0
_LONGEST_RETRY_S = 60.0
_KEY_TAG = "hyperadapter.key"

_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")

# We retry by ourselves, with the event file behind us: a call must fail soon, and say nothing.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What MLflow is told about a run at its start.

    Attributes:
        name: Shown in MLflow.
        experiment: The MLflow experiment, made where there is none.
        uri: Tracking URI; empty is the database beside the run folder (see `resolve_uri`).
        enabled: Without it the events are written but not sent.
        params: Flat parameters (`core.schema.flat_params`). MLflow keeps the first value of each.
        tags: Further facts, such as the fingerprint of the configuration.
    """

    name: str
    experiment: str = "hyperadapter"
    uri: str = ""
    enabled: bool = True
    params: Mapping[str, Param] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def redact(text: str) -> str:
    """Hides the user and password of every URI in a text."""
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)


def resolve_uri(run_dir: Path, uri: str) -> str:
    """Returns the tracking URI to use: absolute, by default SQLite beside the run folder.

    Raises:
        ConfigError: MLflow has no such kind of store.
    """
    if not uri:
        return f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme not in _SCHEMES:
        raise ConfigError(
            f"tracking.uri: {redact(uri)!r} is not a database or server ({', '.join(_SCHEMES)}); "
            "leave it empty for a database beside the run folder"
        )
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return uri


def ui_command(uri: str) -> str:
    """Returns the command that shows what is stored at a resolved tracking URI."""
    if uri.startswith("http"):
        return f"open {redact(uri)} in a browser"
    installed = Path(sys.executable).with_name("mlflow")
    program = shlex.quote(str(installed)) if installed.exists() else "mlflow"
    return f"{program} server --backend-store-uri {shlex.quote(redact(uri))} --port 5000"


class Tracker:
    """Writes the events of one run folder and has them sent in the background.

    Use it as a context manager: it then ends the MLflow run as FINISHED, as KILLED (a signal asked
    to stop; resuming sets it RUNNING again) or as FAILED. Rank 0 has one, the others
    a `NullTracker`.

    Args:
        run_dir: The run folder; it is made. An earlier tracker's files in it are continued.
        run: What MLflow is told.
        config_file: The resolved configuration, kept as the artifact `config.yaml`.
        send_every_s: Pause between looks at the event file.
        owns_status: False for what is added to a run, such as an evaluation: the run keeps the
            status that its training gave it.

    Raises:
        ConfigError: The tracking URI cannot be used.
        DiskFullError: The event file cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        run: TrackedRun,
        config_file: Path | None = None,
        send_every_s: float = _SEND_EVERY_S,
        owns_status: bool = True,
    ) -> None:
        self.run_dir = run_dir
        self._owns_status = owns_status
        self.uri = resolve_uri(run_dir, run.uri)
        self._events = EventWriter(run_dir)
        _prepare_state(run_dir, run, self.uri)
        if owns_status:
            self._events.write(status="RUNNING")
        if run.tags:
            self._events.write(tags=dict(run.tags))
        if run.params:
            self._events.write(params={key: redact(str(v)) for key, v in run.params.items()})
        if config_file is not None:
            self.log_artifact(config_file)
        self._sender = _Sender(run_dir, self.uri, send_every_s) if run.enabled else None
        if self._sender is not None:
            self._sender.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers of one step; NaN and infinity are numbers too."""
        self._events.write_metrics(metrics, step)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Logs a file that stays where it is; `folder` is its place in MLflow."""
        path, run_dir = path.resolve(), self.run_dir.resolve()
        name = path.relative_to(run_dir) if path.is_relative_to(run_dir) else path
        self._events.write(artifact=str(name), folder=folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Saves a figure as `RUN_DIR/plots/<name>.png` and logs it."""
        path = self.run_dir / "plots" / f"{name}.png"
        with atomic_open(path, "wb") as stream:
            figure.savefig(stream, format="png", dpi=150)
        self.log_artifact(path, folder="plots")

    def finish(self, status: Status = "FINISHED", timeout_s: float = 30.0) -> int:
        """Ends the run and sends what is left, for at most `timeout_s` seconds.

        Returns:
            The number of events that should be in MLflow but are not; they stay in the run folder.
        """
        if not self._events.closed:
            if self._owns_status:
                self._events.write(status=status)
            self._events.close()
        if self._sender is None:
            return 0
        self._sender.finish(timeout_s)
        unsent = pending_events(self.run_dir)
        if unsent:
            log.warning(
                "%d events of %s are not in MLflow (%s); nothing is lost: resuming the run sends "
                "them, and so does `hyperadapter tracking sync %s`",
                *(unsent, self.run_dir / EVENTS_FILE, redact(self.uri), self.run_dir),
            )
        return unsent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish("FINISHED")
            return
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        try:
            # Who stopped us may be about to kill us: be quick, the rest is sent at resume.
            self.finish("KILLED" if stopped else "FAILED", timeout_s=10.0 if stopped else 30.0)
        except HyperAdapterError as second:
            log.error("the end of the run could not be logged either: %s", second)


class NullTracker(Tracker):
    """The tracker of every rank but 0: it takes everything and does nothing."""

    def __init__(self) -> None:
        self.run_dir = Path()
        self.uri = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Does nothing."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Does nothing."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Does nothing."""

    def finish(self, status: Status = "FINISHED", timeout_s: float = 30.0) -> int:
        """Does nothing; nothing is unsent."""
        return 0


def sync(run_dir: Path, uri: str = "") -> int:
    """Sends the events of a run folder that are not in MLflow yet; safe at any time.

    Args:
        run_dir: The run folder.
        uri: Another tracking URI than the run was started with: everything goes to a new MLflow
            run there. Needed where the URI holds a password, which no file keeps.

    Returns:
        The number of events sent.

    Raises:
        ConfigError: The URI needs a password, or is not one of a database or server.
        DataError: The folder has no events.
        TrackingError: MLflow cannot be reached; what was sent until then is remembered.
    """
    state = SendState.load(run_dir)
    if state is None or not (run_dir / EVENTS_FILE).exists():
        raise DataError(
            f"{run_dir} has no {EVENTS_FILE} and {STATE_FILE}; name the folder of a run that was "
            "started with tracking"
        )
    uri = resolve_uri(run_dir, uri or state.uri)
    if "://***@" in uri:
        raise ConfigError(
            f"the tracking URI {uri} of {run_dir} needs its password, which is not kept in files; "
            "give the whole URI"
        )
    if redact(uri) != state.uri:
        run = TrackedRun(state.name, state.experiment)
        _prepare_state(run_dir, run, uri)
    pending = pending_events(run_dir)
    try:
        _Sender(run_dir, uri).send_pending()
    except Exception as error:
        raise TrackingError(
            f"MLflow at {redact(uri)} cannot be reached ({_brief(error)}); "
            f"{pending_events(run_dir)} of {pending} events remain in {run_dir / EVENTS_FILE}; "
            "run the same command again when it is back"
        ) from error
    return pending


def pending_events(run_dir: Path) -> int:
    """Returns the number of events in a run folder that are not in MLflow."""
    state = SendState.load(run_dir)
    return sum(1 for _ in read_events(run_dir, state.sent_bytes if state is not None else 0))


def _clean_key(key: str) -> str:
    """Turns a key into one that MLflow takes."""
    plain = re.sub(r"[^\w\-. :/]", "_", key)
    return "/".join(p for p in plain.split("/") if p not in ("", ".", ".."))[:_KEY_CHARS] or "_"


def _shorten(text: str) -> str:
    """Fits a parameter's value into MLflow's limit."""
    if len(text) <= _PARAM_CHARS:
        return text
    note = f"... (shortened from {len(text)} characters; the whole is in config.yaml)"
    return text[: _PARAM_CHARS - len(note)] + note


def _brief(error: BaseException) -> str:
    """The first line of an error, short and without passwords."""
    lines = redact(str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _prepare_state(run_dir: Path, run: TrackedRun, uri: str) -> SendState:
    """Continues the state of a run folder, or begins one where the place has changed."""
    old = SendState.load(run_dir)
    fresh = SendState(uuid.uuid4().hex, run.name, run.experiment, redact(uri))
    if old is not None and (old.uri, old.experiment) == (fresh.uri, fresh.experiment):
        return old
    if old is not None and old.run_id:
        log.warning(
            "%s was tracked in experiment %r at %s and is now in %r at %s: a new MLflow run begins "
            "there and gets all events from the start",
            *(run_dir, old.experiment, old.uri, fresh.experiment, fresh.uri),
        )
    fresh.save(run_dir)
    return fresh


class _Sender:
    """Brings the events of a run folder to MLflow, in a thread or at once."""

    def __init__(self, run_dir: Path, uri: str, send_every_s: float = _SEND_EVERY_S) -> None:
        self._run_dir = run_dir
        self._uri = uri
        self._send_every_s = send_every_s
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._closing = threading.Event()
        self._deadline = math.inf
        # Here and not in the thread: one package imported by two threads at a time can fail.
        self._mlflow = _import_mlflow()
        self._client: MlflowClient | None = None
        self._state = SendState("", "", "", "")

    # The thread.

    def start(self) -> None:
        """Starts sending in the background."""
        self._thread.start()

    def finish(self, timeout_s: float) -> None:
        """Sends what is left and ends the thread, or leaves it after `timeout_s`."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        pause_s = self._send_every_s
        lost = False
        while True:
            closing = self._closing.is_set()  # before sending, so that the last events are seen
            try:
                waiting = pending_events(self._run_dir) if lost else 0
                self.send_pending()
            except Exception as error:  # whatever it is, training must go on
                self._tell_lost(error, again=lost)
                lost = True
                pause_s = min(2 * pause_s, _LONGEST_RETRY_S)
            else:
                if lost:
                    place = redact(self._uri)
                    log.info("MLflow at %s is back; sent %d waiting events", place, waiting)
                lost = False
                pause_s = self._send_every_s
            left_s = self._deadline - time.monotonic()
            if closing and (not lost or left_s <= 0):
                return
            if closing:
                time.sleep(min(0.5, left_s))
            else:
                self._closing.wait(pause_s)

    def _tell_lost(self, error: Exception, again: bool) -> None:
        log.log(
            logging.DEBUG if again else logging.WARNING,
            "MLflow at %s cannot be reached (%s); training goes on, events are kept in %s and sent "
            "when it is back",
            *(redact(self._uri), _brief(error), self._run_dir / EVENTS_FILE),
        )

    # Sending.

    def send_pending(self) -> None:
        """Sends all whole events after the persisted offset; raises what MLflow raises."""
        try:
            if self._client is None:
                self._client = self._connect()
            self._send_all(self._client)
        except Exception:
            self._client = None  # connect anew, with the state as it is then
            raise

    def _send_all(self, client: MlflowClient) -> None:
        start = end = self._state.sent_bytes
        metrics: list[Any] = []
        for event in read_events(self._run_dir, start):
            end = event.end
            if "metrics" in event.value:
                metrics.extend(self._metrics_of(event.value))
                if len(metrics) < _BATCH["metrics"]:
                    continue
            self._log_batch(client, "metrics", metrics)
            metrics = []
            if not event.value:
                path = self._run_dir / EVENTS_FILE
                log.warning("%s: skipped a damaged line that ends at byte %d", path, end)
            elif "metrics" not in event.value:
                self._send_other(client, event.value)
            self._advance(end)
        self._log_batch(client, "metrics", metrics)
        if end > self._state.sent_bytes:
            self._advance(end)

    def _advance(self, offset: int) -> None:
        self._state = replace(self._state, sent_bytes=offset)
        self._state.save(self._run_dir)

    def _metrics_of(self, event: Mapping[str, Any]) -> list[Any]:
        metric, time_ms, step = self._mlflow.entities.Metric, event["time_ms"], event["step"]
        return [
            metric(_clean_key(key), float(value), time_ms, step)
            for key, value in event["metrics"].items()
        ]

    def _send_other(self, client: MlflowClient, event: Mapping[str, Any]) -> None:
        run_id = self._state.run_id
        if "params" in event:
            self._send_params(client, event["params"])
        elif "tags" in event:
            tag = self._mlflow.entities.RunTag
            tags = [tag(_clean_key(key), value) for key, value in event["tags"].items()]
            self._log_batch(client, "tags", tags)
        elif "artifact" in event:
            path = self._run_dir / event["artifact"]
            try:
                self._send_artifact(client, path, event["folder"])
            except Exception as error:
                client.get_run(run_id)  # raises where it is MLflow itself that is away
                log.warning("MLflow's artifact store did not take %s: %s", path, _brief(error))
        elif event.get("status") == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        elif "status" in event:
            client.set_terminated(run_id, event["status"], event["time_ms"])

    def _send_params(self, client: MlflowClient, params: Mapping[str, str]) -> None:
        """Sends the new ones; MLflow never lets go of the first value of a parameter."""
        known = client.get_run(self._state.run_id).data.params
        cleaned = {_clean_key(key): _shorten(value) for key, value in params.items()}
        for key, value in cleaned.items():
            if known.get(key, value) != value:
                log.warning(
                    "parameter %s was %r when this MLflow run began and is now %r; MLflow keeps "
                    "the first value, config.yaml there has the new one",
                    *(key, known[key], value),
                )
        param = self._mlflow.entities.Param
        new = [param(key, value) for key, value in cleaned.items() if key not in known]
        self._log_batch(client, "params", new)

    def _send_artifact(self, client: MlflowClient, path: Path, folder: str) -> None:
        if not path.is_file():
            log.warning("artifact %s is gone and cannot be sent to MLflow", path)
            return
        if path.suffix in (".json", ".yaml"):
            text = path.read_text(encoding="utf-8")
            if redact(text) != text:
                name = f"{folder}/{path.name}" if folder else path.name
                client.log_text(self._state.run_id, redact(text), name)
                return
        client.log_artifact(self._state.run_id, str(path), folder or None)

    def _log_batch(self, client: MlflowClient, kind: str, items: list[Any]) -> None:
        """Sends items of one kind; what MLflow will never take is named and skipped."""
        for start in range(0, len(items), _BATCH[kind]):
            batch = items[start : start + _BATCH[kind]]
            try:
                client.log_batch(self._state.run_id, synchronous=True, **{kind: batch})
            except self._mlflow.MlflowException as error:
                refused = error.error_code == "INVALID_PARAMETER_VALUE"
                if not refused or not self._is_active(client):
                    raise
                if len(items) == 1:
                    item = redact(f"{items[0].key!r} = {items[0].value!r}")
                    log.warning("MLflow refuses one of the %s, %s: %s", kind, item, _brief(error))
                    return
                for item in batch:
                    self._log_batch(client, kind, [item])

    # Connecting.

    def _connect(self) -> MlflowClient:
        """Finds or makes the experiment and the run."""
        state = SendState.load(self._run_dir)
        if state is None:
            raise DataError(f"{self._run_dir / STATE_FILE} is gone; resuming the run makes it anew")
        self._state = state
        client: MlflowClient = self._mlflow.MlflowClient(tracking_uri=self._uri)
        if state.run_id and not self._is_active(client):
            log.warning(
                "the MLflow run %s of %s was deleted: a new one gets all events from the start",
                *(state.run_id, self._run_dir),
            )
            self._state = replace(state, key=uuid.uuid4().hex, run_id="", sent_bytes=0)
        if not self._state.run_id:
            self._state = replace(self._state, run_id=self._find_or_make_run(client))
        path = self._run_dir / EVENTS_FILE
        if self._state.sent_bytes > path.stat().st_size:
            log.warning("%s is shorter than what was sent of it: sending it from the start", path)
            self._state = replace(self._state, sent_bytes=0)
        self._state.save(self._run_dir)
        return client

    def _is_active(self, client: MlflowClient) -> bool:
        try:
            return bool(client.get_run(self._state.run_id).info.lifecycle_stage == "active")
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _find_or_make_run(self, client: MlflowClient) -> str:
        experiment_id = self._find_or_make_experiment(client)
        found = client.search_runs([experiment_id], f"tags.`{_KEY_TAG}` = '{self._state.key}'")
        if found:
            return str(found[0].info.run_id)
        tags = {
            _KEY_TAG: self._state.key,
            "hyperadapter.run_dir": str(self._run_dir.resolve()),
            "mlflow.source.name": "hyperadapter",
            "mlflow.user": os.environ.get("USER", str(os.getuid())),
        }
        first = next(read_events(self._run_dir), None)
        started = first.value.get("time_ms") if first is not None else None
        run = client.create_run(experiment_id, started, tags, self._state.name)
        return str(run.info.run_id)

    def _find_or_make_experiment(self, client: MlflowClient) -> str:
        name = self._state.experiment
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            location = None  # the server's choice
            if self._uri.startswith("sqlite:///"):
                database = Path(self._uri.removeprefix("sqlite:///"))
                location = (database.parent / "mlartifacts").as_uri()
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except self._mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run made it just now
                    raise
                experiment = client.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} is deleted; restore it there, or set "
                "tracking.experiment to another name"
            )
        return str(experiment.experiment_id)


def _import_mlflow() -> Any:
    """Imports MLflow, which takes two seconds, quiet and quick to fail."""
    for name, value in _MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return mlflow
