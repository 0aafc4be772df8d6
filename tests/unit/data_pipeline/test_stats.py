"""Statistics of the clean corpus and of the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from data_pipeline import stats as module
from data_pipeline.bitext import MANIFEST, read_split
from data_pipeline.cleaning.clean_manifest import (
    CleanManifest,
    LeakCounts,
    SourceCounts,
    SplitCounts,
)
from data_pipeline.config import DataConfig
from data_pipeline.stats import corpus_stats, tokenizer_stats
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import read_json, write_json, write_text


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A clean corpus of ten pairs with three English and two German words, and one dropped."""
    train = SplitCounts(
        num_pairs=10,
        words_a=30,
        words_b=20,
        characters_a=110,
        characters_b=60,
        pairs_by_source={"toy": 10},
    )
    manifest = CleanManifest(
        fingerprint="toy",
        splits={"en-de": {"train": train, "valid": SplitCounts(), "test": SplitCounts()}},
        sources={"en-de": {"toy": SourceCounts(num_read=11, num_kept=10, dropped={"too long": 1})}},
        leak_tests={"news": LeakCounts(num_sentences=5, num_found=2)},
        unknown_languages={"toy": {"qaa": 3}},
    )
    write_text(tmp_path / MANIFEST, manifest.model_dump_json())
    return tmp_path


def test_counts(clean: Path) -> None:
    stats = corpus_stats(clean)
    assert json.loads(json.dumps(stats)) == stats
    pair = stats["pairs"]["en-de"]
    assert (pair["train"], pair["valid"], pair["test"], pair["near_duplicates"]) == (10, 0, 0, 0)
    assert (pair["words_a"], pair["words_b"]) == (30, 20)
    assert (pair["mean_words_a"], pair["mean_words_b"]) == (3, 2)
    assert (pair["mean_characters_a"], pair["mean_characters_b"]) == (11, 6)
    assert pair["train_by_source"] == {"toy": 10}
    assert pair["dropped"] == stats["dropped"] == {"too long": 1}
    assert pair["sources"]["toy"]["dropped"] == pair["dropped"]
    assert (stats["num_read"], stats["num_kept"]) == (11, 10)
    assert stats["leak_tests"] == {"news": {"num_sentences": 5, "num_found": 2}}
    assert stats["unknown_languages"] == {"toy": {"qaa": 3}}


def test_pair_that_was_built_through_the_pivot_has_no_sources(clean: Path) -> None:
    tree = read_json(clean / MANIFEST)
    write_json(clean / MANIFEST, tree | {"sources": {}})
    pair = corpus_stats(clean)["pairs"]["en-de"]
    assert (pair["train"], pair["num_read"], pair["sources"], pair["dropped"]) == (10, 0, {}, {})


def test_without_a_corpus_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no clean corpus; build it first with `hyperadapter"):
        corpus_stats(tmp_path)


def test_tokenizer_on_a_small_corpus(corpus: DataConfig) -> None:
    stats = tokenizer_stats(corpus)
    assert json.loads(json.dumps(stats)) == stats
    tokenizer = Tokenizer.load(Path(corpus.folder) / "tokenizer")
    assert stats["fingerprint"] == tokenizer.fingerprint
    text = read_split(Path(corpus.folder) / "clean", "train", ("en", "de"))
    _, lengths = tokenizer.encode_ragged(text.b)
    pair = stats["pairs"]["en-de"]
    assert pair["length_b"]["p50"] == sorted(lengths)[(len(lengths) - 1) // 2]
    assert pair["sentences"] + pair["dropped_long"] == len(text)
    assert 0 < pair["tokens_b"] <= lengths.sum()
    german = stats["languages"]["de"]
    assert german["length"] == pair["length_b"]
    assert german["sampled_characters"] == len("".join(text.b).replace(" ", ""))
    assert german["pieces_per_word"] == pytest.approx(
        (lengths.sum() - len(text)) / sum(len(t.split()) for t in text.b)
    )
    assert (german["script"], german["coverage"], german["in_script"]) == ("Latn", 1, 1)


def test_before_there_are_shards(corpus: DataConfig, tmp_path: Path) -> None:
    stats = tokenizer_stats(corpus.model_copy(update={"shards_folder": str(tmp_path)}))
    assert stats["pairs"]["en-de"]["tokens_a"] is stats["pairs"]["en-de"]["dropped_long"] is None


def test_characters_outside_the_vocabulary(corpus: DataConfig) -> None:
    tokenizer = Tokenizer.load(Path(corpus.folder) / "tokenizer")
    sample = module._LanguageSample()
    texts = ["bado \u96ea\u96ea", "fi\u0433u"]
    sample.add(texts, tokenizer.encode_ragged(texts)[1])
    stats = module._language_stats("de", sample, tokenizer, tokenizer.spells_out())
    assert stats["sampled_characters"] == 10
    assert stats["coverage"] == pytest.approx(0.7)
    assert stats["in_script"] == pytest.approx(0.7)
    japanese = module._language_stats("ja", sample, tokenizer, tokenizer.spells_out())
    assert japanese["pieces_per_word"] is None
    assert japanese["in_script"] == pytest.approx(0.2)


def test_lines_are_spread_over_a_large_file(
    corpus: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = Path(corpus.folder) / "clean"
    text = read_split(clean, "train", ("en", "de"))
    every = list(zip(text.a, text.b, strict=True))
    assert list(module._sample_rows(clean, ("en", "de"))) == every
    monkeypatch.setattr(module, "_SAMPLE_LINES", 10)
    some = list(module._sample_rows(clean, ("en", "de")))
    places = [every.index(row) for row in some]
    assert len(some) == 10
    assert places == sorted(places)
    assert max(b - a for a, b in pairwise(places)) < len(every) / 4


def test_text_that_is_missing_or_damaged(make_corpus: Callable[..., DataConfig]) -> None:
    config = make_corpus({"de": 20})
    clean = Path(config.folder) / "clean"
    path = clean / "train/en-de.tsv"
    for text, message in (
        ("toy\tonly one\n", "en-de.tsv has a damaged line \\(not enough values"),
        ("", "is empty; there is nothing to measure in en-de"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            list(module._sample_rows(clean, ("en", "de")))
    path.unlink()
    with pytest.raises(DataError, match=r"en-de.tsv does not exist; run `hyperadapter data clean`"):
        list(module._sample_rows(clean, ("en", "de")))
