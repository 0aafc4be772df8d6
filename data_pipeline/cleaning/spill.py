"""Rows on their way from cleaning to deduplication: spilled to disk by a hash of side a.

A spill is one file, written in runs. Each run's rows are sorted by bucket, a range of the order in
which the clean corpus is written, and an index beside the file says where each bucket begins in
each run. So nobody need know beforehand how much text there will be: neighbouring buckets are put
together afterwards until they fill the memory that one process is meant to use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from data_pipeline.bitext import Split
from data_pipeline.cleaning.split import order_of
from hyperadapter.core.files import atomic_open

__all__ = ["Row", "SpillWriter", "group_buckets", "open_spill", "read_buckets"]

NUM_BUCKETS = 4096
_SHIFT = 64 - 12
_RUN_BYTES = 16_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """A clean sentence pair.

    Attributes:
        source: Number of the source in the configuration.
        number: Place among the source's clean pairs; with `source`, the order of reading.
        split: Where it goes.
        a: Side a.
        b: Side b.
    """

    source: int
    number: int
    split: Split
    a: str
    b: str


class SpillWriter:
    """Writes one spill; see `open_spill`.

    Args:
        stream: The open file.
        seed: Salt of the order.
    """

    def __init__(self, stream: IO[bytes], seed: int) -> None:
        self._stream = stream
        self._seed = seed
        self._rows: list[tuple[int, bytes]] = []
        self._num_bytes = 0
        self._position = 0
        self.index: list[NDArray[np.int64]] = []

    def add(self, row: Row) -> None:
        """Adds a row; side a and side b must have no tabs nor line ends."""
        line = f"{row.source}\t{row.number}\t{row.split}\t{row.a}\t{row.b}\n".encode()
        self._rows.append((order_of(row.a, self._seed) >> _SHIFT, line))
        self._num_bytes += len(line)
        if self._num_bytes >= _RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the rows at hand as a run."""
        self._rows.sort(key=itemgetter(0))
        ends = np.zeros(NUM_BUCKETS + 1, np.int64)
        for bucket, line in self._rows:
            ends[bucket + 1] += len(line)
        self.index.append(self._position + np.cumsum(ends))
        self._stream.writelines(line for _, line in self._rows)
        self._position += self._num_bytes
        self._rows, self._num_bytes = [], 0


@contextmanager
def open_spill(path: Path, seed: int) -> Iterator[SpillWriter]:
    """Opens a spill for writing; it and its index are there when the block ends without error."""
    with atomic_open(path, "wb") as stream:
        writer = SpillWriter(stream, seed)
        yield writer
        writer.flush()
    with atomic_open(_index_path(path), "wb") as stream:
        np.save(stream, np.stack(writer.index))


def _index_path(path: Path) -> Path:
    return path.with_suffix(".index")


def _read_index(path: Path) -> NDArray[np.int64]:
    """Returns where each bucket begins in each run, `[runs, buckets + 1]`, without reading all."""
    return cast("NDArray[np.int64]", np.lib.format.open_memmap(_index_path(path), mode="r"))


def group_buckets(paths: Sequence[Path], num_bytes: int) -> list[tuple[int, int]]:
    """Puts neighbouring buckets of one or more spills together, up to `num_bytes` if they can.

    Returns:
        The first bucket and the one after the last of each group; at least one group.
    """
    sizes = np.zeros(NUM_BUCKETS, np.int64)
    for path in paths:
        for run in _read_index(path):
            sizes += np.diff(run)
    groups, first, held = [], 0, 0
    for bucket, size in enumerate(sizes.tolist()):
        if held and held + size > num_bytes:
            groups.append((first, bucket))
            first, held = bucket, 0
        held += size
    return [*groups, (first, NUM_BUCKETS)]


def read_buckets(paths: Sequence[Path], buckets: tuple[int, int]) -> list[Row]:
    """Reads the rows of a group of buckets from all spills of a language pair, in reading order."""
    rows: list[Row] = []
    for path in paths:
        index: NDArray[Any] = _read_index(path)
        with open(path, "rb") as stream:
            for start, end in zip(index[:, buckets[0]], index[:, buckets[1]], strict=True):
                stream.seek(int(start))
                lines = stream.read(int(end - start)).decode().split("\n")
                rows += map(_parse, lines[:-1])
    rows.sort(key=lambda row: (row.source, row.number))
    return rows


def _parse(line: str) -> Row:
    source, number, split, a, b = line.split("\t")
    return Row(int(source), int(number), cast(Split, split), a, b)
