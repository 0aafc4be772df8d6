"""The text that the tokenizer is trained on: distinct, balanced, the same however it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import tokenizer_sample
from data_pipeline.bitext import language_pairs, read_split
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.tokenizer_sample import TrainingText, sample_training_text
from hyperadapter.core.errors import DataError

MakeCorpus = Callable[..., DataConfig]


def sample(config: DataConfig) -> TrainingText:
    return sample_training_text(Path(config.folder) / "clean", config)


def distinct_texts(config: DataConfig) -> dict[str, set[str]]:
    texts: dict[str, set[str]] = {code: set() for code in config.languages}
    for pair in language_pairs(config):
        split = read_split(Path(config.folder) / "clean", "train", pair)
        texts[pair[0]].update(split.a)
        texts[pair[1]].update(split.b)
    return texts


def test_all_text_that_fits_is_taken_once(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 80, "cs": 60})
    found = sample(config)
    wanted = distinct_texts(config)
    assert sorted(found.texts) == sorted(text for texts in wanted.values() for text in texts)
    sizes = {code: sum(len(text.encode()) for text in texts) for code, texts in wanted.items()}
    assert found.available_bytes == found.sampled_bytes == sizes
    assert found.word_characters == sum(
        len(word) for texts in wanted.values() for word in {w for t in texts for w in t.split()}
    )


@pytest.mark.parametrize("max_bytes", [3_000, 1_000_000])
def test_order_of_pairs_and_number_of_processes_change_nothing(
    make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch, max_bytes: int
) -> None:
    settings = {"vocab_size": 300, "max_training_bytes": max_bytes}
    config = make_corpus({"de": 200, "cs": 90}, tokenizer=settings)
    found = sample(config)
    assert sample(config.model_copy(update={"languages": ("cs", "en", "de")})) == found
    monkeypatch.setattr(tokenizer_sample, "_CHUNK_TEXTS", 7)
    assert sample(config) == found


@pytest.mark.parametrize(("temperature", "ratio"), [(1.0, 8.0), (5.0, 8 ** (1 / 5))])
def test_sample_is_balanced(make_corpus: MakeCorpus, temperature: float, ratio: float) -> None:
    settings = {"vocab_size": 300, "temperature": temperature, "max_training_bytes": 3000}
    config = make_corpus({"de": 800, "cs": 100}, tokenizer=settings)
    sampled = sample(config).sampled_bytes
    assert sum(sampled.values()) == pytest.approx(3000, rel=0.15)
    assert sampled["de"] / sampled["cs"] == pytest.approx(ratio, rel=0.35)


def test_what_a_language_lacks_goes_to_the_others() -> None:
    config = TokenizerConfig(vocab_size=300, temperature=100, max_training_bytes=3000)
    budget = tokenizer_sample._budgets({"en": 10_000, "de": 10_000, "cs": 100}, config)
    assert budget["cs"] == 100
    assert budget["en"] == pytest.approx(1450)
    assert sum(budget.values()) == pytest.approx(3000)


def test_size_of_a_large_corpus_is_estimated(
    make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_corpus({"de": 800, "cs": 100})
    exact = sample(config).available_bytes
    monkeypatch.setattr(tokenizer_sample, "_SKETCH_TEXTS", 200)
    estimate = sample(config).available_bytes
    assert estimate["cs"] == exact["cs"]
    # The standard error is 8 %: the sizes' deviation is half their mean.
    for code in ("en", "de"):
        assert estimate[code] != exact[code]
        assert estimate[code] == pytest.approx(exact[code], rel=0.25)


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(0, 40), st.integers(1, 9))
def test_sketch_does_not_depend_on_the_parts(numbers: list[int], cut: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_sample, "_SKETCH_TEXTS", size)
        sketch = tokenizer_sample._empty_sketch()
        for part in (numbers[cut:], numbers[:cut]):
            hashes = np.array(part, np.uint64)
            sketch = tokenizer_sample._merge(sketch, hashes, hashes.astype(np.int64) + 100)
    assert sketch[0].tolist() == sorted(set(numbers))[: size + 1]
    assert sketch[1].tolist() == [number + 100 for number in sketch[0].tolist()]


def test_no_text(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 20})
    path = Path(config.folder) / "clean/train/en-de.tsv"
    path.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"the train split in \S+ holds no text; check the sources"):
        sample(config)
