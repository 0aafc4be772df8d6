"""A study from its file to its report: planned, run by two workers, added to, and looked at."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hyperadapter.cli import cli
from hyperadapter.core.events import EVENTS_FILE
from hyperadapter.core.files import write_json
from hyperadapter.study.plan import load_plan

pytestmark = pytest.mark.slow

Command = Callable[..., "subprocess.CompletedProcess[str]"]

GOOD, BAD, ADDED = 1e-3, 1e30, 2e-3


def call(*arguments: str) -> str:
    """Runs a command in this process, which spares it many imports."""
    done = CliRunner().invoke(cli, ["study", *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def plan(corpus: Path, folder: Path, rates: list[float], *options: str) -> None:
    tree = {
        "name": "rates",
        "folder": str(folder),
        "run": {
            "extends": str(corpus / "run.yaml"),
            "training": {"recovery": {"max_rollbacks": 0}, "max_steps": 6},
            "evaluation": {"max_sentences": 3, "beam_size": 1},
            "tracking": {"enabled": True},
        },
        "axes": {"rate": {"key": "training.learning_rate", "values": rates}},
        "report": {"groups": {"MANY": 400, "FEW": 0}},
    }
    write_json(folder.parent / "study.yaml", tree)
    call("plan", str(folder.parent / "study.yaml"), *options)


def states(folder: Path) -> dict[Any, Any]:
    """Returns the row of `study status` for each learning rate."""
    rows = json.loads(call("status", str(folder), "--json"))
    points = load_plan(folder).points
    assert [row["name"] for row in rows] == [point.name for point in points]
    return {point.axes["rate"]: row for point, row in zip(points, rows, strict=True)}


def test_a_study_is_run_added_to_and_reported(
    corpus: Path, hyperadapter: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "rates"
    plan(corpus, folder, [GOOD, BAD])
    assert {row["state"] for row in states(folder).values()} == {"WAITING"}

    done = hyperadapter("study", "run", str(folder), "--local", "2")
    assert done.returncode == 1, done.stderr[-3000:]
    found = states(folder)
    assert f"1 runs failed: {found[BAD]['name']}" in done.stderr
    assert (found[GOOD]["state"], found[GOOD]["step"]) == ("DONE", 6)
    assert found[GOOD]["loss"] > 0
    assert found[GOOD]["score"] is not None
    assert found[BAD]["state"] == "FAILED"
    assert "loss" in found[BAD]["why"]
    assert "ERROR" in (folder / "runs" / found[BAD]["name"] / "local.log").read_text().upper()

    events = folder / "runs" / found[GOOD]["name"] / EVENTS_FILE
    before = events.read_bytes()
    with pytest.raises(AssertionError, match="would leave the study"):
        plan(corpus, folder, [GOOD, ADDED])
    plan(corpus, folder, [GOOD, ADDED], "--drop")
    done = hyperadapter("study", "run", str(folder), "--local", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 of 2 runs are done" in done.stderr
    assert events.read_bytes() == before
    assert [row["state"] for row in states(folder).values()] == ["DONE", "DONE"]

    _check_mlflow(folder)
    _check_report(folder, found[GOOD]["loss"])


def _check_mlflow(folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rates")
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if run.info.run_name == "rates"]
    children = [run for run in runs if run is not parent]
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    pairs = children[0].data.metrics
    assert pairs["data/train_pairs/en-de"] > pairs["data/train_pairs/en-fr"] > 0


def _check_report(folder: Path, loss: float) -> None:
    call("report", str(folder))
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert "<title" in page
    with open(folder / "report" / "points.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2
    assert float(rows[0]["loss"]) == pytest.approx(loss, rel=1e-9)
    assert list((folder / "report").glob("*.png"))
