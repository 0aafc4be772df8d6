"""Moses files, and the mistakes that users make with them."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.formats.moses import iter_rows
from data_pipeline.sources import MosesSource
from hyperadapter.core.errors import DataError


def moses(left: Path, right: Path) -> MosesSource:
    paths = (str(left), str(right))
    return MosesSource(format="moses", name="toy", languages=("en", "de"), paths=paths)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_moses_files_are_read_line_by_line(tmp_path: Path) -> None:
    left = write(tmp_path / "a.en", "One\r\nTwo\u2028lines\n\nFour")
    right = tmp_path / "a.de.gz"
    right.write_bytes(gzip.compress(b"Eins\nZwei Zeilen\nDrei\nVier\n"))
    skipped: Counter[str] = Counter()
    assert list(iter_rows(moses(left, right), skipped)) == [
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
        list(iter_rows(moses(left, right), Counter()))
    for words in (f"a.en has {num_left} lines", f"a.de has {num_right};", "'toy'", "line by line"):
        assert words in str(caught.value)


def test_a_missing_file_is_named_with_its_source(tmp_path: Path) -> None:
    left = write(tmp_path / "a.en", "x\n")
    with pytest.raises(DataError, match=r"source 'toy': the file .*a\.de does not exist; correct"):
        list(iter_rows(moses(left, tmp_path / "a.de"), Counter()))
