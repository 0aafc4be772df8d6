"""Test sets: three forms of one thing, and errors that name the line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from hyperadapter.core.errors import DataError, LanguageError
from hyperadapter.evaluation import test_sets
from hyperadapter.evaluation.test_sets import read_test_set

SRC = ["the file", "open  the menu ", "\u2028line separator"]
REF = ["die Datei", "öffne das Menü", "Zeilentrenner"]


def write(path: Path, lines: list[str]) -> Path:
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_three_forms_hold_the_same(tmp_path: Path) -> None:
    pairs = list(zip(SRC, REF, strict=True))
    forms = [
        [write(tmp_path / "set.tsv", [f"{src}\t{ref}" for src, ref in pairs])],
        [write(tmp_path / "set.jsonl", [json.dumps({"src": s, "ref": r, "id": 1})
                                        for s, r in pairs])],
        [write(tmp_path / "set.en-de.en", SRC), write(tmp_path / "set.en-de.de", REF)],
        [write(tmp_path / "set.tsv.gz", [f"{src}\t{ref}" for src, ref in pairs])],
    ]  # fmt: skip
    for paths in forms:
        found = read_test_set(paths, "en-de")
        assert (found.name, str(found.direction)) == ("set", "en-de")
        assert (found.src, found.ref) == (SRC, REF)
    assert read_test_set(forms[0], "zh-Hans-pt-BR", "mine").name == "mine"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("x.tsv", ["a\tb", "a b"], r"x\.tsv:2 has 1 columns instead of 2: source, tab, reference"),
        ("x.tsv", ["a\tb\tc"], r"x\.tsv:1 has 3 columns"),
        ("x.tsv", ["a\tb", "\tb"], r"x\.tsv:2 has an empty source; correct or remove it"),
        ("x.tsv", ["a\t "], r"x\.tsv:1 has an empty reference"),
        ("x.tsv", [], r"x\.tsv is empty; --test-set needs at least one line"),
        ("x.jsonl", ['{"src": "a", "ref": "b"}', "{"], r"x\.jsonl:2 is not JSON \(.*\); a line is"),
        ("x.jsonl", ['{"src": "a", "tgt": "b"}'], r":1 has no text in 'ref' but the fields src, t"),
        ("x.jsonl", ['{"src": 1, "ref": "b"}'], r":1 has no text in 'src' but the fields src, ref"),
        ("x.jsonl", ["[1]"], r"x\.jsonl:1 has no text in 'src' but \[1\]"),
        ("x.jsonl", [r'{"src": "a\nb", "ref": "b"}'], r"x\.jsonl:1 has a line break in its source"),
        ("x.txt", ["a"], r"holds no pairs by its ending '\.txt': one file is \.tsv .* --test-set"),
        ("x", ["a"], r"by its ending ''"),
    ],
)
def test_errors_name_file_and_line(
    tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_test_set([write(tmp_path / name, lines)], "en-de")


def test_aligned_files_must_be_aligned(tmp_path: Path) -> None:
    left, right = write(tmp_path / "x.en", ["a", "b"]), write(tmp_path / "x.de", ["a"])
    with pytest.raises(DataError, match=r"x\.en has 2 lines but .*x\.de has 1; line n of the ref"):
        read_test_set([left, right], "en-de")
    write(right, ["a", ""])
    with pytest.raises(DataError, match=r":2 has an empty reference"):
        read_test_set([left, right], "en-de")
    write(right, ["a", "b" * 1_000_001])
    with pytest.raises(DataError, match=r"x\.de:2 is longer than a megabyte"):
        read_test_set([left, right], "en-de")


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--test-set: the file .*x\.tsv does not exist"):
        read_test_set([tmp_path / "x.tsv"], "en-de")
    (tmp_path / "x.tsv").write_bytes(b"a\tb\n\xff\tb\n")
    with pytest.raises(DataError, match=r"x\.tsv:2 is not UTF-8"):
        read_test_set([tmp_path / "x.tsv"], "en-de")
    with pytest.raises(DataError, match="but 3 are given"):
        read_test_set([tmp_path / "x.tsv"] * 3, "en-de")


@pytest.mark.parametrize("name", ["test", "valid", "../x", "", "a b", ".hidden", "ü"])
def test_names_that_cannot_be_folders_of_their_own(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.tsv", ["a\tb"])
    with pytest.raises(DataError, match="a test set cannot be called"):
        read_test_set([path], "en-de", name)


def test_a_direction_is_two_languages(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", ["a\tb"])
    with pytest.raises(LanguageError, match="'german' is not a direction"):
        read_test_set([path], "german")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("news.tsv", "news"), ("flores.dev.tsv.gz", "flores.dev"), ("flores.dt.jsonl", "flores.dt"),
        ("set.en-de.tsv", "set"), ("news2014.tsv", "news2014"),
    ],
)  # fmt: skip
def test_names_keep_what_tells_test_sets_apart(file: str, name: str) -> None:
    assert test_sets._plain_name(Path(file), "en-de") == name


def test_marks_of_windows_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("\ufeffone\teins\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('\ufeff{"src": "one", "ref": "eins"}\n', encoding="utf-8")
    for name in ("a.tsv", "a.jsonl"):
        found = read_test_set([tmp_path / name], "en-de")
        assert (found.src, found.ref) == (["one"], ["eins"])
    (tmp_path / "b.jsonl").write_text('{"src": "one", "ref": "ei\\rns"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="has a line break in its reference"):
        read_test_set([tmp_path / "b.jsonl"], "en-de")
