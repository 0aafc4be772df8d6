"""What tracking adds to a training step, with MLflow present, slow, absent and switched off.

A step here is pure Python that holds the interpreter's lock all the time: the worst case for the
thread that sends, because every moment of its work is taken from the step. A step that waits for a
GPU lets go of the lock. For each place and number of metrics:

    call    what `log_metrics` itself took: median and 99th percentile
    thread  processor time that the sending thread took for a log, until all of it was in MLflow
    added   mean wall time of a step with tracking less that of steps before and after without: all
            of the above and more, but on a shared machine mostly noise
    1 %     the step time of which (call + thread) / log interval is 1 %

It also says how many bytes an event takes, how long it took until all of it was in MLflow, and what
reading a long event file costs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hyperadapter.core.events import EVENTS_FILE, EventWriter, newest_event, read_metric
from hyperadapter.tracking import (
    SystemSampler,
    TrackedRun,
    Tracker,
    pending_events,
    run_status,
)
from hyperadapter.tracking.sender import prepare_state

__all__ = ["main"]

PLACES = ("off", "absent", "present", "slow")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--metrics", type=int, nargs="+", default=[10, 100, 3000])
    parser.add_argument("--step-s", type=float, default=0.05, help="time of a step")
    parser.add_argument("--steps", type=int, default=100, help="measured steps per figure")
    parser.add_argument("--log-every", type=int, default=10, help="steps from log to log")
    parser.add_argument("--delay-s", type=float, default=1.0, help="of the slow server")
    parser.add_argument("--events", type=int, default=1_000_000, help="lines of the long file")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pass-on", nargs=3, metavar=("PORT", "URI", "DELAY_S"),
                        help=argparse.SUPPRESS)  # fmt: skip
    options = parser.parse_args()
    if options.pass_on:
        _pass_on(int(options.pass_on[0]), options.pass_on[1], float(options.pass_on[2]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"step_s": options.step_s, "log_every": options.log_every}
        result["sampler_s"] = _sampler_s(folder)
        with _servers(folder, options.delay_s) as uris:
            result["steps"] = [
                _measure(folder, place, uris.get(place, ""), count, options)
                for count in options.metrics
                for place in PLACES
            ]
        result["long_file"] = _long_file(folder / "long", options.events)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)


def _measure(
    folder: Path, place: str, uri: str, count: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Steps without, with and again without tracking."""
    run_dir = folder / f"{place}_{count}"
    metrics = {f"valid/aa{number:04}-en/nll": 3.0 + number / 7 for number in range(count)}
    loops = _calibrate(options.step_s)
    tracker = Tracker(run_dir, TrackedRun(run_dir.name, uri=uri, enabled=place != "off"))
    _drain(run_dir, place)
    plain_s = [_step(loops) for _ in range(options.steps // 2)]
    call_s: list[float] = []
    begin, others_begin = time.perf_counter(), _other_threads_s()
    for step in range(options.steps):
        _step(loops)
        if step % options.log_every == 0:
            called = time.perf_counter()
            tracker.log_metrics(metrics, step)
            call_s.append(time.perf_counter() - called)
    tracked_s = (time.perf_counter() - begin) / options.steps
    drained_s = _drain(run_dir, place)
    thread_s = (_other_threads_s() - others_begin) / len(call_s)
    plain_s += [_step(loops) for _ in range(options.steps // 2)]
    unsent = tracker.finish()
    step_s = statistics.fmean(plain_s)
    per_step_s = (statistics.median(call_s) + thread_s) / options.log_every
    return {
        "place": place,
        "metrics": count,
        "call_median_s": statistics.median(call_s),
        "call_p99_s": sorted(call_s)[int(0.99 * len(call_s))],
        "thread_s": thread_s,
        "percent": 100 * per_step_s / step_s,
        "one_percent_step_s": 100 * per_step_s,
        "step_s": step_s,
        "added_s": tracked_s - step_s,
        "event_bytes": len(json.dumps({"time_ms": 10**12, "step": 1, "metrics": metrics})) + 1,
        "drained_s": drained_s,
        "unsent": unsent,
    }


def _other_threads_s() -> float:
    """Processor time of all threads of this process but this one."""
    return time.process_time() - time.thread_time()


def _drain(run_dir: Path, place: str) -> float:
    """Waits until nothing is left to send; returns how long that took."""
    begin = time.perf_counter()
    while place in ("present", "slow") and pending_events(run_dir):
        time.sleep(0.1)
    return time.perf_counter() - begin


def _step(loops: int) -> float:
    begin = time.perf_counter()
    total = 0
    for number in range(loops):
        total += number
    return time.perf_counter() - begin


def _calibrate(step_s: float) -> int:
    probe = 1_000_000
    return max(1, round(probe * step_s / min(_step(probe) for _ in range(5))))


def _sampler_s(folder: Path) -> float:
    sampler = SystemSampler(folder)
    sampler.read()
    begin = time.perf_counter()
    for _ in range(200):
        sampler.read()
    return (time.perf_counter() - begin) / 200


def _long_file(run_dir: Path, events: int) -> dict[str, float]:
    """Reads an event file of ten metrics an event, one event in a hundred being a validation."""
    writer = EventWriter(run_dir)
    writer.write(status="RUNNING")
    writer.close()
    names = [f"train/metric_{number}" for number in range(10)]
    with open(run_dir / EVENTS_FILE, "a", encoding="utf-8") as stream:
        for step in range(events):
            metrics = dict.fromkeys(names, step / 7)
            if step % 100 == 0:
                metrics["valid/macro/nll"] = 1 / (step + 1)
            line = {"time_ms": 1_700_000_000_000 + step, "step": step, "metrics": metrics}
            stream.write(json.dumps(line) + "\n")
    prepare_state(run_dir, "long", "benchmark", "sqlite:///none.db")
    result = {"events": float(events), "bytes": float((run_dir / EVENTS_FILE).stat().st_size)}
    for name, work in {
        "open_s": lambda: EventWriter(run_dir).close(),
        "pending_events_s": lambda: pending_events(run_dir),
        "newest_status_s": lambda: newest_event(run_dir, "status"),
        "run_status_s": lambda: run_status(run_dir),
        "read_rare_metric_s": lambda: read_metric(run_dir, "valid/macro/nll"),
        "read_metric_of_every_event_s": lambda: read_metric(run_dir, names[0]),
    }.items():
        begin = time.perf_counter()
        work()
        result[name] = time.perf_counter() - begin
    return result


@contextmanager
def _servers(folder: Path, delay_s: float) -> Iterator[dict[str, str]]:
    """An MLflow server, a slow way to it, and an address where nobody listens."""
    ports = [_free_port() for _ in range(3)]
    names = ("present", "slow", "absent")
    uris = {name: f"http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    commands = [
        [
            *(str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(ports[0])),
            *("--backend-store-uri", f"sqlite:///{folder}/server.db"),
            *("--artifacts-destination", f"{folder}/artifacts"),
        ],
        [
            *(sys.executable, "-m", "benchmarks.tracking", "--pass-on"),
            *(str(ports[1]), uris["present"], str(delay_s)),
        ],
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    started: list[subprocess.Popen[bytes]] = []
    with open(folder / "server.log", "ab") as log:
        try:
            for command in commands:
                started.append(
                    subprocess.Popen(
                        command, stdout=log, stderr=log, start_new_session=True, env=environment
                    )
                )
            for place in ("present", "slow"):
                _wait_for(uris[place])
            yield uris
        finally:
            for process in started:
                os.killpg(process.pid, 9)  # a group of our own: start_new_session
                process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _wait_for(uri: str) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _pass_on(port: int, uri: str, delay_s: float) -> None:
    """Passes every request on, some time later; never returns."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(delay_s)
            headers = {"Content-Type": self.headers.get("Content-Type", "application/json")}
            request = urllib.request.Request(
                uri + self.path, body or None, headers, method=self.command
            )
            try:
                with urllib.request.urlopen(request, timeout=60) as reply:
                    self._answer(reply.status, reply.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, error.read())

        do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815 (the names of http.server)

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def _print(result: dict[str, Any]) -> None:
    print(f"steps of {result['step_s']} s that log every {result['log_every']} steps")
    print(
        f"{'metrics':>8} {'MLflow':>8} {'call, ms':>9} {'p99, ms':>8} {'thread, ms':>11} "
        f"{'% of step':>10} {'1 % at, s':>10} {'added, ms':>10} {'bytes':>8} {'sent in, s':>10} "
        f"{'unsent':>7}"
    )
    for row in result["steps"]:
        print(
            f"{row['metrics']:>8,} {row['place']:>8} {1e3 * row['call_median_s']:>9.3f} "
            f"{1e3 * row['call_p99_s']:>8.3f} {1e3 * row['thread_s']:>11.3f} "
            f"{row['percent']:>10.3f} {row['one_percent_step_s']:>10.4f} "
            f"{1e3 * row['added_s']:>10.3f} {row['event_bytes']:>8,} {row['drained_s']:>10.1f} "
            f"{row['unsent']:>7,}"
        )
    print(f"a sample of the system takes {1e3 * result['sampler_s']:.3f} ms")
    for name, value in result["long_file"].items():
        print(f"long file: {name:>30} {value:>16,.3f}")


if __name__ == "__main__":
    main()
