"""Hashes of n-grams agree with the n-grams themselves."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning import ngrams
from data_pipeline.cleaning.ngrams import HashPlaces, contained_share, hash_texts, is_in
from data_pipeline.cleaning.split import normalise


def containment(train: list[str], text: str, language: str = "en") -> float:
    """Returns the share of a text's longest n-grams that a list of training texts has."""
    known = np.unique(hash_texts(train, language).all())
    return float(contained_share(hash_texts([text], language), partial(is_in, known=known))[0])


def test_containment_is_the_share_of_5_grams_in_train() -> None:
    train = ["the order has been changed by the user"]
    assert containment(train, "the order has been changed") == 1
    assert containment(train, "the event has been changed") == 0
    assert containment(train, "then the order has been changed") == pytest.approx(1 / 2)
    assert containment([*train, "then the order has been"], "then the order has been changed") == 1


def test_short_texts_are_contained_as_a_whole_or_not_at_all() -> None:
    contained = partial(containment, ["do you want to delete this item", "items", "next page"])
    assert contained("delete this item") == 1
    assert contained("want to delete this") == 1
    assert contained("delete that item") == 0
    assert contained("this item") == 0
    assert contained("item") == 0
    assert contained("page") == 0
    assert contained("items") == 1
    assert contained("next page") == 1


def test_nothing_is_contained_in_nothing() -> None:
    assert containment([], "one two three four five") == 0
    assert len(hash_texts([], "en").longest()[0]) == 0


words = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12).map(" ".join)


@given(st.lists(words, max_size=6), words)
def test_containment_agrees_with_the_definition(train: list[str], text: str) -> None:
    parts = text.split()
    n = min(5, len(parts))
    if text in train:
        assert containment(train, text) == 1
        return
    if n < 3:
        assert containment(train, text) == 0
        return
    wanted = [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]
    found = [any(f" {gram} " in f" {one} " for one in train) for gram in wanted]
    assert containment(train, text) == pytest.approx(sum(found) / len(found))


@given(st.lists(words, max_size=8))
def test_a_batch_is_the_same_as_its_texts_one_by_one(texts: list[str]) -> None:
    batch = hash_texts(texts, "en")
    hashes, owners = batch.longest()
    for number, text in enumerate(texts):
        one = hash_texts([text], "en")
        assert batch.whole[number] == one.whole[0]
        assert sorted(hashes[owners == number]) == sorted(one.longest()[0])
    for n in batch.lengths:
        assert set(batch.ngrams(n)[0]) == {
            h for t in texts for h in hash_texts([t], "en").ngrams(n)[0]
        }


def test_hashes_are_the_same_in_every_process_and_after_words_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = hash_texts(["one two three four"], "en").all()
    assert int(before[0]) == 10_241_286_819_646_836_884
    monkeypatch.setattr(ngrams, "_MAX_WORDS", 2)
    assert np.array_equal(hash_texts(["one two three four"], "en").all(), before)


def test_places_of_known_hashes() -> None:
    known = np.array([3, 5, 9], np.uint64)
    found = HashPlaces(known).find(np.array([9, 4, 3, 11, 9], np.uint64))
    assert found.tolist() == [2, 0, 2]
    assert HashPlaces(np.empty(0, np.uint64)).find(known).tolist() == []


@given(
    st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=300),
    st.lists(st.integers(0, 2**64 - 1), max_size=100),
    st.integers(0, 300),
)
def test_the_bit_map_hides_nothing(known: list[int], others: list[int], shared: int) -> None:
    hashes = np.array(sorted(known), np.uint64)
    asked = others + known[:shared]
    expected = [sorted(known).index(value) for value in asked if value in known]
    assert HashPlaces(hashes).find(np.array(asked, np.uint64)).tolist() == expected


@pytest.mark.parametrize(("language", "length"), [("zh-Hans", 10), ("ja", 10), ("th", 20)])
def test_scripts_without_spaces_have_ngrams_of_characters(language: str, length: int) -> None:
    letter = {"zh-Hans": 0x4E00, "ja": 0x3042, "th": 0x0E01}[language]
    text = "".join(chr(letter + i) for i in range(length + 2))
    contained = partial(containment, [normalise(text), normalise(text[1:4])], language=language)
    assert contained(normalise(text[:length])) == 1
    assert contained(normalise(text[1:] + "X")) == pytest.approx(2 / 3)
    assert contained(normalise(text[: length - 1])) == 0
    assert contained(normalise(text[1:4])) == 1
