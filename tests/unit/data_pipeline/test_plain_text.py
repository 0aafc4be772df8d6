"""Moses and TSV files, and the mistakes that users make with them."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.config import MosesSource, TsvSource
from data_pipeline.plain_text import iter_moses_rows, iter_tsv_rows
from hyperadapter.core.errors import DataError


def moses(left: Path, right: Path) -> MosesSource:
    paths = (str(left), str(right))
    return MosesSource(format="moses", name="toy", languages=("en", "de"), paths=paths)


def tsv(path: Path, columns: tuple[int, int] = (0, 1)) -> TsvSource:
    return TsvSource(
        format="tsv", name="toy", languages=("en", "de"), path=str(path), columns=columns
    )


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_moses_files_are_read_line_by_line(tmp_path: Path) -> None:
    left = write(tmp_path / "a.en", "One\r\nTwo\u2028lines\n\nFour")
    right = tmp_path / "a.de.gz"
    right.write_bytes(gzip.compress(b"Eins\nZwei Zeilen\nDrei\nVier\n"))
    skipped: Counter[str] = Counter()
    assert list(iter_moses_rows(moses(left, right), skipped)) == [
        ("One", "Eins"),
        ("Two\u2028lines", "Zwei Zeilen"),
        ("Four", "Vier"),
    ]
    assert skipped == {"empty line": 1}


@pytest.mark.parametrize(("num_left", "num_right"), [(3, 5), (5, 3), (4, 3), (0, 1)])
def test_files_of_different_length_are_named_with_their_counts(
    tmp_path: Path, num_left: int, num_right: int
) -> None:
    left = write(tmp_path / "a.en", "x\n" * num_left)
    right = write(tmp_path / "a.de", "y\n" * num_right)
    with pytest.raises(DataError) as caught:
        list(iter_moses_rows(moses(left, right), Counter()))
    for words in (f"a.en has {num_left} lines", f"a.de has {num_right};", "'toy'", "line by line"):
        assert words in str(caught.value)


def test_a_missing_file_is_named_with_its_source(tmp_path: Path) -> None:
    left = write(tmp_path / "a.en", "x\n")
    with pytest.raises(DataError, match=r"source 'toy': the file .*a\.de does not exist; correct"):
        list(iter_moses_rows(moses(left, tmp_path / "a.de"), Counter()))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        list(iter_tsv_rows(tsv(tmp_path), Counter()))


def test_bytes_that_are_no_utf_8_are_located(tmp_path: Path) -> None:
    path = tmp_path / "latin1.tsv"
    path.write_bytes(b"yes\tja\ngreen\tgr\xfcn\n")
    with pytest.raises(DataError) as caught:
        list(iter_tsv_rows(tsv(path), Counter()))
    for words in ("latin1.tsv:2 is not UTF-8", "byte 0xfc at position 8", "iconv"):
        assert words in str(caught.value)


@pytest.mark.parametrize("cut", [-12, 12, 0])
def test_a_cut_or_false_gzip_file_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.tsv.gz"
    whole = gzip.compress(b"".join(b"yes %d\tja %d\n" % (i, i) for i in range(2000)))
    path.write_bytes(whole[:cut] if cut else b"yes\tja\n")
    with pytest.raises(DataError, match=r"a\.tsv\.gz is not a whole gzip file .* copy it again"):
        list(iter_tsv_rows(tsv(path), Counter()))


def test_tsv_columns_are_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "1\tja\tx\tyes\n2\tnein\tx\tno\textra\n")
    assert list(iter_tsv_rows(tsv(path, (3, 1)), Counter())) == [("yes", "ja"), ("no", "nein")]


def test_a_few_short_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "yes\tja\n" * 198 + "alone\n\n" + "\tja\n")
    skipped: Counter[str] = Counter()
    assert len(list(iter_tsv_rows(tsv(path), skipped))) == 198
    assert skipped == {"too few columns": 1, "empty line": 2}


def test_many_short_lines_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "yes\tja\n" * 50 + "alone\n")
    with pytest.raises(DataError) as caught:
        list(iter_tsv_rows(tsv(path, (0, 2)), Counter()))
    for words in ("51 of 51 lines", "fewer than 3", "a.tsv:1 has 2", "columns` [0, 2]"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"1 of 51 lines .*a\.tsv:51 has 1"):
        list(iter_tsv_rows(tsv(path), Counter()))
