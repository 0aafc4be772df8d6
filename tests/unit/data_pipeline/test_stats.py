"""Statistics and the picture of a clean corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.corpus import build_clean_corpus, clean_folder
from data_pipeline.stats import corpus_stats, plot_corpus
from hyperadapter.core.errors import DataError


@pytest.fixture
def clean(tmp_path: Path, make_config: Callable[..., DataConfig]) -> Path:
    """A clean corpus of ten pairs with three English and two German words, and one dropped."""
    path = tmp_path / "x.tsv"
    rows = [f"word {letter} here\twort {letter}\n" for letter in "abcdefghij"]
    path.write_text("".join(rows) + "same\tsame\n", encoding="utf-8")
    config = make_config(
        tmp_path / "data",
        languages=("en", "de"),
        sources=[{"format": "tsv", "name": "toy", "languages": ["en", "de"], "path": str(path)}],
        split={"valid_fraction": 0.0, "test_fraction": 0.0},
        clean={"max_english_copy": 1.0},
    )
    build_clean_corpus(config)
    return clean_folder(config)


def test_counts(clean: Path) -> None:
    stats = corpus_stats(clean)
    assert json.loads(json.dumps(stats)) == stats
    pair = stats["pairs"]["en-de"]
    assert (pair["train"], pair["valid"], pair["test"], pair["near_duplicates"]) == (10, 0, 0, 0)
    assert (pair["words_a"], pair["words_b"]) == (30, 20)
    assert (pair["mean_words_a"], pair["mean_words_b"]) == (3, 2)
    assert (pair["mean_characters_a"], pair["mean_characters_b"]) == (11, 6)
    assert pair["train_by_source"] == {"toy": 10}
    assert pair["dropped"] == stats["dropped"] == {"target equals source": 1}
    assert (stats["num_read"], stats["num_kept"]) == (11, 10)


def test_without_a_corpus_the_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no clean corpus; build it first with `hyperadapter"):
        corpus_stats(tmp_path)


@pytest.mark.parametrize(("name", "magic"), [("x.png", b"\x89PNG"), ("x.svg", b"<?xml")])
def test_the_picture_is_written(clean: Path, tmp_path: Path, name: str, magic: bytes) -> None:
    path = tmp_path / "plots" / name
    plot_corpus(corpus_stats(clean), path)
    assert path.read_bytes().startswith(magic)
