"""Reading points: what is taken, and how what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from hyperadapter.core.errors import DataError
from hyperadapter.scaling.points import RUN_COLUMNS, read_csv, read_rows, rows_of_runs

GOOD = "params,tokens,loss,note\n1e7,1e9,3.5,a\n2e7,1e9,3.25,b\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "points.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_read_and_others_left_alone(tmp_path: Path) -> None:
    law, points = read_csv(write(tmp_path, "\ufeff" + GOOD), None)
    assert law.name == "nd"
    assert points.columns["params"].tolist() == [1e7, 2e7]
    assert points.loss.tolist() == [3.5, 3.25]
    assert set(points.by_family()) == {""}
    assert points.ignored == ()


@pytest.mark.parametrize(
    ("header", "name"),
    [("params", "n"), ("params,tokens", "nd"), ("tokens,params,hyper_params", "joint")],
)
def test_the_law_follows_the_columns(tmp_path: Path, header: str, name: str) -> None:
    values = ",".join("1" * len(header.split(",")))
    law, _ = read_csv(write(tmp_path, f"{header},loss\n{values},2\n"), None)
    assert law.name == name


def test_a_smaller_law_says_what_it_ignores(tmp_path: Path) -> None:
    text = "params,tokens,weight,loss\n1,2,0.5,3\n1,4,0.5,3\n"
    law, points = read_csv(write(tmp_path, text), "n")
    assert (law.name, points.ignored) == ("n", ("tokens",))
    law, points = read_csv(write(tmp_path, text), "n", mixture=True)
    assert law.columns == ("params", "weight")
    assert points.columns["weight"].tolist() == [0.5, 0.5]


def test_families_keep_their_order(tmp_path: Path) -> None:
    text = "params,loss,kind\n1,3,z\n2,2,a\n3,1,z\n"
    groups = read_csv(write(tmp_path, text), None, sources={"family": "kind"})[1].by_family()
    assert list(groups) == ["z", "a"]
    assert groups["z"].loss.tolist() == [3, 1]
    assert groups["z"].families == ("z", "z")


def test_columns_of_another_name(tmp_path: Path) -> None:
    text = "size,loss\n5,2\n"
    assert (
        read_csv(write(tmp_path, text), "n", sources={"params": "size"})[1].columns["params"] == 5
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"points\.csv has no points; a CSV file needs a header line"),
        ("params,loss\n", r"points\.csv has no points"),
        ("param,tokens,loss\n1,2,3\n",
         r"no column 'params' \(did you mean 'param'\?\), which the .*--column params=NAME"),
        ("params,tokens\n1,2\n", r"no column 'loss'.* it has params, tokens\."),
        ("params,params,loss\n1,2,3\n", r"points\.csv: the header has params twice"),
        ("params,loss\n1,2\n3,x\n", r"points\.csv:3: loss is 'x', where a positive number"),
        ("params,loss\n1,nan\n", r"points\.csv:2: loss is 'nan'"),
        ("params,loss\n1,inf\n", r"points\.csv:2: loss is 'inf'"),
        ("params,loss\n0,1\n", r"points\.csv:2: params is '0'"),
        ("params,loss\n-5,1\n", r"points\.csv:2: params is '-5'"),
        ("params,loss\n5\n", r"points\.csv:2: loss is ''.* correct the point or leave it out"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_csv(write(tmp_path, text), None)


def test_a_weight_over_one_is_a_percentage(tmp_path: Path) -> None:
    path = write(tmp_path, "params,weight,loss\n1,0.5,2\n1,50,2\n")
    with pytest.raises(DataError, match=r"points\.csv:3: weight 50 is over 1; give shares"):
        read_csv(path, "n", mixture=True)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no CSV file in UTF-8"):
        read_csv(path, None)


def test_runs_give_metrics_parameters_and_tags() -> None:
    params = {"model.d_model": "512", "model/num_parameters": "1000"}
    metrics = {"valid/macro/nll": 2.5, "perf/total/target_tokens": 1e9}
    runs = [(params, metrics, {"mlflow.runName": "first", "kind": "hyper"})]
    rows = rows_of_runs(runs, "MLflow", "valid/macro/nll")
    law, points = read_rows(rows, RUN_COLUMNS | {"family": "kind"}, None, False, "MLflow")
    assert law.name == "nd"
    assert (points.columns["params"], points.columns["tokens"]) == ([1000], [1e9])
    assert points.loss == [2.5]
    assert points.families == ("hyper",)
    with pytest.raises(DataError, match=r"MLflow, run first: model\.d_ff is ''"):
        read_rows(
            [*rows, ("MLflow, run second", {"model.d_ff": "7"})],
            RUN_COLUMNS | {"params": "model.d_ff"}, None, False, "MLflow",
        )  # fmt: skip


def test_runs_without_a_loss_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    runs = [({"a": "1"}, {"loss": 2.0}, {}), ({"a": "2"}, {}, {}), ({"a": "3"}, {"b": 1.0}, {})]
    rows = rows_of_runs(runs, "MLflow", "loss")
    assert [row["a"] for _, row in rows] == ["1"]
    assert "MLflow: 2 of 3 finished runs have no 'loss' and are left out" in caplog.text
