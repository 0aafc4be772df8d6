"""Shards hold the tokenised text, WebDataset reads them, and damage is found."""

from __future__ import annotations

import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import shards, tokenizer
from data_pipeline.batching import Ragged
from data_pipeline.bitext import read_split
from data_pipeline.config import DataConfig, ShardConfig
from data_pipeline.shards import ShardReader, verify
from data_pipeline.tokenizer import EOS_ID, Tokenizer
from hyperadapter.core.errors import CorruptShardError, DataError

MakeCorpus = Callable[..., DataConfig]
Damage = Callable[[Path], None]


@pytest.fixture
def folder(corpus: DataConfig, tmp_path: Path) -> Path:
    """A copy of the train shards to damage."""
    return Path(shutil.copytree(Path(corpus.folder) / "shards/train", tmp_path / "train"))


def train_reader(corpus: DataConfig) -> ShardReader:
    return ShardReader(Path(corpus.folder) / "shards/train")


def read_texts(reader: ShardReader, tok: Tokenizer, pair: int) -> Counter[tuple[str, ...]]:
    texts: Counter[tuple[str, ...]] = Counter()
    for number, block in enumerate(reader.manifest.blocks):
        if block.pair != pair:
            continue
        sides = []
        for side in ("a", "b"):
            rows = reader.sentences(number, side)
            assert np.all(rows.tokens[rows.starts + rows.lengths - 1] == EOS_ID)
            sides.append(tok.decode([rows.rows(slice(i, i + 1)).flat() for i in range(len(rows))]))
        texts.update(zip(*sides, strict=True))
    return texts


def test_every_sentence_that_fits_is_there(corpus: DataConfig) -> None:
    reader = train_reader(corpus)
    tok = Tokenizer.load(Path(corpus.folder) / "tokenizer")
    for number, entry in enumerate(reader.manifest.pairs):
        text = read_split(Path(corpus.folder) / "clean", "train", (entry.a, entry.b))
        longest = [
            max(len(a), len(b)) + 1
            for a, b in zip(tok.encode(text.a), tok.encode(text.b), strict=True)
        ]
        fits = [n <= corpus.shards.max_sentence_tokens for n in longest]
        expected = Counter((a, b) for a, b, fit in zip(text.a, text.b, fits, strict=True) if fit)
        found = read_texts(reader, tok, number)
        assert found == expected
        assert entry.sentences == sum(fits)
        assert entry.dropped_long == len(fits) - sum(fits) > 0
        assert list(found)[:5] != list(expected)[:5], "not shuffled"


def test_manifest_adds_up(corpus: DataConfig) -> None:
    reader = train_reader(corpus)
    assert len({block.key for block in reader.manifest.blocks}) == len(reader.manifest.blocks)
    assert len(reader.manifest.shards) > 2
    for number, pair in enumerate(reader.manifest.pairs):
        blocks = [(i, b) for i, b in enumerate(reader.manifest.blocks) if b.pair == number]
        assert sum(block.sentences for _, block in blocks) == pair.sentences
        assert sum(block.a_tokens for _, block in blocks) == pair.a_tokens
        assert sum(block.b_tokens for _, block in blocks) == pair.b_tokens
        longest = []
        for i, block in blocks:
            a, b = (reader.lengths(i, side).astype(int) for side in ("a", "b"))
            assert block.longer == (
                np.maximum(a, b).sum(), np.maximum(a + 1, b).sum(), np.maximum(a, b + 1).sum()
            )  # fmt: skip
            longest.append((a.max(), b.max()))
        assert (pair.a_longest, pair.b_longest) == tuple(np.max(longest, axis=0))


# WebDataset leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_plain_webdataset_reads_them(corpus: DataConfig) -> None:
    import webdataset as wds

    reader = train_reader(corpus)
    seen = 0
    for shard in reader.manifest.shards:
        path = str(Path(corpus.folder) / "shards/train" / shard.file)
        for sample in wds.WebDataset(path, shardshuffle=False).decode():
            number = [block.key for block in reader.manifest.blocks].index(sample["__key__"])
            for side in ("a", "b"):
                tokens, lengths = sample[f"{side}_tokens.npy"], sample[f"{side}_lengths.npy"]
                assert tokens.dtype == lengths.dtype == np.uint16
                np.testing.assert_array_equal(tokens, reader.sentences(number, side).flat())
                np.testing.assert_array_equal(lengths, reader.lengths(number, side))
            seen += 1
    assert seen == len(reader.manifest.blocks)


def test_same_text_gives_the_same_bytes(make_corpus: MakeCorpus, corpus: DataConfig) -> None:
    config = make_corpus({"de": 150, "cs": 40})
    tokenizer.run(config)
    assert shards.run(config) == shards.run(corpus)
    for shard in shards.run(config)["train"].shards:
        paths = (Path(c.folder) / "shards/train" / shard.file for c in (config, corpus))
        assert len({path.read_bytes() for path in paths}) == 1


def test_made_once_and_anew_when_the_configuration_changes(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 40})
    tokenizer.run(config)
    before = shards.run(config)
    path = Path(config.folder) / "shards/train/manifest.json"
    made = path.stat().st_mtime_ns
    assert shards.run(config) == before
    assert path.stat().st_mtime_ns == made
    changed = config.model_copy(update={"shards": ShardConfig(block_sentences=5)})
    assert max(block.sentences for block in shards.run(changed)["train"].blocks) == 5


def test_wide_ids_for_a_large_vocabulary() -> None:
    rows = Ragged.from_lengths(np.array([70_000, 3]), np.array([2]))
    encoded = shards._Encoded(rows, rows, 0, 0)
    (block,) = shards._iter_blocks(encoded, 10, 70_001)
    assert block["a_tokens"].dtype == np.uint32
    assert block["a_tokens"].tolist() == [70_000, 3]


def test_empty_texts_and_pairs_are_counted(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 40})
    tokenizer.run(config)
    path = Path(config.folder) / "clean/train/en-de.tsv"
    path.write_text("toy\tbado\t\ntoy\tbado\tbado\n", encoding="utf-8")
    (entry,) = shards.run(config)["train"].pairs
    assert (entry.sentences, entry.dropped_empty) == (1, 1)
    path.write_text("", encoding="utf-8")
    shutil.rmtree(Path(config.folder) / "shards")
    manifest = shards.run(config)["train"]
    assert (manifest.pairs[0].sentences, manifest.blocks, manifest.shards) == (0, (), ())


def flip_payload(path: Path) -> None:
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[1].offset_data + 200
    flip(path, offset)


def flip_header(path: Path) -> None:
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[1].offset + 150
    flip(path, offset)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


def read_all(folder: Path) -> None:
    reader = ShardReader(folder)
    for number in range(len(reader.manifest.blocks)):
        reader.sentences(number, "a")
        reader.sentences(number, "b")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip_payload, r"the member en-de-0000000.a_tokens.npy has the CRC-32"),
        (flip_header, r"the member en-de-0000000.a_tokens.npy has the CRC-32"),
        (truncate, "has 700 bytes, but its manifest promises"),
        (Path.unlink, "is missing, but its manifest lists it"),
    ],
)
def test_damage_is_found(folder: Path, damage: Damage, complaint: str) -> None:
    read_all(folder)
    verify(folder)
    damage(folder / "en-de-00000.tar")
    with pytest.raises(
        CorruptShardError, match=r"en-de-00000.tar.*`hyperadapter data shard` again"
    ):
        verify(folder)
    with pytest.raises(CorruptShardError, match=complaint) as caught:
        read_all(folder)
    assert "en-de-00000.tar" in str(caught.value)
    assert "`hyperadapter data shard` again" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "complaint"), [(truncate, "is cut off"), (Path.unlink, "cannot be read")]
)
def test_damage_after_opening_is_found(folder: Path, damage: Damage, complaint: str) -> None:
    reader = ShardReader(folder)
    damage(folder / "en-de-00000.tar")
    with pytest.raises(CorruptShardError, match=complaint):
        reader.sentences(0, "a")


def test_manifest_that_is_missing_or_foreign(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CorruptShardError, match=r"manifest.json is not a shard manifest"):
        ShardReader(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds no shards; run `hyperadapter data shard` first"):
        ShardReader(folder)


def test_cache_is_bounded_and_lengths_do_not_read_tokens(corpus: DataConfig) -> None:
    reader = ShardReader(Path(corpus.folder) / "shards/train", cache_bytes=600)
    lengths = reader.lengths(0, "a")
    assert reader.cached_bytes == lengths.nbytes
    assert reader.lengths(0, "a") is lengths
    for number in range(len(reader.manifest.blocks)):
        reader.sentences(number, "b")
        assert reader.cached_bytes <= 600
    assert reader.lengths(0, "a") is not lengths
    with pytest.raises(ValueError, match="read-only"):
        reader.lengths(0, "a")[0] = 1
