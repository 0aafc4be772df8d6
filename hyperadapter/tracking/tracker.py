"""What training, validation and evaluation talk to: they wait for a line in a local file."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from hyperadapter.core.errors import DiskFullError, HyperAdapterError, Interrupted
from hyperadapter.core.events import EVENTS_FILE, EventWriter
from hyperadapter.core.files import atomic_open
from hyperadapter.tracking.sender import Sender, pending_events, prepare_state
from hyperadapter.tracking.uri import brief, redact, resolve_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NullTracker", "Status", "TrackedRun", "Tracker"]

log = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
Param = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What MLflow is told about a run at its start.

    Attributes:
        name: Shown in MLflow.
        experiment: The MLflow experiment, made where there is none.
        uri: Tracking URI without password; see `resolve_uri` for what empty means.
        enabled: Without it the events are written but not sent.
        params: Flat parameters (`core.schema.flat_params`). MLflow keeps the first value of each.
        tags: Further facts, such as the fingerprint of the configuration.
        key: By which the run is found in MLflow; drawn where it is empty.
        parent: Key of the run that this one is shown below; empty: none.
    """

    name: str
    experiment: str = "hyperadapter"
    uri: str = ""
    enabled: bool = True
    params: Mapping[str, Param] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    key: str = ""
    parent: str = ""


class Tracker:
    """Writes the events of one run folder and has them sent in the background.

    Use it as a context manager: it then ends the MLflow run as FINISHED, as KILLED (a signal asked
    to stop; resuming sets it RUNNING again) or as FAILED, with the error as reason. Rank 0 has one,
    the others a `NullTracker`.

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
        send_every_s: float = 2.0,
        owns_status: bool = True,
    ) -> None:
        self.run_dir = run_dir
        self._owns_status = owns_status
        self.uri = resolve_uri(run_dir, run.uri)
        self._events = EventWriter(run_dir)
        prepare_state(run_dir, run.name, run.experiment, self.uri, run.key, run.parent)
        if owns_status:
            self._events.write(status="RUNNING")
        if run.tags:
            self._events.write(tags=dict(run.tags))
        if run.params:
            self._events.write(params={key: redact(str(v)) for key, v in run.params.items()})
        if config_file is not None:
            self.log_artifact(config_file)
        self._sender = (
            Sender(run_dir, self.uri, send_every_s, shows_life=owns_status) if run.enabled else None
        )
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

    def finish(self, status: Status = "FINISHED", timeout_s: float = 30.0, reason: str = "") -> int:
        """Ends the run and sends what is left, for at most `timeout_s` seconds.

        Args:
            status: How the run ended.
            timeout_s: The longest wait for MLflow; one that was lost before is hardly waited for.
            reason: Why, for everything but FINISHED.

        Returns:
            The number of events that should be in MLflow but are not; they stay in the run folder.

        Raises:
            DiskFullError: The end could not be written into the run folder; MLflow was told it.
        """
        unwritten: DiskFullError | None = None
        if not self._events.closed:
            try:
                if self._owns_status:
                    self._events.write(status=status, reason=reason)
            except DiskFullError as error:
                unwritten = error
            self._events.close()
        if self._sender is None:
            return 0
        last_words = {"status": status, "reason": reason, "time_ms": time.time_ns() // 1_000_000}
        self._sender.finish(timeout_s, last_words if unwritten else None)
        if unwritten is not None:
            raise unwritten
        unsent = pending_events(self.run_dir)
        if unsent:
            log.warning(
                "%d events of %s are not in MLflow (%s); nothing is lost: resuming the run sends "
                "them, and so does `hyperadapter track sync %s`",
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
            self.finish(
                "KILLED" if stopped else "FAILED",
                timeout_s=10.0 if stopped else 30.0,
                reason=brief(error),
            )
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

    def finish(self, status: Status = "FINISHED", timeout_s: float = 30.0, reason: str = "") -> int:
        """Does nothing; nothing is unsent."""
        return 0
