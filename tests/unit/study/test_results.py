"""Rows, groups, curves and CSV of a study, against what its runs logged to a real database."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from hyperadapter.cli import cli
from hyperadapter.core.errors import TrackingError
from hyperadapter.study.plan import load_plan
from hyperadapter.study.results import Results, Row, link_of, read_results, write_csv
from tests.unit.study.report_material import (
    HOSTILE,
    STEPS,
    made_study,
    make_plan,
    make_point,
    make_results,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = made_study(tmp_path_factory.getbasetemp())
    return read_results(load_plan(folder), f"sqlite:///{folder}/runs/mlflow.db")


def row_of(results: Results, name: str) -> Row:
    return next(row for row in results.rows if row.point.name == name)


def test_every_point_has_a_row_and_every_run_is_counted(results: Results) -> None:
    assert {row.point.name: row.state for row in results.rows} == {
        "hyper-1-1": "DONE", "hyper-1-2": "DONE", "hyper-2-1": "RUNNING", "none-1-1": "DONE",
        "none-2-1": "FAILED", HOSTILE: "STOPPED", "none-4-1": "WAITING",
    }  # fmt: skip
    assert results.states == {"DONE": 3, "RUNNING": 1, "FAILED": 1, "STOPPED": 1, "WAITING": 1}
    assert results.strangers == ("taken out",)
    assert results.older == 1
    assert row_of(results, "hyper-1-1").loss == 3.0  # 9.0 is the older run's
    assert results.newest_ms == 3500


def test_what_a_run_has_done(results: Results) -> None:
    done, half = row_of(results, "hyper-1-2"), row_of(results, "hyper-2-1")
    assert (done.step, done.loss, done.score, done.wall_s) == (STEPS, 3.2, 11.5, 12.5)
    assert done.tokens == 9000 * STEPS
    assert done.macro == {"test/macro/macro_chrf_into_en": 41.5}
    assert (half.step, half.score) == (50, None)
    assert half.flops == half.point.flops / 2
    failed = row_of(results, "none-2-1")
    assert failed.why == "TrainingError: <b>nan</b>"
    assert failed.diverged
    assert [row.point.name for row in results.rows if row.diverged] == ["none-2-1"]
    waiting = row_of(results, "none-4-1")  # another study has a run of this name
    assert (waiting.run_id, waiting.loss, waiting.step) == ("", None, None)


def test_groups_are_means_over_their_directions(results: Results) -> None:
    groups = row_of(results, "hyper-1-1").groups
    assert {name: group.directions for name, group in groups.items()} == {
        "HIGH": 2, "LOW": 1, "VERY LOW": 1, "into en": 2, "out of en": 2,
    }  # fmt: skip
    # en-de, de-en, en-is and is-en have 0, 1, 2 and 3 more than the run's loss, and than 10 BLEU.
    assert {name: group.loss for name, group in groups.items()} == {
        "HIGH": 3.5, "LOW": 5.0, "VERY LOW": 6.0, "into en": 5.0, "out of en": 4.0,
    }  # fmt: skip
    assert groups["into en"].score == 12.0
    assert row_of(results, "hyper-2-1").groups["HIGH"].score is None
    assert row_of(results, "none-4-1").groups == {}


def test_curves_have_the_newest_value_of_each_step(results: Results) -> None:
    curves = results.curves["valid/macro/nll"]
    assert set(curves) == {row.point.name for row in results.rows} - {"none-4-1"}
    curve = curves["hyper-1-1"]
    assert curve.steps == [*range(10, STEPS, 10), STEPS]
    assert curve.values[:2] == [3.0 + 5, 3.0 + 2.5]  # 7.0 was logged before the run was resumed
    assert curve.values[-1] == 3.0
    assert math.isnan(curves["none-2-1"].values[-1])
    assert results.curves["train/nll"] == {}


def test_only_what_differs(results: Results) -> None:
    assert results.differs == {"model.d_model": {"64": 3, "128": 3}}


def test_best_prefers_runs_that_are_done(results: Results) -> None:
    best = {results.series(row): row.point.name for row in results.best("loss")}
    assert best == {"hyper": "hyper-1-1", "none": "none-1-1"}  # a stopped one has 3.9, less
    assert [row.point.name for row in results.best("score")] == ["hyper-1-1", "none-1-1"]


def test_csv_has_what_was_logged(results: Results, tmp_path: Path) -> None:
    points, fit = write_csv(results, tmp_path)
    with points.open(newline="") as stream:
        rows = {row["point"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [row.point.name for row in results.rows]
    done = rows["hyper-1-2"]
    assert (done["loss"], done["score"], done["family"]) == ("3.2", "11.5", "hyper")
    assert (done["params"], done["adapter_params"]) == ("101000", "1000")
    assert (done["tokens"], done["flops"]) == ("900000.0", "600000000000.0")
    assert (done["loss.VERY LOW"], done["score.into en"]) == ("6.2", "12.0")
    assert (done["axis.width"], done["axis.seed"]) == ("1", "2")
    assert rows["none-2-1"]["loss"] == "nan"
    assert rows["none-4-1"]["loss"] == ""
    with fit.open(newline="") as stream:
        fitted = list(csv.DictReader(stream))
    assert [row["point"] for row in fitted] == ["hyper-1-1", "hyper-1-2", "none-1-1"]
    # These runs have no hyper-network, whose law knows no 0.
    assert list(fitted[0]) == ["point", "params", "tokens", "loss", "family"]


@pytest.mark.parametrize("hyper", [True, False])
def test_a_law_can_be_fitted_to_the_csv(tmp_path: Path, hyper: bool) -> None:
    rows = []
    for width in (1, 2, 4, 8, 16):
        for tokens in (1e6, 4e6, 1.6e7):
            count = 1000 * width**2 if hyper else 0
            point = make_point(f"p{width}-{tokens:g}", "hyper", width, 1)
            loss = 2 + 50 * point.parameters**-0.3 + 40 * tokens**-0.3
            loss += 20 * count**-0.3 if hyper else 0
            row = Row(point, "DONE", run_id="r", tokens=tokens, hyper_parameters=count, loss=loss)
            rows.append(row)
    for path in write_csv(make_results(tuple(rows)), tmp_path):
        header = path.read_text().splitlines()[0].split(",")
        assert ("hyper_params" in header) == hyper
        call = ["scaling", "fit", "--csv", str(path), "--law", "nd", "--bootstrap", "0"]
        done = CliRunner().invoke(cli, call, catch_exceptions=False)
        assert "hyper: " in done.stdout
        assert "15 points" in done.stdout


def test_nothing_of_the_study_in_mlflow(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = made_study(tmp_path_factory.getbasetemp())
    plan = load_plan(folder).model_copy(update={"key": "other"})
    with pytest.raises(TrackingError, match=r"has no run of the study 'hyper size'.*track sync"):
        read_results(plan, f"sqlite:///{folder}/runs/mlflow.db")


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"cannot be read \(there is no such file\)"):
        read_results(make_plan(()), f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("sqlite:////tmp/mlflow.db", ""),
        ("postgresql://me:secret@host/db", ""),
        ("http://host:5000", "http://host:5000/#/experiments/3/runs/ab"),
        ("https://me:secret@host/ml/?token=x", "https://host/ml/#/experiments/3/runs/ab"),
    ],
)
def test_links_lead_to_servers_and_tell_no_password(uri: str, link: str) -> None:
    assert link_of(uri, "3", "ab") == link


def test_a_run_of_another_experiment_is_no_point(tmp_path_factory: pytest.TempPathFactory) -> None:
    from hyperadapter.tracking.store import import_mlflow

    folder = made_study(tmp_path_factory.getbasetemp())
    plan, uri = load_plan(folder), f"sqlite:///{folder}/runs/mlflow.db"
    client = import_mlflow().MlflowClient(tracking_uri=uri)
    run_id = row_of(read_results(plan, uri), "none-1-1").run_id
    for fingerprint, state in (("ffffffffffff", "WAITING"), (plan.points[3].fingerprint, "DONE")):
        client.set_tag(run_id, "fingerprint", fingerprint)
        results = read_results(plan, uri)
        assert row_of(results, "none-1-1").state == state
        assert ("none-1-1" in results.strangers) == (state == "WAITING")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"score": "test/macro/blue"}, "'test/macro/blue' of report.score"),
        ({"loss": "valid/makro/nll"}, "'valid/makro/nll' of report.loss (did you mean "),
    ],
)
def test_a_metric_that_no_run_has_is_an_error(
    changes: dict[str, str], said: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = made_study(tmp_path_factory.getbasetemp())
    plan = load_plan(folder)
    report = plan.report.model_copy(update=changes)
    with pytest.raises(TrackingError, match=re.escape(said)) as error:
        read_results(
            plan.model_copy(update={"report": report}), f"sqlite:///{folder}/runs/mlflow.db"
        )
    assert "there are test/macro/macro_chrf_into_en" in str(error.value)
