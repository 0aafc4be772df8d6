"""Parquet files, flat and nested, with scores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.formats.parquet import iter_rows
from data_pipeline.sources import ParquetSource
from hyperadapter.core.errors import DataError


def source(*paths: Path, **keys: Any) -> ParquetSource:
    tree = {"format": "parquet", "name": "toy", "languages": ("en", "de")} | keys
    return ParquetSource(**tree, paths=tuple(map(str, paths)))


def write(path: Path, rows: list[dict[str, Any]], rows_a_group: int = 2) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_a_group)
    return path


def nested(*pairs: tuple[str | None, str | None]) -> list[dict[str, Any]]:
    return [{"id": i, "translation": {"de": b, "en": a}} for i, (a, b) in enumerate(pairs)]


def test_nested_texts_by_default_and_several_files(tmp_path: Path) -> None:
    one = write(tmp_path / "1.parquet", nested(("Yes", "Ja"), ("No", "Nein"), ("Oh", "Ach")))
    two = write(
        tmp_path / "2.parquet",
        [*nested(("a", None), (" ", "b")), {"id": 3, "translation": None}, *nested(("c", "d"))],
    )
    skipped: Counter[str] = Counter()
    assert list(iter_rows(source(one, two), skipped)) == [
        ("Yes", "Ja"),
        ("No", "Nein"),
        ("Oh", "Ach"),
        ("c", "d"),
    ]
    assert skipped == {"empty line": 3}


def test_named_columns_and_scores(tmp_path: Path) -> None:
    table: list[dict[str, Any]] = [
        {"src": "a", "tgt": "A", "laser": 1.05, "meta": {"lid": 1}},
        {"src": "b", "tgt": "B", "laser": 1.2, "meta": {"lid": 0}},
        {"src": "c", "tgt": "C", "laser": 1.0, "meta": {"lid": 1}},
        {"src": "d", "tgt": "D", "laser": None, "meta": {"lid": 1}},
    ]
    path = write(tmp_path / "a.parquet", table)
    keys = {"fields": ("tgt", "src"), "min_scores": {"laser": 1.05, "meta.lid": 1}}
    skipped: Counter[str] = Counter()
    assert list(iter_rows(source(path, **keys), skipped)) == [("A", "a")]
    assert skipped == {"laser below 1.05": 2, "meta.lid below 1": 1}


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", nested(("Yes", "Ja")))
    with pytest.raises(DataError) as caught:
        list(iter_rows(source(path, fields=("translation.en", "translation.fr")), Counter()))
    for words in ("'toy'", "no column 'translation.fr'", "are id, translation.de, translation.en"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fields": ("id", "t")}, "column 'id' of .* must hold text, but has the type int64"),
        (
            {"fields": ("t", "u"), "min_scores": {"t": 1}},
            "'t' of .* must hold numbers, but .*string",
        ),
    ],
)
def test_columns_of_the_wrong_type(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.parquet", [{"id": 1, "t": "Yes", "u": "Ja"}])
    with pytest.raises(DataError, match=message):
        list(iter_rows(source(path, **keys), Counter()))


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.parquet", nested(*[("Yes", "Ja")] * 50)).read_bytes()
    path = tmp_path / "b.parquet"
    for content in (b"", b"en\tde\n", whole[:-9], whole[:100] + b"\0" * 60 + whole[160:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"b\.parquet is not a whole Parquet file .*copy it"):
            list(iter_rows(source(path), Counter()))
    with pytest.raises(DataError, match=r"the file .*c\.parquet does not exist; correct the path"):
        list(iter_rows(source(tmp_path / "c.parquet"), Counter()))


TEXT = st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: f"x{text}")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=7), st.integers(1, 4))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], rows_a_group: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.parquet"
    write(path, nested(*pairs), rows_a_group)
    assert list(iter_rows(source(path), Counter())) == pairs
