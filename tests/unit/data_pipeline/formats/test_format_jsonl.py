"""Lines of JSON, flat and nested, with scores."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.formats.jsonl import iter_rows
from data_pipeline.sources import JsonlSource
from hyperadapter.core.errors import DataError


def source(*paths: Path, **keys: Any) -> JsonlSource:
    tree = {"format": "jsonl", "name": "toy", "languages": ("en", "de")} | keys
    return JsonlSource(**tree, paths=tuple(map(str, paths)))


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def test_nested_texts_by_default_and_several_files(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", {"id": 1, "translation": {"en": "Yes", "de": "Ja"}})
    two = write(tmp_path / "2.jsonl", {"translation": {"de": "Nein", "en": "No"}})
    assert list(iter_rows(source(one, two), Counter())) == [("Yes", "Ja"), ("No", "Nein")]


def test_named_fields_and_scores(tmp_path: Path) -> None:
    def line(text: str, laser: float, lid: int = 1) -> dict[str, Any]:
        return {"src": text, "tgt": {"text": text.upper()}, "laser": laser, "lid": {"p": lid}}

    path = write(
        tmp_path / "a.jsonl", line("a", 1.05), line("b", 1.2), line("c", 1), line("d", 2, 0)
    )
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    skipped: Counter[str] = Counter()
    fields = {"fields": ("tgt.text", "src"), "min_scores": {"laser": 1.05, "lid.p": 0.5}}
    assert list(iter_rows(source(path, **fields), skipped)) == [("A", "a"), ("B", "b")]
    assert skipped == {"laser below 1.05": 1, "lid.p below 0.5": 1, "empty line": 1}


def test_a_few_bad_lines_are_counted(tmp_path: Path) -> None:
    good = {"translation": {"en": "Yes", "de": "Ja"}}
    path = write(tmp_path / "a.jsonl", *[good] * 99, {"translation": {"en": "Yes", "de": None}})
    skipped: Counter[str] = Counter()
    assert len(list(iter_rows(source(path), skipped))) == 99
    assert skipped == {"unreadable line": 1}
    write(path, {"translation": {"en": " ", "de": "Ja"}})
    assert list(iter_rows(source(path), skipped)) == []
    assert skipped["empty line"] == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"src": "Yes", "t": {"de": "Ja"}}', "has nothing in translation.en; its fields are src"),
        ('{"translation": {"en": 1}}', "has a int in translation.en; its fields are"),
        ('["Yes", "Ja"]', "has nothing in translation.en; it is a list"),
        ("Yes", "is not JSON (Expecting value"),
    ],
)
def test_many_bad_lines_are_an_error(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        list(iter_rows(source(path), Counter()))
    for expected in (
        "'toy': 1 of 1 lines",
        "translation.en and translation.de",
        "a.jsonl:1",
        words,
    ):
        assert expected in str(caught.value)


@pytest.mark.parametrize("score", ['"1"', "true", "null"])
def test_a_score_must_be_a_number(tmp_path: Path, score: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"s": {score}, "a": "Yes", "b": "Ja"}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"and a number in s; .*a\.jsonl:1 has .* in s; its fields"):
        list(iter_rows(source(path, fields=("a", "b"), min_scores={"s": 0}), Counter()))


TEXT = st.text().map(lambda text: f"x{text}")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), max_size=6), st.booleans())
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    objects = ({"translation": {"en": a, "de": b}} for a, b in pairs)
    text = "".join(f"{json.dumps(tree, ensure_ascii=ascii_only)}\n" for tree in objects)
    path.write_text(text, encoding="utf-8", newline="\n")
    assert list(iter_rows(source(path), Counter())) == pairs
