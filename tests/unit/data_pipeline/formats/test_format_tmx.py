"""Translation memories, as tools write them."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.formats.tmx import iter_rows
from data_pipeline.sources import TmxSource
from hyperadapter.core.errors import DataError


def tmx(path: Path, languages: tuple[str, str] = ("en", "de")) -> TmxSource:
    return TmxSource(format="tmx", name="toy", languages=languages, path=str(path))


def document(units: str, encoding: str = "UTF-8") -> bytes:
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n'
        f'<tmx version="1.4"><header srclang="en"/><body>{units}</body></tmx>'
    )
    return text.encode(encoding)


def unit(**texts: str) -> str:
    variants = (
        f'<tuv xml:lang="{code.replace("_", "-")}"><seg>{text}</seg></tuv>'
        for code, text in texts.items()
    )
    return f"<tu>{''.join(variants)}</tu>"


def rows(path: Path, units: str, *languages: str) -> tuple[list[tuple[str, str]], Counter[str]]:
    path.write_bytes(document(units))
    skipped: Counter[str] = Counter()
    a, b = languages or ("en", "de")
    return list(iter_rows(tmx(path, (a, b)), skipped)), skipped


def test_units_with_both_languages(tmp_path: Path) -> None:
    units = (
        unit(en="One &amp; <bpt i='1'>&lt;b></bpt>two<ept i='1'/> <hi>three</hi>\n", de="Eins")
        + unit(de="Ja", fr="Oui", en="Yes")
        + unit(en="Alone")
        + unit(en="Empty", de=" ")
        + "<tu><tuv lang='DE-DE'><seg>Alt</seg></tuv><tuv lang='en_US'><seg>Old</seg></tuv></tu>"
        + "<tu><tuv xml:lang='en'/></tu>"
    )
    found, skipped = rows(tmp_path / "a.tmx", units)
    assert found == [("One & two three", "Eins"), ("Yes", "Ja"), ("Old", "Alt")]
    assert skipped == {"no text in de": 1, "empty segment": 1, "no text in en and de": 1}
    assert rows(tmp_path / "a.tmx", units, "fr", "en")[0] == [("Oui", "Yes")]


def test_a_region_stands_in_for_its_language_but_not_for_a_script(tmp_path: Path) -> None:
    units = (
        unit(en_GB="Colour", de_AT="Farbe")
        + unit(en_GB="Honour", en="Honor", de="Ehre")
        + unit(en="Yes", pt_AO="Sim", zh_TW="臺")
    )
    path = tmp_path / "a.tmx"
    assert rows(path, units)[0] == [("Colour", "Farbe"), ("Honor", "Ehre")]
    assert rows(path, units, "en", "pt")[0] == [("Yes", "Sim")]
    assert rows(path, units, "en", "zh-Hant")[0] == [("Yes", "臺")]
    for languages in (("en", "zh-Hans"), ("en", "pt-BR")):
        with pytest.raises(DataError, match="no unit of"):
            rows(path, units, *languages)


@pytest.mark.parametrize("encoding", ["UTF-16", "ISO-8859-1"])
def test_the_encoding_of_the_file_and_compression(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.tmx.gz"
    path.write_bytes(gzip.compress(document(unit(en="green", de="grün"), encoding)))
    assert list(iter_rows(tmx(path), Counter())) == [("green", "grün")]


def test_a_language_that_is_not_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        rows(tmp_path / "a.tmx", unit(en="Yes", FR_fr="Oui") * 2)
    for words in ("'toy'", "has a text in 'de'", "are: en (2), FR-fr (2)", "Correct `languages`"):
        assert words in str(caught.value)


def test_files_that_are_no_tmx(tmp_path: Path) -> None:
    path = tmp_path / "a.tmx"
    path.write_bytes(document(unit(en="Yes", de="Ja"))[:-20])
    with pytest.raises(DataError, match=r"source 'toy': .*a\.tmx is not valid XML \(.*line 3"):
        list(iter_rows(tmx(path), Counter()))
    with pytest.raises(DataError, match="does not exist; correct the path"):
        list(iter_rows(tmx(tmp_path / "b.tmx"), Counter()))


# XML has no control characters, and readers see one space for any white space.
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Zl", "Zp"]), min_size=1).map(
    lambda text: " ".join(f"x{text}".split())
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.tmx"
    path.write_bytes(document("".join(unit(en=escape(a), de=escape(b)) for a, b in pairs)))
    assert list(iter_rows(tmx(path), Counter())) == pairs


def test_a_text_with_an_entity_of_the_file_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.tmx"
    units = unit(en="Open &prod; now", de="Jetzt &prod; öffnen") + unit(en="a<!-- b -->c", de="d")
    content = document(units).replace(b' SYSTEM "tmx14.dtd"', b' [<!ENTITY prod "x">]')
    path.write_bytes(content)
    skipped: Counter[str] = Counter()
    assert list(iter_rows(tmx(path), skipped)) == [("ac", "d")]
    assert skipped == {"text stands elsewhere": 1}
