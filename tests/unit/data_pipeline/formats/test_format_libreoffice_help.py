"""LibreOffice's help pages, with one paragraph of each kind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data_pipeline.formats.libreoffice_help import count_files, iter_rows


def write(root: Path, code: str, body: str, page: str = "shared/guide/x.html") -> None:
    path = root / code / "usr/share/libreoffice/help" / code / "text" / page
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<!DOCTYPE html><html><head><title>t</title></head><body><p dir="auto">LibreOffice</p>'
        f'<div id="DisplayArea">{body}</div></body></html>',
        encoding="utf-8",
    )


def rows(tmp_path: Path, english: str, german: str) -> tuple[list[tuple[str, str]], Counter[str]]:
    write(tmp_path, "en-US", english)
    write(tmp_path, "de", german)
    skipped: Counter[str] = Counter()
    roots = [tmp_path / "de", tmp_path / "en-US"]
    return list(iter_rows(roots, "de", skipped)), skipped


def test_pages_with_the_same_structure(tmp_path: Path) -> None:
    english = """<h1 id="hd_1"><a name="x"></a>Opening
        Documents</h1><ul><li><p id="par_1">Choose <span class="menuitem">File – Open</span>.</p>
        </li></ul><p>No id &amp; more</p><p id="par_2"><img src="x"></p>"""
    german = """<h1 id="hd_1"><a name="x"></a>Öffnen von Dokumenten</h1><ul><li><p id="par_1">Wählen
        Sie <span class="menuitem">Datei – Öffnen</span>.</p></li></ul><p>Ohne Id</p>
        <p id="par_2"><img src="y"></p>"""
    assert rows(tmp_path, english, german) == (
        [
            ("Opening Documents", "Öffnen von Dokumenten"),
            ("Choose File – Open.", "Wählen Sie Datei – Öffnen."),
            ("No id & more", "Ohne Id"),
        ],
        Counter(),
    )
    assert count_files([tmp_path]) == {"de": 1}


def test_where_structures_differ_only_unique_ids_are_parallel(tmp_path: Path) -> None:
    english = '<p id="a">One</p><p>Two</p><p id="b">Three</p><p id="c">Four</p><p id="c">Five</p>'
    german = '<p id="b">Drei</p><p id="a">Eins</p><p id="c">Vier</p><p id="c">Fünf</p>'
    found, skipped = rows(tmp_path, english, german)
    assert found == [("One", "Eins"), ("Three", "Drei")]
    assert skipped == {"structure differs": 3}


def test_a_paragraph_that_is_empty_on_one_side(tmp_path: Path) -> None:
    assert rows(tmp_path, "<p>One</p><p>Two</p>", "<p>Eins</p><p> </p>") == (
        [("One", "Eins")],
        Counter({"empty paragraph": 1}),
    )


def test_of_a_switch_the_default_is_shown(tmp_path: Path) -> None:
    def switch(mac: str, other: str, id_: str = "default1") -> str:
        return (
            f'<p>( <span class="switchinline"><span hidden="true" id="MAC1">{mac}</span>'
            f'<span hidden="true" id="{id_}">{other}</span></span> )</p>'
        )

    found, _ = rows(tmp_path, switch("Preferences", "Options"), switch("Einst.", "Optionen"))
    assert found == [("( Options )", "( Optionen )")]
    found, _ = rows(tmp_path, switch("M", "Calc", "CALC1"), switch("M", "Tab", "CALC1"))
    assert found == [("( Calc )", "( Tab )")]


def test_pages_without_english_or_content(tmp_path: Path) -> None:
    write(tmp_path, "de", "<p>Allein</p>", "swriter/y.html")
    found, skipped = rows(tmp_path, "", "")
    assert found == []
    assert skipped == {"no English page": 1}
    page = next((tmp_path / "de").rglob("x.html"))
    page.write_bytes(b"")
    assert list(iter_rows([tmp_path], "de", Counter())) == []


def test_what_the_tools_of_the_help_did_not_find_is_skipped(tmp_path: Path) -> None:
    english = '<p id="a">[text/a.xhp#b_1 not found].</p><p id="b">One</p><p id="c">Two</p>'
    german = '<p id="a">Eins</p><p id="b">D\'oh! You found a bug</p><p id="c">Zwei</p>'
    assert rows(tmp_path, english, german) == ([("Two", "Zwei")], {"text was missing": 2})
