"""Matched sizes of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.match import Family
from hyperadapter.study.axes import Axes
from hyperadapter.study.config import StudyConfig
from hyperadapter.study.sizes import Counts, Sizes

MakeStudy = Callable[..., StudyConfig]

COUNT = {"params": "parameters", "adapter_params": "adapter_parameters", "flops": "step_flops"}
SHARES = {"options": {"whole": {}, "half": {}}}


def counts(study: StudyConfig, axes: Axes) -> tuple[RunConfig, Counts]:
    sizes = Sizes(study)
    config = sizes.run(sizes.tree(axes), axes)
    return config, sizes.counts(config)


@pytest.mark.parametrize(
    ("kind", "by", "vary", "times"),
    [
        ("language", "params", "bottleneck_dim", 1.0),
        ("direction", "adapter_params", "bottleneck_dim", 0.4),
        ("dense", "params", "d_model", 1.0),
        ("dense", "flops", "d_model", 1.3),
        ("language", "flops", "bottleneck_dim", 1.0),
    ],
)
def test_no_neighbour_is_nearer(
    make_study: MakeStudy, kinds: dict[str, Any], kind: str, by: str, vary: Any, times: float
) -> None:
    rule = {"where": {"kind": kind}, "to": {"kind": "hyper"}, "by": by, "vary": vary}
    study = make_study(axes={"kind": kinds}, match=[rule | {"times": times}])
    plain = make_study(axes={"kind": kinds})
    config, _ = counts(study, {"kind": kind, "seed": 1})
    target = times * getattr(counts(study, {"kind": "hyper", "seed": 1})[1], COUNT[by])
    family = Family.of(config.model, vary, "it")
    distances = {}
    for size in (family.size - family.step, family.size, family.size + family.step):
        run = {"model": family.at(size).model_dump(mode="json")}
        other = plain.model_copy(update={"axes": {}, "run": {**plain.run, **run}})
        distances[size] = abs(getattr(counts(other, {"seed": 1})[1], COUNT[by]) - target)
    assert min(distances, key=lambda size: distances[size]) == family.size


def test_a_matched_point_can_be_matched_to(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    adapters = {"by": "adapter_params", "vary": "bottleneck_dim"}
    half = {"where": {"kind": "direction", "share": "half"}, "to": {"share": "whole"}, "times": 0.5}
    same = {"where": {"kind": "language"}, "to": {"kind": "direction"}}
    study = make_study(
        axes={"kind": kinds, "share": SHARES}, match=[half | adapters, same | adapters]
    )
    sizes = {
        (kind, share): counts(study, {"kind": kind, "share": share, "seed": 1})[1]
        for kind in ("direction", "language")
        for share in ("whole", "half")
    }
    whole = sizes["direction", "whole"].adapter_parameters
    assert whole == 12 * 6 * (2 * 128 * 32 + 32 + 3 * 128)
    for (kind, share), found in sizes.items():
        wanted = whole if share == "whole" else whole / 2
        places = 12 if kind == "direction" else 7
        assert abs(found.adapter_parameters - wanted) <= 2 * places * 6 * 257


def test_flops_are_matched_for_each_token(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    """Points may have micro-batches of other sizes."""
    rule = {"where": {"kind": "dense"}, "to": {"kind": "language", "batch": "small"}}
    batch = {
        "options": {
            "small": {},
            "large": {"training.micro_batch_tokens": 1400, "training.num_processes": 1},
        }
    }
    study = make_study(
        axes={"kind": kinds, "batch": batch},
        match=[rule | {"by": "flops", "vary": "d_model", "times": 1.5}],
    )
    found = [counts(study, {"kind": "dense", "batch": b, "seed": 1})[0] for b in ("small", "large")]
    assert found[0].model.d_model == found[1].model.d_model > 128


def test_the_axis_keeps_its_value(make_study: MakeStudy, kinds: dict[str, Any]) -> None:
    width = {"key": "model.d_model", "values": [64, 128]}
    rule = {"where": {"kind": "dense"}, "to": {"kind": "hyper"}, "by": "params", "vary": "d_model"}
    study = make_study(axes={"kind": kinds, "width": width}, match=[rule])
    dense, _ = counts(study, {"kind": "dense", "width": 128, "seed": 1})
    hyper, _ = counts(study, {"kind": "hyper", "width": 128, "seed": 1})
    assert dense.model.d_model > hyper.model.d_model == 128
    assert dense.model.ffn_dim == 4 * dense.model.d_model


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([({"kind": "dense"}, {"kind": "language"}), ({"kind": "language"}, {"kind": "dense"})],
         "match goes in a circle: kind-dense_seed-1 -> kind-language_seed-1 -> kind-dense_seed-1; "
         "keep the last one out of a rule's `where`"),
        ([({}, {"kind": "dense"})], "in a circle: kind-dense_seed-1 -> kind-dense_seed-1"),
        ([({"kind": "dense"}, {"kind": "hyper"}), ({"seed": 1, "kind": ["dense"]}, {"seed": 2})],
         "match 1 and match 2 both change d_model of point kind-dense_seed-1 {kind: dense, seed: 1}"
         "; narrow the `where` of one of them"),
    ],
)  # fmt: skip
def test_rules_that_contradict_each_other(
    make_study: MakeStudy, kinds: dict[str, Any], rules: list[Any], message: str
) -> None:
    match = [{"where": w, "to": t, "by": "params", "vary": "d_model"} for w, t in rules]
    with pytest.raises(ConfigError) as error:
        counts(make_study(axes={"kind": kinds}, match=match), {"kind": "dense", "seed": 1})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "by", "vary", "times", "message"),
    [
        ("dense", "params", "bottleneck_dim", 1.0, "match 1: point kind-dense_seed-1 {kind: dense, "
         "seed: 1} has adapter.kind none, which does not use bottleneck_dim; vary d_model"),
        ("language", "params", "bottleneck_dim", 0.01, "match 1: no bottleneck_dim fits: even with "
         "bottleneck_dim 1 the count of point kind-language_seed-1"),
        ("dense", "adapter_params", "d_model", 1.0, "d_model does not change what is counted of"),
    ],
)  # fmt: skip
def test_no_size_matches(
    make_study: MakeStudy, kinds: dict[str, Any], kind: str, by: str, vary: str, times: float,
    message: str,
) -> None:  # fmt: skip
    rule = {"where": {"kind": kind}, "to": {"kind": "hyper"}, "by": by, "vary": vary}
    study = make_study(axes={"kind": kinds}, match=[rule | {"times": times}])
    with pytest.raises(ConfigError) as error:
        counts(study, {"kind": kind, "seed": 1})
    assert message in str(error.value)
