"""Tab-separated files, and the mistakes that users make with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.formats.tsv import iter_rows
from data_pipeline.sources import TsvSource
from hyperadapter.core.errors import DataError


def tsv(path: Path, columns: tuple[int, int] = (0, 1)) -> TsvSource:
    return TsvSource(
        format="tsv", name="toy", languages=("en", "de"), path=str(path), columns=columns
    )


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_tsv_columns_are_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "1\tja\tx\tyes\n2\tnein\tx\tno\textra\n")
    assert list(iter_rows(tsv(path, (3, 1)), Counter())) == [("yes", "ja"), ("no", "nein")]


def test_a_few_short_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "yes\tja\n" * 198 + "alone\n\n" + "\tja\n")
    skipped: Counter[str] = Counter()
    assert len(list(iter_rows(tsv(path), skipped))) == 198
    assert skipped == {"too few columns": 1, "empty line": 2}


def test_many_short_lines_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "yes\tja\n" * 50 + "alone\n")
    with pytest.raises(DataError) as caught:
        list(iter_rows(tsv(path, (0, 2)), Counter()))
    for words in ("51 of 51 lines", "fewer than 3", "a.tsv:1 has 2", "columns` [0, 2]"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"1 of 51 lines .*a\.tsv:51 has 1"):
        list(iter_rows(tsv(path), Counter()))


def test_a_wrong_file_is_refused_long_before_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "alone\n" * 5000)
    with pytest.raises(DataError, match=r"1,000 of 1,000 lines have fewer than 2 tab-separated"):
        list(iter_rows(tsv(path), Counter()))
