"""The tracker against a real `mlflow server` that hangs, dies and comes back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.events import EVENTS_FILE, SendState
from hyperadapter.tracking import TrackedRun, Tracker, pending_events, sync

pytestmark = pytest.mark.slow

BLOCKED_S = 0.005  # longer than that, and training would notice


class Server:
    """An MLflow server of our own on the loopback, in a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            *(str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", f"{self.folder}/artifacts"),
        ]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)  # our own group: start_new_session

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


class Training:
    """Steps that log one metric each and measure how long that took."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.step = 0
        self.blocked_s: list[float] = []

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            start = time.perf_counter()
            self.tracker.log_metrics({"train/loss": 1 / (self.step + 1)}, self.step)
            self.blocked_s.append(time.perf_counter() - start)
            self.step += 1
            time.sleep(0.01)

    def expected(self) -> list[tuple[int, float]]:
        return [(step, 1 / (step + 1)) for step in range(self.step)]


def history(server: Server, run_dir: Path) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    state = SendState.load(run_dir)
    assert state is not None
    metrics: list[Any] = MlflowClient(server.uri).get_metric_history(state.run_id, "train/loss")
    return sorted((metric.step, metric.value) for metric in metrics)


def status(server: Server, run_dir: Path) -> str:
    from mlflow import MlflowClient

    state = SendState.load(run_dir)
    assert state is not None
    return str(MlflowClient(server.uri).get_run(state.run_id).info.status)


def open_tracker(server: Server, run_dir: Path) -> Tracker:
    return Tracker(run_dir, TrackedRun(run_dir.name, uri=server.uri), send_every_s=0.1)


def test_a_server_that_hangs_dies_and_comes_back(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hyperadapter")
    lasting = Training(open_tracker(server, tmp_path / "lasting"))
    ending = Training(open_tracker(server, tmp_path / "ending"))
    lasting.run(0.5)
    ending.run(0.5)
    deadline = time.monotonic() + 30
    while pending_events(tmp_path / "ending") or pending_events(tmp_path / "lasting"):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    # It takes connections and never replies: nobody waits for it, even at the end.
    server.signal(signal.SIGSTOP)
    lasting.run(0.3)
    ending.run(0.3)
    start = time.monotonic()
    unsent = ending.tracker.finish("FINISHED", timeout_s=1.0)
    assert time.monotonic() - start < 1.5
    assert unsent > 10
    lines = (tmp_path / "ending" / EVENTS_FILE).read_text().splitlines()
    assert len(lines) == ending.step + 2
    assert json.loads(lines[-1])["status"] == "FINISHED"

    server.kill()
    lasting.run(1.0)
    server.start()
    lasting.run(0.2)
    assert lasting.tracker.finish(timeout_s=60.0) == 0
    assert history(server, tmp_path / "lasting") == lasting.expected()
    assert status(server, tmp_path / "lasting") == "FINISHED"

    # The other run's process is over: its folder is all that there is.
    assert status(server, tmp_path / "ending") == "RUNNING"
    assert sync(tmp_path / "ending") == unsent
    assert history(server, tmp_path / "ending") == ending.expected()
    assert status(server, tmp_path / "ending") == "FINISHED"

    blocked_s = sorted(lasting.blocked_s + ending.blocked_s)
    assert blocked_s[int(0.99 * len(blocked_s))] < BLOCKED_S, blocked_s[-10:]
    told = [r.getMessage() for r in caplog.records if str(tmp_path / "lasting") in r.getMessage()]
    assert len(told) == 1, told
    assert "training goes on" in told[0]
    assert caplog.text.count(" is back; sent ") == 1
