"""Sentences of test sets are found in other texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.leaks import LeakIndex, load_leak_index
from data_pipeline.config import LeakTest
from hyperadapter.core.errors import DataError

TESTS = ["The cat sat on the mat in the hall.", "Yes!", "Where is it?", "The cat sat on the mat!"]


@pytest.mark.parametrize(
    ("text", "least", "found"),
    [
        ("yes", 0.5, [1]),
        ("yes it is", 0.5, []),
        ("where is it", 0.5, [2]),
        ("tell me where is it now", 0.5, [2]),
        ("the cat sat on the mat", 0.4, [0, 3]),
        ("the cat sat on the mat", 0.5, [3]),
        ("the cat sat on the mat in the hall", 1.0, [0, 3]),
        ("the dog sat on the mat in the hall", 0.4, [0]),
        ("the dog sat on the mat in the hall", 0.9, []),
    ],
)
def test_a_text_holds_a_sentence(text: str, least: float, found: list[int]) -> None:
    hits = LeakIndex(TESTS, "en").find(["nothing here", text, "nor here"], least)
    assert hits == ({1: found} if found else {})


words = st.lists(st.sampled_from("abc"), min_size=1, max_size=9).map(" ".join)


@given(st.lists(words, max_size=4), st.lists(words, max_size=4), st.sampled_from([0.3, 0.5, 1.0]))
def test_what_is_found_agrees_with_the_definition(
    sentences: list[str], texts: list[str], least: float
) -> None:
    def holds(text: str, sentence: str) -> bool:
        parts = sentence.split()
        n = min(5, len(parts))
        if text == sentence or n < 3:
            return text == sentence
        grams = [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]
        return sum(f" {gram} " in f" {text} " for gram in grams) >= least * len(grams)

    wanted = {
        number: found
        for number, text in enumerate(texts)
        if (found := [i for i, sentence in enumerate(sentences) if holds(text, sentence)])
    }
    assert LeakIndex(sentences, "en").find(texts, least) == wanted


def test_a_file_has_a_sentence_a_line(tmp_path: Path) -> None:
    path = tmp_path / "test.en"
    path.write_text("One sentence.\n\nAnother one.\n", encoding="utf-8")
    index = load_leak_index(LeakTest(name="toy", language="en", path=str(path)))
    assert index.num_sentences == 2
    with pytest.raises(DataError, match=r"data\.split\.leak_tests, 'none'"):
        load_leak_index(LeakTest(name="none", language="en", path=str(tmp_path / "none")))
