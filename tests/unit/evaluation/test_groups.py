"""Averages over directions, by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from hyperadapter.config import ResourceGroupsConfig, RunConfig
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import parse_config
from hyperadapter.evaluation import groups
from hyperadapter.evaluation.groups import (
    TrainPairs,
    group_averages,
    macro_averages,
    resource_group,
)
from hyperadapter.evaluation.score import Score
from tests.unit.evaluation.made_results import RESULTS, made_direction, made_quality, made_scores

CONFIG = ResourceGroupsConfig()


def test_macro_averages_by_hand() -> None:
    macro = macro_averages(RESULTS, "en")
    assert len(macro) == 3 * 3 * 4
    assert macro["macro_bleu_into_en"] == 40
    assert macro["macro_chrf_into_en"] == 41
    assert macro["macro_chrfpp_into_en"] == 42
    assert macro["macro_chrf_into_en_copy"] == 21
    assert macro["macro_chrf_into_en_no_near_duplicates"] == 37
    assert macro["macro_chrf_into_en_copy_no_near_duplicates"] == 19
    assert macro["macro_bleu_out_of_en"] == 15
    # One of the two has nothing but near-duplicates.
    assert macro["macro_bleu_out_of_en_no_near_duplicates"] == 8
    assert macro["macro_bleu_without_en"] == 2


def test_groups_without_directions_have_no_average() -> None:
    macro = macro_averages([made_direction("en-de", 1.0)], "en")
    assert set(macro) == {
        f"macro_{metric}_out_of_en{copy}"
        for metric in ("bleu", "chrf", "chrfpp")
        for copy in ("", "_copy")
    }


@pytest.mark.parametrize(
    ("pairs", "name"),
    [
        (5_000_000, "high"),
        (1_000_000, "high"),
        (999_999, "medium"),
        (100_000, "medium"),
        (99_999, "low"),
        (10_000, "low"),
        (9_999, "very_low"),
        (0, "very_low"),
        (None, None),
    ],
)
def test_resource_groups_begin_at_their_bounds(pairs: int | None, name: str | None) -> None:
    assert resource_group(made_direction("en-de", 1.0, train_pairs=pairs), CONFIG) == name


def test_bounds_can_be_set_and_must_descend() -> None:
    item = made_direction("en-de", 1.0, train_pairs=50)
    assert resource_group(item, ResourceGroupsConfig(high=50, medium=40, low=30)) == "high"
    with pytest.raises(ValidationError, match="high 5, medium 5 and low 1 must descend"):
        ResourceGroupsConfig(high=5, medium=5, low=1)


def test_groups_by_hand() -> None:
    results = (
        made_direction("en-de", 10.0, train_pairs=2_000_000),
        made_direction("de-en", 30.0, train_pairs=2_000_000),
        made_direction("en-zh-Hans", 20.0, None, "zh", train_pairs=500),
        made_direction("fr-de", 4.0, train_pairs=0, zero_shot=True),
    )
    found = group_averages(results, "en", CONFIG)
    assert list(found) == [
        "all", "into_en", "out_of_en", "without_en", "high", "very_low", "zero_shot"
    ]  # fmt: skip
    assert found["all"].scores == {"bleu": 16, "chrf": 17, "chrfpp": 18}
    assert found["all"].sentences == 40
    assert found["high"].directions == ("en-de", "de-en")
    assert found["high"].scores["bleu"] == 20
    # A direction without training is in no group of resources.
    assert found["very_low"].directions == ("en-zh-Hans",)
    assert found["zero_shot"].directions == found["without_en"].directions == ("fr-de",)
    # Only BLEU has more than one tokenizer, and only where Chinese meets others.
    assert {name: group.mixed for name, group in found.items() if group.mixed} == {
        "all": ("bleu",),
        "out_of_en": ("bleu",),
    }


def test_rates_of_a_group_count_sentences_and_not_directions() -> None:
    results = (
        made_direction("en-de", 1.0, quality=made_quality((1, 2), (0, 10))),
        made_direction("de-en", 1.0, quality=made_quality((0, 98), (5, 10))),
        made_direction("en-fr", 1.0, quality=made_quality(None, (5, 10))),
        made_direction("fr-en", 1.0),  # of an older version
    )
    rates = group_averages(results, "en", CONFIG)["all"].rates
    assert (rates["off_target"].count, rates["off_target"].of) == (1, 100)
    assert rates["copied"].share == pytest.approx(1 / 3)
    assert group_averages(results[3:], "en", CONFIG)["all"].rates == {}


def test_a_metric_that_a_member_lacks_has_no_mean() -> None:
    ter = Score(metric="ter", value=60.0, signature="x")
    scores = made_scores(1.0).model_copy(update={"ter": ter})
    results = (made_direction("en-de", 1.0, model=scores), made_direction("de-en", 1.0))
    found = group_averages(results, "en", CONFIG)
    assert "ter" not in found["all"].scores
    assert found["out_of_en"].scores["ter"] == 60
    assert macro_averages(results, "en")["macro_ter_out_of_en"] == 60


def test_training_pairs_come_from_the_manifest(
    tmp_path: Path, tiny_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(folder=tmp_path, data={"directions": ["en-de", "de-en", "en-fr"]})
    assert TrainPairs(config).count(Direction("en", "de")) is None
    folder = tmp_path / "shards" / "train"
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()

    def find(a: str, b: str) -> tuple[int, str] | None:
        return (0, "a") if {a, b} == {"en", "de"} else None

    def manifest(place: Path) -> Any:
        assert place == folder
        return SimpleNamespace(find=find, pairs=[SimpleNamespace(sentences=36)])

    monkeypatch.setattr(groups, "read_manifest", manifest)
    pairs = TrainPairs(config)
    directions = [Direction(*text.split("-")) for text in ("en-de", "de-en", "en-fr", "fr-en")]
    assert [pairs.count(direction) for direction in directions] == [36, 36, 0, 0]
    assert [pairs.is_zero_shot(direction) for direction in directions] == [False] * 3 + [True]


def test_the_configuration_of_bounds_is_read(tiny_config: Callable[..., RunConfig]) -> None:
    config = tiny_config(evaluation={"groups": {"high": 9, "medium": 8, "low": 7}})
    assert config.evaluation.groups == parse_config(
        ResourceGroupsConfig, {"high": 9, "medium": 8, "low": 7}, "x"
    )
