"""The split is a function of the text; near-duplicates of train are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import SplitConfig
from data_pipeline.split import TrainNgrams, normalise, split_of


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Save 3 files.", "save 0 files"),
        ("save {0} Files", "save 0 files"),
        ("  save\u00a012,5 files…", "save 0 0 files"),
        ("Don't panic!", "don t panic"),
        ("Зберегти «це»", "зберегти це"),
        ("ファイルを保存", "フ ァ イ ル を 保 存"),
        ("…", "…"),
    ],
)
def test_normalised_form(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


@given(st.text(max_size=30))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    once = normalise(text)
    assert normalise(once).split() == once.split() or not once.strip()


TEXTS = [f"text {a} of {b}" for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrst"]


def test_the_shares_are_about_those_asked_for() -> None:
    config = SplitConfig(valid_fraction=0.1, test_fraction=0.2)
    splits = [split_of(text, config) for text in TEXTS]
    assert 0.15 < splits.count("test") / len(TEXTS) < 0.25
    assert 0.06 < splits.count("valid") / len(TEXTS) < 0.14


def test_the_seed_chooses_other_texts() -> None:
    config = SplitConfig(test_fraction=0.3)
    other = SplitConfig(test_fraction=0.3, seed=2)
    assert [split_of(t, config) for t in TEXTS] == [split_of(t, config) for t in TEXTS]
    assert [split_of(t, config) for t in TEXTS] != [split_of(t, other) for t in TEXTS]


def test_larger_fractions_only_take_from_train() -> None:
    small = SplitConfig(valid_fraction=0.05, test_fraction=0.05)
    large = SplitConfig(valid_fraction=0.2, test_fraction=0.3)
    for text in TEXTS:
        before = split_of(text, small)
        assert before in ("train", split_of(text, large))


def test_a_fraction_of_zero_takes_nothing() -> None:
    config = SplitConfig(valid_fraction=0, test_fraction=0)
    assert {split_of(text, config) for text in TEXTS} == {"train"}


def test_containment_is_the_share_of_5_grams_in_train() -> None:
    ngrams = TrainNgrams("en")
    ngrams.add("the order has been changed by the user")
    assert ngrams.containment("the order has been changed") == 1
    assert ngrams.containment("the event has been changed") == 0
    assert ngrams.containment("then the order has been changed") == pytest.approx(1 / 2)
    ngrams.add("then the order has been")
    assert ngrams.containment("then the order has been changed") == 1


def test_short_texts_are_contained_as_a_whole_or_not_at_all() -> None:
    ngrams = TrainNgrams("en")
    ngrams.add("do you want to delete this item")
    ngrams.add("items")
    ngrams.add("next page")
    assert ngrams.containment("delete this item") == 1
    assert ngrams.containment("want to delete this") == 1
    assert ngrams.containment("delete that item") == 0
    assert ngrams.containment("this item") == 0
    assert ngrams.containment("item") == 0
    assert ngrams.containment("page") == 0
    assert ngrams.containment("items") == 1
    assert ngrams.containment("next page") == 1


def test_nothing_is_contained_in_nothing() -> None:
    assert TrainNgrams("en").containment("one two three four five") == 0


words = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


@given(st.lists(words, max_size=6), words)
def test_containment_agrees_with_the_definition(train: list[str], text: str) -> None:
    ngrams = TrainNgrams("en")
    for one in train:
        ngrams.add(one)
    parts = text.split()
    n = min(5, len(parts))
    if text in train:
        assert ngrams.containment(text) == 1
        return
    if n < 3:
        assert ngrams.containment(text) == 0
        return
    wanted = [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]
    found = [any(f" {gram} " in f" {one} " for one in train) for gram in wanted]
    assert ngrams.containment(text) == pytest.approx(sum(found) / len(found))


@pytest.mark.parametrize(("language", "length"), [("zh-Hans", 10), ("ja", 10), ("th", 20)])
def test_scripts_without_spaces_have_ngrams_of_characters(language: str, length: int) -> None:
    letter = {"zh-Hans": 0x4E00, "ja": 0x3042, "th": 0x0E01}[language]
    text = "".join(chr(letter + i) for i in range(length + 2))
    ngrams = TrainNgrams(language)
    ngrams.add(normalise(text))
    ngrams.add(normalise(text[1:4]))
    assert ngrams.containment(normalise(text[:length])) == 1
    assert ngrams.containment(normalise(text[1:] + "X")) == pytest.approx(2 / 3)
    assert ngrams.containment(normalise(text[: length - 1])) == 0
    assert ngrams.containment(normalise(text[1:4])) == 1
