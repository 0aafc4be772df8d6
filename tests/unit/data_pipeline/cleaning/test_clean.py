"""Cleaning, on text as it stands in real catalogs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.clean import PairCleaner
from data_pipeline.cleaning.reasons import Reason
from data_pipeline.config import CleanConfig
from hyperadapter.core.languages import known_languages, script_of


def clean(a: str, b: str, lang: str = "de", **config: object) -> list[tuple[str, str]]:
    return list(PairCleaner(("en", lang), CleanConfig.model_validate(config)).clean(a, b))


def reason(a: str, b: str, lang: str = "de", **config: object) -> str | None:
    """Returns why a pair is dropped, or None if it is kept."""
    cleaner = PairCleaner(("en", lang), CleanConfig.model_validate(config))
    kept = list(cleaner.clean(a, b))
    assert len(kept) + cleaner.dropped.total() == 1
    return None if kept else next(iter(cleaner.dropped))


@pytest.mark.parametrize(
    ("a", "b", "lang", "why"),
    [
        ("Add special characters", "Sonderzeichen hinzufügen", "de", None),
        ("Event location", "Місце події", "uk", None),
        ("has error", "エラーが発生しています", "ja", None),
        ("An OpenOffice drawing", "Рисунок OpenOffice", "uk", None),
        ("PayPal secret key", "مفتاح PayPal", "ar", None),
        ("Gramps XML Backup", "Gramps XML-Sicherung", "de", None),
        ("Download ticket", "티켓 다운로드", "ko", None),
        ("The image", "ภาพ", "th", None),
        ("", "Januar", "de", Reason.EMPTY),
        ("<br/>", "Januar", "de", Reason.EMPTY),
        ("Name|class", "Name|Klasse", "de", Reason.FORBIDDEN),
        ("18\\u00b09", "18 Grad", "de", Reason.FORBIDDEN),
        ("Transgender", "transgender", "de", Reason.EQUAL),
        ("2017-05-31", "31.05.2017", "de", Reason.TOO_SHORT),
        ("{id} - {name}: a", "{id} - {name}: b", "de", Reason.FEW_LETTERS),
        ("Version number of the software product", "Nummer", "de", Reason.LENGTH_RATIO),
        ("Copy exceptions to the event log", "העתק חריג", "he", Reason.LENGTH_RATIO),
        ("Registered software", "Программное обеспечение", "de", Reason.WRONG_SCRIPT),
        ("Registered software", "Software registrado", "el", Reason.WRONG_SCRIPT),
        ("Bold title here", "Title here, bold!", "de", Reason.ENGLISH_COPY),
        ("America/Thunder_Bay", "Amerika/Thunder Bay", "de", Reason.IDENTIFIER),
        ("MAX_SIZE", "MAX_GRÖSSE", "de", Reason.IDENTIFIER),
        ("Network;Wireless;", "Netzwerk;Funk;", "de", Reason.IDENTIFIER),
        ("On/Off", "Ein/Aus", "de", None),
        ("Save it; then close it", "Speichern; dann schließen", "de", None),
        ("a " * 10_001, "b", "de", Reason.TOO_LONG),
        ("Unicode UTF-8 (recommended)", "Unicode UTF-8 (empfohlen)", "de", Reason.ENGLISH_COPY),
    ],
)
def test_what_is_kept_and_why_the_rest_is_not(a: str, b: str, lang: str, why: Reason) -> None:
    assert reason(a, b, lang) == (why and why.value)


def test_limits_come_from_the_configuration() -> None:
    long = "Please enter a valid address here", "Bitte geben Sie eine gültige Adresse ein"
    assert reason(*long) is None
    assert reason(*long, max_chars=(33, 40)) is None
    assert reason(*long, max_chars=(32, 40)) == Reason.TOO_LONG
    assert reason(*long, max_chars=(33, 39)) == Reason.TOO_LONG
    assert reason(*long, min_words=6) is None
    assert reason(*long, min_words=7) == Reason.TOO_SHORT
    assert reason(*long, length_ratio=(0.4, 1.1)) == Reason.LENGTH_RATIO
    assert reason(*long, length_ratio=(0.4, 1.1), length_ratio_from_chars=50) is None
    assert reason("half 1234", "halb 1234", min_letters=0.6) == Reason.FEW_LETTERS
    assert reason("Save it now", "Save it jetzt", max_english_copy=0.7) is None
    assert reason("Save it now", "Save it jetzt", max_english_copy=0.6) == Reason.ENGLISH_COPY


@pytest.mark.parametrize(
    ("pair", "lengths", "kept"),
    [
        (("en", "de"), (10, 20), True),
        (("en", "de"), (11, 20), False),
        (("en", "de"), (10, 21), False),
        (("de", "en"), (20, 10), True),
        (("de", "en"), (20, 11), False),
        (("de", "fr"), (20, 20), True),
        (("de", "fr"), (20, 21), False),
    ],
)
def test_only_the_pivot_has_the_first_limit_of_characters(
    pair: tuple[str, str], lengths: tuple[int, int], kept: bool
) -> None:
    cleaner = PairCleaner(pair, CleanConfig(max_chars=(10, 20)), pivot="en")
    rows = list(cleaner.clean("a" * lengths[0], "b" * lengths[1]))
    assert bool(rows) == kept


def test_text_that_no_file_can_hold_loses_those_characters() -> None:
    assert clean("Save \ud83dfile", "Datei\udc00 sichern") == [("Save file", "Datei sichern")]


def test_paragraphs_are_paired_when_both_sides_have_as_many() -> None:
    english = "Hello there,\n\nyour order is paid.\n \nBest wishes"
    german = "Guten Tag,\n\nIhre Bestellung ist\nbezahlt.\n\n\nViele Grüße"
    assert clean(english, german) == [
        ("Hello there,", "Guten Tag,"),
        ("your order is paid.", "Ihre Bestellung ist bezahlt."),
        ("Best wishes", "Viele Grüße"),
    ]
    assert len(clean(english, "Guten Tag,\n\nIhre Bestellung ist bezahlt. Viele Grüße")) == 1


def test_white_space_and_composition() -> None:
    assert clean("  A  new\tline\nhere ", "Eine neue\u00a0Zeile fu\u0308r\u200f uns") == [
        ("A new line here", "Eine neue Zeile für uns")
    ]


def test_control_characters_go() -> None:
    assert clean("Save\x07 it", "Datei\x92 sichern\x1b\x7f") == [("Save it", "Datei sichern")]


@pytest.mark.parametrize(
    ("lang", "raw", "tidy"),
    [
        ("ja", "完全バック\nアップで\n  復元", "完全バックアップで復元"),
        ("ja", "圧縮は\nGzip で行います", "圧縮は Gzip で行います"),
        ("zh-Hans", "这是，\n一个词", "这是，一个词"),
        ("th", "ภาษา\nไทย", "ภาษาไทย"),
        ("my", "မြန်\nမာ", "မြန်မာ"),
        ("ko", "한국어\n문장", "한국어 문장"),
    ],
)
def test_lines_end_inside_words_where_words_have_no_spaces(lang: str, raw: str, tidy: str) -> None:
    assert clean("Some wrapped text", raw, lang) == [("Some wrapped text", tidy)]


def test_each_language_has_a_script_that_cleaning_knows() -> None:
    for code in known_languages():
        assert script_of(code)
        PairCleaner(("en", code), CleanConfig())
        assert reason("Go to the page", "Ωω", code) in (
            None if script_of(code) == "Grek" else Reason.WRONG_SCRIPT,
        )


sides = st.text(st.sampled_from("aé中%s{}_&<|0 \t\u200b\x85"), max_size=30)


@given(sides, sides)
def test_every_paragraph_is_kept_or_counted(a: str, b: str) -> None:
    cleaner = PairCleaner(("en", "de"), CleanConfig())
    kept = [len(list(cleaner.clean(a, b))) for _ in range(2)]
    assert kept[0] == kept[1]
    assert 2 * kept[0] + cleaner.dropped.total() == 2
    list(cleaner.clean("\n\n".join([a or "-"] * 3), "\n\n".join([b or "-"] * 3)))
    assert set(cleaner.dropped) <= {reason.value for reason in Reason}


@given(st.integers(1, 4), st.lists(sides.filter(str.strip), min_size=1, max_size=4))
def test_as_many_paragraphs_come_out_or_are_counted_as_go_in(count: int, texts: list[str]) -> None:
    cleaner = PairCleaner(("en", "de"), CleanConfig())
    english = "\n\n".join(["Hello there"] * len(texts))
    num_kept = sum(len(list(cleaner.clean(english, "\n\n".join(texts)))) for _ in range(count))
    assert num_kept + cleaner.dropped.total() == count * len(texts)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_cleaning_or_the_file_format(a: str, b: str) -> None:
    cleaner = PairCleaner(("en", "ja"), CleanConfig())
    for pair in cleaner.clean(a, b):
        for side in pair:
            assert side == " ".join(side.split())
            assert not set(side) & set("\t\n\r|\\")
            assert side
