"""Random access to the blocks of a split; every byte is compared with the manifest when it is read.

WebDataset 1.0.2 lets a flipped byte pass and drops the rest of a shard behind a damaged header,
silently. So we seek to the member that we want, and compare its header and payload with the
manifest's CRC-32. A block that cannot be read is a `LostBlockError`; the others are not harmed.
"""

from __future__ import annotations

import io
import logging
import os
import time
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.ragged import Ragged
from data_pipeline.shards.manifest import (
    HEADER_BYTES,
    REMEDY,
    PairEntry,
    ShardEntry,
    Side,
    is_url,
    locate,
    member_file,
    read_manifest,
)
from data_pipeline.shards.remote import REMOTE_REMEDY, ShardCache, default_cache_folder
from hyperadapter.core.errors import DataError, FetchError, LostBlockError

__all__ = ["PairBlocks", "ShardReader", "UnreadableError", "as_array", "read_member"]

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
PayloadT = TypeVar("PayloadT")
_TRIES = 3
_PAUSE_S = 0.1  # before the second try; three times as long before the third


class PairBlocks(NamedTuple):
    """What planning needs to know of a language pair's blocks, without reading them.

    Attributes:
        numbers: Of the blocks in the manifest, `[blocks]`.
        sentences: Sentence pairs, `[blocks]`.
        longer: Sum over sentences of max(a, b), of max(a + 1, b) and of max(a, b + 1),
            `[3, blocks]`: the padded width without tag, with a tag on side a, on side b.
        memory_bytes: What both sides take in a reader's memory, `[blocks]`.
    """

    numbers: Ints
    sentences: Ints
    longer: Ints
    memory_bytes: Ints


class _Place(NamedTuple):
    """A block of the manifest."""

    number: int
    pair: PairEntry
    row: int

    @property
    def shard(self) -> ShardEntry:
        return self.pair.shards[int(self.pair.blocks.shard[self.row])]


class UnreadableError(Exception):
    """Something cannot be read, or differs from the manifest: a reason without a place."""


class ShardReader:
    """The blocks of one split.

    What was decoded is kept up to `memory_bytes`, the least recently used go first. Not
    thread-safe: use one reader in each thread.

    Attributes:
        manifest: What the shards hold.
        damaged_shards: Path or URL of shards that are missing or have another size than the
            manifest says, with the reason. Blocks in them raise `LostBlockError`. A remote shard
            joins them when it cannot be fetched.
    """

    def __init__(
        self, folder: Path, memory_bytes: int = 250_000_000, cache: ShardCache | None = None
    ) -> None:
        """Opens a split's folder.

        Args:
            folder: Holds `manifest.json`.
            memory_bytes: Most bytes of decoded blocks that are kept.
            cache: Where remote shards go; without it to `.cache` in the folder.

        Raises:
            DataError: There are no shards.
            CorruptShardError: The manifest is damaged.
        """
        self.manifest = read_manifest(folder)
        self.damaged_shards: dict[str, str] = {}
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._kept: OrderedDict[tuple[int, str], NDArray[Any]] = OrderedDict()
        self._kept_bytes = 0
        self._firsts = list(accumulate((len(p.blocks) for p in self.manifest.pairs), initial=0))
        self._lengths_starts: dict[int, Ints] = {}  # of each block in its lengths file, by pair
        self._bad_lengths: set[str] = set()  # files that were warned of
        shards = [shard for pair in self.manifest.pairs for shard in pair.shards]
        remote = [shard for shard in shards if is_url(shard.file)]
        self._cache = cache
        if remote and cache is None:
            self._cache = ShardCache(default_cache_folder(folder))
        if self._cache is not None:
            self._cache.warn_if_small(sum(shard.num_bytes for shard in remote))
        self._check_files(shards)

    @property
    def cached_bytes(self) -> int:
        """Size of the decoded blocks that are kept."""
        return self._kept_bytes

    def pair_blocks(self, pair: int) -> PairBlocks:
        """Describes the blocks of a language pair, given by its index in the manifest."""
        blocks = self.manifest.pairs[pair].blocks
        width = np.dtype(self.manifest.token_dtype).itemsize
        return PairBlocks(
            numbers=np.arange(self._firsts[pair], self._firsts[pair + 1]),
            sentences=blocks.sentences,
            longer=np.stack([blocks.longer, blocks.longer_a_tag, blocks.longer_b_tag]),
            memory_bytes=(blocks.a_tokens + blocks.b_tokens) * width + 4 * blocks.sentences,
        )

    def lengths(self, block: int, side: Side) -> NDArray[np.uint16]:
        """Returns the tokens of each sentence of a block, the end mark included, `[sentences]`.

        Raises:
            LostBlockError: They cannot be read, neither beside the shards nor in the shard.
        """
        return self._keep(block, f"{side}_lengths", self._read_lengths)

    def sentences(self, block: int, side: Side) -> Ragged:
        """Returns the sentences of a block, each with its end mark.

        Raises:
            LostBlockError: The block cannot be read, or differs from the manifest.
        """
        lengths = self.lengths(block, side)
        tokens = self._keep(block, f"{side}_tokens", self._read_tokens)
        return Ragged.from_lengths(tokens, lengths)

    def will_need(self, wanted: Iterable[tuple[int, Side]]) -> None:
        """Asks the system to read tokens ahead, all at once rather than one after the other.

        The first step of a run needs a window of every direction: on a cold disk this is the
        difference between its latency, hundreds of times, and its speed.
        """
        ranges: dict[str, list[tuple[int, int]]] = {}
        for block, side in wanted:
            name = f"{side}_tokens"
            place = self._place(block)
            if (block, name) not in self._kept and not is_url(place.shard.file):
                columns = place.pair.blocks.members[name]
                where = int(columns.offset[place.row]), int(columns.size[place.row])
                ranges.setdefault(locate(self._folder, place.shard.file), []).append(where)
        for path, places in ranges.items():
            with suppress(OSError), open(path, "rb", buffering=0) as stream:
                for offset, size in places:
                    length = HEADER_BYTES + size
                    os.posix_fadvise(stream.fileno(), offset, length, os.POSIX_FADV_WILLNEED)

    def texts(self, block: int, side: Side) -> list[str]:
        """Returns the text of each sentence of a block, where `data.shards.keep_text` was set.

        Raises:
            DataError: The shards were made without text.
            LostBlockError: The block cannot be read, or differs from the manifest.
        """
        place, name = self._place(block), f"{side}_text"
        if name not in place.pair.blocks.members:
            raise DataError(
                f"{self._folder} has no text beside the tokens of {place.pair.name}; set "
                "data.shards.keep_text: true and run `hyperadapter data shard` again"
            )
        text = self._member(place, name, _as_text)
        lines = text.split("\n")[:-1]
        if len(lines) != place.pair.blocks.sentences[place.row]:
            raise self._lost(place, f"the member {name} has {len(lines)} lines")
        return lines

    def key(self, block: int) -> str:
        """Returns WebDataset's `__key__` of a block, which stays when pairs are added."""
        place = self._place(block)
        return place.pair.key(place.row)

    def block(self, key: str) -> int | None:
        """Returns the number of the block with a key; None if there is none."""
        name, _, row = key.rpartition("-")
        for first, pair in zip(self._firsts, self.manifest.pairs, strict=False):
            if pair.name == name and row.isdigit() and int(row) < len(pair.blocks):
                return first + int(row)
        return None

    def damaged_blocks(self) -> dict[int, str]:
        """Returns the blocks of all damaged shards by number, each with what is wrong."""
        damaged: dict[int, str] = {}
        for first, pair in zip(self._firsts, self.manifest.pairs, strict=False):
            for number, shard in enumerate(pair.shards):
                place = locate(self._folder, shard.file)
                if place in self.damaged_shards:
                    rows = np.flatnonzero(pair.blocks.shard == number) + first
                    damaged |= dict.fromkeys(
                        rows.tolist(), f"{place}: {self.damaged_shards[place]}"
                    )
        return damaged

    def _place(self, block: int) -> _Place:
        pair = bisect_right(self._firsts, block) - 1
        assert 0 <= block < self._firsts[-1], block
        return _Place(block, self.manifest.pairs[pair], block - self._firsts[pair])

    def _keep(
        self, block: int, name: str, read: Callable[[_Place, str], NDArray[Any]]
    ) -> NDArray[Any]:
        key = (block, name)
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        array = read(self._place(block), name)
        array.flags.writeable = False
        self._kept[key] = array
        self._kept_bytes += array.nbytes
        while self._kept_bytes > self._memory_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes
        return array

    def _read_tokens(self, place: _Place, name: str) -> NDArray[Any]:
        count = int(getattr(place.pair.blocks, name)[place.row])
        tokens = self._member(place, name, as_array)
        if tokens.shape != (count,):
            raise self._lost(place, f"the member {name} has the shape {tokens.shape}, not {count}")
        return tokens

    def _read_lengths(self, place: _Place, name: str) -> NDArray[np.uint16]:
        """Reads one side's lengths beside the shards, or in the shard if that is damaged."""
        blocks = place.pair.blocks
        path = locate(self._folder, place.pair.lengths.file)
        count = int(blocks.sentences[place.row])
        try:
            start = int(self._starts(place)[place.row])
            data = _read_range(path, start, 4 * count, int(blocks.lengths_crc32[place.row]))
        except UnreadableError as error:
            if path not in self._bad_lengths:
                self._bad_lengths.add(path)
                log.warning(
                    "%s %s; lengths are read from the shards of %s instead, which is slow",
                    path, error, place.pair.name,
                )  # fmt: skip
        else:
            both = np.frombuffer(data, "<u2").reshape(2, count)
            side: NDArray[np.uint16] = both["ab".index(name[0])].astype(np.uint16)
            return side
        lengths = self._member(place, name, as_array)
        if lengths.shape != (count,):
            raise self._lost(place, f"the member {name} has the shape {lengths.shape}, not {count}")
        return lengths.astype(np.uint16)

    def _starts(self, place: _Place) -> Ints:
        first = place.number - place.row
        if first not in self._lengths_starts:
            sizes = 4 * place.pair.blocks.sentences
            self._lengths_starts[first] = np.cumsum(sizes) - sizes
        return self._lengths_starts[first]

    def _member(self, place: _Place, name: str, decode: Callable[[bytes], PayloadT]) -> PayloadT:
        """Reads a member of a block from its shard; what may pass by itself is tried again."""
        location = locate(self._folder, place.shard.file)
        if location in self.damaged_shards:
            raise self._lost(place, self.damaged_shards[location])
        columns = place.pair.blocks.members[name]
        offset, size, crc32 = (
            int(column[place.row]) for column in (columns.offset, columns.size, columns.crc32)
        )
        pause = _PAUSE_S
        for last in (*[False] * (_TRIES - 1), True):
            try:
                path = self._local(location, place.shard)
                return decode(read_member(path, offset, size, crc32))
            except FetchError as error:  # which has tried several times
                reason = (
                    str(error).removeprefix(location).removesuffix(f"; {REMOTE_REMEDY}").strip()
                )
                self.damaged_shards[location] = reason
                raise self._lost(place, reason) from error
            except (OSError, ValueError, UnreadableError) as error:
                if self._cache is not None and is_url(location):
                    self._cache.discard(place.shard)
                if last:
                    what = f"the member {member_file(place.pair.key(place.row), name)} {error}"
                    raise self._lost(place, what) from error
                if isinstance(error.__cause__ or error, OSError):
                    time.sleep(pause)
                    pause *= 3
        raise AssertionError

    def _local(self, location: str, shard: ShardEntry) -> str:
        if not is_url(location):
            return location
        assert self._cache is not None
        return str(self._cache.path(shard))

    def _lost(self, place: _Place, reason: str) -> LostBlockError:
        location = locate(self._folder, place.shard.file)
        remedy = REMOTE_REMEDY if is_url(location) else REMEDY
        return LostBlockError(place.number, location, reason, remedy)

    def _check_files(self, shards: list[ShardEntry]) -> None:
        for shard in shards:
            if is_url(shard.file):
                continue
            path = locate(self._folder, shard.file)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                self.damaged_shards[path] = f"is missing or unreachable ({error.strerror})"
                continue
            if found != shard.num_bytes:
                self.damaged_shards[path] = (
                    f"has {found} bytes, but its manifest promises {shard.num_bytes}"
                )
        for path, reason in self.damaged_shards.items():
            log.warning("the shard %s %s; %s", path, reason, REMEDY)


def read_member(path: str, offset: int, size: int, crc32: int) -> bytes:
    """Reads a member's payload; the other arguments are its columns in the manifest.

    Raises:
        UnreadableError: It cannot be read, or is not what the manifest promises.
    """
    return _read_range(path, offset, HEADER_BYTES + size, crc32)[HEADER_BYTES:]


def _read_range(path: str, offset: int, size: int, crc32: int) -> bytes:
    """Reads bytes of a file and compares them with their CRC-32."""
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error})") from error
    if len(data) != size:
        raise UnreadableError("is cut off")
    if (found := zlib.crc32(data)) != crc32:
        raise UnreadableError(f"has the CRC-32 {found:08x}, but the manifest promises {crc32:08x}")
    return data


def as_array(payload: bytes) -> NDArray[Any]:
    """Decodes the payload of an `.npy` member."""
    return np.asarray(np.load(io.BytesIO(payload), allow_pickle=False))


def _as_text(payload: bytes) -> str:
    return payload.decode()
