"""Combinations and names of points."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.study.axes import Axes, combinations, is_chosen, lay, point_name, run_tree
from hyperadapter.study.config import StudyConfig

MakeStudy = Callable[..., StudyConfig]

values = st.one_of(
    st.booleans(), st.integers(-(10**9), 10**12), st.floats(-1e12, 1e12), st.text(max_size=100)
)


def test_a_grid_is_the_product_of_its_axes(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    width = {"key": "model.d_model", "values": [64, 128, 256]}
    study = make_study(
        axes={"width": width, "kind": kinds}, seeds=[1, 2], budget={"tokens": [1e5, 1e6]}
    )
    found = [axes for axes, _ in combinations(study)]
    assert len(found) == 3 * 4 * 2 * 2
    assert len({point_name(axes) for axes in found}) == len(found)
    assert {tuple(axes) for axes in found} == {("width", "kind", "tokens", "seed")}
    assert found[0] == {"width": 64, "kind": "hyper", "tokens": 1e5, "seed": 1}
    assert [axes["seed"] for axes in found[:3]] == [1, 2, 1]


def test_zipped_axes_go_along_with_each_other(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    axes = {
        "width": {"key": "model.d_model", "values": [64, 128]},
        "kind": kinds,
        "ffn": {"key": "model.ffn_dim", "values": [256, 512]},
    }
    study = make_study(axes=axes, zip=[["width", "ffn", "seed"]], seeds=[5, 6])
    found = [axes for axes, _ in combinations(study)]
    assert len(found) == 2 * 4
    assert {(a["width"], a["ffn"], a["seed"]) for a in found} == {(64, 256, 5), (128, 512, 6)}
    assert list(found[0]) == ["width", "kind", "ffn", "seed"]


def test_points_come_on_top(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    more = [
        {"kind": "hyper", "training.learning_rate": 0.5},
        {"kind": "dense", "seed": 9, "tokens": 7},
    ]
    study = make_study(axes={"kind": kinds}, points=more, seeds=[1, 2], budget={"tokens": [1e5]})
    found = [axes for axes, _ in combinations(study)][8:]
    assert found == [
        {"kind": "hyper", "tokens": 1e5, "seed": 1, "training.learning_rate": 0.5},
        {"kind": "hyper", "tokens": 1e5, "seed": 2, "training.learning_rate": 0.5},
        {"kind": "dense", "tokens": 7, "seed": 9},
    ]
    assert run_tree(study, found[0])["training"]["learning_rate"] == 0.5
    alone = make_study(points=[{"model.d_model": 64}])
    assert [axes for axes, _ in combinations(alone)] == [{"seed": 1, "model.d_model": 64}]
    assert [axes for axes, _ in combinations(make_study())] == [{"seed": 1}]


def test_a_rule_chooses_by_some_axes() -> None:
    axes: Axes = {"kind": "hyper", "width": 64, "seed": 1}
    assert is_chosen(axes, {})
    assert is_chosen(axes, {"kind": ("dense", "hyper"), "width": "64"})
    assert not is_chosen(axes, {"kind": "hyper", "width": (6, 4)})


def test_names_can_be_read() -> None:
    axes: Axes = {"kind": "hyper", "tokens": 1.5e6, "lr": 2e-3, "on": True, "seed": 1}
    assert point_name(axes) == "kind-hyper_tokens-1.5e6_lr-0.002_on-true_seed-1"
    assert point_name(axes | {"model.d_model": 64}).endswith("on-true_model.d_model-64_seed-1")
    assert point_name({"seed": 3}) == "seed-3"
    clean, other = (point_name({"a": text, "seed": 1}) for text in ("x-y", "x/y"))
    assert (clean, other[:6]) == ("a-x-y_seed-1", "a-x-y-")
    assert other != clean
    assert point_name({"hyper_dim": 99_999, "seed": 3}) == "hyper_dim-99999_seed-3"


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,30}", fullmatch=True), values, max_size=6), values)
def test_names_fit_everywhere_and_differ(axes: Axes, other: Any) -> None:
    axes = axes | {"last": "x", "seed": 1}
    name = point_name(axes)
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,80}", name)
    assert name.endswith("_seed-1")
    changed = axes | {"last": other}
    assert (point_name(changed) == name) == (other == "x")


def test_groups_are_merged_and_a_mixture_is_replaced() -> None:
    tree = {"data": {"stream": {"mixing": {"kind": "temperature", "temperature": 5.0}}}, "a": 1}
    hotter = lay(tree, {"data.stream.mixing.temperature": 9.0})
    assert hotter["data"]["stream"]["mixing"] == {"kind": "temperature", "temperature": 9.0}
    uniform = lay(tree, {"data.stream.mixing": {"kind": "uniform"}, "data.stream.workers": 2})
    assert uniform["data"]["stream"] == {"mixing": {"kind": "uniform"}, "workers": 2}
    assert lay(tree, {"a": {"b": 1}, "a.c": 2})["a"] == {"b": 1, "c": 2}
    assert tree["data"]["stream"]["mixing"]["temperature"] == 5.0
