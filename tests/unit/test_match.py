"""Matched sizes: exact where a count can be met, the nearest one where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.config import ModelConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import load_config, to_yaml
from hyperadapter.describe import choose_vocabulary, describe_model
from hyperadapter.match import (
    Family,
    Measure,
    Size,
    adapter_parameters,
    match_models,
    match_tables,
    nearest_size,
    solve,
)
from hyperadapter.model.accounting import count_parameters

SIZES: dict[str, int] = {"vocab_size": 1_000, "num_languages": 6}


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> dict[str, Path]:
    """The base model with every kind of adapter."""
    base = repository / "configs" / "models" / "base.yaml"
    made = {"hyper": base}
    for kind in ("none", "language", "direction"):
        made[kind] = tmp_path / f"{kind}.yaml"
        made[kind].write_text(f"extends: {base}\nadapter:\n  kind: {kind}\n", encoding="utf-8")
    return made


@given(st.integers(0, 50), st.integers(0, 50), st.integers(-40, 1_000), st.integers(1, 10**7))
def test_the_root_of_a_polynomial_is_the_last_size_that_fits(
    a: int, b: int, c: int, target: int
) -> None:
    def count(k: int) -> int:
        return (a * k * k + b * k) // (1 if (a + b) % 2 else 2) + k + c

    found = solve(count, target)
    assert found >= 0
    assert found == 0 or count(found) <= target
    assert count(found + 1) > target


@pytest.mark.parametrize("vary", ["hyper_dim", "bottleneck_dim", "d_model"])
@pytest.mark.parametrize("by", ["params", "adapter_params", "flops"])
def test_a_model_matches_itself(
    models: dict[str, Path], tmp_path: Path, by: Measure, vary: Size
) -> None:
    """From another size the way leads back to where the count is the same."""
    changes = {
        "hyper_dim": ["adapter.hyper_network.hyper_dim=731", "adapter.hyper_network.head_rank=9"],
        "bottleneck_dim": ["adapter.bottleneck_dim=77", "adapter.hyper_network.rescale=mip"],
        "d_model": ["d_model=136", "ffn_dim=544"],
    }[vary]
    other = tmp_path / "other.yaml"
    other.write_text(to_yaml(load_config(ModelConfig, models["hyper"], changes)), encoding="utf-8")
    start = changes[1:] if vary != "d_model" else []
    report = match_models(models["hyper"], other, by, vary, start, **SIZES)
    assert report["models"]["match"]["difference"] == 0
    assert report["set"] == (changes if vary == "d_model" else changes[:1])


@pytest.mark.parametrize(
    ("source", "target", "by", "vary"),
    [
        ("hyper", "direction", "params", "hyper_dim"),
        ("hyper", "direction", "params", "bottleneck_dim"),
        ("hyper", "direction", "flops", "bottleneck_dim"),
        ("hyper", "language", "params", "d_model"),
        ("hyper", "language", "flops", "d_model"),
        ("none", "hyper", "params", "d_model"),
        ("none", "hyper", "flops", "d_model"),
        ("language", "hyper", "params", "bottleneck_dim"),
        ("language", "hyper", "flops", "bottleneck_dim"),
        ("hyper", "language", "adapter_params", "hyper_dim"),
        ("direction", "hyper", "adapter_params", "bottleneck_dim"),
        ("language", "direction", "adapter_params", "d_model"),
    ],
)
def test_the_match_is_nearer_than_its_neighbours(
    models: dict[str, Path], source: str, target: str, by: Measure, vary: Size
) -> None:
    start = ["adapter.hyper_network.hyper_dim=8"] if vary != "hyper_dim" else []
    report = match_models(models[source], models[target], by, vary, start, **SIZES)
    found = report["models"]
    distance = {name: abs(model["difference"]) for name, model in found.items() if model}
    assert distance["match"] <= min(distance["smaller"], distance["larger"], distance["before"])
    assert found["smaller"]["difference"] < 0 < found["larger"]["difference"]
    again = describe_model(models[source], [*start, *report["set"]], **SIZES)
    if by == "params":
        assert again["total_parameters"] == found["match"]["total"]
        assert (
            found["target"]["total"]
            == describe_model(models[target], (), **SIZES)["total_parameters"]
        )
    elif by == "flops":
        tokens = again["assuming"]["tgt_tokens_per_micro_batch"]
        assert again["train_flops_per_tgt_token"] == found["match"]["total"] / tokens


def test_d_model_grows_with_its_feed_forward_blocks_and_keeps_its_heads(
    models: dict[str, Path],
) -> None:
    report = match_models(models["none"], models["direction"], "params", "d_model", **SIZES)
    d_model = report["models"]["match"]["size"]
    assert d_model % 8 == 0
    assert report["set"] == [f"d_model={d_model}", f"ffn_dim={4 * d_model}"]
    assert [report["models"][name]["size"] for name in ("smaller", "larger")] == [
        d_model - 8,
        d_model + 8,
    ]


def test_a_ratio_that_is_no_whole_number_keeps_both_sizes_whole(models: dict[str, Path]) -> None:
    changes = ["ffn_dim=1792", "num_heads=16"]  # 3.5 times 512
    report = match_models(models["none"], models["hyper"], "params", "d_model", changes, **SIZES)
    d_model = report["models"]["match"]["size"]
    assert d_model % 16 == 0
    assert report["set"][1] == f"ffn_dim={7 * d_model // 2}"


def test_a_runs_keys_and_vocabulary_are_taken(repository: Path, models: dict[str, Path]) -> None:
    run = repository / "configs" / "runs" / "quickstart.yaml"
    report = match_models(run, models["hyper"], "params", "hyper_dim")
    assert report["set"][0].startswith("model.adapter.hyper_network.hyper_dim=")
    vocabularies = {
        (model["vocab_size"], model["num_languages"]) for model in report["models"].values()
    }
    assert len(vocabularies) == 1


def test_tables_hold_all_parts_and_the_difference(models: dict[str, Path]) -> None:
    report = match_models(models["hyper"], models["direction"], "params", "hyper_dim", **SIZES)
    (title, columns, rows), (flops_title, _, flops) = match_tables(report)
    size = report["models"]["match"]["size"]
    assert title == f"Parameters, matched by adapter.hyper_network.hyper_dim={size}"
    assert flops_title.startswith("MFLOP per target token; sentences of 25 tokens")
    assert columns == (
        "part",
        "to direction",
        "before 100",
        f"match {size}",
        f"smaller {size - 1}",
        f"larger {size + 1}",
    )
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["direction adapters"][1:] == (None,) * 4
    assert by_name["hyper-network heads"][0] is None
    assert by_name["difference"][0] is None
    assert by_name["difference"][2] == f"{report['models']['match']['difference']:+,}"
    percent = 100 * report["models"]["match"]["difference"] / report["models"]["target"]["total"]
    assert by_name["difference, %"][2] == f"{percent:+.3f}"
    assert {row[0] for row in flops} >= {"encoder", "forward and backward", "difference, %"}
    assert {len(row) for row in (*rows, *flops)} == {len(columns)}


def test_the_smallest_size_has_none_below(models: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / "target.yaml"
    smallest = load_config(ModelConfig, models["hyper"], ["adapter.bottleneck_dim=1"])
    target.write_text(to_yaml(smallest), encoding="utf-8")
    report = match_models(models["hyper"], target, "params", "bottleneck_dim", **SIZES)
    assert report["models"]["match"]["size"] == 1
    assert report["models"]["smaller"] is None
    (_, columns, rows), _ = match_tables(report)
    assert not any(column.startswith("smaller") for column in columns)
    assert {len(row) for row in rows} == {len(columns)}


def test_no_size_is_small_enough(models: dict[str, Path]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"no hyper_dim fits: even with hyper_dim 1 the count of .*base.yaml is [\d,]+, "
        r"and [\d,]+ is to be reached; make another of its sizes smaller",
    ):
        match_models(models["hyper"], models["none"], "params", "hyper_dim", **SIZES)


@pytest.mark.parametrize(
    ("kind", "vary", "message"),
    [
        (
            "none",
            "bottleneck_dim",
            "adapter.kind none, which does not use bottleneck_dim; vary d_model",
        ),
        (
            "language",
            "hyper_dim",
            "adapter.kind language, which does not use hyper_dim; vary bottleneck_dim or d_model",
        ),
    ],
)
def test_a_size_that_a_kind_does_not_use(
    models: dict[str, Path], kind: str, vary: Size, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"{kind}.yaml has {message}"):
        match_models(models[kind], models["hyper"], "params", vary, **SIZES)


def test_two_runs_must_share_their_data(repository: Path) -> None:
    runs = repository / "configs" / "runs"
    with pytest.raises(ConfigError, match=r"must have the same vocabulary.*study.yaml: [\d,]+"):
        match_models(runs / "quickstart.yaml", runs / "study.yaml", "params", "hyper_dim")


def test_two_model_files_need_sizes(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"base.yaml and .*none.yaml: a model without data; give"):
        match_models(models["hyper"], models["none"], "params", "hyper_dim")


def test_adapters_are_all_but_the_dense_model(models: dict[str, Path]) -> None:
    report = match_models(
        models["hyper"], models["language"], "adapter_params", "hyper_dim", **SIZES
    )
    for model in report["models"].values():
        dense = sum(model["parameters"][part] for part in ("embedding", "encoder", "decoder"))
        assert model["total"] == model["total_parameters"] - dense
    assert report["models"]["target"]["total"] == 6 * 12 * 132_736
    (title, _, _), _ = match_tables(report)
    assert "matched by" in title


def test_a_dense_model_has_no_adapters_to_count(models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"d_model does not change .*none.yaml, whose .* is none"):
        match_models(models["none"], models["hyper"], "adapter_params", "d_model", **SIZES)


@given(st.floats(0.1, 30.0))
def test_no_size_is_nearer_to_what_is_wanted(repository: Path, times: float) -> None:
    model = load_config(ModelConfig, repository / "configs" / "models" / "small.yaml")
    vocabulary = choose_vocabulary({Path("small.yaml"): None}, 1_000, 6, None)

    def count(counted: ModelConfig) -> int:
        return adapter_parameters(count_parameters(counted, vocabulary))

    family = Family.of(model, "hyper_dim", "small")
    wanted = times * count(model)
    found = nearest_size(family, count, wanted)
    distances = [
        abs(count(family.at(size)) - wanted) for size in range(max(1, found - 1), found + 2)
    ]
    assert abs(count(family.at(found)) - wanted) == min(distances)
