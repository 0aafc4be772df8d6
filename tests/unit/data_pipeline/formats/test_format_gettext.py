"""Gettext catalogs, written by hand as their tools write them."""

from __future__ import annotations

import tempfile
import zipfile
from collections import Counter
from pathlib import Path

import polib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.formats.catalog import known_codes, unknown_codes
from data_pipeline.formats.gettext import count_files, iter_rows

HEADER = r"""
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: {rule}\n"

"""
GERMAN = "nplurals=2; plural=n != 1;"
ARABIC = (
    "nplurals=6; plural=n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : "
    "n%100>=11 ? 4 : 5;"
)


def make_wheel(path: Path, members: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def po(body: str, rule: str = GERMAN) -> str:
    return HEADER.replace("{rule}", rule) + body


def mo(text: str) -> bytes:
    binary: bytes = polib.pofile(text).to_binary()
    return binary


def rows(
    tmp_path: Path, body: str, rule: str = GERMAN
) -> tuple[list[tuple[str, str]], Counter[str]]:
    wheel = make_wheel(tmp_path / "x.whl", {"locale/de/LC_MESSAGES/x.po": po(body, rule)})
    skipped: Counter[str] = Counter()
    return list(iter_rows([wheel], "de", skipped)), skipped


def test_plain_entries_and_what_is_skipped(tmp_path: Path) -> None:
    found, skipped = rows(
        tmp_path,
        r"""
#: views.py
msgid "Order information changed"
msgstr "Bestellinformationen geändert"

msgctxt "subevent"
msgid "Date"
msgstr "Termin"

msgid ""
"The field \"%(label)s\" "
"is required."
msgstr "Das Feld \"%(label)s\" ist erforderlich."

#, fuzzy
msgid "Phone"
msgstr "Telegramm"

msgid "Untranslated"
msgstr ""

#~ msgid "Fax"
#~ msgstr "Fernkopie"
""",
    )
    assert found == [
        ("Order information changed", "Bestellinformationen geändert"),
        ("Date", "Termin"),
        ('The field "%(label)s" is required.', 'Das Feld "%(label)s" ist erforderlich.'),
    ]
    assert skipped == {"fuzzy": 1, "untranslated": 1, "obsolete": 1}


def test_english_in_the_default_comment_of_symbolic_keys(tmp_path: Path) -> None:
    found, skipped = rows(
        tmp_path,
        r"""
#. Default: "Add \"new\" item"
#: skins/x.pt
msgid "label_add_item"
msgstr "Neuen Artikel anlegen"

#. Translators: look at the page first.
#. Default: "A long text "
#. "over two lines"
msgid "help_long"
msgstr "Ein langer Text"

#. Default: "One paragraph\n\nand another"
msgid "text"
msgstr "Ein Absatz\n\nund noch einer"

msgid "label_without_default"
msgstr "Ohne"

msgid "Dua_l dated"
msgstr "Dua_l datiert"

msgid "Cu_t"
msgstr "A_usschneiden"
""",
    )
    assert found == [
        ('Add "new" item', "Neuen Artikel anlegen"),
        ("A long text over two lines", "Ein langer Text"),
        ("One paragraph\n\nand another", "Ein Absatz\n\nund noch einer"),
        ("Dua_l dated", "Dua_l datiert"),
        ("Cu_t", "A_usschneiden"),
    ]
    assert skipped == {"no English text": 1}


PLURAL = """
msgid "%d file"
msgid_plural "%d files"
"""


@pytest.mark.parametrize(
    ("rule", "forms", "expected"),
    [
        (GERMAN, ["%d Datei", "%d Dateien"], "%d Datei"),
        ("nplurals=1; plural=0;", ["%dファイル"], "%dファイル"),
        (ARABIC, ["لا ملفات", "ملف واحد", "ملفان", "ملفات", "ملفا", "ملف"], "ملف واحد"),
    ],
)
def test_the_singular_takes_the_form_for_one(
    tmp_path: Path, rule: str, forms: list[str], expected: str
) -> None:
    body = PLURAL + "\n".join(f'msgstr[{i}] "{form}"' for i, form in enumerate(forms))
    assert rows(tmp_path, body, rule)[0] == [("%d file", expected)]


@pytest.mark.parametrize("rule", ["", "nplurals=INTEGER; plural=EXPRESSION;"])
def test_without_a_plural_rule_plurals_are_skipped(tmp_path: Path, rule: str) -> None:
    body = PLURAL + 'msgstr[0] "%d Datei"\n'
    assert rows(tmp_path, body, rule) == ([], Counter({"plural rule unknown": 1}))


def test_binary_catalogs_with_context_and_plurals(tmp_path: Path) -> None:
    text = po('msgctxt "month"\nmsgid "May"\nmsgstr "Mai"\n' + PLURAL + 'msgstr[0] "%d Datei"\n')
    wheel = make_wheel(tmp_path / "x.whl", {"x.data/share/locale/de/LC_MESSAGES/x.mo": mo(text)})
    found = sorted(iter_rows([wheel], "de", Counter()))
    assert found == [("%d file", "%d Datei"), ("May", "Mai")]


def test_source_catalogs_win_over_binary_ones_of_the_same_domain(tmp_path: Path) -> None:
    key = '#. Default: "Add"\nmsgid "label_add"\nmsgstr "Anlegen"\n'
    other = po('msgid "Page"\nmsgstr "Seite"\n')
    wheel = make_wheel(
        tmp_path / "x.whl",
        {
            "locales/de/LC_MESSAGES/a.mo": mo(po(key)),
            "locales/de/LC_MESSAGES/a.po": po(key),
            "locales/de/LC_MESSAGES/b.mo": mo(other),
            "locales/a.pot": po(key),
        },
    )
    skipped: Counter[str] = Counter()
    assert list(iter_rows([wheel], "de", skipped)) == [("Add", "Anlegen"), ("Page", "Seite")]
    assert not skipped


def test_the_folder_names_the_language(tmp_path: Path) -> None:
    def entry(target: str) -> str:
        return po(f'msgid "Yes"\nmsgstr "{target}"\n').replace("X-", "Language: de\\nX-")

    wheel = make_wheel(
        tmp_path / "x.whl",
        {
            "locale/pt_PT/LC_MESSAGES/x.po": entry("Sim, senhor"),
            "locale/pt/LC_MESSAGES/x.po": entry("Sim"),
            "locale/pt_BR/LC_MESSAGES/x.po": entry("Pois é"),
            "locale/sr@latin/LC_MESSAGES/x.po": entry("Da"),
            "locale/xx_YY/LC_MESSAGES/x.po": entry("?"),
        },
    )
    counts = count_files([wheel])
    assert known_codes(counts) == ("pt", "pt-BR", "sr-Latn")
    assert unknown_codes(counts) == {"xx_YY": 1}
    assert [b for _, b in iter_rows([wheel], "pt", Counter())] == ["Sim", "Sim, senhor"]
    assert [b for _, b in iter_rows([wheel], "sr-Latn", Counter())] == ["Da"]
    assert list(iter_rows([wheel], "de", Counter())) == []


def test_a_broken_catalog_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wheel = make_wheel(
        tmp_path / "x.whl",
        {
            "l/de/LC_MESSAGES/a.po": po('msgid "Yes"\nmsgstr "Ja"\nGarbage\n'),
            "l/de/LC_MESSAGES/b.po": po('msgid "Yes"\nmsgstr "Ja"\n').encode(),
            "l/de/LC_MESSAGES/c.po": po('msgid "No"\nmsgstr "Nein \udcff"\n').encode(
                errors="surrogateescape"
            ),
            "l/de/LC_MESSAGES/d.mo": b"no catalog at all",
            "l/de/LC_MESSAGES/e.mo": mo(po(""))[:30],
        },
    )
    skipped: Counter[str] = Counter()
    assert list(iter_rows([wheel], "de", skipped)) == [("Yes", "Ja")]
    assert skipped == {"unreadable catalog": 4}
    assert "l/de/LC_MESSAGES/a.po" in caplog.text
    assert "not a valid catalog" in caplog.text


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("usr/share/locale/pt_BR/LC_MESSAGES/x.mo", "pt_BR"),
        ("usr/share/locale/de/LC_MESSAGES/fr.mo", "de"),
        ("locale/sr@latin.po", "sr@latin"),
        ("po/de.po", "de"),
        ("locales.zip/de/messages.mo", "de"),
        ("languages/admin-network-zh_CN.mo", "zh_CN"),
        ("languages/pt-br.mo", "pt-br"),
        ("po/xx_YY.po", "xx_YY"),
    ],
)
def test_layouts_of_the_language_in_the_path(tmp_path: Path, name: str, code: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_bytes(mo(po('msgid "Yes"\nmsgstr "?"\n')))
    assert count_files([tmp_path]) == {code: 1}
    assert count_files([path]) == {code: 1}


def test_english_and_other_categories_are_left_out(tmp_path: Path) -> None:
    for name in ("en/LC_MESSAGES/x.po", "en_US/LC_MESSAGES/x.po", "de/LC_TIME/x.po", "de/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(po('msgid "Yes"\nmsgstr "Yes"\n'), encoding="utf-8")
    assert not count_files([tmp_path])


def test_all_roots_are_read_in_order_of_their_names(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("b", "a")]
    for root in roots:
        path = root / "po" / "de.po"
        path.parent.mkdir(parents=True)
        path.write_text(po(f'msgid "x"\nmsgstr "{root.name}"\n'), encoding="utf-8")
    assert list(iter_rows(roots, "de", Counter())) == [("x", "a"), ("x", "b")]


@pytest.mark.parametrize(
    ("english", "target", "expected"),
    [
        ("?plural:Texans", "Texaner", ("Texans", "Texaner")),
        ("?unit name:Horse", "?unit name:Pferd", ("Horse", "Pferd")),
        ("?size/risk (of [x]):Sz", "Gr", ("Sz", "Gr")),
        ("paper size|Letter", "Brief", ("Letter", "Brief")),
        ("Name|class", "Name|Klasse", ("Name|class", "Name|Klasse")),
        ("this | that", "dies oder das", ("this | that", "dies oder das")),
        ("Really?no:yes", "Wirklich?", ("Really?no:yes", "Wirklich?")),
    ],
)
def test_a_context_before_the_text_goes(
    tmp_path: Path, english: str, target: str, expected: tuple[str, str]
) -> None:
    path = tmp_path / "de.po"
    path.write_text(po(f'msgid "{english}"\nmsgstr "{target}"\n'), encoding="utf-8")
    assert list(iter_rows([path], "de", Counter())) == [expected]


@pytest.mark.parametrize(
    "rule", ["n/0", "1/(n-1)", "n" + "*9999999999" * 50, "(" * 500, "n+" * 5000 + "1"]
)
def test_a_plural_rule_that_cannot_be_computed(tmp_path: Path, rule: str) -> None:
    path = tmp_path / "de.po"
    header = f'msgid ""\nmsgstr "Plural-Forms: nplurals=2; plural={rule};\\n"\n\n'
    message = 'msgid "%d a"\nmsgid_plural "%d b"\nmsgstr[0] "x"\nmsgstr[1] "y"\n'
    path.write_text(header + message, encoding="utf-8")
    skipped: Counter[str] = Counter()
    assert list(iter_rows([path], "de", skipped)) == []
    assert skipped.total() == 1


def test_a_character_set_for_no_text(tmp_path: Path) -> None:
    header = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=rot13\\n"\n'
    (tmp_path / "de.po").write_text(header, encoding="utf-8")
    skipped: Counter[str] = Counter()
    assert list(iter_rows([tmp_path], "de", skipped)) == []
    assert skipped == {"unreadable catalog": 1}


# Carriage returns are escaped in catalogs, but polib does not write them so. A bar ends a context.
TEXT = st.text(
    st.characters(
        exclude_categories=["Cs", "Cc"], include_characters="\n\t", exclude_characters="|"
    ),
    min_size=1,
).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(TEXT, TEXT.map("- ".__add__), max_size=5))
def test_what_polib_writes_is_read_back(messages: dict[str, str]) -> None:
    catalog = polib.POFile(wrapwidth=0)
    catalog.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    for english, target in messages.items():
        catalog.append(polib.POEntry(msgid=f"The {english}", msgstr=target))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "de.po"
        path.write_text(str(catalog), encoding="utf-8", newline="\n")
        found = dict(iter_rows([path], "de", Counter()))
    assert found == {f"The {english}": target for english, target in messages.items()}
