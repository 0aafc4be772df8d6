"""Which pairs are needed, which source has them, and the files of the clean corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.bitext import (
    SentencePair,
    catalog_languages,
    cleaned_pairs,
    format_line,
    iter_pairs,
    iter_split,
    language_pairs,
    pair_of,
    pivoted_pairs,
    read_split,
    source_covers,
    split_path,
)
from data_pipeline.config import DataConfig
from data_pipeline.sources import CatalogSource
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import write_json
from hyperadapter.core.languages import Direction

CATALOG = {"format": "gettext", "name": "catalog", "paths": ["none.whl"]}
MakeConfig = Callable[..., DataConfig]


def tsv(name: str, languages: list[str], path: str = "x.tsv") -> dict[str, Any]:
    return {"format": "tsv", "name": name, "languages": languages, "path": path}


def test_both_directions_share_a_pair_with_the_pivot_first(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(tmp_path, languages=("uk", "de", "en"), sources=[CATALOG])
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
        sources=[CATALOG, tsv("toy", ["de", "fr"])],
    )
    assert language_pairs(config) == (("fr", "de"), ("en", "de"))
    assert [source_covers(s, ("fr", "de")) for s in config.sources] == [False, True]
    assert [source_covers(s, ("en", "de")) for s in config.sources] == [True, False]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"sources": [CATALOG]},
            r"text in fr and de, .* English only\. Set data\.pivoted to join them through 'en', "
            r"add a source with languages \[fr, de\], or drop",
        ),
        (
            {"sources": [tsv("toy", ["en", "fr"])], "pivoted": {}},
            r"Nor can data\.pivoted join them: no source can hold en and de\. Add one with "
            r"languages \[en, de\], add a source with languages \[fr, de\], or drop",
        ),
        (
            {"sources": [CATALOG], "pivot": "fr", "pivoted": {}},
            r"text in fr and de, .* English only\. Add a source with languages \[fr, de\], or drop",
        ),
    ],
)
def test_a_pair_that_no_source_can_hold_is_refused(
    tmp_path: Path, make_config: MakeConfig, data: dict[str, Any], message: str
) -> None:
    config = make_config(tmp_path, languages=("en", "fr", "de"), directions=["de-fr"], **data)
    for function in (language_pairs, pivoted_pairs):
        with pytest.raises(ConfigError, match=message):
            function(config)


def test_pairs_that_the_pivot_joins(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(
        tmp_path,
        languages=("en", "fr", "de", "cs"),
        directions=["de-fr", "fr-de", "en-de", "cs-fr"],
        sources=[CATALOG, tsv("toy", ["de", "fr"])],
        pivoted={},
    )
    assert language_pairs(config) == (("fr", "de"), ("en", "de"), ("fr", "cs"))
    assert pivoted_pairs(config) == (("fr", "cs"),)


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
    found = list(iter_pairs(config.sources[0], ("en", "de"), (), Counter()))
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
    found = list(iter_pairs(config.sources[0], ("en", "de"), (), Counter()))
    assert found == [SentencePair("yes", "ja", "toy")]


@pytest.mark.parametrize("pair", [("en", "de"), ("de", "en")])
def test_catalogs_have_english_on_either_side(
    tmp_path: Path, make_config: MakeConfig, pair: tuple[str, str]
) -> None:
    for code in ("de", "xx_YY", "en"):
        path = tmp_path / "po" / f"{code}.po"
        path.parent.mkdir(exist_ok=True)
        path.write_text('msgid "yes"\nmsgstr "ja"\n', encoding="utf-8")
    config = make_config(
        tmp_path, languages=("de", "en"), pivot=pair[0], sources=[CATALOG | {"paths": ["po"]}]
    )
    source = config.sources[0]
    assert isinstance(source, CatalogSource)
    texts = {"en": "yes", "de": "ja"}
    found = list(iter_pairs(source, pair, [tmp_path / "po"], Counter()))
    assert found == [SentencePair(texts[pair[0]], texts[pair[1]], "catalog")]
    assert catalog_languages(source, [tmp_path / "po"]) == (("de",), {"xx_YY": 1}, ())
    (tmp_path / "po" / "fr.po.gz").touch()
    ignored = catalog_languages(source, [tmp_path / "po"]).ignored
    assert ignored == (f"{tmp_path}/po/fr.po.gz",)


@pytest.mark.parametrize(
    ("content", "source"),
    [
        (
            '<tmx><body><tu><tuv xml:lang="en"><seg>yes</seg></tuv>'
            '<tuv xml:lang="de"><seg>ja</seg></tuv></tu></body></tmx>',
            {"format": "tmx"},
        ),
        ('{"translation": {"en": "yes", "de": "ja"}}', {"format": "jsonl"}),
        ("yes", {"format": "parquet"}),
    ],
)
def test_every_format_of_pairs_has_its_reader(
    tmp_path: Path, make_config: MakeConfig, content: str, source: dict[str, Any]
) -> None:
    path = tmp_path / "x"
    path.write_text(content, encoding="utf-8")
    place = {"path": str(path)} if source["format"] == "tmx" else {"paths": [str(path)]}
    tree = source | place | {"name": "toy", "languages": ["de", "en"]}
    config = make_config(tmp_path, languages=("en", "de"), sources=[tree])
    pairs = iter_pairs(config.sources[0], ("en", "de"), (), Counter())
    if source["format"] == "parquet":
        with pytest.raises(DataError, match="is not a whole Parquet file"):
            list(pairs)
    else:
        assert list(pairs) == [SentencePair("yes", "ja", "toy")]


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
    assert list(iter_split(tmp_path, "train", ("en", "de"))) == [
        ("a", "Yes\u2028sir", "Jawohl", False),
        ("b", "No", "Nein", False),
    ]
    first = next(iter_split(tmp_path, "test", ("en", "de")))
    assert (first.source, first.a, first.b, first.near_duplicate) == (
        "a",
        "Yes\u2028sir",
        "Jawohl",
        True,
    )
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
    message = (
        r"train.en-pt-BR\.tsv does not exist; .* lacks en-pt-BR\. .* and a source .*--test-set"
    )
    with pytest.raises(DataError, match=message):
        read_split(tmp_path, "train", ("en", "pt-BR"))


def test_the_manifest_lists_the_pairs(tmp_path: Path) -> None:
    assert cleaned_pairs(tmp_path) == frozenset()
    write_json(tmp_path / "manifest.json", {"splits": {"en-de": {}, "en-pt-BR": {}}})
    assert cleaned_pairs(tmp_path) == {"en-de", "en-pt-BR"}


def test_bytes_that_are_no_utf_8_are_damage(tmp_path: Path) -> None:
    path = split_path(tmp_path, "train", ("en", "de"))
    path.parent.mkdir()
    path.write_bytes(b"a\tyes\tja\n" * 3000 + b"a\tgreen\tgr\xfcn\n")
    with pytest.raises(DataError, match=r"en-de\.tsv is not UTF-8 after line \d+\. Delete"):
        read_split(tmp_path, "train", ("en", "de"))
