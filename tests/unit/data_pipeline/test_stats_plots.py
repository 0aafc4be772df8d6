"""The pictures of a corpus and its tokenizer, for few language pairs and for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from data_pipeline import stats_plots
from data_pipeline.stats_plots import plot_corpus, plot_drops, plot_tokenizer


def corpus_of(num_pairs: int, num_sources: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    pairs = {}
    for number in range(num_pairs):
        counts = rng.integers(0, 5000, num_sources)
        named = {f"source {i}": int(count) for i, count in enumerate(counts)}
        pairs[f"en-x{number}"] = {"train_by_source": named, "dropped": named}
    return {"pairs": pairs}


def tokenizer_of(num_languages: int) -> dict[str, Any]:
    one = {
        "coverage": 0.99,
        "in_script": 0.9,
        "pieces_per_character": 0.3,
        "length": {"p50": 9, "p90": 30, "p99": 70},
    }
    languages = {f"x{number}": one for number in range(num_languages)}
    return {"vocab_size": 3000, "languages": languages | {"y": one | {"in_script": None}}}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn, instead of their files: drawing large ones takes seconds."""
    drawn: list[Figure] = []
    monkeypatch.setattr(stats_plots, "_save", lambda figure, path: drawn.append(figure))
    return drawn


@pytest.mark.parametrize(("name", "magic"), [("x.png", b"\x89PNG"), ("x.svg", b"<?xml")])
def test_the_picture_is_written(tmp_path: Path, name: str, magic: bytes) -> None:
    path = tmp_path / "plots" / name
    plot_corpus(corpus_of(2, 2), path)
    assert path.read_bytes().startswith(magic)


@pytest.mark.parametrize("plot", [plot_corpus, plot_drops])
def test_hundreds_of_pairs_and_sources(figures: list[Figure], plot: Any) -> None:
    plot(corpus_of(300, 30), Path("x.png"))
    axes = figures[0].axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 41
    assert labels[-1] == "260 others, mean"
    named = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert len(named) == 10
    assert named[-1] == "21 others"
    assert figures[0].get_size_inches()[1] < 15


def test_pairs_without_text(figures: list[Figure]) -> None:
    plot_corpus({"pairs": {"en-de": {"train_by_source": {}}}}, Path("x.png"))
    assert len(figures) == 1


def test_languages_stand_in_rows(figures: list[Figure]) -> None:
    plot_tokenizer(tokenizer_of(3), Path("x.png"))
    plot_tokenizer(tokenizer_of(120), Path("x.png"))
    assert [len(figure.axes) for figure in figures] == [4, 12]
    assert [len(axes.get_xticklabels()) for axes in figures[1].axes[::4]] == [50, 50, 21]
