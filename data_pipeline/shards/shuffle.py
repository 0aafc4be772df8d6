"""A shuffle of all sentences of a language pair in bounded memory, the same for the same seed.

Each row goes to a random bucket on disk; the buckets, each small enough for memory, are shuffled
one by one. The result is a permutation of all rows of which each is equally likely.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_pipeline.ragged import Ragged

__all__ = ["BucketShuffle", "Rows", "concatenate", "iter_chunks", "select"]

Rows: TypeAlias = dict[str, Ragged]  # columns with equally many rows
# Indices of rows take several times as much for a moment.
_BUFFER_BYTES = 16_000_000


def select(rows: Rows, index: NDArray[Any] | slice) -> Rows:
    """Selects rows of all columns without copying them."""
    return {name: column.rows(index) for name, column in rows.items()}


def concatenate(parts: list[Rows]) -> Rows:
    """Lays rows one after another, copying them; there must be at least one part."""
    return {
        name: Ragged.from_lengths(
            np.concatenate([part[name].flat() for part in parts]),
            np.concatenate([part[name].lengths for part in parts]),
        )
        for name in parts[0]
    }


def iter_chunks(parts: Iterator[Rows], size: int) -> Iterator[Rows]:
    """Cuts a sequence of rows anew, into chunks of `size` rows; the last one may be shorter."""
    rest: list[Rows] = []
    for part in parts:
        rows = concatenate([*rest, part]) if rest else part
        count = _count(rows)
        whole = count - count % size
        for first in range(0, whole, size):
            yield select(rows, slice(first, first + size))
        # A copy, so that the part can be freed.
        rest = [concatenate([select(rows, slice(whole, None))])] if whole < count else []
    yield from rest


def _count(rows: Rows) -> int:
    return len(next(iter(rows.values())))


class BucketShuffle:
    """Takes all rows, then yields them shuffled, a bucket at a time."""

    def __init__(
        self,
        folder: Path,
        num_buckets: int,
        rng: np.random.Generator,
        buffer_bytes: int = _BUFFER_BYTES,
    ) -> None:
        """Prepares for rows that fit in memory `num_buckets` at a time.

        Args:
            folder: Where buckets go if they do not fit in the buffer; the caller removes it.
            num_buckets: Parts that all rows are spread over.
            rng: Decides everything.
            buffer_bytes: Rows kept before they are written.
        """
        self._folder = folder
        self._num_buckets = num_buckets
        self._rng = rng
        self._buffer_bytes = buffer_bytes
        self._buffer: list[tuple[NDArray[np.int64], Rows]] = []
        self._buffered = 0
        self._flushes = np.zeros(num_buckets, np.int64)
        self._names: list[str] = []

    def add(self, rows: Rows) -> None:
        """Takes rows, which must have the columns of those before."""
        buckets = self._rng.integers(self._num_buckets, size=_count(rows))
        self._buffer.append((buckets, rows))
        self._buffered += sum(
            int(column.lengths.sum()) * column.tokens.itemsize for column in rows.values()
        )
        if self._buffered > self._buffer_bytes:
            self._flush()

    def iter_buckets(self) -> Iterator[Rows]:
        """Yields every row once, shuffled; call it once, after all rows were taken."""
        if self._buffer and self._flushes.any():
            self._flush()
        for bucket in range(self._num_buckets):
            parts = [*self._read(bucket), *self._buffered_rows(bucket)]
            if parts:
                rows = concatenate(parts)
                yield select(rows, self._rng.permutation(_count(rows)))

    def _buffered_rows(self, bucket: int) -> Iterator[Rows]:
        for buckets, rows in self._buffer:
            index = np.flatnonzero(buckets == bucket)
            if len(index):
                yield select(rows, index)

    def _flush(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = concatenate([rows for _, rows in self._buffer])
        buckets = np.concatenate([buckets for buckets, _ in self._buffer])
        self._buffer, self._buffered = [], 0
        order = np.argsort(buckets, kind="stable")
        ends = np.searchsorted(buckets[order], np.arange(self._num_buckets), side="right")
        first = 0
        for bucket, end in enumerate(ends.tolist()):
            if end > first:
                self._append(bucket, select(rows, order[first:end]))
            first = end

    def _append(self, bucket: int, rows: Rows) -> None:
        with open(self._path(bucket), "ab") as stream:
            for column in rows.values():
                np.save(stream, column.flat())
                np.save(stream, column.lengths)
        self._names = list(rows)
        self._flushes[bucket] += 1

    def _read(self, bucket: int) -> Iterator[Rows]:
        if not self._flushes[bucket]:
            return
        with open(self._path(bucket), "rb") as stream:
            for _ in range(self._flushes[bucket]):
                yield {
                    name: Ragged.from_lengths(np.load(stream), np.load(stream))
                    for name in self._names
                }
        self._path(bucket).unlink()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:06d}.npy"
