"""Cleaning, on text as it stands in real catalogs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cleaning.clean import (
    PairCleaner,
    Reason,
    normalise_placeholders,
    strip_accelerators,
    strip_markup,
)
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
    ("raw", "bare"),
    [
        ("<strong>plus</strong> tax", "plus tax"),
        ('See <a href="x.html">the guide</a>.', "See the guide."),
        ("Father<br/>Mother", "Father Mother"),
        ("one<!-- not\nthis -->", "one"),
        ("Settings&hellip;", "Settings…"),
        ("Terms &amp; conditions", "Terms & conditions"),
        ("People with <count> children", "People with <count> children"),
        ("a < b and b > c", "a < b and b > c"),
        ("<Base> of a <body>building", "<Base> of a building"),
    ],
)
def test_markup(raw: str, bare: str) -> None:
    assert strip_markup(raw) == bare


@pytest.mark.parametrize(
    ("a", "b", "bare_a", "bare_b"),
    [
        ("_File", "_Datei", "File", "Datei"),
        ("E_xit", "Q_uitter", "Exit", "Quitter"),
        ("&Open", "Ö&ffnen", "Open", "Öffnen"),
        ("_Find", "検索(_F)", "Find", "検索"),
        ("_Find", "찾기 (&F)", "Find", "찾기"),
        ("_Place:", "م_كان:", "Place:", "مكان:"),
        ("LDS _Temple:", "Храм _СПД:", "LDS Temple:", "Храм СПД:"),
        ("file_name", "Datei_Name", "file_name", "Datei_Name"),
        ("MAX_SIZE", "MAX_SIZE", "MAX_SIZE", "MAX_SIZE"),
        ("AT&T", "AT&T", "AT&T", "AT&T"),
        ("Name_Editor_dialog", "_Dialog", "Name_Editor_dialog", "_Dialog"),
        ("Check-in & Validity", "Check-in & Gültigkeit", "Check-in & Validity", None),
        ("a b c d e f g h _i", "_x", "a b c d e f g h _i", "_x"),
    ],
)
def test_accelerators(a: str, b: str, bare_a: str, bare_b: str | None) -> None:
    assert strip_accelerators(a, b) == (bare_a, bare_b or b)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (
            "%(name)s died on %(date)s.",
            "Am %(date)s starb %(name)s.",
            ("{0} died on {1}.", "Am {1} starb {0}."),
        ),
        (
            "{agent} from {country}",
            "{country}から{agent}",
            ("{0} from {1}", "{1}から{0}"),
        ),
        ("%s of %s", "%s von %s", ("{0} of {1}", "{0} von {1}")),
        ("%1$s of %2$s", "%2$s: %1$s", ("{0} of {1}", "{1}: {0}")),
        ("{x} and {x}", "{x} y {x}", ("{0} and {0}", "{0} y {0}")),
        ("Delete %s?", "%sを削除しますか", ("Delete {0}?", "{0}を削除しますか")),
        ("${count} items", "${count} Elemente", ("{0} items", "{0} Elemente")),
        ("$h hours", "$h Stunden", ("{0} hours", "{0} Stunden")),
        ("By {{ author }}", "Von {{author}}", ("By {0}", "Von {0}")),
        ("Record @id@", "Запис @id@", ("Record {0}", "Запис {0}")),
        ("%(rate)s%% tax", "%(rate)s%% MwSt.", ("{0}% tax", "{0}% MwSt.")),
        ("costs $100", "kostet 100 $", ("costs $100", "kostet 100 $")),
        ("a 50% discount", "50% de réduction", ("a 50% discount", "50% de réduction")),
        ("100 %", "100 %", ("100 %", "100 %")),
        ("{n} of {m}", "{n} von", Reason.PLACEHOLDERS),
        ("%d files", "%s Dateien", Reason.PLACEHOLDERS),
        ("{x} {x}", "{x}", Reason.PLACEHOLDERS),
        ("open {", "auf {", Reason.UNKNOWN_MARKUP),
        ("{n, plural, one {# day}}", "{n, plural, one {# day}}", Reason.UNKNOWN_MARKUP),
        ("Imported %Y/%m", "Importiert %Y/%m", Reason.UNKNOWN_MARKUP),
        ("[[Main Page]]", "[[Hauptseite]]", Reason.UNKNOWN_MARKUP),
    ],
)
def test_placeholders(a: str, b: str, expected: object) -> None:
    assert normalise_placeholders(a, b) == expected


@given(st.permutations(["%(a)s", "%(b)s", "${c}", "{d}", "@e@"]))
def test_placeholders_follow_their_names_in_any_order(order: list[str]) -> None:
    names = ["%(a)s", "%(b)s", "${c}", "{d}", "@e@"]
    result = normalise_placeholders(" und ".join(names), " or ".join(order))
    assert not isinstance(result, Reason)
    assert result[0] == "{0} und {1} und {2} und {3} und {4}"
    assert result[1] == " or ".join(f"{{{names.index(name)}}}" for name in order)


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


def test_each_language_has_a_script_that_cleaning_knows() -> None:
    for code in known_languages():
        assert script_of(code)
        PairCleaner(("en", code), CleanConfig())
        assert reason("Go to the page", "Ωω", code) in (
            None if script_of(code) == "Grek" else Reason.WRONG_SCRIPT,
        )


@given(st.text(max_size=30), st.text(max_size=30))
def test_the_counts_add_up(a: str, b: str) -> None:
    cleaner = PairCleaner(("en", "de"), CleanConfig())
    num_kept = len(list(cleaner.clean(a, b)))
    assert num_kept + cleaner.dropped.total() >= 1
    assert set(cleaner.dropped) <= {reason.value for reason in Reason}


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_breaks_cleaning_or_the_file_format(a: str, b: str) -> None:
    cleaner = PairCleaner(("en", "ja"), CleanConfig())
    for pair in cleaner.clean(a, b):
        for side in pair:
            assert side == " ".join(side.split())
            assert not set(side) & set("\t\n\r|\\")
            assert side
