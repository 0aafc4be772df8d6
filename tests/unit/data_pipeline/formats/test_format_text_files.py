"""Lines of plain and compressed files, and files that are damaged."""

from __future__ import annotations

import gzip
import lzma
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.formats import jsonl, moses, text_files, tsv
from data_pipeline.formats.text_files import TOO_LONG, BadLines, iter_lines, open_binary
from data_pipeline.sources import JsonlSource, MosesSource, TsvSource
from hyperadapter.core.errors import DataError

WHERE = "source 'toy'"


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue().to_pybytes())


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.mark.parametrize("suffix", COMPRESS)
@settings(max_examples=20, deadline=None)
@given(lines=st.lists(st.text(st.characters(exclude_categories=["Cs"])).map(str.split)))
def test_lines_come_back_whatever_the_compression(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, lines: list[list[str]]
) -> None:
    texts = [" ".join(words) for words in lines]
    path = tmp_path_factory.getbasetemp() / f"lines.txt{suffix}"
    path.write_bytes(COMPRESS[suffix]("".join(f"{text}\n" for text in texts).encode()))
    assert list(iter_lines(path, WHERE)) == texts


@pytest.mark.parametrize("suffix", COMPRESS)
def test_concatenated_files_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"one\r\n") + COMPRESS[suffix]("two\u2028x".encode()))
    assert list(iter_lines(path, WHERE)) == ["one", "two\u2028x"]


@pytest.mark.parametrize("cut", [-12, 12, 0])
@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_cut_or_false_archive_is_named(tmp_path: Path, suffix: str, cut: int) -> None:
    path = tmp_path / f"a.tsv{suffix}"
    whole = COMPRESS[suffix](b"".join(b"yes %d\tja %d\n" % (i, i) for i in range(2000)))
    path.write_bytes(whole[:cut] if cut else b"yes\tja\n" * 10)
    message = rf"a\.tsv{re.escape(suffix)} is not a whole {re.escape(suffix)} file .* copy it again"
    with pytest.raises(DataError, match=message):
        list(iter_lines(path, WHERE))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_missing_file_is_named_with_its_source(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with pytest.raises(DataError, match=r"source 'toy': the file .*a.* does not exist; correct"):
        list(iter_lines(path, WHERE))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_folder_is_no_file(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / f"a{suffix}"
    folder.mkdir()
    with (
        pytest.raises(DataError, match=r"source 'toy': .* cannot be read: Is a directory"),
        open_binary(folder, WHERE),
    ):
        pass


def test_bytes_that_are_no_utf_8_are_located(tmp_path: Path) -> None:
    path = tmp_path / "latin1.tsv"
    path.write_bytes(b"yes\tja\ngreen\tgr\xfcn\n")
    with pytest.raises(DataError) as caught:
        list(iter_lines(path, WHERE))
    for words in ("latin1.tsv:2 is not UTF-8", "byte 0xfc at position 8", "iconv"):
        assert words in str(caught.value)


@pytest.mark.parametrize("num_bad", [1, 2])
def test_one_bad_line_in_a_hundred_is_allowed(num_bad: int) -> None:
    bad = BadLines(WHERE, "are bad", "Correct them")
    for number in range(num_bad):
        bad.add(number + 1, f"a:{number + 1}")
    if num_bad == 1:
        bad.check(100)
        return
    with pytest.raises(DataError) as caught:
        bad.check(100)
    assert str(caught.value) == (
        "source 'toy': 2 of 100 lines are bad; the first, a:1. Correct them"
    )


@given(st.lists(st.integers(0, 40), max_size=6), st.booleans())
def test_a_line_too_long_is_none(lengths: list[int], has_end: bool) -> None:
    lines = [chr(ord("a") + i) * length for i, length in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_MAX_LINE_BYTES", 12)
        path = Path(folder) / "x.txt"
        path.write_text("\n".join(lines) + "\n" * (has_end and bool(lines)), encoding="utf-8")
        found = list(iter_lines(path, WHERE))
    if lines and not has_end and not lines[-1]:
        lines.pop()  # a file that ends in a line end has no empty line after it
    assert found == [line if len(line) < 12 else None for line in lines]


def test_a_line_too_long_is_counted_and_keeps_files_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_MAX_LINE_BYTES", 100)
    names = {"languages": ("en", "de"), "name": "x"}
    for name, text in {
        "a": f"one\n{'b' * 300}\nthree\n",
        "b": "eins\nzwei\ndrei\n",
        "t": f"one\teins\n{'b' * 300}\tx\nthree\tdrei\n",
        "j": f'{{"a":"one","b":"eins"}}\n{{"a":"{"b" * 300}"}}\n{{"a":"three","b":"drei"}}\n',
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    a, b, t, j = (str(tmp_path / name) for name in "abtj")
    pair = MosesSource.model_validate({"format": "moses", "paths": (a, b)} | names)
    table = TsvSource.model_validate({"format": "tsv", "path": t} | names)
    objects = JsonlSource.model_validate(
        {"format": "jsonl", "paths": (j,), "fields": ("a", "b")} | names
    )
    skipped = [Counter[str]() for _ in range(3)]
    for rows in (
        moses.iter_rows(pair, skipped[0]),
        tsv.iter_rows(table, skipped[1]),
        jsonl.iter_rows(objects, skipped[2]),
    ):
        assert list(rows) == [("one", "eins"), ("three", "drei")]
    assert skipped == [{TOO_LONG: 1}] * 3
