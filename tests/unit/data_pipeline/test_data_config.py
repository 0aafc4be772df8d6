"""Mistakes in a `data:` group are found when it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import load_config

TSV: dict[str, Any] = {"format": "tsv", "name": "t", "languages": ["en", "de"], "path": "x"}
MOSES: dict[str, Any] = {
    "format": "moses",
    "name": "m",
    "languages": ["en", "de"],
    "paths": ["x", "y"],
}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sources": [TSV | {"languages": ["en", "zh_TW"]}]}, "'zh_TW' as 'zh-Hant'"),
        ({"sources": [MOSES | {"languages": ["de", "de"]}]}, "the two languages are both 'de'"),
        ({"sources": [MOSES | {"languages": ["en", "german"]}]}, "'de' (German)"),
        ({"sources": [TSV | {"columns": [1, 1]}]}, "[1, 1] must be two different columns"),
        ({"sources": [TSV | {"columns": [-1, 0]}]}, "counted from 0"),
        ({"sources": [TSV, TSV]}, "source names given twice: t"),
        ({"clean": {"length_ratio": [2.8, 0.4]}}, "lowest and the highest ratio, in order"),
        ({"clean": {"min_word": 2}}, "clean.min_word: unknown key (did you mean 'min_words'?)"),
        ({"pivot": "fr"}, "the pivot 'fr' is not among languages"),
        ({"directions": ["en-de", "de-en", "en-de"]}, "directions given twice: en-de"),
        (
            {"sources": [TSV, MOSES | {"languages": ["en", "it"]}]},
            "source 'm' with languages [en, it] serves no direction: 'it' is missing in "
            "languages [en, de]; add it there, or remove the source",
        ),
        (
            {
                "languages": ["en", "de", "fr"],
                "sources": [TSV, TSV | {"name": "f", "languages": ["de", "fr"]}],
            },
            "source 'f' with languages [de, fr] serves no direction: without a list of directions "
            "there are only those to and from the pivot 'en'; list de-fr or fr-de in directions",
        ),
        ({"directions": ["en-fr"]}, "direction 'en-fr': 'fr' is not among the languages"),
        ({"directions": ["en-*", "en-de"]}, "directions given twice: en-de"),
        ({"directions": ["xx-*"]}, "unknown language code 'xx'"),
        ({"sources": []}, "sources is empty; list at least one corpus, or set shards_folder"),
        (
            {"sources": [{"format": "gettext", "name": "c"}]},
            "source 'c' needs exactly one of wheel, debs, apt_translations and paths, but has none",
        ),
        (
            {"sources": [{"format": "gettext", "name": "c", "debs": ["a"], "paths": ["b"]}]},
            "but has debs, paths",
        ),
        (
            {"sources": [{"format": "gettext", "name": "c", "apt_translations": True}]},
            "source 'c': apt_translations has the format ddtp only",
        ),
        (
            {"stream": {"mixing": {"kind": "explicit", "weights": {"en-nl": 1}}}},
            "stream weights name en-nl, which is no direction here (de-en, en-de)",
        ),
        (
            {"stream": {"mixing": {"kind": "explicit", "weights": {"en-de": 0}}}},
            "stream weights must not be negative nor all 0",
        ),
        (
            {
                "stream": {
                    "phases": [
                        {"from_step": step, "mixing": {"kind": "uniform"}} for step in (20, 10)
                    ]
                }
            },
            "phases start at the steps [20, 10], which must ascend",
        ),
        ({"stream": {"mixing": {"kind": "unimax"}}}, "stream.mixing.unimax.max_passes"),
    ],
)
def test_a_mistake_is_named(
    tmp_path: Path, make_config: Callable[..., DataConfig], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(tmp_path, **{"languages": ("en", "de")} | data)
    assert message in str(caught.value)


def test_listed_directions_may_leave_out_a_source(
    tmp_path: Path, make_config: Callable[..., DataConfig]
) -> None:
    """So that `--set data.directions=[en-de]` makes a bilingual baseline of a recipe."""
    config = make_config(tmp_path, languages=("en", "de", "cs"), directions=["en-de"])
    assert len(config.sources) == 2


def test_the_quickstart_recipe_is_valid(repository: Path) -> None:
    config = load_config(DataConfig, repository / "configs" / "data" / "quickstart.yaml")
    assert config.pivot == "en"
    assert len(config.resolved_directions()) == 2 * (len(config.languages) - 1)
    assert {source.format for source in config.sources} == {"gettext"}


def test_a_star_stands_for_all_other_languages(make_config: Callable[..., DataConfig]) -> None:
    config = make_config(Path("x"), ("en", "de", "fr"), directions=["de-fr", "en-*", "*-en"])
    assert [str(direction) for direction in config.resolved_directions()] == [
        "de-fr", "en-de", "en-fr", "de-en", "fr-en",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["slim", "study"])
def test_the_debian_recipes_are_valid(repository: Path, name: str) -> None:
    config = load_config(DataConfig, repository / "configs" / "data" / f"{name}.yaml")
    assert len(config.resolved_directions()) >= 100
    assert {source.format for source in config.sources} >= {
        "gettext", "mediawiki", "libreoffice_help", "mallard", "ddtp"
    } - ({"gettext"} if name == "slim" else set())  # fmt: skip
