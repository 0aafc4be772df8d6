"""Comparisons that points must pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyperadapter.core.errors import ConfigError
from hyperadapter.study.config import StudyConfig
from hyperadapter.study.points import study_points
from hyperadapter.study.requirements import parse_requirement

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture
def axes(kinds: dict[str, Any]) -> dict[str, Any]:
    width = {"key": "model.adapter.hyper_network.hyper_dim", "values": [32, 128, 512]}
    return {"hyper_dim": width, "kind": kinds}


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("hyper_dim <= model.d_model", {32, 128}),
        ("model.d_model>hyper_dim", {32}),
        ("hyper_dim != 128", {32, 512}),
        ("hyper_dim == 1.28e2", {128}),
        ("parameters < 2.5e6", {32, 128} - {128}),
        ("adapter_parameters > 1000000", {128, 512}),
        ("tokens == 4620000", {32, 128, 512}),
        ("flops < 1e3", set()),
        ("model.adapter.kind == 'hyper'", {32, 128, 512}),
        ('"none" == model.adapter.kind', set()),
        ("kind == dense", set()),
        ("kind != dense", {32, 128, 512}),
        ("model.adapter.generated_layer_norm == true", {32, 128, 512}),
        ("model.adapter.hyper_network.head_rank > 5", {32, 128, 512}),
    ],
)
def test_what_passes(
    make_study: MakeStudy, axes: dict[str, Any], text: str, passed: set[int]
) -> None:
    only_hyper = [{"kind": ["language", "direction", "dense"]}]
    study = make_study(axes=axes, skip=only_hyper, require=[text])
    if not passed:
        with pytest.raises(ConfigError, match=r"no points: 9 left out by skip 1 .* 3 left out by"):
            study_points(study)
        return
    found = study_points(study)
    assert {point.axes["hyper_dim"] for point in found.points} == passed
    assert found.left_out[f"require {text}"] == 3 - len(passed)


def test_what_a_point_does_not_have_is_not_compared(make_study: MakeStudy) -> None:
    text = "model.adapter.hyper_network.hyper_dim < 3"
    dense = {"model": {"adapter": {"kind": "none", "hyper_network": None}}}
    assert len(study_points(make_study(run=dense, require=[text])).points) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hyper_dim", "must compare two things by one of <= >= == != < >"),
        ("1 < hyper_dim < 3", "must compare two things"),
        ("hyper_dim = 3", "must compare two things"),
        ("hyper_dmi < 3", r"'hyper_dmi' is no axis \(did you mean 'hyper_dim'\?\); there are "
         r"hyper_dim, kind, seed, parameters, adapter_parameters, flops, tokens, keys of the run"),
        ("kind == hype", "'hype' is no axis"),
        ("model.d_modle < 3", r"the run has no key 'model.d_modle' \(did you mean 'model.d_model'"),
        ("kind < 3", "compares the text 'hyper' to the number 3.0; numbers have an order"),
        ("kind < dense", "compares the text 'hyper' to the text 'dense'"),
        ("model.adapter.generated_layer_norm == 1", "the truth value True to the number 1.0"),
    ],
)  # fmt: skip
def test_what_is_no_comparison(
    make_study: MakeStudy, axes: dict[str, Any], text: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        study_points(make_study(axes=axes, require=[text]))


def test_an_axis_hides_what_is_computed(make_study: MakeStudy) -> None:
    study = make_study(budget={"tokens": [5e6, 6e6]}, require=["tokens == 5e6"])
    assert [point.axes["tokens"] for point in study_points(study).points] == [5e6]
    assert parse_requirement("tokens > 1", study).left.name == "tokens"
