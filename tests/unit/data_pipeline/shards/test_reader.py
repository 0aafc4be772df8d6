"""Damage is found block by block, memory is bounded, and lengths come without opening tars."""

from __future__ import annotations

import logging
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.shards import reader as reader_module
from data_pipeline.shards.manifest import SHARDED_SPLITS, Side, read_manifest
from data_pipeline.shards.reader import ShardReader
from hyperadapter.core.errors import CorruptShardError, DataError, LostBlockError

Damage = Callable[[Path], None]
SHARD = "en-de-00000.tar"
SIDES: tuple[Side, Side] = ("a", "b")


@pytest.fixture
def folder(corpus: DataConfig, tmp_path: Path) -> Path:
    """A copy of the train shards to damage."""
    return Path(shutil.copytree(Path(corpus.folder) / "shards/train", tmp_path / "train"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records pauses instead of making them."""
    pauses: list[float] = []
    monkeypatch.setattr(reader_module.time, "sleep", pauses.append)
    return pauses


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def flip_payload(path: Path) -> None:
    with tarfile.open(path) as tar:
        offset = next(m.offset_data for m in tar if ".a_tokens." in m.name) + 140
    flip(path, offset)


def flip_header(path: Path) -> None:
    with tarfile.open(path) as tar:
        offset = next(m.offset for m in tar if ".a_tokens." in m.name) + 150
    flip(path, offset)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def flip_first(path: Path) -> None:
    flip(path, 0)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lost_blocks(reader: ShardReader) -> dict[int, LostBlockError]:
    lost: dict[int, LostBlockError] = {}
    for block in range(reader.manifest.num_blocks):
        try:
            reader.sentences(block, "a")
            reader.sentences(block, "b")
        except LostBlockError as error:
            lost[block] = error
    return lost


def in_shard(reader: ShardReader, name: str) -> set[int]:
    found: set[int] = set()
    for number, pair in enumerate(reader.manifest.pairs):
        blocks = reader.pair_blocks(number).numbers
        files = np.array([shard.file for shard in pair.shards])[pair.blocks.shard]
        found |= set(blocks[files == name].tolist())
    return found


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip_payload, "the member en-de-0000000.a_tokens.npy has the CRC-32"),
        (flip_header, "the member en-de-0000000.a_tokens.npy has the CRC-32"),
        (truncate, "en-de-0000000.a_tokens.npy is cut off"),
        (Path.unlink, "en-de-0000000.a_tokens.npy cannot be read"),
    ],
)
def test_damage_after_opening_loses_blocks_of_that_shard_only(
    folder: Path, damage: Damage, complaint: str
) -> None:
    reader = ShardReader(folder)
    assert not lost_blocks(ShardReader(folder))
    damage(folder / SHARD)
    lost = lost_blocks(reader)
    assert lost.keys() <= in_shard(reader, SHARD)
    error = lost[0]
    assert (error.block, error.shard) == (0, str(folder / SHARD))
    assert complaint in error.reason
    assert str(error).startswith(f"{folder / SHARD}: ")
    assert "`hyperadapter data shard` again" in str(error)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (truncate, "has 700 bytes, but its manifest promises"),
        (Path.unlink, "is missing or unreachable (No such file or directory)"),
    ],
)
def test_damage_before_opening_is_listed(
    folder: Path, damage: Damage, complaint: str, pauses: list[float]
) -> None:
    damage(folder / SHARD)
    reader = ShardReader(folder)
    assert list(reader.damaged_shards) == [str(folder / SHARD)]
    lost = lost_blocks(reader)
    assert lost.keys() == in_shard(reader, SHARD)
    assert all(complaint in error.reason for error in lost.values())
    assert not pauses, "what is known to be damaged is not tried again"


def test_what_passes_by_itself_is_tried_again(
    folder: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(folder)
    wanted = ShardReader(folder).sentences(0, "a").tokens
    (folder / SHARD).rename(folder / "away")

    def come_back(pause: float, times: list[float] = pauses) -> None:
        times.append(pause)
        if len(times) == 2:
            (folder / "away").rename(folder / SHARD)

    monkeypatch.setattr(reader_module.time, "sleep", come_back)
    np.testing.assert_array_equal(reader.sentences(0, "a").tokens, wanted)
    assert len(pauses) == 2


@pytest.mark.parametrize("damage", [flip_first, Path.unlink, halve])
def test_lengths_are_read_from_the_shards_if_need_be(
    folder: Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    def read_all() -> list[list[int]]:
        reader = ShardReader(folder)
        blocks = range(reader.manifest.num_blocks)
        return [reader.lengths(block, side).tolist() for block in blocks for side in SIDES]

    wanted = read_all()
    damage(folder / "lengths/en-de.u16")
    assert read_all() == wanted
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "lengths are read from the shards of en-de instead, which is slow" in caplog.text


def test_lengths_need_no_tar(folder: Path) -> None:
    wanted = [ShardReader(folder).lengths(0, side).tolist() for side in SIDES]
    for path in folder.glob("*.tar"):
        path.unlink()
    reader = ShardReader(folder)
    assert [reader.lengths(0, side).tolist() for side in SIDES] == wanted


def test_memory_is_bounded(corpus: DataConfig) -> None:
    reader = ShardReader(Path(corpus.folder) / "shards/train", memory_bytes=1000)
    lengths = reader.lengths(0, "a")
    assert reader.cached_bytes == lengths.nbytes
    assert reader.lengths(0, "a") is lengths
    for number in range(reader.manifest.num_blocks):
        reader.sentences(number, "b")
        assert reader.cached_bytes <= 1000
    assert reader.lengths(0, "a") is not lengths
    with pytest.raises(ValueError, match="read-only"):
        reader.lengths(0, "a")[0] = 1


def test_pair_blocks_say_what_reading_gives(corpus: DataConfig) -> None:
    for split in SHARDED_SPLITS:
        reader = ShardReader(Path(corpus.folder) / "shards" / split)
        seen: list[int] = []
        for number in range(len(reader.manifest.pairs)):
            blocks = reader.pair_blocks(number)
            for row, block in enumerate(blocks.numbers.tolist()):
                a, b = (reader.lengths(block, side).astype(int) for side in SIDES)
                assert blocks.sentences[row] == len(a)
                assert blocks.longer[:, row].tolist() == [
                    np.maximum(a, b).sum(), np.maximum(a + 1, b).sum(), np.maximum(a, b + 1).sum()
                ]  # fmt: skip
                before = reader.cached_bytes - a.size * 4
                for side in SIDES:
                    reader.sentences(block, side)
                assert reader.cached_bytes - before == blocks.memory_bytes[row]
                seen.append(block)
        assert seen == list(range(reader.manifest.num_blocks))


def test_text_that_was_not_kept(corpus: DataConfig) -> None:
    reader = ShardReader(Path(corpus.folder) / "shards/train")
    with pytest.raises(DataError, match=r"set data.shards.keep_text: true and run"):
        reader.texts(0, "a")


def test_manifest_that_is_missing_or_foreign(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CorruptShardError, match=r"manifest.json is not a shard manifest"):
        ShardReader(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds no shards; run `hyperadapter data shard` first"):
        read_manifest(folder)
