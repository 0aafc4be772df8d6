"""The tracker against a real `mlflow server` that hangs, dies and comes back, and against others.

After every fault the status, the end time and the metrics at MLflow must be those of the run.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.events import EVENTS_FILE, SendState
from hyperadapter.tracking import TrackedRun, Tracker, pending_events, sync, sync_all

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
    """A server that the test may kill."""
    server = Server(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def lasting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is there all the time: starting one takes half a minute."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _no_address_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


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


def in_mlflow(server: Server, run_dir: Path) -> Any:
    from mlflow import MlflowClient

    state = SendState.load(run_dir)
    assert state is not None
    return MlflowClient(server.uri).get_run(state.run_id)


def history(server: Server, run_dir: Path) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    run_id = in_mlflow(server, run_dir).info.run_id
    metrics: list[Any] = client.get_metric_history(run_id, "train/loss")
    return sorted((metric.step, metric.value) for metric in metrics)


def status(server: Server, run_dir: Path) -> str:
    """Returns the status at MLflow, whose end time must be that of the run's newest status."""
    info = in_mlflow(server, run_dir).info
    lines = (run_dir / EVENTS_FILE).read_text().splitlines()
    told = [event for event in map(json.loads, lines) if "status" in event][-1]
    if info.status == told["status"] != "RUNNING":
        assert info.end_time == told["time_ms"]
    return str(info.status)


def open_tracker(uri: str, run_dir: Path) -> Tracker:
    return Tracker(run_dir, TrackedRun(run_dir.name, uri=uri), send_every_s=0.1)


def test_a_server_that_hangs_dies_and_comes_back(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hyperadapter")
    lasting = Training(open_tracker(server.uri, tmp_path / "lasting"))
    ending = Training(open_tracker(server.uri, tmp_path / "ending"))
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


@contextmanager
def answering(reply: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server of our own in threads, which answers every request as `reply` does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(self)

        do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815 (the names of http.server)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def send(request: BaseHTTPRequestHandler, code: int, body: bytes) -> None:
    request.send_response(code)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    return request.rfile.read(int(request.headers.get("Content-Length", 0)))


def answer(code: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(request: BaseHTTPRequestHandler) -> None:
        read_body(request)
        send(request, code, body)

    return reply


def pass_on(uri: str, delay_s: float) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers what another server answers, some time later."""

    def reply(request: BaseHTTPRequestHandler) -> None:
        body = read_body(request)
        time.sleep(delay_s)
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        passed = urllib.request.Request(
            uri + request.path, body or None, headers, method=request.command
        )
        try:
            with urllib.request.urlopen(passed, timeout=60) as found:
                send(request, found.status, found.read())
        except urllib.error.HTTPError as error:
            with error:
                send(request, error.code, error.read())

    return reply


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True  # without a word


def assert_not_blocked(training: Training) -> None:
    """Holds on a machine that is busy with other things too; one request would take a second."""
    blocked_s = sorted(training.blocked_s)
    assert blocked_s[int(0.9 * len(blocked_s))] < BLOCKED_S, blocked_s[-10:]
    assert blocked_s[-1] < 0.5, blocked_s[-10:]


def test_a_slow_server_delays_no_step(lasting_server: Server, tmp_path: Path) -> None:
    with answering(pass_on(lasting_server.uri, delay_s=1.0)) as uri:
        training = Training(open_tracker(uri, tmp_path / "slow"))
        training.run(3.0)
        assert training.tracker.finish(timeout_s=60) == 0
    assert_not_blocked(training)
    assert training.step > 30
    assert history(lasting_server, tmp_path / "slow") == training.expected()
    assert status(lasting_server, tmp_path / "slow") == "FINISHED"


NO_SERVERS: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    "500": answer(500, b"<html>Internal Server Error</html>"),
    "404": answer(404, b"<html>Not Found</html>"),
    "400": answer(400, b"Bad Request"),
    "login page": answer(200, b"<html>Who are you?</html>"),
    "nothing": answer(200, b""),
    "empty object": answer(200, b"{}"),
    "list": answer(200, b"[1, 2]"),
    "hangs up": hang_up,
}


@pytest.mark.parametrize("name", NO_SERVERS)
def test_what_is_no_mlflow_delays_nothing_and_loses_nothing(
    name: str, lasting_server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / name
    with answering(NO_SERVERS[name]) as uri:
        training = Training(open_tracker(uri, run_dir))
        training.run(1.0)
        start = time.monotonic()
        assert training.tracker.finish() == training.step + 2
        assert time.monotonic() - start < 4
    assert_not_blocked(training)
    assert caplog.text.count("cannot be reached") == 1
    (report,) = sync_all([run_dir], lasting_server.uri)
    assert (report.sent, report.status, report.error) == (training.step + 2, "FINISHED", "")
    assert history(lasting_server, run_dir) == training.expected()
    assert status(lasting_server, run_dir) == "FINISHED"


@pytest.mark.parametrize("name", ["404", "400", "500"])
def test_a_server_that_turns_bad_and_good_again_keeps_the_run(
    name: str, lasting_server: Server, tmp_path: Path
) -> None:
    run_dir, bad = tmp_path / f"turns {name}", threading.Event()

    def reply(request: BaseHTTPRequestHandler) -> None:
        good = pass_on(lasting_server.uri, delay_s=0.0)
        (NO_SERVERS[name] if bad.is_set() else good)(request)

    with answering(reply) as uri:
        training = Training(open_tracker(uri, run_dir))
        while pending_events(run_dir):
            time.sleep(0.05)
        first = in_mlflow(lasting_server, run_dir).info.run_id
        bad.set()
        training.run(1.0)
        bad.clear()
        training.run(0.2)
        assert training.tracker.finish(timeout_s=60) == 0
    assert in_mlflow(lasting_server, run_dir).info.run_id == first
    assert history(lasting_server, run_dir) == training.expected()
    assert status(lasting_server, run_dir) == "FINISHED"


def test_a_server_lost_for_good_delays_no_end(
    server: Server, lasting_server: Server, tmp_path: Path
) -> None:
    run_dir = tmp_path / "orphan"
    training = Training(open_tracker(server.uri, run_dir))
    while pending_events(run_dir):
        time.sleep(0.05)
    server.kill()
    training.run(1.0)
    start = time.monotonic()
    assert training.tracker.finish() == training.step + 1
    assert time.monotonic() - start < 4
    assert_not_blocked(training)
    assert sync(run_dir, lasting_server.uri) == training.step + 2
    assert history(lasting_server, run_dir) == training.expected()
    assert status(lasting_server, run_dir) == "FINISHED"


KILLED_RUN = """
import os, signal, sys, time
from pathlib import Path
from hyperadapter.core.files import locked
from hyperadapter.tracking import TrackedRun, Tracker, pending_events
run_dir = Path(sys.argv[1])
with locked(run_dir), Tracker(run_dir, TrackedRun("killed", uri=sys.argv[2]), None, 0.1) as tracker:
    for step in range(5):
        tracker.log_metrics({"train/loss": 1 / (step + 1)}, step)
    while pending_events(run_dir):
        time.sleep(0.05)
    print("ready", flush=True)
    time.sleep(120)
"""


def test_a_run_that_is_killed_says_so_after_sync(lasting_server: Server, tmp_path: Path) -> None:
    run_dir = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_RUN, str(run_dir), lasting_server.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert sync(run_dir, dead_after_s=0.0) == 0  # it holds the folder
        assert status(lasting_server, run_dir) == "RUNNING"
        process.kill()
    sync(run_dir)  # too early to say
    assert status(lasting_server, run_dir) == "RUNNING"
    sync(run_dir, dead_after_s=0.0)
    assert status(lasting_server, run_dir) == "FAILED"
    reason = in_mlflow(lasting_server, run_dir).data.tags["hyperadapter.status_reason"]
    assert reason.startswith("no sign of life for ")
    first = in_mlflow(lasting_server, run_dir).info.run_id

    with open_tracker(lasting_server.uri, run_dir):
        while pending_events(run_dir):
            time.sleep(0.05)
        assert status(lasting_server, run_dir) == "RUNNING"
    assert status(lasting_server, run_dir) == "FINISHED"
    assert in_mlflow(lasting_server, run_dir).info.run_id == first
    assert len(history(lasting_server, run_dir)) == 5


@pytest.mark.parametrize("way", ["uri", "user and password"])
def test_the_password_of_the_environment_reaches_the_server_and_no_file(
    way: str, lasting_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    expected = "Basic " + b64encode(b"me:secret").decode()
    refused: list[str] = []

    def reply(request: BaseHTTPRequestHandler) -> None:
        if request.headers.get("Authorization") == expected:
            pass_on(lasting_server.uri, delay_s=0.0)(request)
        else:
            refused.append(request.path)
            answer(401, b"Who are you?")(request)

    run_dir = tmp_path / way
    with answering(reply) as uri:
        whole = uri.replace("://", "://me:secret@")
        if way == "uri":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        tracker = open_tracker("" if way == "uri" else uri, run_dir)
        tracker.log_metrics({"train/loss": 1.0}, 0)
        assert tracker.finish(timeout_s=60) == 0
        assert not refused
        state = SendState.load(run_dir)
        assert state is not None
        SendState(state.key, state.name, state.experiment, state.uri).save(run_dir)
        assert sync(run_dir) == 3
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in files if b"secret" in path.read_bytes()]
    assert "secret" not in caplog.text
