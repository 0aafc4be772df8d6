"""Points: nothing twice, nothing lost in silence, and names that stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyperadapter.core.errors import ConfigError
from hyperadapter.study.config import StudyConfig
from hyperadapter.study.points import study_points

MakeStudy = Callable[..., StudyConfig]

WIDTH = {"key": "model.adapter.hyper_network.hyper_dim", "values": [32, 64, 128]}


def test_points_are_whole_runs(make_study: MakeStudy, kinds: dict[str, Any], tmp_path: Any) -> None:
    study = make_study(axes={"kind": kinds}, seeds=[3], run={"tracking": {"uri": "sqlite:///a.db"}})
    found = study_points(study, parent="key")
    assert [point.name for point in found.points] == [
        f"kind-{kind}_seed-3" for kind in ("hyper", "language", "direction", "dense")
    ]
    for point in found.points:
        config = point.config
        assert config.name == point.name
        assert config.run_dir == str(tmp_path / "study" / "runs" / point.name)
        assert (config.tracking.experiment, config.tracking.parent) == ("small", "key")
        assert config.tracking.uri == "sqlite:///a.db"
        assert config.training.seed == 3
        assert config.data.folder == str(tmp_path / "data")
    assert found.left_out == {}


def test_what_is_left_out_is_counted(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    """A width that dense models do not use makes no points of its own for them."""
    study = make_study(
        axes={"kind": kinds, "width": WIDTH},
        skip=[{"kind": "language"}, {"kind": ["direction", "language"], "width": [32, 64]}],
        require=["width != 64"],
        points=[{"kind": "hyper", "width": 32}, {"kind": "hyper", "width": 256}],
    )
    found = study_points(study)
    assert [(point.axes["kind"], point.axes["width"]) for point in found.points] == [
        ("hyper", 32), ("hyper", 128), ("direction", 128), ("dense", 32), ("hyper", 256),
    ]  # fmt: skip
    assert found.left_out == {
        "require width != 64": 2,
        "skip 1 {kind: language}": 3,
        "skip 2 {kind: [direction, language], width: [32, 64]}": 2,
        "the same configuration as another point": 1,
        "the same values on all axes as another point": 1,
    }


def test_settings_of_a_points_own_make_another_point(make_study: MakeStudy) -> None:
    study = make_study(
        axes={"width": WIDTH},
        points=[{"width": 64, "training.learning_rate": lr} for lr in (0.002, 0.003, 0.004)],
    )
    found = study_points(study)
    assert len(found.points) == 3 + 2
    assert found.left_out == {"the same configuration as another point": 1}
    assert found.points[-1].name == "width-64_training.learning_rate-0.004_seed-1"


def test_points_added_later_rename_none(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    small = make_study(axes={"kind": kinds, "width": WIDTH}, budget={"tokens": [5e6]})
    more = {"key": WIDTH["key"], "values": [8, 32, 64, 128]}
    large = make_study(
        axes={"kind": kinds, "width": more}, seeds=[2, 1], budget={"tokens": [9e6, 5e6]}
    )
    before = {point.name: point.config for point in study_points(small).points}
    # Without knowing of them, a dense model may come under another width.
    after = {p.name: p.config for p in study_points(large, known=tuple(before)).points}
    assert list(after)[: len(before)] == list(before)
    assert all(after[name] == config for name, config in before.items())
    assert len(after) == 4 * (4 + 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"width": {"key": "model.d_modle", "values": [8]}}}, "point width-8_seed-1 "
         "{width: 8, seed: 1} is not a valid configuration:\n  model.d_modle: unknown key (did you "
         "mean 'd_model'?)"),
        ({"axes": {"width": {"key": "model.d_model", "values": [128, 7]}}},
         "point width-7_seed-1 {width: 7, seed: 1}"),
        ({"points": [{"model.d_model": "wide"}]}, "model.d_model: Input should be a valid integer"),
        ({"axes": {"a": {"key": "model.d_model", "values": [64]}}, "skip": [{"a": 64}]},
         "the study small has no points: 1 left out by skip 1 {a: 64}"),
    ],
)  # fmt: skip
def test_points_that_cannot_be(
    make_study: MakeStudy, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        study_points(make_study(**changes))
    assert message in str(error.value)


def test_two_points_of_one_name(make_study: MakeStudy) -> None:
    text = {"options": {"x": {}, "x_b-y": {"training.learning_rate": 0.1}}}
    other = {"options": {"y_b-z": {}, "z": {"training.clip_norm": 0.0}}}
    with pytest.raises(
        ConfigError, match="have the same name; write one of their values otherwise"
    ):
        study_points(make_study(axes={"a": text, "b": other}))
