"""Mallard pages, with what translators add to them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.formats.mallard import count_files, iter_rows

NAMESPACE = 'xmlns="http://projectmallard.org/1.0/"'


def write(root: Path, code: str, body: str, page: str = "x.page") -> None:
    path = root / "usr/share/help" / code / "gnome-help" / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<page {NAMESPACE} id="x">{body}</page>', encoding="utf-8")


def rows(tmp_path: Path, english: str, german: str) -> tuple[list[tuple[str, str]], Counter[str]]:
    write(tmp_path, "C", english)
    write(tmp_path, "de", german)
    skipped: Counter[str] = Counter()
    return list(iter_rows([tmp_path], "de", skipped)), skipped


def test_a_page_as_it_is_translated(tmp_path: Path) -> None:
    english = """<info><link type="guide" xref="a"/><credit><name>A</name></credit>
      <!-- a remark --><desc>How to <em>wake</em> it.</desc></info>
      <title>Mouse</title>
      <p>Choose <guiseq><gui>File</gui> <gui>Open</gui></guiseq>
      or <keyseq><key>Ctrl</key><key>O</key></keyseq>.</p>
      <table><tr><td><p>In a cell</p></td><td>Bare cell</td></tr></table>
      <code>mouse --wake</code>"""
    german = """<info><link type="guide" xref="a"/><credit><name>A</name></credit>
      <desc>Wie man sie <em>weckt</em>.</desc>
      <mal:credit xmlns:mal="http://projectmallard.org/1.0/"><mal:name>B</mal:name></mal:credit>
      </info><title>Maus</title>
      <p>Wählen Sie <guiseq><gui>Datei</gui><gui>Öffnen</gui></guiseq> oder <keyseq><key>Strg</key>
      <key>O</key></keyseq>.</p>
      <table><tr><td><p>In einer Zelle</p></td><td>Nur Zelle</td></tr></table>
      <code>mouse --wake</code>"""
    assert rows(tmp_path, english, german) == (
        [
            ("How to wake it.", "Wie man sie weckt."),
            ("Mouse", "Maus"),
            ("Choose File ▸ Open or Ctrl+O.", "Wählen Sie Datei ▸ Öffnen oder Strg+O."),
            ("In a cell", "In einer Zelle"),
            ("Bare cell", "Nur Zelle"),
        ],
        Counter(),
    )
    assert count_files([tmp_path]) == {"de": 1}


def test_where_children_differ_those_with_ids_are_parallel(tmp_path: Path) -> None:
    english = """<title>T</title><p>New</p><section id="a"><p>A</p></section>
      <section id="b"><p>B</p><p>C</p></section>"""
    german = """<title>Ü</title><section id="a"><p>Ä</p></section>
      <section id="b"><p>B.</p></section>"""
    found, skipped = rows(tmp_path, english, german)
    assert found == [("A", "Ä")]
    assert skipped == {"structure differs": 4}


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    found, skipped = rows(
        tmp_path, '<p>See <link xref="y"/>.</p><p>X</p>', '<p>Siehe <link xref="y"/>.</p><p/>'
    )
    assert found == []
    assert skipped == {"text stands elsewhere": 1, "empty text": 1}


def test_pages_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "de", "<p>Allein</p>", "y.page")
    found, skipped = rows(tmp_path, "<p>Yes</p>", "<p>Ja")
    assert found == []
    assert skipped == {"no English page": 1, "unreadable page": 1}
    assert "help/de/gnome-help/x.page, which is not valid XML" in caplog.text


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    write(tmp_path, "C", "<p>x</p>")
    page = tmp_path / "usr/share/help/de/gnome-help/x.page"
    page.parent.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("secret", encoding="utf-8")
    page.write_text(
        f'<!DOCTYPE page [<!ENTITY e SYSTEM "file://{secret}">]>'
        f'<page {NAMESPACE} id="x"><p>y &e;</p></page>',
        encoding="utf-8",
    )
    skipped: Counter[str] = Counter()
    assert list(iter_rows([tmp_path], "de", skipped)) == []
    assert skipped == {"text stands elsewhere": 1}
