"""Run folders beside a real MLflow database, and looks into both."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.events import EVENTS_FILE, SendState
from hyperadapter.tracking import TrackedRun, Tracker, resolve_uri

QUICK_S = 0.02


@pytest.fixture(autouse=True)
def _no_address_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders whose database is made once: that takes seconds."""
    folder = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{folder}/mlflow.db"
    with Tracker(folder / "first", TrackedRun("first", uri=uri), send_every_s=QUICK_S) as tracker:
        assert tracker.uri == uri
    return folder


@pytest.fixture
def run_dir(runs: Path, request: pytest.FixtureRequest) -> Path:
    return runs / str(request.node.name)


@pytest.fixture
def offline(tmp_path: Path) -> str:
    """A tracking URI at which nothing can be made."""
    (tmp_path / "file").touch()
    return f"sqlite:///{tmp_path}/file/mlflow.db"


def client(run_dir: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=resolve_uri(run_dir, ""))


def run_id(run_dir: Path) -> str:
    state = SendState.load(run_dir)
    assert state is not None
    return state.run_id


def in_mlflow(run_dir: Path) -> Any:
    return client(run_dir).get_run(run_id(run_dir))


def history(run_dir: Path, key: str) -> list[tuple[int, float]]:
    found = client(run_dir).get_metric_history(run_id(run_dir), key)
    return sorted((metric.step, metric.value) for metric in found)


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]


def open_tracker(run_dir: Path, **fields: Any) -> Tracker:
    return Tracker(run_dir, TrackedRun(run_dir.name, **fields), send_every_s=QUICK_S)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
