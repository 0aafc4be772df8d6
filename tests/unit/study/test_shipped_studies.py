"""The studies of configs/studies can be planned at every size."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from hyperadapter.study.config import load_study
from hyperadapter.study.planning import plan_study
from hyperadapter.study.points import StudyPoint, study_points

STUDIES = Path(__file__).resolve().parents[3] / "configs" / "studies"
NAMES = ("convergence", "dense_vs_hyper", "hyper_size", "param_match", "sampling")
SIZES = ("cpu", "full")


@pytest.fixture(autouse=True)
def _without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def points(name: str, size: str) -> list[StudyPoint]:
    return study_points(load_study(STUDIES / f"{name}.yaml", [f"size={size}"])).points


def test_these_are_all() -> None:
    assert sorted(path.stem for path in STUDIES.glob("*.yaml")) == list(NAMES)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_they_can_be_planned(name: str, size: str) -> None:
    found = points(name, size)
    study = load_study(STUDIES / f"{name}.yaml", [f"size={size}"])
    assert study.name == (name if size == "full" else f"{name}_cpu")
    assert Path(study.folder).name == study.name
    assert study.report.series in study.axis_names
    assert len({point.name for point in found}) == len(found) >= 6
    for point in found:
        assert point.config.training.num_processes == 1
        budget = 1e6 if size == "cpu" else 2e9
        tokens = point.config.training.max_steps * point.config.training.global_batch_tokens
        assert abs(tokens - budget) <= point.config.training.global_batch_tokens / 2
    assert len({point.config.data.folder for point in found}) == 1
    text = (STUDIES / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"{len(found)} points" in text.partition("\nname:")[0]


def test_the_cpu_size_is_planned_in_whole(tmp_path: Path) -> None:
    plan = plan_study(load_study(STUDIES / "hyper_size.yaml")).plan
    assert len(plan.points) == 12
    assert max(point.bytes_per_rank for point in plan.points) < 1e9
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", SIZES)
def test_shares_of_param_match_are_met(size: str) -> None:
    by_share = defaultdict(list)
    for point in points("param_match", size):
        if point.axes["kind"] != "dense":
            by_share[point.axes["share"]].append(point.counts.adapter_parameters)
    whole = by_share["whole"][0]
    for share, part in {"whole": 1, "half": 2, "quarter": 4, "twelfth": 12}.items():
        assert len(by_share[share]) == 3
        for count in by_share[share]:
            assert count == pytest.approx(whole / part, rel=0.16 if part == 12 else 0.02)


@pytest.mark.parametrize("size", SIZES)
def test_convergence_compares_equal_models(size: str) -> None:
    counts = {point.counts.parameters for point in points("convergence", size)}
    assert len(counts) == 4
    assert max(counts) / min(counts) < 1.03


@pytest.mark.parametrize("size", SIZES)
def test_unimax_keeps_its_cap_over_the_whole_run(size: str) -> None:
    mixing = points("sampling", size)[-1].config.data.stream.mixing
    assert mixing.kind == "unimax"
    assert mixing.steps == points("sampling", size)[-1].config.training.max_steps
