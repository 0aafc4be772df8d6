"""Shards hold the tokenised text, WebDataset reads them, and what is there is not made again."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import tokenizer
from data_pipeline.bitext import read_split
from data_pipeline.config import DataConfig, ShardConfig
from data_pipeline.ragged import Ragged
from data_pipeline.shards import writer as shards
from data_pipeline.shards.manifest import ShardManifest, Side
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.shuffle import BucketShuffle
from data_pipeline.shards.tools import merge, verify
from data_pipeline.tokenizer import EOS_ID, Tokenizer
from hyperadapter.core.errors import DataError

MakeCorpus = Callable[..., DataConfig]
SIDES: tuple[Side, Side] = ("a", "b")


def train_reader(corpus: DataConfig) -> ShardReader:
    return ShardReader(Path(corpus.folder) / "shards/train")


def read_texts(reader: ShardReader, tok: Tokenizer, pair: int) -> Counter[tuple[str, ...]]:
    texts: Counter[tuple[str, ...]] = Counter()
    for number in reader.pair_blocks(pair).numbers.tolist():
        sides = []
        for side in SIDES:
            rows = reader.sentences(number, side)
            assert np.all(rows.tokens[rows.starts + rows.lengths - 1] == EOS_ID)
            sides.append(tok.decode([rows.rows(slice(i, i + 1)).flat() for i in range(len(rows))]))
        texts.update(zip(*sides, strict=True))
    return texts


def files_of(config: DataConfig, split: str = "train") -> dict[str, bytes]:
    folder = Path(config.folder) / "shards" / split
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def inodes(config: DataConfig) -> dict[str, int]:
    folder = Path(config.folder) / "shards/train"
    return {path.name: path.stat().st_ino for path in folder.rglob("*.*") if path.is_file()}


def with_shards(config: DataConfig, **values: Any) -> DataConfig:
    return config.model_copy(update={"shards": config.shards.model_copy(update=values)})


@pytest.fixture
def encoded_pairs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names the pairs that are written."""
    names: list[str] = []
    write_pair = shards._write_pair

    def write(task: Any) -> Any:
        names.append(f"{task.split}/{task.name}")
        return write_pair(task)

    monkeypatch.setattr(shards, "_write_pair", write)
    return names


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
    for number, pair in enumerate(reader.manifest.pairs):
        assert len(pair.shards) == 1 + (pair.b == "de")
        assert (pair.blocks.sentences[:-1] == corpus.shards.block_sentences).all()
        lengths = [
            [reader.lengths(block, side) for block in reader.pair_blocks(number).numbers.tolist()]
            for side in SIDES
        ]
        assert [max(map(np.max, side)) for side in lengths] == [pair.a_longest, pair.b_longest]
        assert [sum(map(np.sum, side)) for side in lengths] == [pair.a_tokens, pair.b_tokens]


# WebDataset leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_plain_webdataset_reads_them(make_corpus: MakeCorpus) -> None:
    import webdataset as wds

    config = with_shards(make_corpus({"de": 50}), keep_text=True)
    tokenizer.run(config)
    shards.run(config)
    reader = train_reader(config)
    (pair,) = reader.manifest.pairs
    seen = 0
    for shard in pair.shards:
        path = str(Path(config.folder) / "shards/train" / shard.file)
        for sample in wds.WebDataset(path, shardshuffle=False).decode():
            assert sample["__key__"] == pair.key(seen)
            for side in SIDES:
                tokens, lengths = sample[f"{side}_tokens.npy"], sample[f"{side}_lengths.npy"]
                assert tokens.dtype == lengths.dtype == np.uint16
                np.testing.assert_array_equal(tokens, reader.sentences(seen, side).flat())
                np.testing.assert_array_equal(lengths, reader.lengths(seen, side))
                assert sample[f"{side}_text.txt"].splitlines() == reader.texts(seen, side)
            seen += 1
    assert seen == reader.manifest.num_blocks


def test_text_stands_in_the_order_of_the_tokens(make_corpus: MakeCorpus) -> None:
    config = with_shards(make_corpus({"de": 50}), keep_text=True)
    tokenizer.run(config)
    shards.run(config)
    tok = Tokenizer.load(Path(config.folder) / "tokenizer")
    reader = train_reader(config)
    for block in range(reader.manifest.num_blocks):
        for side in SIDES:
            rows = reader.sentences(block, side)
            decoded = tok.decode([rows.rows(slice(i, i + 1)).flat() for i in range(len(rows))])
            assert decoded == reader.texts(block, side)


def test_same_text_gives_the_same_bytes(make_corpus: MakeCorpus, corpus: DataConfig) -> None:
    config = make_corpus({"de": 150, "cs": 40})
    tokenizer.run(config)
    assert shards.run(config) == shards.run(corpus)
    assert files_of(config) == files_of(corpus)
    assert files_of(config, "valid") == files_of(corpus, "valid")


def test_buckets_on_disk_do_not_change_what_is_there(
    make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_corpus({"de": 60})
    tokenizer.run(config)
    monkeypatch.setattr(shards, "_ENCODE_SENTENCES", 7)
    monkeypatch.setattr(shards, "_BUCKET_BYTES", 1000)
    shards.run(config)
    before = files_of(config)
    shutil.rmtree(Path(config.folder) / "shards")
    monkeypatch.setattr(shards, "BucketShuffle", partial(BucketShuffle, buffer_bytes=500))
    shards.run(config)
    assert files_of(config) == before
    assert not list((Path(config.folder) / "shards").rglob("*scratch*"))


def test_made_once_and_anew_when_the_configuration_changes(
    make_corpus: MakeCorpus, encoded_pairs: list[str]
) -> None:
    config = make_corpus({"de": 40})
    tokenizer.run(config)
    before = shards.run(config)
    path = Path(config.folder) / "shards/train/manifest.json"
    made = path.stat().st_mtime_ns
    assert shards.run(config) == before
    assert path.stat().st_mtime_ns == made
    assert encoded_pairs == ["train/en-de", "valid/en-de"]
    changed = with_shards(config, block_sentences=5)
    (pair,) = shards.run(changed)["train"].pairs
    assert pair.blocks.sentences.max() == 5
    assert len(encoded_pairs) == 4


def test_a_new_language_rewrites_nothing_else(
    make_corpus: MakeCorpus, encoded_pairs: list[str]
) -> None:
    both = make_corpus({"de": 60, "cs": 30})
    tokenizer.run(both)
    one = both.model_copy(update={"languages": ("en", "de"), "sources": both.sources[:1]})
    shards.run(one)
    before, kept = files_of(one), inodes(one)
    encoded_pairs.clear()
    shards.run(both)
    assert encoded_pairs == ["train/en-cs", "valid/en-cs"]
    after = files_of(both)
    del before["manifest.json"]
    assert before.items() <= after.items()
    assert {name: inodes(both)[name] for name in before if "/" not in name} == {
        name: kept[name] for name in before if "/" not in name
    }
    # And removing it removes its files only.
    encoded_pairs.clear()
    shards.run(one)
    assert not encoded_pairs
    assert not [name for name in files_of(one) if "cs" in name]


def test_an_interrupted_run_goes_on(
    make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch, encoded_pairs: list[str]
) -> None:
    config = make_corpus({"de": 60, "cs": 30})
    tokenizer.run(config)
    write_tars = shards._write_tars

    def fail(folder: Path, stem: str, *rest: Any) -> Any:
        if stem == "en-cs":
            raise DataError("the power went")
        return write_tars(folder, stem, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_tars", fail)
        with pytest.raises(DataError, match="the power went"):
            shards.run(config)
    assert not (Path(config.folder) / "shards/train").exists()
    assert encoded_pairs == ["train/en-de", "train/en-cs"]
    encoded_pairs.clear()
    shards.run(config)
    assert encoded_pairs[0] == "train/en-cs"
    assert "train/en-de" not in encoded_pairs
    went_on = files_of(config)
    shutil.rmtree(Path(config.folder) / "shards")
    shards.run(config)
    assert went_on == files_of(config)
    assert set(went_on) == {
        "manifest.json", "en-de-00000.tar", "en-cs-00000.tar", "lengths/en-de.u16",
        "lengths/en-cs.u16",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["en-de-00000.tar", "lengths/en-de.u16"])
def test_a_file_that_was_deleted_is_made_again(
    make_corpus: MakeCorpus, encoded_pairs: list[str], name: str
) -> None:
    config = make_corpus({"de": 60, "cs": 30})
    tokenizer.run(config)
    shards.run(config)
    before = files_of(config)
    (Path(config.folder) / "shards/train" / name).unlink()
    encoded_pairs.clear()
    shards.run(config)
    assert encoded_pairs == ["train/en-de"]
    assert files_of(config) == before


def test_files_of_a_merged_manifest_are_left_alone(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    config = make_corpus({"de": 60, "cs": 30})
    tokenizer.run(config)
    shards.run(config)
    before = files_of(config)
    folder = Path(config.folder) / "shards"
    folder.rename(tmp_path / "theirs")
    merge([str(tmp_path / "theirs")], folder)
    shards.run(config)
    assert files_of(config) == before
    assert verify(tmp_path / "theirs", workers=1).bad == ()


def test_shards_of_an_older_format_are_made_anew(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 40})
    tokenizer.run(config)
    before = shards.run(config)
    path = Path(config.folder) / "shards/train/manifest.json"
    path.write_text('{"fingerprint": "0", "pairs": [], "shards": [], "blocks": []}')
    assert shards.run(config) == before


def test_wide_ids_for_a_large_vocabulary() -> None:
    manifest = ShardManifest.of_pairs((), "toy", 70_000)
    assert manifest.token_dtype is np.uint32
    rows = Ragged.from_lengths(np.array([69_000, 3], np.uint32), np.array([2]))
    sample = shards._sample({"a": rows, "b": rows})
    tokens = np.asarray(sample["a_tokens"])
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [69_000, 3]


def test_empty_texts_and_pairs_are_counted(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 40})
    tokenizer.run(config)
    path = Path(config.folder) / "clean/train/en-de.tsv"
    path.write_text("toy\tbado\t\ntoy\tbado\tbado\n", encoding="utf-8")
    (entry,) = shards.run(config)["train"].pairs
    assert (entry.sentences, entry.dropped_empty) == (1, 1)
    path.write_text("", encoding="utf-8")
    manifest = shards.run(config)["train"]
    (entry,) = manifest.pairs
    assert (entry.sentences, len(entry.blocks), entry.shards) == (0, 0, ())
    assert train_reader(config).pair_blocks(0).longer.shape == (3, 0)


def test_text_that_is_missing(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 40})
    tokenizer.run(config)
    (Path(config.folder) / "clean/train/en-de.tsv").unlink()
    with pytest.raises(DataError, match=r"en-de.tsv does not exist; .* `hyperadapter data clean`"):
        shards.run(config)


def test_settings_are_part_of_the_fingerprint(corpus: DataConfig) -> None:
    plain = shards.pair_fingerprints(corpus, "train", "tok")
    assert len(set(plain.values())) == 2
    others = [
        shards.pair_fingerprints(corpus, "valid", "tok"),
        shards.pair_fingerprints(corpus, "train", "other"),
        shards.pair_fingerprints(
            corpus.model_copy(update={"shards": ShardConfig(keep_text=True)}), "train", "tok"
        ),
    ]
    for other in others:
        assert not set(plain.values()) & set(other.values())
