"""Rates are counts that a reader can repeat; who judges languages is py3langid itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from data_pipeline.tokenizer import Tokenizer
from hyperadapter.config import QualityConfig, RunConfig
from hyperadapter.evaluation.quality import (
    LanguageJudge,
    Quality,
    Rate,
    add_rates,
    judge_translations,
    placeholders_of,
)

GERMAN = "Die Datei konnte nicht geöffnet werden, weil sie beschädigt ist."
ENGLISH = "The file could not be opened because it is damaged and unreadable."
FRENCH = "Le fichier n'a pas pu être ouvert parce qu'il est endommagé."
CHINESE = "无法打开文件，因为它已损坏"
CROATIAN = "Datoteka se ne može otvoriti jer je oštećena, pokušajte ponovno."


class Words:
    """A tokenizer whose pieces are words."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[0] * len(text.split()) for text in texts]


@pytest.fixture
def judged(tiny_config: Callable[..., RunConfig]) -> Callable[..., Quality]:
    """Judges translations into German of a run of English, German and French."""

    def judge(src: list[str], hyp: list[str], tgt: str = "de", **changes: Any) -> Quality:
        config = tiny_config(**changes)
        languages = LanguageJudge(config.data.languages, config.evaluation.quality)
        return judge_translations(src, hyp, tgt, languages, cast(Tokenizer, Words()), config)

    return judge


# --------------------------------------------------------------------------------------- languages


def test_translations_in_another_language_are_counted() -> None:
    judge = LanguageJudge(["de", "fr"], QualityConfig())
    texts = [GERMAN, ENGLISH, FRENCH, GERMAN, "OK"]
    # English is looked for although the run has none.
    assert judge.judge(texts, "de") == (Rate(count=2, of=4), 1)
    assert judge.judge(texts, "fr") == (Rate(count=3, of=4), 1)
    assert judge.judge([], "de") == (Rate(count=0, of=0), 0)
    assert judge.unknown == ()


def test_only_languages_of_the_run_are_looked_for() -> None:
    assert LanguageJudge(["de"], QualityConfig()).judge([CROATIAN], "de")[0] == Rate(count=0, of=1)
    with_croatian = LanguageJudge(["de", "hr"], QualityConfig())
    assert with_croatian.judge([CROATIAN], "de")[0] == Rate(count=1, of=1)


def test_close_relatives_are_one() -> None:
    judge = LanguageJudge(["hr", "sr-Latn", "en"], QualityConfig())
    for language in ("hr", "sr-Latn"):
        assert judge.judge([CROATIAN], language)[0] == Rate(count=0, of=1)
    assert judge.judge([CROATIAN], "en")[0] == Rate(count=1, of=1)


def test_a_language_that_the_model_does_not_know_is_said_and_not_judged() -> None:
    judge = LanguageJudge(["de", "en-Shaw", "gsw"], QualityConfig())
    assert judge.unknown == ("en-Shaw", "gsw")
    assert judge.judge([GERMAN, "OK"], "gsw") == (None, 1)
    assert judge.judge([GERMAN], "de")[0] == Rate(count=0, of=1)


def test_short_texts_are_counted_apart_and_placeholders_are_no_letters() -> None:
    judge = LanguageJudge(["de"], QualityConfig(min_letters=15))
    assert judge.judge(["abcdefghijklmn 123", "{averylongplaceholder} OK"], "de")[1] == 2
    assert judge.judge(["abcdefghijklmno"], "de")[1] == 0
    # A Chinese character says as much as three letters.
    assert LanguageJudge(["zh-Hans"], QualityConfig()).judge([CHINESE, "无法打开"], "zh-Hans") == (
        Rate(count=0, of=1),
        1,
    )


def test_who_is_not_sure_enough_says_nothing() -> None:
    text = "Information System Version"
    lenient = LanguageJudge(["de", "fr"], QualityConfig(min_probability=0.0))
    strict = LanguageJudge(["de", "fr"], QualityConfig(min_probability=0.99))
    found = [judge.judge([text], "fr")[0] for judge in (lenient, strict)]
    assert found == [Rate(count=1, of=1), Rate(count=0, of=1)]


# ------------------------------------------------------------------------------------ placeholders


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%s of %d files in %1$s, %(name)s %.2f %5d %lu", "%s %d %1$s %(name)s %.2f %5d %lu"),
        ("%1 of %2", "%1 %2"),
        ("{0} {name} { x } {{ y }} ${z}", "{0} {name} {x} {{y}} ${z}"),
        ('<b>bold</b> <br/> <a href="x y">', "<b> </b> <br> <a>"),
        ("&shortcut; &amp; &#160; &#xA0;", "&shortcut; &amp; &#160; &#xA0;"),
        ("100 % de 50%off, 5 %% s, a < b > c, AT&T; R&D", ""),
        ("<me@example.org> {", ""),
    ],
)
def test_placeholders_of_all_notations(text: str, found: str) -> None:
    tokens = placeholders_of(text)
    assert sorted(tokens.elements()) == sorted(found.split())


@pytest.mark.parametrize(
    ("src", "hyp", "rate"),
    [
        ("open %s", "öffne %s", (1, 1)),
        ("%s and %d", "%d und %s", (1, 1)),
        ("%s and %s", "%s und", (0, 1)),
        ("%s", "%d", (0, 1)),
        ("open", "öffne {x}", (0, 1)),  # invented
        ("open", "öffne", (0, 0)),
        ('<a href="x">', '<a href="y">', (1, 1)),
        ("<b>x</b>", "<b>x<b>", (0, 1)),
    ],
)
def test_placeholders_are_kept_as_often_and_in_any_order(
    judged: Callable[..., Quality], src: str, hyp: str, rate: tuple[int, int]
) -> None:
    kept = judged([src], [hyp]).placeholders_kept
    assert (kept.count, kept.of) == rate


# ------------------------------------------------------------------------------------------ others


def test_copies_and_empty_translations(judged: Callable[..., Quality]) -> None:
    quality = judged(["a b", " c", "d", "", "e"], ["a b", "c ", "x", "", " "])
    assert quality.copied == Rate(count=2, of=5)
    assert quality.empty == Rate(count=2, of=5)


@pytest.mark.parametrize(
    ("length", "overlong"), [(12, False), (13, True), (20, True)]
)  # (3 + 2) x 2 + 3
def test_the_limit_of_the_search_is_overlong(
    judged: Callable[..., Quality], length: int, overlong: bool
) -> None:
    evaluation = {"max_length_ratio": 2.0, "max_length_extra": 3, "quality": {"overlong_ratio": 9}}
    found = judged(["a b c"], ["x " * length], evaluation=evaluation)
    assert found.overlong.count == overlong
    # Without a tag, the source is shorter by one position: 11.
    data = {"tags": {"encoder": "none"}}
    found = judged(["a b c"], ["x " * length], evaluation=evaluation, data=data)
    assert found.overlong.count == 1


@pytest.mark.parametrize(
    ("words", "length", "overlong"), [(6, 18, False), (6, 19, True), (1, 15, False), (1, 16, True)]
)
def test_several_times_the_source_is_overlong_but_short_sources_count_as_five(
    judged: Callable[..., Quality], words: int, length: int, overlong: bool
) -> None:
    evaluation = {"max_length_ratio": 99.0, "quality": {"overlong_ratio": 3.0}}
    found = judged(["a " * words], ["x " * length], evaluation=evaluation)
    assert found.overlong == Rate(count=int(overlong), of=1)


def test_rates_add_up() -> None:
    assert add_rates([Rate(count=1, of=2), None, Rate(count=0, of=98)]) == Rate(count=1, of=100)
    assert add_rates([None, None]) is None
    assert Rate(count=1, of=4).share == 0.25
    assert Rate(count=0, of=0).share is None
