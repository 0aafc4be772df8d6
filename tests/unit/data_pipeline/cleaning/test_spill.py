"""Every row that is spilled comes back once, with all others of the same text, in reading order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.bitext import SPLITS
from data_pipeline.cleaning import spill
from data_pipeline.cleaning.spill import Row, group_buckets, open_spill, read_buckets
from data_pipeline.cleaning.split import order_of

texts = st.text("abcü語 ", max_size=4)
rows = st.lists(
    st.builds(Row, st.integers(0, 3), st.integers(0, 9), st.sampled_from(SPLITS), texts, texts),
    unique_by=lambda row: (row.source, row.number),
)


@given(rows, st.integers(1, 3), st.integers(1, 200), st.integers(1, 400))
def test_every_row_is_in_one_group(
    tmp_path: Path, all_rows: list[Row], num_spills: int, run_bytes: int, group_bytes: int
) -> None:
    paths = [tmp_path / f"{number}.spill" for number in range(num_spills)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "_RUN_BYTES", run_bytes)
        for number, path in enumerate(paths):
            with open_spill(path, seed=1) as writer:
                for row in all_rows[number::num_spills]:
                    writer.add(row)
    groups = group_buckets(paths, group_bytes)
    assert [groups[0][0], groups[-1][1]] == [0, spill.NUM_BUCKETS]
    assert [end for _, end in groups[:-1]] == [first for first, _ in groups[1:]]
    found = [read_buckets(paths, group) for group in groups]
    assert sorted((row for group in found for row in group), key=reading_order) == sorted(
        all_rows, key=reading_order
    )
    for (first, end), group in zip(groups, found, strict=True):
        assert group == sorted(group, key=reading_order)
        assert all(first <= order_of(row.a, 1) >> 52 < end for row in group)
        size = sum(len(f"0\t0\t{row.split}\t{row.a}\t{row.b}\n".encode()) for row in group)
        assert size <= group_bytes or len({order_of(row.a, 1) >> 52 for row in group}) == 1


def reading_order(row: Row) -> tuple[int, int]:
    return row.source, row.number


def test_nothing_comes_back_as_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.spill"
    with open_spill(path, seed=1):
        pass
    assert group_buckets([path], 1) == [(0, spill.NUM_BUCKETS)]
    assert read_buckets([path], (0, spill.NUM_BUCKETS)) == []


def test_an_interrupted_spill_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with open_spill(tmp_path / "one.spill", seed=1) as writer:
            writer.add(Row(0, 0, "train", "a", "b"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []
