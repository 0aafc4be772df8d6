"""One run at MLflow: finding or making it, and what it is told. The only file that imports MLflow.

Nothing here waits or tries again: an error is raised, and `sender.py` decides.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hyperadapter.core.errors import TrackingError
from hyperadapter.core.events import SendState, read_events
from hyperadapter.tracking.uri import brief, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Engine

__all__ = [
    "METRICS_PER_REQUEST",
    "MlflowRun",
    "clean_key",
    "database_of",
    "import_mlflow",
    "open_client",
    "request_json",
]

log = logging.getLogger(__name__)

# MLflow's limits, by its documentation: the server refuses what is more or longer.
METRICS_PER_REQUEST = 1000
_PER_REQUEST = {"metrics": METRICS_PER_REQUEST, "params": 100, "tags": 100}
_KEY_CHARS = 250
_PARAM_CHARS = 6000

_KEY_TAG = "hyperadapter.key"
_PARENT_TAG = "mlflow.parentRunId"
_REASON_TAG = "hyperadapter.status_reason"

# We retry by ourselves, with the event file behind us: a call must fail soon, and say nothing.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def import_mlflow() -> Any:
    """Imports MLflow, which takes two seconds, quiet and quick to fail."""
    for name, value in _MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return mlflow


def open_client(uri: str) -> MlflowClient:
    """Opens what is at a resolved tracking URI, for reading it."""
    return import_mlflow().MlflowClient(tracking_uri=uri)


def database_of(client: MlflowClient) -> Engine | None:
    """Returns the database of a client that has one itself; None where a server has it."""
    engine: Engine | None = getattr(client._tracking_client.store, "engine", None)
    return engine


def request_json(client: MlflowClient, path: str, query: Mapping[str, Any]) -> Any:
    """Asks a server for what MLflow's client has no method for, with the client's credentials.

    Raises what MLflow and its network raise.
    """
    from mlflow.utils.rest_utils import http_request_safe

    credentials = client._tracking_client.store.get_host_creds()
    return http_request_safe(credentials, path, "GET", params=query).json()


@lru_cache(maxsize=1 << 16)  # metrics come again at every step
def clean_key(key: str) -> str:
    """Turns a key into one that MLflow takes."""
    plain = re.sub(r"[^\w\-. :/]", "_", key)
    return "/".join(p for p in plain.split("/") if p not in ("", ".", ".."))[:_KEY_CHARS] or "_"


def _shorten(text: str) -> str:
    """Fits a parameter's value into MLflow's limit."""
    if len(text) <= _PARAM_CHARS:
        return text
    note = f"... (shortened from {len(text)} characters; the whole is in config.yaml)"
    return text[: _PARAM_CHARS - len(note)] + note


class MlflowRun:
    """The MLflow run of a run folder.

    Args:
        run_dir: The run folder.
        uri: A resolved tracking URI, with its password.
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self._run_dir = run_dir
        self._uri = uri
        # Here and not in a thread: one package imported by two threads at a time can fail.
        self._mlflow = import_mlflow()
        self._client: MlflowClient = None
        self._run_id = ""

    # Connecting.

    def connect(self, state: SendState) -> SendState:
        """Finds or makes the experiment and the run.

        Returns:
            The state with the run's id; with nothing sent where the run is new.
        """
        self._client = self._mlflow.MlflowClient(tracking_uri=self._uri)
        self._run_id = state.run_id
        if state.run_id and not self._is_active():
            log.warning(
                "the MLflow run %s of %s was deleted: a new one gets all events from the start",
                *(state.run_id, self._run_dir),
            )
            state = replace(state, key=uuid.uuid4().hex, run_id="", sent_bytes=0)
        if not state.run_id:
            self._run_id = self._find_or_make_run(state)
            self._is_active()  # nothing counts as sent to what is no MLflow server
            state = replace(state, run_id=self._run_id)
        self._link_parent(state.parent)
        return state

    def _link_parent(self, key: str) -> None:
        """Shows the run below another one, as soon as that one is there."""
        if not key:
            return
        experiment_id = self._client.get_run(self._run_id).info.experiment_id
        parent = self._find_run(experiment_id, key)
        if parent:
            self._client.set_tag(self._run_id, _PARENT_TAG, parent)

    def _find_run(self, experiment_id: str, key: str) -> str:
        """Returns the id of the run that has a key; empty if there is none."""
        found = self._client.search_runs([experiment_id], f"tags.`{_KEY_TAG}` = '{key}'")
        return str(found[0].info.run_id) if found else ""

    def _is_active(self) -> bool:
        try:
            info = self._client.get_run(self._run_id).info
        except self._mlflow.MlflowException as error:
            # What stands before a server may say 404 too, but not in MLflow's words.
            own = not self._uri.startswith("http") or hasattr(error, "json")
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not own:
                raise
            return False
        self._check_answer("run", self._run_id, info.run_id)
        return bool(info.lifecycle_stage == "active")

    def _check_answer(self, kind: str, asked: str, answered: str) -> None:
        """Finds out what answers "yes" to everything, as a proxy may do."""
        if not asked or asked != answered:
            raise TrackingError(
                f"{redact(self._uri)} was asked for the {kind} {asked!r} and answered with "
                f"{answered!r}; is it an MLflow server?"
            )

    def _find_or_make_run(self, state: SendState) -> str:
        experiment_id = self._find_or_make_experiment(state.experiment)
        found = self._find_run(experiment_id, state.key)
        if found:
            return found
        tags = {
            _KEY_TAG: state.key,
            "hyperadapter.run_dir": str(self._run_dir.resolve()),
            "mlflow.source.name": "hyperadapter",
            "mlflow.user": os.environ.get("USER", str(os.getuid())),
        }
        first = next(read_events(self._run_dir), None)
        started = first.value.get("time_ms") if first is not None else None
        run = self._client.create_run(experiment_id, started, tags, state.name)
        return str(run.info.run_id)

    def _find_or_make_experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = None  # the server's choice
            if self._uri.startswith("sqlite:///"):
                database = Path(self._uri.removeprefix("sqlite:///"))
                location = (database.parent / "mlartifacts").as_uri()
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except self._mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run made it just now
                    raise
                experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            self._check_answer("experiment", name, experiment.name)
        if experiment is None or experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"the MLflow experiment {name!r} is deleted; restore it there, or set "
                "tracking.experiment to another name"
            )
        return str(experiment.experiment_id)

    # Sending.

    def metrics_of(self, event: Mapping[str, Any]) -> list[Any]:
        """Returns an event's numbers as MLflow's metrics."""
        metric, time_ms, step = self._mlflow.entities.Metric, event["time_ms"], event["step"]
        return [
            metric(clean_key(key), float(value), time_ms, step)
            for key, value in event["metrics"].items()
        ]

    def log_metrics(self, metrics: Sequence[Any]) -> None:
        """Sends any number of metrics, as many at a time as MLflow takes."""
        self._log("metrics", metrics)

    def log_event(self, event: Mapping[str, Any]) -> None:
        """Sends an event that has no metrics."""
        if "params" in event:
            self._log_params(event["params"])
        elif "tags" in event:
            tag = self._mlflow.entities.RunTag
            self._log("tags", [tag(clean_key(key), text) for key, text in event["tags"].items()])
        elif "artifact" in event:
            path = self._run_dir / event["artifact"]
            try:
                self._log_artifact(path, event["folder"])
            except Exception as error:
                self._client.get_run(self._run_id)  # raises where it is MLflow itself that is away
                log.warning("MLflow's artifact store did not take %s: %s", path, brief(error))
        elif "status" in event:
            self.set_status(event)

    def set_status(self, event: Mapping[str, Any]) -> None:
        """Sends a status and its reason; all but RUNNING end the run at the event's time."""
        self._client.set_tag(self._run_id, _REASON_TAG, event.get("reason", ""))
        if event["status"] == "RUNNING":
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._client.set_terminated(self._run_id, event["status"], event["time_ms"])

    def _log_params(self, params: Mapping[str, str]) -> None:
        """Sends the new ones; MLflow never lets go of the first value of a parameter."""
        known = self._client.get_run(self._run_id).data.params
        cleaned = {clean_key(key): _shorten(value) for key, value in params.items()}
        for key, value in cleaned.items():
            if known.get(key, value) != value:
                log.warning(
                    "parameter %s was %r when this MLflow run began and is now %r; MLflow keeps "
                    "the first value, config.yaml there has the new one",
                    *(key, known[key], value),
                )
        param = self._mlflow.entities.Param
        self._log("params", [param(k, value) for k, value in cleaned.items() if k not in known])

    def _log_artifact(self, path: Path, folder: str) -> None:
        if not path.is_file():
            log.warning("artifact %s is gone and cannot be sent to MLflow", path)
            return
        if path.suffix in (".json", ".yaml"):
            text = path.read_text(encoding="utf-8")
            if redact(text) != text:
                name = f"{folder}/{path.name}" if folder else path.name
                self._client.log_text(self._run_id, redact(text), name)
                return
        self._client.log_artifact(self._run_id, str(path), folder or None)

    def _log(self, kind: str, items: Sequence[Any]) -> None:
        """Sends items of one kind; what MLflow will never take is named and skipped."""
        for start in range(0, len(items), _PER_REQUEST[kind]):
            batch = items[start : start + _PER_REQUEST[kind]]
            try:
                self._client.log_batch(self._run_id, synchronous=True, **{kind: batch})
            except self._mlflow.MlflowException as error:
                refused = error.error_code == "INVALID_PARAMETER_VALUE"
                if not refused or not self._is_active():
                    raise
                if len(batch) == 1:
                    item = redact(f"{batch[0].key!r} = {batch[0].value!r}")
                    log.warning("MLflow refuses one of the %s, %s: %s", kind, item, brief(error))
                    continue
                half = len(batch) // 2  # one bad item of 1,000 costs 20 requests, not 1,000
                self._log(kind, batch[:half])
                self._log(kind, batch[half:])
