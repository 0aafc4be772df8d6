"""The shuffle keeps every row once, keeps columns together, and does not depend on the buffer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.ragged import Ragged
from data_pipeline.shards.shuffle import BucketShuffle, Rows, concatenate, iter_chunks


def make_rows(values: list[int]) -> Rows:
    """Makes rows that tell their number in both columns; some are long, some empty."""
    wide = Ragged.from_sequences([np.full(value % 4, value) for value in values])
    text = b"".join(str(value).encode() for value in values)
    lengths = np.array([len(str(value)) for value in values], np.int64)
    return {"a": wide, "a_text": Ragged.from_lengths(np.frombuffer(text, np.uint8), lengths)}


def numbers(rows: Rows) -> list[int]:
    found = []
    for row in range(len(rows["a"])):
        value = int(rows["a_text"].rows(slice(row, row + 1)).flat().tobytes())
        tokens = rows["a"].rows(slice(row, row + 1)).flat()
        assert tokens[:-1].tolist() == [value] * (value % 4), "the columns were torn apart"
        found.append(value)
    return found


def shuffled(values: list[int], buckets: int, buffer_bytes: int, batch: int = 10) -> list[int]:
    with TemporaryDirectory() as folder:
        shuffle = BucketShuffle(Path(folder), buckets, np.random.default_rng(3), buffer_bytes)
        for first in range(0, len(values), batch):
            shuffle.add(make_rows(values[first : first + batch]))
        return [number for rows in shuffle.iter_buckets() for number in numbers(rows)]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 80), st.integers(1, 9), st.integers(0, 2000))
def test_every_row_once_whatever_the_buffer(count: int, buckets: int, buffer_bytes: int) -> None:
    values = list(range(count))
    found = shuffled(values, buckets, buffer_bytes)
    assert sorted(found) == values
    assert found == shuffled(values, buckets, 1_000_000)


def test_every_order_is_equally_likely() -> None:
    rng = np.random.default_rng(5)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(1200):
        shuffle = BucketShuffle(Path("none"), 2, rng)
        shuffle.add(make_rows([0, 1, 2]))
        seen[tuple(n for rows in shuffle.iter_buckets() for n in numbers(rows))] += 1
    assert len(seen) == 6
    assert all(140 < count < 260 for count in seen.values())


@given(st.lists(st.integers(1, 12), max_size=6), st.integers(1, 7))
def test_chunks_are_cut_anew(parts: list[int], size: int) -> None:
    values = list(range(sum(parts)))
    ends = np.cumsum(parts).tolist()
    rows = [make_rows(values[end - part : end]) for part, end in zip(parts, ends, strict=True)]
    chunks = [numbers(chunk) for chunk in iter_chunks(iter(rows), size)]
    assert [number for chunk in chunks for number in chunk] == values
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(chunks)


def test_concatenate_copies() -> None:
    rows = make_rows([1, 2, 3])
    both = concatenate([rows, rows])
    assert numbers(both) == [1, 2, 3, 1, 2, 3]
    assert not np.shares_memory(both["a"].tokens, rows["a"].tokens)
