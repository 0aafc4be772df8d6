"""The language table, and the parsing of codes and directions."""

from __future__ import annotations

import itertools

import pytest

from hyperadapter.core.errors import ConfigError, LanguageError
from hyperadapter.core.languages import (
    Direction,
    family_of,
    from_catalog_code,
    known_languages,
    language_name,
    parse_direction,
    parse_language,
    script_of,
)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("pt_BR", "pt-BR"),
        ("pt_PT", "pt"),
        ("zh_TW", "zh-Hant"),
        ("zh-hant", "zh-Hant"),
        ("zh_CN", "zh-Hans"),
        ("zh_Hant_HK", "zh-Hant-HK"),
        ("sr@latin", "sr-Latn"),
        ("sr@Cyrl", "sr"),
        ("tt_cyrl", "tt"),
        ("ca@valencia", "ca-valencia"),
        ("ca_ES@valencia", "ca-valencia"),
        ("uz@cyrillic", "uz-Cyrl"),
        ("be-tarask", "be-tarask"),
        ("crh-latn", "crh"),
        ("sr-ec", "sr"),
        ("sr-el", "sr-Latn"),
        ("sr@ijekavianlatin", "sr-Latn-ijekavsk"),
        ("roa-tara", "nap-x-tara"),
        ("hu-formal", "hu-x-formal"),
        ("de_Informal", "de-x-informal"),
        ("de_formal", "de-x-formal"),
        ("nb_NO", "nb"),
        ("no_NO", "no"),
        ("fu", "fur"),
        ("he_IL", "he"),
    ],
)
def test_catalog_spellings_become_bcp_47(written: str, canonical: str) -> None:
    assert from_catalog_code(written) == canonical
    assert parse_language(written) == canonical


def test_an_unknown_territory_is_not_mixed_into_the_language() -> None:
    assert from_catalog_code("pt_AO") is None
    assert from_catalog_code("templates") is None


def test_each_code_is_canonical_and_complete() -> None:
    codes = known_languages()
    assert list(codes) == sorted(set(codes))
    assert len(codes) > 200
    for code in codes:
        assert parse_language(code) == code
        assert len(script_of(code)) == 4
        assert script_of(code).istitle()
        assert family_of(code).islower()
        assert language_name(code)


def test_norwegian_survives_yaml() -> None:
    assert {"nb", "no"} < set(known_languages())
    assert parse_language("no") == "no"
    assert "False" not in known_languages()


def test_some_scripts_and_families() -> None:
    assert script_of("uk") == "Cyrl"
    assert script_of("he") == "Hebr"
    assert script_of("sr-Latn") == "Latn"
    assert family_of("nl") == family_of("da") == "germanic"
    assert family_of("fi") == family_of("et") != family_of("hu")


def test_every_direction_has_one_reading() -> None:
    for pair in itertools.permutations(known_languages(), 2):
        direction = Direction(*pair)
        assert parse_direction(str(direction)) == direction


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("german", ["'german'", "'de' (German)", "languages.yaml"]),
        ("pt_AO", ["'pt_AO'", "'pt' (Portuguese)"]),
        ("ukr", ["'uk' (Ukrainian)"]),
        ("??", ["'??'", "BCP 47"]),
    ],
)
def test_an_unknown_code_names_the_nearest(code: str, words: list[str]) -> None:
    with pytest.raises(LanguageError) as caught:
        parse_language(code)
    for word in words:
        assert word in str(caught.value)
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, ValueError)  # pydantic then names the key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("en", "'en' is not a direction: a direction is two language codes"),
        ("pt-BR", "'pt-BR' is one language, not a direction"),
        ("en-zh", "'en-zh': write this direction as 'en-zh-Hans'"),
        ("EN-DE", "'EN-DE': write this direction as 'en-de'"),
        ("en-klingon", "'en' is a language, but 'klingon' is not"),
        ("qq-zz", "'qq-zz' is not a direction: neither side is a known language"),
        ("", "'' is not a direction"),
    ],
)
def test_what_is_no_direction_is_explained(text: str, message: str) -> None:
    with pytest.raises(LanguageError) as caught:
        parse_direction(text)
    assert message in str(caught.value)
