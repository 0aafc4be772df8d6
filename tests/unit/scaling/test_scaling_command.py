"""The command: options, tables, JSON, files, and MLflow runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from hyperadapter.cli import cli
from hyperadapter.core.errors import DataError
from tests.unit.scaling.conftest import EXAMPLES, ND, SIZES, points_of

VALUES = EXAMPLES["nd"][1]
POINTS = points_of(ND, VALUES, SIZES, 0.002)
TABLE = np.column_stack([POINTS.columns["params"], POINTS.columns["tokens"], POINTS.loss])


def call(*options: str) -> Result:
    return CliRunner().invoke(cli, ["scaling", "fit", *options], catch_exceptions=False)


@pytest.fixture(scope="module")
def csv(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("points") / "points.csv"
    lines = [",".join(map(repr, row)) for row in TABLE.tolist()]
    path.write_text("\n".join(["params,tokens,loss", *lines]))
    return str(path)


def test_json_and_files(csv: str, tmp_path: Path) -> None:
    out = tmp_path / "study"
    done = call("--csv", csv, "--json", "--bootstrap", "3", "--seed", "4", "--out", str(out))
    report = json.loads(done.stdout)
    assert set(report["parameters"]) == {"E", "A", "B", "alpha", "beta"}
    assert set(report["parameters"]["E"]) == {"estimate", "low", "high"}
    assert json.loads((out / "fit.json").read_text()) == report
    assert {path.name for path in out.iterdir()} == {
        "fit.json", "fit.png", "frontier.png", "residuals.png",
    }  # fmt: skip
    again = call("--csv", csv, "--json", "--bootstrap", "3", "--seed", "4")
    assert json.loads(again.stdout) == report


def test_tables_and_warnings(csv: str) -> None:
    done = call("--csv", csv, "--bootstrap", "0", "--hold-out", "1", "--flops", "1e21")
    assert "L = E + A N^-alpha + B D^-beta, 30 points, residual 0." in done.stdout
    assert "largest sizes, predicted from the others" in done.stdout
    assert "compute-optimal sizes for C = 6 N D" in done.stdout
    assert "1e+21" in done.stdout
    done = call("--csv", csv, "--bootstrap", "0", "--law", "n")
    assert "compute-optimal" not in done.stdout
    assert "warning: the points differ in tokens, which the law 'n' does not use" in done.stderr


def test_a_multiplier_in_a_table(tmp_path: Path) -> None:
    worse = points_of(ND, VALUES * [1, 12 ** VALUES[3], 1, 1, 1], SIZES)
    rows = [(*row[:2], loss, "old") for row, loss in zip(TABLE, worse.loss, strict=True)]
    rows += [(*row, "new") for row in TABLE]
    path = tmp_path / "two.csv"
    path.write_text("size,tokens,loss,kind\n" + "\n".join(",".join(map(str, r)) for r in rows))
    options = ["--csv", str(path), "--column", "params=size", "--family-column", "kind"]
    done = call(*options, "--bootstrap", "0", "--at-loss", "2.6")
    assert "old: L = E + " in done.stdout
    assert "Parameters of old for the loss of new" in done.stdout
    assert " 2.6 " in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --csv or --experiment"),
        (["--column", "size=x", "--experiment", "e"], "'size=x' is not COLUMN=NAME"),
        (["--column", "params", "--experiment", "e"], "'params' is not COLUMN=NAME"),
        (["--csv", "missing.csv"], "does not exist"),
    ],
)
def test_wrong_use(options: list[str], message: str) -> None:
    done = call(*options)
    assert done.exit_code == 2
    assert message in done.output


def test_errors_of_the_points_come_through(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("params,loss\n1,2\n")
    with pytest.raises(DataError, match="1 points for the 3 parameters E, A, alpha"):
        call("--csv", str(path))


def test_runs_of_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read(uri: str, experiment: str) -> list[tuple[dict[str, str], dict[str, float], object]]:
        asked.append((uri, experiment))
        return [
            ({"model/num_parameters": str(n)},
             {"perf/total/target_tokens": d, "valid/en-is/nll": loss}, {})
            for n, d, loss in TABLE.tolist()
        ]  # fmt: skip

    monkeypatch.setattr("hyperadapter.tracking.runs.read_runs", read)
    options = ["--experiment", "sizes", "--uri", "sqlite:////x/mlflow.db", "--json"]
    done = call(*options, "--column", "loss=valid/en-is/nll", "--bootstrap", "0")
    assert asked == [("sqlite:////x/mlflow.db", "sizes")]
    found = json.loads(done.stdout)["parameters"]["beta"]["estimate"]
    assert found == pytest.approx(VALUES[4], rel=0.05)
