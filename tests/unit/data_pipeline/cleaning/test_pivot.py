"""Pairs that no source has are joined through the pivot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.bitext import SPLITS, read_split
from data_pipeline.cleaning.corpus import build_clean_corpus, clean_folder
from data_pipeline.cleaning.pivot import iter_joined
from data_pipeline.cleaning.split import normalise, order_of, split_of
from data_pipeline.config import DataConfig

MakeConfig = Callable[..., DataConfig]
ENGLISH = [f"{x} saw the {y} here" for x in "abcdefghijklmn" for y in "opqrstuvwxyz"]
texts = st.dictionaries(st.text("abcd", min_size=1, max_size=3), st.text("xyz", max_size=2))


@given(texts, texts)
def test_a_join_has_what_both_files_have(
    tmp_path: Path, one: dict[str, str], other: dict[str, str]
) -> None:
    for name, rows in (("one", one), ("other", other)):
        ordered = sorted(rows, key=lambda a: (order_of(a, 3), a))
        lines = [f"source\t{a}\t{rows[a]}\n" for a in ordered]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    joined = list(iter_joined(tmp_path / "one", tmp_path / "other", seed=3))
    assert sorted(joined) == sorted((one[a], other[a]) for a in one.keys() & other.keys())


def source(folder: Path, code: str, rows: dict[str, str]) -> dict[str, Any]:
    path = folder / f"{code}.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in rows.items()), encoding="utf-8")
    return {"format": "tsv", "name": code, "languages": ["en", code], "path": str(path)}


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> DataConfig:
    """Three languages with English; some German and Czech texts are the same."""
    suffixes = {"de": "e", "cs": "i", "fr": "u"}
    sources = [
        source(tmp_path, code, {a: a.replace(" ", f"{end} ") + end for a in ENGLISH[skip:]})
        for skip, (code, end) in enumerate(suffixes.items())
    ]
    sources[1] = source(
        tmp_path,
        "cs",
        {a: a.replace(" ", "i ") + "i" for a in ENGLISH[9:]}
        | {a: a.replace(" ", "e ") + "E" for a in ENGLISH[:9]},
    )
    return make_config(
        tmp_path / "data",
        languages=("en", "de", "cs", "fr"),
        directions=["en-de", "de-cs", "fr-cs", "de-fr"],
        sources=sources,
        clean={"max_english_copy": 1.0, "length_ratio": (0.1, 9.0)},
        split={"valid_fraction": 0.1, "test_fraction": 0.1},
        pivoted={"max_pairs": 50},
        num_workers=1,
    )


def english_of(text: str, end: str) -> str:
    return " ".join(word.removesuffix(end) for word in text.split())


def test_joined_pairs_follow_the_pivots_split_and_share_their_texts(config: DataConfig) -> None:
    manifest = build_clean_corpus(config)
    folder = clean_folder(config)
    assert set(manifest.splits) == {"en-de", "de-cs", "cs-fr", "de-fr"}
    chosen: dict[str, list[str]] = {}
    for pair, end in ((("de", "cs"), "e"), (("de", "fr"), "e"), (("cs", "fr"), "i")):
        for split in SPLITS:
            text = read_split(folder, split, pair)
            english = [english_of(a, end) for a in text.a if not a.endswith("E")]
            assert {split_of(normalise(a), config.split) for a in english} <= {split}
            if split == "train":
                assert len(text) == 50
                assert set(text.source) == {"via en"}
                chosen["-".join(pair)] = english
            else:
                assert len(text) > 0
    shared = set(ENGLISH[9:])
    assert set(chosen["de-cs"]) & shared >= set(chosen["de-fr"]) & shared
    counts = manifest.sources["de-cs"]["via en"]
    equal = counts.dropped["target equals source"]
    assert 0 < equal <= 9
    assert counts.num_read == counts.num_kept + equal


def test_a_joined_pair_is_reused_until_its_pivot_pairs_change(
    config: DataConfig, tmp_path: Path
) -> None:
    build_clean_corpus(config)
    paths = {
        name: clean_folder(config) / "pairs" / f"{name}.json"
        for name in ("en-de", "en-cs", "en-fr", "de-cs", "cs-fr", "de-fr")
    }
    before = {name: path.read_bytes() for name, path in paths.items()}
    with open(tmp_path / "fr.tsv", "a", encoding="utf-8") as stream:
        stream.write("one more text\tencore un texte\n")
    build_clean_corpus(config)
    changed = {name for name, path in paths.items() if path.read_bytes() != before[name]}
    assert changed == {"en-fr", "cs-fr", "de-fr"}
