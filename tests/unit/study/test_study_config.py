"""Studies are refused with the place and the remedy where they cannot mean anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.errors import ConfigError
from hyperadapter.study.config import StudyConfig, load_study, value_text

WIDTH = {"key": "model.d_model", "values": [64, 128]}
KIND = {"options": {"hyper": {}, "dense": {"model.adapter.kind": "none"}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"w": {"key": "model.d_model"}}}, "either a key and values, or options"),
        ({"axes": {"w": WIDTH | KIND}}, "either a key and values, or options"),
        ({"axes": {"w": {"key": "model.d_model", "values": [8, 8]}}}, "given twice in \\[8, 8\\]"),
        ({"axes": {"seed": WIDTH}}, "an axis cannot be called 'seed'"),
        ({"axes": {"a b": WIDTH}}, "an axis cannot be called 'a b'"),
        ({"axes": {"tokens": WIDTH}, "budget": {"tokens": [1e6]}}, "that of the budget; rename"),
        ({"zip": [["width", "knid"]]}, r"'knid' is no axis \(did you mean 'kind'\?\); there are"),
        ({"zip": [["width", "seed"]]}, "equally many values: width 2, seed 1"),
        ({"zip": [["width", "kind"], ["kind", "seed"]]}, "zip has the axis 'kind' twice"),
        ({"skip": [{"knd": "hyper"}]}, r"skip 1: 'knd' is no axis \(did you mean 'kind'\?\)"),
        ({"skip": [{"kind": ["dense", "hype"]}]}, r"skip 1: 'hype' is no option of the axis 'kind' "
         r"\(did you mean 'hyper'\?\); there are hyper, dense"),
        ({"points": [{"kind": "dens", "width": 8}]}, "points 1: 'dens' is no option of the axis"),
        ({"points": [{"kind": "dense"}]}, "points 1 has no value for the axis 'width'"),
        ({"points": [{"kind": "dense", "widht": 8}]}, r"points 1: 'widht' is neither an axis "
         r"\(did you mean 'width'\?\) nor a key of the run"),
        ({"points": [{"kind": "dense", "width": 8, "training.seed": 2}]}, "points 1 cannot set "
         "training.seed: use `seeds`"),
        ({"axes": {"r": {"key": "run_dir", "values": ["a"]}}}, "axes.r cannot set run_dir: it is"),
        ({"axes": {"r": {"options": {"a": {"tracking.uri": "x"}}}}},
         "axes.r cannot set tracking.uri: all runs are told of in one place"),
        ({"axes": {"s": {"key": "training.max_steps", "values": [1]}}, "budget": {"flops": [1e9]}},
         "axes.s cannot set training.max_steps: the budget's flops decide it"),
        ({"budget": {"tokens": [1], "flops": [1]}}, "give one of tokens and flops"),
        ({"budget": {"tokens": [-1]}}, "tokens must be above 0"),
        ({"budget": {"warmup": 0.6, "decay": 0.5}}, "warmup 0.6 and decay 0.5 are more than all"),
        ({"report": {"series": "knd"}}, "report.series: 'knd' is no axis"),
        ({"match": [{"where": {}, "to": {"kind": "dnse"}, "by": "params", "vary": "d_model"}]},
         "match 1, to: 'dnse' is no option"),
        ({"seeds": []}, "seeds"),
    ],
)  # fmt: skip
def test_what_is_no_study(
    make_study: Callable[..., StudyConfig], changes: dict[str, Any], message: str
) -> None:
    changes["axes"] = {"width": WIDTH, "kind": KIND} | changes.get("axes", {})
    with pytest.raises(ConfigError, match=message):
        make_study(**changes)


def test_values_are_written_as_in_the_file() -> None:
    written = [value_text(value) for value in (True, 64, 64.0, 0.5, 2e-5, "hyper")]
    assert written == ["true", "64", "64", "0.5", "2e-05", "hyper"]


@pytest.fixture
def sized(repository: Path, tmp_path: Path) -> Path:
    path = tmp_path / "sized.yaml"
    path.write_text(
        f"""
name: sized
folder: {tmp_path}/f
run: {{training: {{label_smoothing: 0.2}}}}
size: one
sizes:
  one: {{run: {{extends: {repository}/configs/runs/quickstart.yaml}}, seeds: [1]}}
  two: {{run: {{name: x}}, seeds: [1, 2]}}
""",
        encoding="utf-8",
    )
    return path


def test_a_size_is_laid_over_the_rest(sized: Path) -> None:
    one, two = load_study(sized), load_study(sized, ["size=two"])
    assert one.run["model"]["d_model"] == 128
    assert (one.seeds, two.seeds) == ((1,), (1, 2))
    assert two.run == {"training": {"label_smoothing": 0.2}, "name": "x"}
    assert load_study(sized, ["size=two", "seeds=[7]"]).seeds == (7,)


def test_sizes_must_exist(sized: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size 'three' is none of one, two; choose one with"):
        load_study(sized, ["size=three"])
    plain = tmp_path / "plain.yaml"
    plain.write_text(f"{{name: a, folder: {tmp_path}, run: {{}}}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="has no sizes, so that size 'one' means nothing"):
        load_study(plain, ["size=one"])
    with pytest.raises(ConfigError, match="sizes must hold a group of keys for each size"):
        load_study(plain, ["sizes=3", "size=one"])
