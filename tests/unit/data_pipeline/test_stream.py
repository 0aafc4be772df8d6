"""Batches of a stream are the text that the plan names, for every number of ranks."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import shards, tokenizer
from data_pipeline.batching import MicroBatch
from data_pipeline.bitext import read_split
from data_pipeline.config import DataConfig
from data_pipeline.stream import StepBatches, TrainStream, ValidStream
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.core.errors import CorruptShardError, DataError

MakeCorpus = Callable[..., DataConfig]


def open_train(config: DataConfig, folder: Path | None = None, **changes: Any) -> TrainStream:
    keys = {"micro_batch_tokens": 200, "micro_batches_per_step": 6, "seed": 3} | changes
    return TrainStream(folder or Path(config.folder) / "shards", config, **keys)


def assert_same(first: list[MicroBatch], second: list[MicroBatch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name in MicroBatch.__slots__:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def texts(batch: MicroBatch, config: DataConfig, tok: Tokenizer) -> list[tuple[str, str, str]]:
    """Reads `(direction, source, target)` off a batch."""
    rows = []
    direction_B = np.repeat(batch.direction_P, batch.sentences_P)
    for row, number in enumerate(direction_B):
        direction = config.resolved_directions()[number]
        assert batch.src_BS[row, 0] == tok.vocab_size + config.languages.index(direction.src)
        assert batch.tgt_in_BT[row, 0] == tok.vocab_size + config.languages.index(direction.tgt)
        src, tgt = tok.decode([batch.src_BS[row, 1:], batch.tgt_out_BT[row]])
        rows.append((str(direction), src, tgt))
    return rows


def test_batches_hold_the_corpus(corpus: DataConfig) -> None:
    stream = open_train(corpus)
    tok = Tokenizer.load(Path(corpus.folder) / "tokenizer")
    known: Counter[tuple[str, str, str]] = Counter()
    for other in ("de", "cs"):
        split = read_split(Path(corpus.folder) / "clean", "train", ("en", other))
        for a, b in zip(split.a, split.b, strict=True):
            known.update([(f"en-{other}", a, b), (f"{other}-en", b, a)])
    directions: set[str] = set()
    for step in range(5):
        batches = stream.step(step)
        per_direction = np.zeros(4, int)
        for batch in batches.micro_batches:
            rows = texts(batch, corpus, tok)
            assert all(row in known for row in rows)
            directions.update(row[0] for row in rows)
            assert batch.padded_tokens <= 200
            np.add.at(
                per_direction,
                np.repeat(batch.direction_P, batch.sentences_P),
                batch.tgt_lengths_B,
            )
        assert batches.tokens_per_direction.tolist() == per_direction.tolist()
        assert batches.target_tokens == per_direction.sum()
    assert directions == {"en-de", "de-en", "en-cs", "cs-en"}


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("policy", ["mixed", "one_direction_per_micro_batch"])
def test_ranks_together_make_the_same_step(
    corpus: DataConfig, world_size: int, policy: str
) -> None:
    config = corpus.model_copy(
        update={"stream": corpus.stream.model_copy(update={"policy": policy})}
    )
    whole = open_train(config)
    ranks = [open_train(config, rank=r, world_size=world_size) for r in range(world_size)]
    for step in (0, 1, whole.plan.steps_per_chunk, 7):
        expected = whole.step(step)
        shares = [rank.step(step) for rank in ranks]
        assert_same([b for share in shares for b in share.micro_batches], expected.micro_batches)
        assert {share.target_tokens for share in shares} == {expected.target_tokens}
        assert {rank.plan.step(step).hash for rank in ranks} == {whole.plan.step(step).hash}


def test_iterating_equals_asking_for_each_step(corpus: DataConfig) -> None:
    stream, other = open_train(corpus), open_train(corpus)
    first = stream.plan.steps_per_chunk - 3
    steps = stream.iter_from(first)
    for number, batches in enumerate(itertools.islice(steps, 8), first):
        assert_same(batches.micro_batches, other.step(number).micro_batches)


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "data-prefetch"]


def test_closing_the_iterator_ends_its_thread(corpus: DataConfig) -> None:
    steps = open_train(corpus).iter_from(0)
    assert isinstance(next(steps), StepBatches)
    assert prefetching()
    steps.close()  # type: ignore[attr-defined]
    assert not prefetching()


def test_corruption_reaches_the_consumer(corpus: DataConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(corpus.folder) / "shards", tmp_path / "shards"))
    stream = open_train(corpus, folder)
    path = folder / "train/en-cs-00000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CorruptShardError, match=r"en-cs-00000.tar: the member en-cs-\d+.*CRC-32"):
        next(stream.iter_from(0))
    assert not prefetching()


def test_passes_follow_the_steps(corpus: DataConfig) -> None:
    stream = open_train(corpus)
    assert stream.passes(0).tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(stream.passes(200), 2 * stream.passes(100))
    assert stream.passes(100)[2] > stream.passes(100)[0] > 0  # cs is the smaller corpus


def test_widths_are_exact_for_every_tag(corpus: DataConfig) -> None:
    for tag in ("source", "none"):
        config = corpus.model_copy(update={"tags": corpus.tags.model_copy(update={"encoder": tag})})
        stream = open_train(config)
        plan = stream.plan.step(2)
        for refs, batch in zip(plan.micro_batches, stream.step(2).micro_batches, strict=True):
            np.testing.assert_array_equal(refs.src_lengths, batch.src_lengths_B)
            np.testing.assert_array_equal(refs.tgt_lengths, batch.tgt_lengths_B)
            assert refs.padded_tokens == batch.padded_tokens


def test_direction_without_data(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 40, "cs": 0}, valid=0)
    tokenizer.run(config)
    shards.run(config)
    with pytest.raises(
        DataError, match=r"the direction en-cs has 0 sentence pairs in .*train; add a"
    ):
        open_train(config)
    with pytest.raises(DataError, match="valid holds no sentence of any direction; raise "):
        ValidStream(Path(config.folder) / "shards", config, micro_batch_tokens=200, max_sentences=5)


def test_direction_that_was_never_sharded(
    corpus: DataConfig, make_config: Callable[..., DataConfig]
) -> None:
    config = make_config(Path(corpus.folder), ("en", "de", "fr"))
    with pytest.raises(
        DataError, match=r"no shards for the direction en-fr \(it has en-de, en-cs\)"
    ):
        open_train(config)


def test_warns_when_the_cache_is_too_small(
    corpus: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    open_train(corpus)
    assert not caplog.records
    open_train(
        corpus.model_copy(update={"stream": corpus.stream.model_copy(update={"cache_bytes": 9})})
    )
    assert "data.stream.cache_bytes 9 is less than the" in caplog.text


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_is_shared_evenly(corpus: DataConfig, world_size: int) -> None:
    tok = Tokenizer.load(Path(corpus.folder) / "tokenizer")
    ranks = [
        ValidStream(
            Path(corpus.folder) / "shards",
            corpus,
            micro_batch_tokens=120,
            max_sentences=9,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    items = [item for rank in ranks for item in rank]
    assert len(items) == world_size * len(ranks[0])
    found = Counter(row for batch, counts in items if counts for row in texts(batch, corpus, tok))
    directions = Counter(direction for direction, _, _ in found)
    available = {f"en-{p.b}": p.sentences for p in shards.run(corpus)["valid"].pairs}
    assert max(found.values()) == 1
    for other in ("de", "cs"):
        expected = min(9, available[f"en-{other}"])
        assert directions[f"en-{other}"] == directions[f"{other}-en"] == expected
