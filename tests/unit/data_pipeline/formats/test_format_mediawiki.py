"""MediaWiki's messages: which files belong together, and wikitext to text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.formats.mediawiki import count_files, iter_rows


def write(root: Path, name: str, messages: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(messages, ensure_ascii=False), encoding="utf-8")


def rows(tmp_path: Path, english: str, german: str) -> tuple[list[tuple[str, str]], Counter[str]]:
    write(tmp_path, "i18n/en.json", {"key": english})
    write(tmp_path, "i18n/de.json", {"key": german})
    skipped: Counter[str] = Counter()
    return list(iter_rows([tmp_path], "de", skipped)), skipped


def test_each_file_has_its_english_beside_it(tmp_path: Path) -> None:
    metadata = {"authors": ["Someone"]}
    write(tmp_path, "languages/i18n/en.json", {"@metadata": metadata, "a": "Yes", "b": "No"})
    write(tmp_path, "languages/i18n/de.json", {"@metadata": metadata, "a": "Ja", "old": "Alt"})
    write(tmp_path, "languages/i18n/de-formal.json", {"b": "Nein, bitte"})
    write(tmp_path, "languages/i18n/qqq.json", {"a": "{{Identical|Yes}}"})
    write(tmp_path, "extensions/X/i18n/api/en.json", {"a": "Edit"})
    write(tmp_path, "extensions/X/i18n/api/de.json", {"a": "Bearbeiten"})
    write(tmp_path, "extensions/X/i18n/api/sr-ec.json", {"a": "Уреди"})
    write(tmp_path, "extensions/X/i18n/api/xx-yy.json", {"a": "?"})
    write(tmp_path, "extensions/Y/i18n/de.json", {"a": "Ohne Englisch"})
    write(tmp_path, "resources/de.json", {"a": "Keine Meldung"})
    assert count_files([tmp_path]) == {"de": 2, "de-formal": 1, "sr-ec": 1, "xx-yy": 1}
    skipped: Counter[str] = Counter()
    assert list(iter_rows([tmp_path], "de", skipped)) == [("Edit", "Bearbeiten"), ("Yes", "Ja")]
    assert skipped == {"no English text": 1}
    assert list(iter_rows([tmp_path], "sr", Counter())) == [("Edit", "Уреди")]
    assert list(iter_rows([tmp_path], "de-x-formal", Counter())) == [("No", "Nein, bitte")]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("See [[Help:Contents|the help]] and [[:Special:Log]].", "See the help and Special:Log."),
        ("[https://x.org/a?b the site], [//x.org it], [mailto:a@b us]", "the site, it, us"),
        ("[$1 view] of [1] and [$1]", "view of [1] and [$1]"),
        (
            "'''Warning:''' this is ''not'' '''''safe'''''; don't",
            "Warning: this is not safe; don't",
        ),
        ("$1 {{PLURAL:$1|page|pages}}", "$1 pages"),
        ("{{PLURAL:$1|0=none|one|many|12=a dozen}}", "many"),
        ("{{plural:$1|only}} {{GENDER:$2|his|her|their}}", "only his"),
        ("{{GENDER:$1}}x", "x"),
        ("{{PLURAL:$1|{{GENDER:$2|he|she}} edits|[[$3|{{GENDER:$2|he|she}}]] edit}}", "he edit"),
        ("== Summary ==\n* one\n** two\n# three", "Summary\none\ntwo\nthree"),
    ],
)
def test_wikitext_becomes_text(tmp_path: Path, wikitext: str, text: str) -> None:
    assert rows(tmp_path, "English", wikitext) == ([("English", text)], Counter())
    assert rows(tmp_path, wikitext, "Deutsch") == ([(text, "Deutsch")], Counter())


@pytest.mark.parametrize(
    "wikitext",
    [
        "Welcome to {{SITENAME}}",
        "{{int:ok}}",
        "{{PLURAL:$1|a|{{SITENAME}}}}",
        "[{{fullurl:x}} y]",
        "{{PLURAL:$1|a",
    ],
)
def test_other_braces_drop_the_message(tmp_path: Path, wikitext: str) -> None:
    for english, german in ((wikitext, "Deutsch"), ("English", wikitext)):
        assert rows(tmp_path, english, german) == ([], Counter({"template in braces": 1}))


def test_empty_messages_are_counted(tmp_path: Path) -> None:
    assert rows(tmp_path, "-", " ") == ([], Counter({"empty message": 1}))


@pytest.mark.parametrize("content", ["{", "[]", "\ud800"])
def test_a_broken_file_is_counted(tmp_path: Path, content: str) -> None:
    write(tmp_path, "i18n/en.json", {"a": "Yes"})
    (tmp_path / "i18n" / "de.json").write_bytes(content.encode(errors="surrogatepass"))
    skipped: Counter[str] = Counter()
    assert list(iter_rows([tmp_path], "de", skipped)) == []
    assert skipped == {"unreadable catalog": 1}
