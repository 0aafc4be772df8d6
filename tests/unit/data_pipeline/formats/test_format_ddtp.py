"""apt's lists of translated descriptions."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.formats.ddtp import count_files, iter_rows
from hyperadapter.core.errors import DataError

ENGLISH = """\
Package: zoo
Description-md5: 11
Description-en: manipulate archives
 Zoo is used to create
 archives.
 .
 It can:
  * pack
  * unpack, also
    old ones
 .
 The end.

Package: zoo2
Description-md5: 22
Description-en: another one

Package: zoo3
Description-md5: 33
Description-en: third
 One paragraph.
"""
GERMAN = """\
Package: zoo
Description-md5: 11
Description-de: Archive bearbeiten
 Zoo erzeugt
 Archive.
 .
 Es kann:
  - packen
  - auspacken, auch alte
 .
 Das Ende.

Package: zoo3
Description-md5: 33
Description-de: drittes
 Ein Absatz.
 .
 Und noch einer.

Package: gone
Description-md5: 99
Description-de: weg
"""


def test_titles_paragraphs_and_items(tmp_path: Path) -> None:
    (tmp_path / "Translation-en").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "Translation-de.gz").write_bytes(gzip.compress(GERMAN.encode()))
    (tmp_path / "host_dists_stable_main_i18n_Translation-pt%5fBR").touch()
    (tmp_path / "Translation-xx_YY").touch()
    assert count_files([tmp_path]) == {"de": 1, "pt_BR": 1, "xx_YY": 1}
    skipped: Counter[str] = Counter()
    expected = [
        ("manipulate archives", "Archive bearbeiten"),
        ("Zoo is used to create\narchives.", "Zoo erzeugt\nArchive."),
        ("It can:", "Es kann:"),
        ("pack", "packen"),
        ("unpack, also\nold ones", "auspacken, auch alte"),
        ("The end.", "Das Ende."),
        ("third", "drittes"),
    ]
    assert list(iter_rows([tmp_path], "de", skipped)) == expected
    assert skipped == {"other number of paragraphs": 2, "no English description": 1}
    files = sorted(tmp_path.iterdir())
    assert list(iter_rows(files, "de", Counter())) == expected
    assert list(iter_rows([tmp_path], "fr", Counter())) == []


def test_lists_of_other_length(tmp_path: Path) -> None:
    head = "Package: a\nDescription-md5: 1\n"
    english = f"{head}Description-en: t\n Lead:\n  * one\n  * two\n .\n Same\n"
    german = f"{head}Description-de: u\n Anfang:\n  * eins\n .\n Gleich\n"
    (tmp_path / "Translation-en").write_text(english, encoding="utf-8")
    (tmp_path / "Translation-de").write_text(german, encoding="utf-8")
    skipped: Counter[str] = Counter()
    assert list(iter_rows([tmp_path], "de", skipped)) == [("t", "u"), ("Same", "Gleich")]
    assert skipped == {"other number of list items": 1}


def test_a_description_shared_by_packages_is_read_once(tmp_path: Path) -> None:
    for code, text in (("en", "yes"), ("de", "ja")):
        stanza = f"Package: a\nDescription-md5: 1\nDescription-{code}: {text}\n\n"
        (tmp_path / f"Translation-{code}").write_text(stanza * 2, encoding="utf-8")
    assert list(iter_rows([tmp_path], "de", Counter())) == [("yes", "ja")]


def test_without_the_english_list(tmp_path: Path) -> None:
    (tmp_path / "Translation-de").write_text(GERMAN, encoding="utf-8")
    with pytest.raises(
        DataError, match=r"no list Translation-en in .*which the descriptions in de"
    ):
        list(iter_rows([tmp_path], "de", Counter()))
