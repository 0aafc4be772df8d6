"""`hyperadapter study report`: its files, what it prints, and what it tells MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hyperadapter.cli import cli
from hyperadapter.core.errors import ConfigError, TrackingError
from tests.unit.study.report_material import HOSTILE, made_study

FILES = {
    "index.html", "points.csv", "fit.csv", "loss_curves.png", "sizes.png", "groups_loss.png",
    "groups_score.png", "configs.csv",
}  # fmt: skip


def call(*options: str) -> Result:
    return CliRunner().invoke(cli, ["study", "report", *options], catch_exceptions=False)


@pytest.fixture(autouse=True)
def _no_address_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(made_study(tmp_path_factory.getbasetemp()), tmp_path / "study")


def test_half_a_study_is_reported_and_logged(folder: Path) -> None:
    said = call(str(folder)).stdout
    assert {path.name for path in (folder / "report").iterdir()} == FILES
    for text in ("hyper-1-1", "none-1-1", "best by loss", "best by score", "3 DONE", "1 WAITING",
                 "1 runs that are no point, 1 older runs", "report/index.html"):  # fmt: skip
        assert text in said, text
    page = (folder / "report" / "index.html").read_text()
    assert HOSTILE not in page
    assert "TrainingError: &lt;b&gt;nan&lt;/b&gt;" in page
    assert _logged(folder) == FILES


def _logged(folder: Path) -> set[str]:
    from mlflow import MlflowClient

    client: Any = MlflowClient(tracking_uri=f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("hyper size").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`hyperadapter.key` = '{'0f' * 16}'")
    return {Path(a.path).name for a in client.list_artifacts(parent.info.run_id, "report")}


def test_json_elsewhere_and_without_logging(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere"
    uri = f"sqlite:///{folder}/runs/mlflow.db"
    said = json.loads(
        call(str(folder), "--json", "--no-log", "--out", str(out), "--uri", uri).stdout
    )
    assert {path.name for path in out.iterdir()} == FILES
    assert {Path(path).name for path in said["files"]} == FILES
    assert said["states"]["DONE"] == 3
    assert [best["point"] for best in said["best_loss"]] == ["hyper-1-1", "none-1-1"]
    assert not (folder / "report").exists()
    assert not (folder / "parent").exists()


def test_a_folder_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no planned study"):
        call(str(tmp_path))


def test_a_study_that_mlflow_does_not_know(folder: Path) -> None:
    (folder / "runs" / "mlflow.db").unlink()
    with pytest.raises(TrackingError, match=r"there is no such file.*check --uri"):
        call(str(folder))
    assert not (folder / "report").exists()
