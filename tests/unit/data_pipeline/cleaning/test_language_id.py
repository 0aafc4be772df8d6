"""Texts in another language are found; those that cannot be told apart are left alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from data_pipeline.cleaning import language_id
from data_pipeline.cleaning.clean import PairCleaner
from data_pipeline.cleaning.language_id import LanguageFilter, label_of
from data_pipeline.cleaning.reasons import Reason
from data_pipeline.config import CleanConfig, LanguageIdConfig


class FakeModel:
    """Reads `de 0.8 nl 0.2 ...` as what it thinks of a text."""

    labels = ("bs", "da", "de", "en", "hr", "id", "ms", "nl", "no", "sr", "tl", "zh", "zxx")

    def rank(self, text: str) -> list[tuple[str, float]]:
        parts = text.split()
        ranks = zip(parts[::2], map(float, parts[1::2]), strict=True)
        return sorted(ranks, key=lambda rank: -rank[1])

    def classify(self, text: str) -> tuple[str, float]:
        return self.rank(text)[0]


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    label_of.cache_clear()
    monkeypatch.setattr(language_id, "load_identifier", FakeModel)
    yield
    label_of.cache_clear()


@pytest.mark.usefixtures("_fake")
@pytest.mark.parametrize(
    ("language", "text", "other"),
    [
        ("de", "de 0.9 nl 0.1", False),
        ("de", "nl 0.95 de 0.05", True),
        ("de", "nl 0.85 de 0.15", False),
        ("de", "zxx 0.95 de 0.05", False),
        ("hr", "sr 0.95 hr 0.05", False),
        ("sr-Latn", "bs 0.99 de 0.01", False),
        ("de", "hr 0.5 sr 0.3 bs 0.15 de 0.05", True),
        ("de", "hr 0.5 sr 0.2 bs 0.1 de 0.2", False),
        ("nb", "da 0.95 de 0.05", False),
        ("nb", "nl 0.95 no 0.05", True),
        ("fil", "tl 0.95 nl 0.05", False),
        ("zh-Hant", "zh 0.95 en 0.05", False),
        ("zh-Hans", "en 0.95 zh 0.05", True),
        ("pt-BR", "en 1.0 de 0.0", False),
        ("de-x-informal", "en 1.0 de 0.0", True),
    ],
)
def test_what_is_another_language(language: str, text: str, other: bool) -> None:
    config = LanguageIdConfig(min_chars=1, min_probability=0.9)
    assert LanguageFilter(language, config).is_other(text) == other


@pytest.mark.usefixtures("_fake")
def test_short_texts_are_not_judged() -> None:
    judge = LanguageFilter("de", LanguageIdConfig(min_chars=7))
    assert not judge.is_other("nl 1.0")
    assert judge.is_other("nl 1.00")


@pytest.mark.usefixtures("_fake")
def test_an_unknown_language_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for text in ("en 1.0", "en 0.9"):
            assert not LanguageFilter("is", LanguageIdConfig(min_chars=1)).is_other(text)
    assert caplog.messages == ["language identification does not know is; its texts are not judged"]


@pytest.mark.slow
def test_the_real_model() -> None:
    label_of.cache_clear()
    english = "The quick brown fox jumps over the lazy dog in the garden."
    german = "Der schnelle braune Fuchs springt über den faulen Hund im Garten."
    french = "Le rapide renard brun saute par-dessus le chien paresseux du jardin."
    cleaner = PairCleaner(("en", "de"), CleanConfig(language_id=LanguageIdConfig()))
    assert list(cleaner.clean(english, german)) == [(english, german)]
    assert list(cleaner.clean(english, french)) == []
    assert list(cleaner.clean(french, german)) == []
    assert cleaner.dropped == {Reason.LANGUAGE_ID.value: 2}
