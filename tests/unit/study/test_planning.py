"""Planning, and planning again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hyperadapter.cli import cli
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.files import write_text
from hyperadapter.core.schema import to_yaml
from hyperadapter.forecast import forecast_run
from hyperadapter.study.config import StudyConfig, load_study
from hyperadapter.study.parent import open_parent
from hyperadapter.study.plan import Plan, load_plan, point_config
from hyperadapter.study.planning import plan_report, plan_study, plan_tables, write_plan
from hyperadapter.training.preflight import experiment_fingerprint

MakeStudy = Callable[..., StudyConfig]

RATE = {"key": "training.learning_rate", "values": [1e-3, 2e-3]}


def planned(study: StudyConfig) -> Plan:
    write_plan(plan_study(study))
    return load_plan(Path(study.folder))


def train(config: RunConfig) -> None:
    """Leaves what a training leaves: the configuration and a checkpoint."""
    run_dir = Path(config.run_dir)
    (run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


@pytest.fixture(autouse=True)
def _folders_are_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    def complete(run_dir: Path) -> list[tuple[int, Path]]:
        return [(1, path) for path in (run_dir / "checkpoints").glob("step-*")]

    monkeypatch.setattr("hyperadapter.study.planning.complete_checkpoints", complete)


def test_the_list_is_what_the_forecast_says(make_study: MakeStudy) -> None:
    study = make_study(axes={"rate": RATE}, description="why", budget={"tokens": [5e6]})
    result = plan_study(study, gpu="l4", utilisation=0.2)
    write_plan(result)
    folder = Path(study.folder)
    plan = load_plan(folder)
    assert (plan.study, plan.experiment, plan.description) == ("small", "small", "why")
    assert (plan.gpu, plan.uri, plan.tracked, plan.evaluate) == ("L4", "", True, True)
    assert len(plan.key) == 32
    for point in plan.points:
        config = point_config(folder, point)
        report = forecast_run(config, gpu="L4", utilisation=0.2)
        assert config.tracking.parent == plan.key
        assert point.fingerprint == experiment_fingerprint(config)
        assert point.parameters == report["num_parameters"]
        assert 0 < point.adapter_parameters < point.parameters
        assert point.steps == config.training.max_steps == report["run"]["steps"]
        assert point.tokens == report["run"]["tgt_tokens"]
        assert point.flops == report["run"]["flops"]
        assert point.bytes_per_rank == report["bytes_per_rank"]["total"]
        assert point.disk_bytes == report["disk"]["needed_bytes"]
        assert point.gpu_hours == report["gpu"]["hours"] * 2  # of two processes
    assert load_study(folder / "study.yaml") == study


def test_planning_again_changes_nothing(make_study: MakeStudy) -> None:
    study = make_study(axes={"rate": RATE}, seeds=[1, 2])
    first = planned(study)
    files = {path: path.stat().st_ino for path in Path(study.folder).rglob("*") if path.is_file()}
    assert planned(study) == first
    assert {path: path.stat().st_ino for path in files} == files
    assert len(files) == 2 + 4


def test_new_points_follow_and_old_ones_may_go(make_study: MakeStudy) -> None:
    first = planned(make_study(axes={"rate": RATE}))
    rates = {"key": RATE["key"], "values": [5e-4, 2e-3, 1e-3]}
    second = planned(make_study(axes={"rate": rates}))
    assert second.key == first.key
    assert second.points[:2] == first.points
    assert [point.axes["rate"] for point in second.points] == [1e-3, 2e-3, 5e-4]
    study = make_study(axes={"rate": {"key": RATE["key"], "values": [2e-3]}})
    result = plan_study(study)
    assert result.notes == [
        "2 points are in the study no more, such as rate-0.001_seed-1; their folders stay"
    ]
    write_plan(result)
    assert len(load_plan(Path(study.folder)).points) == 1
    assert len(list(Path(study.folder).glob("points/*.yaml"))) == 3


def test_what_was_trained_is_not_replaced(make_study: MakeStudy) -> None:
    study = make_study(axes={"rate": RATE})
    plan = planned(study)
    changed = make_study(axes={"rate": RATE}, run={"training": {"weight_decay": 0.1}})
    folder = Path(study.folder)
    assert planned(changed).points != plan.points  # nothing was trained yet
    train(point_config(folder, load_plan(folder).points[1]))
    for again in (make_study(axes={"rate": RATE}), None):
        if again is None:
            again = study
            (folder / "plan.json").unlink()  # the folders are asked also without a list
        with pytest.raises(ConfigError) as error:
            plan_study(again)
        assert str(error.value) == (
            "point rate-0.002_seed-1 has begun as another experiment in "
            f"{folder}/runs/rate-0.002_seed-1:\n  training.weight_decay: 0.1 there, 0.0 is "
            f"planned\nrestore the values to go on in {folder}; or give the changed study another "
            "folder and name (--set folder=... --set name=...); or cancel the run's job if it has "
            f"one, and delete {folder}/runs/rate-0.002_seed-1"
        )
    faster = {"training": {"weight_decay": 0.1, "num_processes": 1, "zero_stage": 0}}
    again = planned(make_study(axes={"rate": RATE}, run=faster))
    assert point_config(folder, again.points[1]).training.num_processes == 1


def test_a_point_that_comes_back_is_looked_at(make_study: MakeStudy) -> None:
    study = make_study(axes={"rate": RATE})
    train(point_config(Path(study.folder), planned(study).points[0]))
    fewer = make_study(axes={"rate": {"key": RATE["key"], "values": [2e-3]}})
    with pytest.raises(ConfigError, match=r"1 points that have begun would leave .* Say --drop if"):
        plan_study(fewer)
    write_plan(plan_study(fewer, drop=True))
    changed = make_study(axes={"rate": RATE}, run={"training": {"clip_norm": 2.0}})
    with pytest.raises(ConfigError, match=r"clip_norm: 1.0 there, 2.0 is planned"):
        plan_study(changed)
    assert len(planned(study).points) == 2


def test_a_folder_belongs_to_one_study(make_study: MakeStudy) -> None:
    planned(make_study())
    with pytest.raises(ConfigError, match=r"belongs to the study 'small', not to 'large'; give"):
        plan_study(make_study(name="large"))


def test_the_table_adds_up(make_study: MakeStudy) -> None:
    study = make_study(axes={"rate": RATE}, skip=[{"rate": 3}], require=["rate > 0"])
    for gpu in (None, "H100"):
        result = plan_study(study, gpu)
        report = plan_report(result)
        ((title, columns, rows),) = plan_tables(report)
        assert title == f"small in {study.folder}"
        assert len(rows) == 3
        assert {len(row) for row in rows} == {len(columns)}
        assert rows[-1][0] == "2 points"
        assert rows[-1][4] == sum(point.tokens for point in result.plan.points)
        assert columns[-1] == ("hours of H100" if gpu else "GPU hours")
        assert (rows[-1][-1] is None) == (gpu is None)
    assert report["totals"]["gpu_hours"] == sum(p.gpu_hours or 0 for p in result.plan.points)
    assert result.notes == [
        "0 points left out by skip 1 {rate: 3}",
        "0 points left out by require rate > 0",
    ]


def test_points_that_do_not_fit_are_named(make_study: MakeStudy) -> None:
    width = {"key": "model.adapter.hyper_network.hyper_dim", "values": [64, 60_000]}
    notes = plan_study(make_study(axes={"width": width}), "L4").notes
    assert notes[0].startswith("1 points do not fit on one L4, such as width-60000_seed-1; see")


def test_the_command(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    run = repository / "configs" / "runs" / "quickstart.yaml"
    file.write_text(
        f"{{name: s, folder: {tmp_path}/f, run: {{extends: {run}}}, seeds: [1, 2],\n"
        " skip: [{seed: 9}], require: [seed < 2]}",
        encoding="utf-8",
    )
    command = ["study", "plan", str(file), "--set", "seeds=[1,2,3]"]
    dry = CliRunner().invoke(cli, [*command, "--dry-run"], catch_exceptions=False)
    assert "1 points" in dry.stdout
    assert "2 points left out by require seed < 2" in dry.stderr
    assert not (tmp_path / "f").exists()
    wet = CliRunner().invoke(cli, [*command, "--gpu", "H100", "--json"], catch_exceptions=False)
    report: dict[str, Any] = json.loads(wet.stdout)
    assert [point["name"] for point in report["points"]] == ["seed-1"]
    assert report["totals"]["gpu_hours"] > 0
    assert load_plan(tmp_path / "f").key == report["key"]


@pytest.mark.parametrize("sign", ["events.jsonl", "submit/1/config.yaml"])
def test_what_has_begun_or_waits_is_not_replaced_either(make_study: MakeStudy, sign: str) -> None:
    study = make_study(axes={"rate": RATE})
    folder = Path(study.folder)
    config = point_config(folder, planned(study).points[0])
    for name in (sign, "config.yaml"):
        write_text(Path(config.run_dir) / name, to_yaml(config))
    assert len(planned(study).points) == 2
    changed = make_study(axes={"rate": RATE}, run={"training": {"clip_norm": 2.0}})
    with pytest.raises(ConfigError, match=r"has begun as another experiment .*\n.*clip_norm: 1.0"):
        plan_study(changed)


def test_points_do_not_replace_each_others_data(make_study: MakeStudy, tmp_path: Path) -> None:
    key = "data.shards.max_sentence_tokens"
    with pytest.raises(ConfigError, match=r"len-32_seed-1 and len-48_seed-1 would make different"):
        plan_study(make_study(axes={"len": {"key": key, "values": [32, 48]}}))
    options = {
        f"len{n}": {key: n, "data.folder": str(tmp_path / f"data{n}")} for n in (32, 48)
    }  # fmt: skip
    assert len(plan_study(make_study(axes={"len": {"options": options}})).plan.points) == 2


def test_a_lost_list_keeps_the_key_of_the_mlflow_run(make_study: MakeStudy) -> None:
    study = make_study(axes={"rate": RATE})
    folder = Path(study.folder)
    plan = planned(study)
    open_parent(folder, plan.model_copy(update={"tracked": False})).finish()
    (folder / "plan.json").unlink()
    assert planned(study).key == plan.key


def test_a_folder_is_used_from_where_it_was_planned(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    point = planned(make_study(folder="here")).points[0]
    assert point_config(Path("here"), point).run_dir == f"here/runs/{point.name}"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"which from here is not .*; give the command where the"):
        point_config(tmp_path / "here", point)


def test_a_matched_size_that_is_off_is_said(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    rule = {"where": {"kind": "hyper"}, "to": {"kind": "direction"}, "by": "adapter_params",
            "vary": "hyper_dim"}  # fmt: skip
    axes = {"kind": kinds}
    result = plan_study(make_study(axes=axes, match=[rule | {"times": 0.05}]))
    [point] = [p for p in result.plan.points if p.axes["kind"] == "hyper"]
    [other] = [p for p in result.plan.points if p.axes["kind"] == "direction"]
    aim = 0.05 * other.adapter_parameters
    assert point.miss == pytest.approx(point.adapter_parameters / aim - 1)
    said = [note for note in result.notes if "off what they are matched to" in note]
    assert bool(said) == (abs(point.miss) > 0.02)


def test_unimax_plans_over_the_steps_of_the_budget(make_study: MakeStudy) -> None:
    mixing = {"kind": "unimax", "max_passes": 1.0, "steps": 7}
    options = {"unimax": {"data.stream.mixing": mixing}}
    budget = {"tokens": [70_000.0, 140_000.0], "warmup": 0.1, "decay": 0.5}
    study = make_study(axes={"mixing": {"options": options}}, budget=budget)
    for config in plan_study(study).configs.values():
        assert config.data.stream.mixing.steps == config.training.max_steps  # type: ignore[union-attr]
