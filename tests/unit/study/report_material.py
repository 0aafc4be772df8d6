"""A study that was run, made by hand: its plan, and its runs in a real MLflow database."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from hyperadapter.core.files import write_json
from hyperadapter.study.config import ReportConfig
from hyperadapter.study.plan import PLAN_FILE, Plan, Point
from hyperadapter.study.results import Results, Row
from hyperadapter.tracking.runs import Curve
from hyperadapter.tracking.store import import_mlflow

HOSTILE = "</script><script>alert('1')</script><img src=http://evil.example/x> $\\frac{ _&"
DIRECTIONS = {"en-de": 2_000_000, "de-en": 2_000_000, "en-is": 20_000, "is-en": 500}
STEPS = 100


def make_point(name: str, kind: str, width: int, seed: int) -> Point:
    adapters = 0 if kind == "none" else 1000 * width
    return Point(
        name=name,
        axes={"kind": kind, "width": width, "seed": seed},
        fingerprint="0123456789ab",
        parameters=100_000 * width + adapters,
        adapter_parameters=adapters,
        steps=STEPS,
        tokens=1_000_000,
        flops=6e11 * width,
        bytes_per_rank=1,
        disk_bytes=1,
        gpu_hours=None,
    )


def make_plan(points: tuple[Point, ...], **fields: Any) -> Plan:
    given = {"study": "hyper size", "description": "Does it grow?", "report": {"series": "kind"}}
    given |= fields
    report = ReportConfig(**given.pop("report"))  # type: ignore[arg-type]
    return Plan(
        key="0f" * 16, experiment="hyper size", uri=str(given.pop("uri", "")), evaluate=True,
        report=report, points=points, **given,
    )  # fmt: skip


def make_results(rows: tuple[Row, ...], **fields: Any) -> Results:
    """Results that were never in MLflow."""
    plan = make_plan(tuple(row.point for row in rows), **fields)
    steps = list(range(10, STEPS + 1, 10))
    curves = {
        row.point.name: Curve(steps, [(row.loss or 0.0) + 50 / s for s in steps], 1000)
        for row in rows
        if row.loss is not None
    }
    return Results(
        plan=plan,
        place="http://***@mlflow.example",
        rows=rows,
        curves={plan.report.loss: curves},
        differs={"model.d_model": {"64": 2, "128": 3}},
        strangers=("old",),
        older=1,
        newest_ms=1_700_000_000_000,
    )


# What the runs in MLflow have logged: by point, status, steps done and loss of the directions.
NAMES = {
    ("hyper", 1, 1): "hyper-1-1",
    ("hyper", 1, 2): "hyper-1-2",
    ("hyper", 2, 1): "hyper-2-1",
    ("none", 1, 1): "none-1-1",
    ("none", 2, 1): "none-2-1",
    ("none", 2, 2): HOSTILE,
    ("none", 4, 1): "none-4-1",
}
RUNS: dict[str, tuple[str, int, float]] = {
    "hyper-1-1": ("FINISHED", STEPS, 3.0),
    "hyper-1-2": ("FINISHED", STEPS, 3.2),
    "hyper-2-1": ("RUNNING", 50, 3.6),
    "none-1-1": ("FINISHED", STEPS, 4.0),
    "none-2-1": ("FAILED", 60, math.nan),
    HOSTILE: ("KILLED", 70, 3.9),
}
"""The last of the points has no run."""


@cache
def made_study(base: Path) -> Path:
    """Returns the folder of a study that is half finished; it is made once in a process."""
    folder = base / "study"
    points = tuple(make_point(name, *place) for place, name in NAMES.items())
    plan = make_plan(points)
    write_json(folder / PLAN_FILE, plan.model_dump(mode="json"))
    (folder / "study.yaml").write_text("name: hyper size\n")
    (folder / "runs").mkdir()
    mlflow = import_mlflow()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
    place = (folder / "artifacts").as_uri()
    experiment = client.create_experiment(plan.experiment, artifact_location=place)
    _log(client, experiment, plan.key, "hyper-1-1", ("FINISHED", STEPS, 9.0), 1000)  # an older one
    for time_ms, (name, done) in enumerate(RUNS.items(), 2000):
        _log(client, experiment, plan.key, name, done, time_ms)
    _log(client, experiment, plan.key, "taken out", ("FINISHED", STEPS, 1.0), 3000)
    _log(client, experiment, "another study", "none-4-1", ("FINISHED", STEPS, 1.0), 3001)
    return folder


def _log(
    client: Any, experiment: str, parent: str, name: str, done: tuple[str, int, float], time_ms: int
) -> None:  # fmt: skip
    from mlflow.entities import Metric, Param, RunTag

    status, steps, loss = done
    run_id = client.create_run(experiment, time_ms, run_name=name).info.run_id
    pairs = {f"data/train_pairs/{direction}": n for direction, n in DIRECTIONS.items()}
    last = {f"valid/{direction}/nll": loss + n for n, direction in enumerate(DIRECTIONS)}
    if status == "FINISHED":
        # The mean over directions was not logged for the score: it is computed.
        last |= {f"test/{direction}/bleu": 10.0 + n for n, direction in enumerate(DIRECTIONS)}
        last |= {"test/macro/macro_chrf_into_en": 41.5, "perf/total/wall_s": 12.5}
    last |= {"perf/total/target_tokens": 9000.0 * steps, "system/node0/cpu_percent": 50.0}
    curve = [(step, loss + 50 / step) for step in range(10, steps, 10)] + [(steps, loss)]
    metrics = [Metric(key, value, time_ms, 0) for key, value in pairs.items()]
    metrics += [Metric(key, value, time_ms + steps, steps) for key, value in last.items()]
    metrics += [Metric("valid/macro/nll", value, time_ms + s, s) for s, value in curve]
    metrics += [Metric("valid/macro/nll", 7.0, time_ms, 10)]  # before a resume: an older value
    params = {
        "tracking.parent": parent, "name": name, "run_dir": f"runs/{time_ms}", "data.pivot": "en",
        "model.d_model": str(64 * (1 + time_ms % 2)), "training.learning_rate": "0.001",
    }  # fmt: skip
    tags = [RunTag("hyperadapter.status_reason", "TrainingError: <b>nan</b>")]
    client.log_batch(
        run_id, metrics, [Param(*item) for item in params.items()],
        tags if status == "FAILED" else [],
    )  # fmt: skip
    if status == "RUNNING":
        client.update_run(run_id, status)
    else:
        client.set_terminated(run_id, status, time_ms + 500)
