"""How long `study report` takes to read a large study, from a database and from a server.

The runs are written straight into MLflow's tables, as MLflow itself would leave them: each has some
metrics, of which all have a curve, and some parameters. Read is what the report reads: all runs
with parameters and last values, and the curves of two metrics. Reading by MLflow's own client is
timed for comparison on a part of the runs. The figures and the page come after.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hyperadapter.study.config import ReportConfig
from hyperadapter.study.figures import plot_results
from hyperadapter.study.page import write_page
from hyperadapter.study.plan import Plan, Point
from hyperadapter.study.results import read_results, write_csv
from hyperadapter.tracking.store import import_mlflow

__all__ = ["main"]

KEY = "0f" * 16
PARAMS = 100


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--metrics", type=int, default=100, help="of each run")
    parser.add_argument("--points", type=int, default=50, help="of each metric's curve")
    parser.add_argument(
        "--client-runs", type=int, default=50, help="read by MLflow's client; 0: none"
    )
    parser.add_argument("--workers", type=int, default=4, help="of the server: MLflow's default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = _fill(folder, options)
        uri = f"sqlite:///{folder}/mlflow.db"
        result: dict[str, Any] = vars(options) | {"cores": os.cpu_count()}
        result["database_bytes"] = (folder / "mlflow.db").stat().st_size
        result["database"] = _measure(plan, uri, options.client_runs)
        with _server(folder, options.workers) as address:
            result["server"] = _measure(plan, address, options.client_runs)
        results = read_results(plan, uri)
        figures, result["figures_s"] = _timed(lambda: plot_results(results, folder / "report"))
        page = folder / "report" / "index.html"
        _, result["page_s"] = _timed(lambda: write_page(results, figures, page))
        _, result["csv_s"] = _timed(lambda: write_csv(results, folder / "report"))
        result["page_bytes"] = page.stat().st_size
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for key, value in result.items():
        print(f"{key:16} {value}")


def _timed(work: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - start, 2)


def _measure(plan: Plan, uri: str, client_runs: int) -> dict[str, Any]:
    """Reads twice: the first time opens the database, or wakes the server's processes."""
    figures: dict[str, Any] = {}
    for name in ("first_s", "second_s"):
        results, figures[name] = _timed(lambda: read_results(plan, uri))
        done = sum(row.state == "DONE" for row in results.rows)
        curves = sum(len(curve.steps) for c in results.curves.values() for curve in c.values())
        figures |= {"done": done, "samples": curves}
    if client_runs:
        figures["client_s_per_1000_runs"] = _by_client(plan, uri, client_runs)
    return figures


def _by_client(plan: Plan, uri: str, count: int) -> float:
    client = import_mlflow().MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(plan.experiment).experiment_id

    def read() -> None:
        for run in client.search_runs([experiment], max_results=count):
            for metric in ("valid/macro/nll", "train/nll"):
                client.get_metric_history(run.info.run_id, metric)

    return round(_timed(read)[1] * 1000 / count, 1)


def _fill(folder: Path, options: argparse.Namespace) -> Plan:
    """Makes the tables by MLflow, and their rows by SQL: 5 million take MLflow an hour."""
    points = tuple(_point(number) for number in range(options.runs))
    plan = Plan(
        study="large", description="How long does it take?", key=KEY, experiment="large", uri="",
        evaluate=True, report=ReportConfig(series="kind"), points=points,
    )  # fmt: skip
    path = folder / "mlflow.db"
    client = import_mlflow().MlflowClient(tracking_uri=f"sqlite:///{path}")
    experiment = client.create_experiment("large", artifact_location=(folder / "a").as_uri())
    model = client.create_run(experiment, run_name="deleted").info.run_id
    client.delete_run(model)
    names = ["valid/macro/nll", "train/nll", "test/macro/bleu"]
    names += [f"valid/en-x{n}/nll" for n in range(options.metrics - len(names))]
    database = sqlite3.connect(path)
    columns = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
    values = database.execute("SELECT * FROM runs").fetchone()
    row = dict(zip(columns, values, strict=True))
    for number, point in enumerate(points):
        run_id = f"{number:032x}"
        run = row | {
            "run_uuid": run_id, "name": point.name, "start_time": number, "end_time": number + 9,
            "status": "FINISHED", "lifecycle_stage": "active", "deleted_time": None,
        }  # fmt: skip
        _insert(database, "runs", [run])
        params = {"tracking.parent": KEY} | {f"model.key{n}": f"{n}" for n in range(PARAMS - 1)}
        rows = [{"run_uuid": run_id, "key": key, "value": text} for key, text in params.items()]
        _insert(database, "params", rows)
        curves = [
            {"run_uuid": run_id, "key": name, "value": 3.0 + 10 / step, "step": 10 * step,
             "timestamp": 1000 * step, "is_nan": 0}
            for name in names
            for step in range(1, options.points + 1)
        ]  # fmt: skip
        _insert(database, "metrics", curves)
        _insert(database, "latest_metrics", curves[options.points - 1 :: options.points])
    database.commit()
    database.close()
    return plan


def _insert(database: sqlite3.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    marks = ",".join("?" * len(rows[0]))
    database.executemany(
        f"INSERT INTO {table} ({','.join(rows[0])}) VALUES ({marks})",
        [tuple(row.values()) for row in rows],
    )


def _point(number: int) -> Point:
    kind, width, seed = ("hyper", "language", "none")[number % 3], 1 + number // 9, number // 3 % 3
    adapters = 1000 * width if kind != "none" else 0
    return Point(
        name=f"{kind}-{width}-{seed}",
        axes={"kind": kind, "width": width, "seed": seed},
        fingerprint="0123456789ab",
        parameters=100_000 * width + adapters,
        adapter_parameters=adapters,
        steps=1,
        tokens=1_000_000,
        flops=6e11 * width,
        bytes_per_rank=1,
        disk_bytes=1,
        gpu_hours=None,
    )


@contextmanager
def _server(folder: Path, workers: int) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(str(Path(sys.executable).with_name("mlflow")), "server", "--workers", str(workers)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", f"{folder}/artifacts"),
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=environment
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "server.log").read_text())
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 9)  # a group of our own: start_new_session
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    main()
