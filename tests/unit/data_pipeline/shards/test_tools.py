"""Every bad file is listed; merged and split folders read as the ones they are made of."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.shards.manifest import (
    SHARDED_SPLITS,
    ShardManifest,
    read_manifest,
    write_manifest,
)
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.tools import merge, split_pairs, split_parts, verify
from hyperadapter.core.errors import ConfigError, CorruptShardError, DataError


@pytest.fixture
def folder(corpus: DataConfig, tmp_path: Path) -> Path:
    """A copy of the shards of both splits, with en-de and en-cs."""
    return Path(shutil.copytree(Path(corpus.folder) / "shards", tmp_path / "shards"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def tokens_of(folder: Path) -> dict[str, list[int]]:
    """Returns everything that a reader reads, by language pair."""
    reader = ShardReader(folder)
    found: dict[str, list[int]] = {}
    for number, pair in enumerate(reader.manifest.pairs):
        found[pair.name] = [
            token
            for block in reader.pair_blocks(number).numbers.tolist()
            for token in reader.sentences(block, "a").flat().tolist()
        ]
    return found


def rewrite(folder: Path, change: Callable[[ShardManifest], ShardManifest]) -> None:
    for split in SHARDED_SPLITS:
        write_manifest(folder / split, change(read_manifest(folder / split)))


def test_a_good_folder_has_nothing_bad(folder: Path) -> None:
    report = verify(folder, workers=1)
    assert report.bad == ()
    manifests = [read_manifest(folder / split) for split in SHARDED_SPLITS]
    assert report.sentences == sum(pair.sentences for m in manifests for pair in m.pairs)
    assert report.blocks == sum(manifest.num_blocks for manifest in manifests)
    assert report.num_bytes == sum(path.stat().st_size for path in folder.rglob("*.tar"))
    assert verify(folder / "valid", workers=1).shards == 2


def test_every_bad_file_is_listed(folder: Path) -> None:
    flip(folder / "train/en-de-00000.tar", 514)
    (folder / "train/en-de-00001.tar").unlink()
    flip(folder / "train/lengths/en-cs.u16", 3)
    (folder / "valid/lengths/en-de.u16").unlink()
    cut = folder / "valid/en-cs-00000.tar"
    cut.write_bytes(cut.read_bytes()[:-512])
    flip(folder / "valid/en-de-00000.tar", -1)  # in the padding at the end
    reasons = {Path(path).relative_to(folder).as_posix(): reason
               for path, reason in verify(folder, workers=1).bad}  # fmt: skip
    assert set(reasons) == {
        "train/en-de-00000.tar", "train/en-de-00001.tar", "train/lengths/en-cs.u16",
        "valid/lengths/en-de.u16", "valid/en-cs-00000.tar", "valid/en-de-00000.tar",
    }  # fmt: skip
    assert (
        "has 1 damaged of 7 blocks: the block en-de-0000000 has the CRC-32"
        in reasons["train/en-de-00000.tar"]
    )
    assert reasons["train/en-de-00001.tar"] == "is missing"
    assert "has the SHA-256" in reasons["train/lengths/en-cs.u16"]
    assert "cannot be read (No such file" in reasons["valid/lengths/en-de.u16"]
    assert "bytes, but its manifest promises" in reasons["valid/en-cs-00000.tar"]
    assert "has the SHA-256" in reasons["valid/en-de-00000.tar"]


def test_a_manifest_that_lies_about_a_block_is_found(folder: Path) -> None:
    path = folder / "valid/manifest.json"
    manifest = read_manifest(folder / "valid")
    entry = manifest.pairs[0]
    blocks = entry.blocks.model_copy(update={"a_tokens": entry.blocks.a_tokens + 1})
    pair = entry.model_copy(
        update={"blocks": blocks, "a_tokens": entry.a_tokens + len(entry.blocks)}
    )
    changed = manifest.model_copy(update={"pairs": (pair, *manifest.pairs[1:])})
    path.write_text(changed.model_dump_json())
    (bad,) = verify(folder / "valid", workers=1).bad
    assert "has not the sentences and tokens that its manifest promises (side a)" in bad.reason


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither a manifest.json, nor train or valid with one"):
        verify(tmp_path)


def test_split_and_merge_give_the_same_shards_back(folder: Path, tmp_path: Path) -> None:
    split_pairs(folder, tmp_path / "one", ["en-de"])
    split_pairs(folder, tmp_path / "two", ["cs-en"])
    assert not list((tmp_path / "one").rglob("*.tar"))
    merge([str(tmp_path / "one"), str(tmp_path / "two")], tmp_path / "deep/er/both")
    for split in SHARDED_SPLITS:
        wanted = tokens_of(folder / split)
        assert tokens_of(tmp_path / "deep/er/both" / split) == wanted
        assert tokens_of(tmp_path / "two" / split) == {"en-cs": wanted["en-cs"]}
        ours = read_manifest(tmp_path / "deep/er/both" / split)
        assert ours.fingerprint == read_manifest(folder / split).fingerprint
    assert verify(tmp_path / "deep/er/both", workers=1).bad == ()


def test_a_folder_can_move_with_what_it_names(folder: Path, tmp_path: Path) -> None:
    split_pairs(folder, tmp_path / "one", ["en-de"])
    (tmp_path / "elsewhere").mkdir()
    for name in ("shards", "one"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert verify(tmp_path / "elsewhere/one", workers=1).bad == ()


def test_absolute_paths_stay(folder: Path, tmp_path: Path) -> None:
    def absolute(manifest: ShardManifest) -> ShardManifest:
        pairs = []
        for pair in manifest.pairs:
            shards = tuple(
                shard.model_copy(update={"file": str(folder / "train" / shard.file)})
                for shard in pair.shards
            )
            pairs.append(pair.model_copy(update={"shards": shards}))
        return manifest.model_copy(update={"pairs": tuple(pairs)})

    wanted = tokens_of(folder / "train")
    rewrite(folder, absolute)
    split_pairs(folder / "train", tmp_path / "out", ["en-de", "en-cs"])
    assert tokens_of(tmp_path / "out") == wanted
    (shard, *_) = read_manifest(tmp_path / "out").pairs[0].shards
    assert Path(shard.file).is_absolute()


def test_parts_share_the_pairs(folder: Path, tmp_path: Path) -> None:
    split_parts(folder, tmp_path / "out", 2)
    names = [
        [pair.name for pair in read_manifest(tmp_path / "out" / part / "train").pairs]
        for part in ("part-00", "part-01")
    ]
    assert names == [["en-de"], ["en-cs"]]
    with pytest.raises(ConfigError, match="which make no 3 parts; choose from 1 to 2"):
        split_parts(folder, tmp_path / "more", 3)


def test_what_cannot_be_merged(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    both = [str(folder), str(tmp_path / "other")]
    with pytest.raises(DataError, match=r"pair en-de is in .*/shards/train and in .*/other/train"):
        merge(both, tmp_path / "out")
    rewrite(tmp_path / "other", lambda manifest: manifest.model_copy(update={"tokenizer": "abc"}))
    with pytest.raises(DataError, match=r"different tokenizers \(tokenizer \w+ and abc\)"):
        merge(both, tmp_path / "out")
    shutil.rmtree(tmp_path / "other/valid")
    with pytest.raises(DataError, match=r"has train, valid, but .*other has train; merge folders"):
        merge(both, tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge([], tmp_path / "out")
    with pytest.raises(ConfigError, match="shards exists already; name a new folder"):
        merge(both, folder)
    with pytest.raises(ConfigError, match="holds credentials or a query"):
        merge(["https://me:secret@host/shards"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_lengths_that_are_damaged_are_not_merged(folder: Path, tmp_path: Path) -> None:
    flip(folder / "valid/lengths/en-de.u16", 0)
    with pytest.raises(CorruptShardError, match=r"valid/lengths/en-de.u16 has the SHA-256"):
        merge([str(folder)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no language pair de-cs; it has en-de, en-cs"):
        split_pairs(folder, tmp_path / "out", ["de-cs"])
    with pytest.raises(ConfigError, match="no language pairs to split off"):
        split_pairs(folder, tmp_path / "out", [])


def test_lengths_of_a_merged_folder_are_its_own(folder: Path, tmp_path: Path) -> None:
    merge([str(folder)], tmp_path / "out")
    wanted = ShardReader(folder / "train").lengths(0, "b")
    shutil.rmtree(folder)
    reader = ShardReader(tmp_path / "out/train")
    np.testing.assert_array_equal(reader.lengths(0, "b"), wanted)
    assert len(reader.damaged_shards) == 3
