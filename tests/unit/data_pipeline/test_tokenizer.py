"""The tokenizer is exact, repeatable, and trained on balanced text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline import tokenizer
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from hyperadapter.core.errors import ConfigError, DataError

MakeCorpus = Callable[..., DataConfig]


@pytest.fixture(scope="module")
def trained(corpus: DataConfig) -> Tokenizer:
    return Tokenizer.load(Path(corpus.folder) / "tokenizer")


def test_special_ids(trained: Tokenizer) -> None:
    pieces = trained.pieces()
    assert [pieces[i] for i in (PAD_ID, UNK_ID, BOS_ID, EOS_ID)] == [
        "<pad>",
        "<unk>",
        "<s>",
        "</s>",
    ]
    assert trained.vocab_size == len(pieces) == 350


def test_round_trip_of_any_text(trained: Tokenizer, capfd: pytest.CaptureFixture[str]) -> None:
    texts = ["bado figude", "½ … ﬁ １２ é", "雪 ئەلف 🦊", "a  b"]
    ids = trained.encode(texts)
    assert trained.decode(ids) == [*texts[:3], "a b"]
    assert all(UNK_ID not in sequence and EOS_ID not in sequence for sequence in ids)
    assert trained.decode([[BOS_ID, *ids[0], EOS_ID, PAD_ID]]) == texts[:1]
    assert trained.encode([]) == trained.decode([]) == []
    assert capfd.readouterr() == ("", "")


def test_same_text_gives_the_same_bytes(
    make_corpus: MakeCorpus, corpus: DataConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_corpus({"de": 150, "cs": 40})
    assert tokenizer.run(config) == tokenizer.run(corpus)
    first, second = (Path(c.folder) / "tokenizer/spm.model" for c in (config, corpus))
    assert first.read_bytes() == second.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_made_once_and_anew_when_the_configuration_changes(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 40})
    model = Path(config.folder) / "tokenizer/spm.model"
    before = tokenizer.run(config)
    made = model.stat().st_mtime_ns
    assert tokenizer.run(config) == before
    assert model.stat().st_mtime_ns == made
    changed = config.model_copy(update={"tokenizer": TokenizerConfig(vocab_size=340)})
    after = tokenizer.run(changed)
    assert after.vocab_size == 340
    assert after.fingerprint != before.fingerprint


def test_vocabulary_that_the_text_does_not_support(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 10}, tokenizer={"vocab_size": 5000})
    with pytest.raises(ConfigError) as caught:
        tokenizer.run(config)
    text = str(caught.value)
    assert text.startswith("data.tokenizer.vocab_size 5000 is more than the text supports (")
    assert not (Path(config.folder) / "tokenizer").exists()
    largest = int(text.rsplit(" ", 1)[1])
    fitting = config.model_copy(update={"tokenizer": TokenizerConfig(vocab_size=largest)})
    assert tokenizer.run(fitting).vocab_size == largest


def test_vocabulary_without_room_for_the_characters(make_corpus: MakeCorpus) -> None:
    config = make_corpus({"de": 10}, tokenizer={"vocab_size": 100})
    with pytest.raises(
        ConfigError, match=r"100 has no room for the text's characters; use at least"
    ):
        tokenizer.run(config)


def test_shared_english_counts_once(make_corpus: MakeCorpus) -> None:
    one = tokenizer.run(make_corpus({"de": 80}))
    two = tokenizer.run(make_corpus({"de": 80, "cs": 80}))
    # Half of the second pair's English is the first pair's.
    assert two.available_bytes["en"] == pytest.approx(1.5 * one.available_bytes["en"], rel=0.1)


@pytest.mark.parametrize(("temperature", "ratio"), [(1.0, 8.0), (5.0, 8 ** (1 / 5))])
def test_sample_is_balanced(make_corpus: MakeCorpus, temperature: float, ratio: float) -> None:
    settings = {"vocab_size": 300, "temperature": temperature, "max_training_bytes": 3000}
    config = make_corpus({"de": 800, "cs": 100}, tokenizer=settings)
    manifest = tokenizer.run(config)
    assert sum(manifest.sampled_bytes.values()) == pytest.approx(3000, rel=0.15)
    sampled = manifest.sampled_bytes
    assert sampled["de"] / sampled["cs"] == pytest.approx(ratio, rel=0.35)


def test_what_a_language_lacks_goes_to_the_others() -> None:
    config = TokenizerConfig(vocab_size=300, temperature=100, max_training_bytes=3000)
    budget = tokenizer._budgets({"en": 10_000, "de": 10_000, "cs": 100}, config)
    assert budget["cs"] == 100
    assert budget["en"] == pytest.approx(1450)
    assert sum(budget.values()) == pytest.approx(3000)


def test_missing_parts(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tokenizer; run `hyperadapter data tokenizer`"):
        Tokenizer.load(tmp_path / "nowhere")
    config = make_corpus({"de": 40})
    tokenizer.run(config)
    model = Path(config.folder) / "tokenizer/spm.model"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"spm.model has the SHA-256 .* but its manifest promises"):
        Tokenizer.load(model.parent)
    (Path(config.folder) / "clean/manifest.json").unlink()
    with pytest.raises(
        DataError, match="holds no clean corpus; run `hyperadapter data clean` first"
    ):
        tokenizer.run(config)
