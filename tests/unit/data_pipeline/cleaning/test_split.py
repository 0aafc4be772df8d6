"""The split and the order are functions of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.split import normalise, order_of, split_of
from data_pipeline.config import SplitConfig


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


def test_the_order_is_a_salted_hash_of_the_text_itself() -> None:
    assert order_of("Save", 1) != order_of("save", 1)
    assert order_of("Save", 1) != order_of("Save", 2)
    places = [order_of(text, 1) for text in TEXTS]
    assert len(set(places)) == len(TEXTS)
    assert 0.4 < sum(place < 2**63 for place in places) / len(TEXTS) < 0.6
