"""Reading the runs of an experiment back, in bulk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.core.errors import TrackingError
from hyperadapter.tracking import TrackedRun, Tracker
from hyperadapter.tracking import runs as reader
from hyperadapter.tracking.runs import Curve, RunReader, StoredRun, read_runs
from tests.unit.tracking.conftest import QUICK_S


def make(run_dir: Path, experiment: str, metrics: dict[str, float], **more: Any) -> Tracker:
    run = TrackedRun(run_dir.name, experiment=experiment, **more)
    tracker = Tracker(run_dir, run, send_every_s=QUICK_S)
    tracker.log_metrics({name: 2 * value for name, value in metrics.items()}, 1)
    tracker.log_metrics(metrics, 2)
    return tracker


@pytest.mark.parametrize("way", ["tables", "pages"])
def test_runs_come_with_their_last_metrics(
    runs: Path, run_dir: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        place = run_dir / str(number)
        uri = f"sqlite:///{runs}/mlflow.db"
        params = {"model.d_model": str(number)}
        tracker = make(
            place, way, {"valid/macro/nll": 3.0 - number}, uri=uri, params=params,
            tags={"kind": "hyper"},
        )  # fmt: skip
        tracker.finish("FAILED" if number == 1 else "FINISHED", reason="x")
    if way == "pages":
        monkeypatch.setattr(reader, "database_of", lambda client: None)
        monkeypatch.setattr(reader, "_RUNS_PER_PAGE", 2)
    found = read_runs(uri, way, finished_only=False)
    assert [record.params for record in found] == [{"model.d_model": str(i)} for i in range(3)]
    assert [record.metrics for record in found] == [{"valid/macro/nll": 3.0 - i} for i in range(3)]
    assert [record.tags["mlflow.runName"] for record in found] == ["0", "1", "2"]
    assert found[0].tags["kind"] == "hyper"
    done = [record.params["model.d_model"] for record in read_runs(uri, way)]
    assert done == ["0", "2"]


def test_an_experiment_that_is_not_there(runs: Path) -> None:
    with pytest.raises(TrackingError, match=r"no experiment 'sizes'; it has Default, "):
        read_runs(f"sqlite:///{runs}/mlflow.db", "sizes")


def test_a_database_that_cannot_be_read(offline: str) -> None:
    with pytest.raises(TrackingError, match=r"cannot be read \(.*check --uri, or MLFLOW_TRACKING"):
        read_runs(offline, "sizes")


KEY, OTHER = "0f" * 16, "f0" * 16
RUNS = 5
CURVE = [(1, 4.0), (2, math.nan), (3, math.inf), (4, -math.inf), (5, 2.5)]


@pytest.fixture(scope="module")
def filled(runs: Path) -> str:
    """The runs of two studies, written as MLflow's client writes them."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    uri = f"sqlite:///{runs}/mlflow.db"
    client: Any = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("study", artifact_location=(runs / "a").as_uri())
    for number in range(RUNS):
        for parent in (KEY, OTHER):
            run_id = client.create_run(experiment, 100 + number, run_name=f"p{number}").info.run_id
            metrics = [Metric("train/nll", value, 1000 + s, s) for s, value in CURVE]
            metrics += [Metric("train/nll", 9.0, 999, 1), Metric("train/nll_2", 1.0, 1, 1)]
            metrics += [Metric("system/x", 1.0, 1, 1), Metric(f"few/{number}", 0.5, 7, 3)]
            client.log_batch(run_id, metrics, [Param("tracking.parent", parent), Param("n", "")])
            client.set_terminated(run_id, "KILLED" if number else "FAILED", 500 + number)
    client.delete_run(client.create_run(experiment, 1, run_name="deleted").info.run_id)
    return uri


def as_text(runs: list[StoredRun]) -> str:
    """For comparing: NaN is not equal to itself."""
    return repr([(run[:6], *(sorted(part.items()) for part in run[6:])) for run in runs])


def pages_only(monkeypatch: pytest.MonkeyPatch, runs_per_page: int) -> None:
    monkeypatch.setattr(reader, "database_of", lambda client: None)
    monkeypatch.setattr(reader, "_RUNS_PER_PAGE", runs_per_page)
    monkeypatch.setattr(reader, "_REQUESTS_AT_ONCE", 2)


def test_the_runs_below_one(filled: str) -> None:
    found = RunReader(filled).runs("study", KEY, ("train/nll", "few/0"))
    assert [(run.name, run.start_ms, run.end_ms) for run in found] == [
        (f"p{n}", 100 + n, 500 + n) for n in range(RUNS)
    ]
    assert [run.status for run in found] == ["FAILED", *["KILLED"] * (RUNS - 1)]
    assert {run.params["tracking.parent"] for run in found} == {KEY}
    assert found[0].metrics == {"train/nll": 2.5, "train/nll_2": 1.0, "few/0": 0.5}
    assert found[0].steps == {"train/nll": 5, "train/nll_2": 1, "few/0": 3}
    assert found[1].metrics == {"train/nll": 2.5, "train/nll_2": 1.0}
    assert len(RunReader(filled).runs("study")) == 2 * RUNS


@pytest.mark.parametrize("runs_per_page", [1, 2, 5, 50])
def test_pages_and_tables_say_the_same(
    filled: str, runs_per_page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = RunReader(filled)
    pages_only(monkeypatch, runs_per_page)
    pages = RunReader(filled)
    for parent in (KEY, "", "nobody"):
        for prefixes in ((), ("train/", "few/3"), ("train_",)):
            quick, slow = (way.runs("study", parent, prefixes) for way in (tables, pages))
            assert as_text(quick) == as_text(slow)


def test_pages_whose_tokens_are_unknown_are_read_one_by_one(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = as_text(RunReader(filled).runs("study", KEY))
    pages_only(monkeypatch, 2)
    monkeypatch.setattr(reader, "_token", lambda start: f"secret {start}")
    assert as_text(RunReader(filled).runs("study", KEY)) == expected


def test_a_page_that_takes_too_long_is_halved(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = as_text(RunReader(filled).runs("study", KEY))
    pages_only(monkeypatch, 5)
    found = RunReader(filled)
    search, sizes = found._client.search_runs, []

    def impatient(*args: Any, max_results: int, **more: Any) -> Any:
        sizes.append(max_results)
        if max_results > 2:
            raise TimeoutError("20 s")
        return search(*args, max_results=max_results, **more)

    monkeypatch.setattr(found._client, "search_runs", impatient)
    assert as_text(found.runs("study", KEY)) == expected
    assert set(sizes) == {5, 3, 2, 1}
    monkeypatch.setattr(found._client, "search_runs", lambda *_, **__: 1 / 0)
    with pytest.raises(TrackingError, match=r"cannot be read \(ZeroDivisionError"):
        found.runs("study", KEY)


def test_tables_of_another_version_are_read_the_slow_way(
    filled: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = as_text(RunReader(filled).runs("study", KEY))
    monkeypatch.setattr(reader, "_table", lambda name, columns: 1 / 0)
    found = RunReader(filled)
    runs = found.runs("study", KEY)
    assert as_text(runs) == expected
    assert "reading runs the slow way" in caplog.text
    curves = found.curves([run.run_id for run in runs], "train/nll", 500)
    assert "reading the history of train/nll the slow way" in caplog.text
    check_curves(runs, curves)


def check_curves(runs: list[StoredRun], curves: Mapping[str, Curve], most: int = 500) -> None:
    assert set(curves) == {run.run_id for run in runs}
    for curve in curves.values():
        assert curve.logged == len(CURVE)
        if most >= len(CURVE):
            assert repr(list(zip(curve.steps, curve.values, strict=True))) == repr(CURVE)


def test_curves_keep_the_newest_value_of_a_step(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_RUNS_PER_QUERY", 2)
    found = RunReader(filled)
    runs = found.runs("study", KEY)
    ids = [run.run_id for run in runs]
    check_curves(runs, found.curves(ids, "train/nll", 500))
    thin = found.curves(ids, "train/nll", 3)[ids[0]]
    assert (thin.steps, thin.logged) == ([1, 3, 5], 5)
    assert list(found.curves(ids, "few/2", 500)) == [ids[2]]
    assert found.curves(ids, "none", 500) == {}
    assert found.curves([], "train/nll", 500) == {}


def test_a_server_is_asked_for_many_runs_at_once(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def answer(client: Any, path: str, query: Mapping[str, Any]) -> Any:
        thinned = path.endswith("-interval")
        ids = query["run_ids" if thinned else "run_id"]
        asked.append((path, len(ids)))
        samples = [
            {"run_id": run_id, "key": m.key, "step": m.step, "value": m.value,
             "timestamp": m.timestamp}
            for run_id in ids
            for m in client.get_metric_history(run_id, query["metric_key"])
        ]  # fmt: skip
        if thinned:  # protobuf's JSON: texts
            return {"metrics": [{k: str(v) for k, v in sample.items()} for sample in samples]}
        return {"metrics": samples[: query["max_results"]]}

    pages_only(monkeypatch, 50)
    monkeypatch.setattr(reader, "request_json", answer)
    monkeypatch.setattr(reader, "_RUNS_PER_HISTORY", 2)
    found = RunReader(filled)
    runs = found.runs("study", KEY)
    ids = [run.run_id for run in runs]
    check_curves(runs, found.curves(ids, "train/nll", 500))
    assert sorted(count for _, count in asked) == [1, 2, 2]
    assert {path for path, _ in asked} == {"/ajax-api/2.0/mlflow/metrics/get-history-bulk"}
    monkeypatch.setattr(reader, "_SAMPLES_PER_HISTORY", 7)  # two runs have more
    check_curves(runs, found.curves(ids, "train/nll", 500))
    assert asked[-1][0].endswith("get-history-bulk-interval") or asked[-2][0].endswith("interval")


@given(st.integers(1, 300), st.integers(2, 50))
def test_thinning_keeps_the_ends_and_the_limit(count: int, most: int) -> None:
    samples = [reader._Sample("a", step, 0, float(step)) for step in range(count)]
    curve = reader._curves(samples, most)["a"]
    assert curve.steps[0] == 0
    assert curve.steps[-1] == count - 1
    assert len(curve.steps) == min(count, most)
    assert curve.steps == sorted(set(curve.steps))
    assert curve.values == curve.steps
    assert curve.logged == count


def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"cannot be read \(there is no such file"):
        RunReader(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_server_says_the_same(filled: str, tmp_path: Path) -> None:
    import shutil

    from tests.e2e.test_tracking_server import Server

    shutil.copy(filled.removeprefix("sqlite:///"), tmp_path / "server.db")
    server = Server(tmp_path)
    try:
        server.start()
        there, here = RunReader(server.uri), RunReader(filled)
        runs = there.runs("study", KEY)
        assert as_text(runs) == as_text(here.runs("study", KEY))
        check_curves(runs, there.curves([run.run_id for run in runs], "train/nll", 500))
    finally:
        server.kill()
