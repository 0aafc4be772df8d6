"""The translator: order, tags and adapters of each direction, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from data_pipeline.tokenizer import UNK_ID, Tokenizer
from hyperadapter.core.errors import CheckpointError, ConfigError, LanguageError
from hyperadapter.evaluation import translate
from hyperadapter.evaluation.translate import Translation, Translator
from hyperadapter.model.batch import Batch
from hyperadapter.model.rows import Rows
from hyperadapter.model.seq2seq import Seq2Seq

MakeRun = Callable[..., Any]
TEXTS = ["Open the file", "", "Save the last image now", "page", "   ", "Close the old menu"]


def adapter(kind: str) -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": kind, "bottleneck_dim": 4}
    return tree | ({"hyper_network": {"hyper_dim": 8}} if kind == "hyper" else {})


@pytest.mark.parametrize("batch_sentences", [1, 2, 64])
def test_order_is_restored_and_batches_change_nothing(
    tiny_run: MakeRun, batch_sentences: int
) -> None:
    run = tiny_run(evaluation={"batch_sentences": batch_sentences})
    translator = Translator.from_run(run.run_dir)
    alone = [translator.translate([text], "en", "de")[0] for text in TEXTS]
    assert translator.translate(TEXTS, "en", "de") == alone
    assert [not text for text in alone] == [not text.strip() for text in TEXTS]
    assert len(set(alone)) == 5


def test_nothing_to_translate(tiny_run: MakeRun) -> None:
    translator = Translator.from_run(tiny_run().run_dir)
    assert translator.translate([], "en", "de") == []
    found = translator.translate_n_best(["", "\ufeff", " \t"], "en", "de")
    found[0].append(Translation("mine", 1.0))
    assert found[1:] == [[("", 0.0)]] * 2  # empty ones share no list
    assert translator.translate(["", " "], "en", "de") == ["", ""]


@pytest.mark.parametrize("kind", ["hyper", "language", "direction"])
def test_directions_have_translations_of_their_own(tiny_run: MakeRun, kind: str) -> None:
    translator = Translator.from_run(tiny_run(adapter=adapter(kind)).run_dir)
    to_german = translator.translate(TEXTS, "en", "de")
    assert translator.translate(TEXTS, "en", "fr") != to_german
    assert translator.translate(TEXTS, "en", "de") == to_german


def test_prompts_hold_the_tags_of_the_direction(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    translator = Translator.from_run(run.run_dir)
    seen: list[Batch] = []
    search = translate.search_n_best

    def spy(model: Seq2Seq, prompts: Batch, *rest: Any, **options: Any) -> Any:
        seen.append(prompts)
        return search(model, prompts, *rest, **options)

    monkeypatch.setattr(translate, "search_n_best", spy)
    translator.translate(["page"], "fr", "en")
    num_pieces = translator.tokenizer.vocab_size
    ids = translator.tokenizer.encode(["page"])[0].tolist()
    [batch] = seen
    assert batch.src_N.tolist() == [num_pieces + 2, *ids, 3]
    assert batch.tgt_in_M.tolist() == [num_pieces + 0]


def test_adapters_are_made_once_for_a_direction(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Translator.from_run(tiny_run(evaluation={"batch_sentences": 1}).run_dir)
    made: list[tuple[int, ...]] = []
    provide = Seq2Seq.adapter_weights

    def counted(self: Seq2Seq, *keys: Tensor) -> Any:
        made.append(tuple(int(key) for key in keys))
        return provide(self, *keys)

    monkeypatch.setattr(Seq2Seq, "adapter_weights", counted)
    for _ in range(2):
        translator.translate(TEXTS, "en", "de")
        translator.translate(TEXTS, "fr", "en")
    # Source language, target language, and number of the direction.
    assert made == [(0, 1, 0), (2, 0, 3)]


@pytest.mark.parametrize("kind", ["none", "hyper", "language", "family"])
def test_zero_shot_is_allowed_and_said(
    tiny_run: MakeRun, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    translator = Translator.from_run(tiny_run(adapter=adapter(kind)).run_dir)
    with caplog.at_level(logging.WARNING):
        assert len(translator.translate(["Datei", "neu"], "de", "fr")) == 2
        translator._states.clear()  # as when other directions have taken its place
        translator.translate(["alt"], "de", "fr")
    assert caplog.messages == ["de-fr was not in the training data: this is zero-shot translation"]


def test_direction_adapters_have_no_zero_shot(tiny_run: MakeRun) -> None:
    translator = Translator.from_run(tiny_run(adapter=adapter("direction")).run_dir)
    with pytest.raises(LanguageError) as error:
        translator.translate(["Datei"], "de", "fr")
    assert str(error.value) == (
        "this run was not trained to translate de-fr, and its direction adapters exist for trained "
        "directions only: en-de, de-en, en-fr, fr-en"
    )


def test_unknown_language_names_the_known_and_the_nearest(tiny_run: MakeRun) -> None:
    translator = Translator.from_run(tiny_run().run_dir)
    with pytest.raises(LanguageError) as error:
        translator.translate(["x"], "en", "dee")
    assert str(error.value) == (
        "this run has no language 'dee' (did you mean 'de'?); its languages are en, de, fr"
    )
    with pytest.raises(LanguageError, match="no language 'is'; its languages are en, de, fr"):
        translator.translate(["x"], "is", "en")
    with pytest.raises(LanguageError, match="source and target are both 'de'"):
        translator.translate(["x"], "de", "de")


def test_a_long_text_is_translated_whole_and_counted(
    tiny_run: MakeRun, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(evaluation={"beam_size": 1, "max_length_ratio": 0.001})
    translator = Translator.from_run(run.run_dir)
    long = "Open the file " * 150
    lengths: list[int] = []
    encode = Seq2Seq.encode

    def spy(self: Seq2Seq, src_N: Tensor, src: Rows, *rest: Any) -> Tensor:
        lengths.append(src.width)
        return encode(self, src_N, src, *rest)

    monkeypatch.setattr(Seq2Seq, "encode", spy)
    num_tokens = len(translator.tokenizer.encode([long])[0]) + 1
    # More than the position encodings that the model is built with.
    assert num_tokens > 512
    with caplog.at_level(logging.WARNING):
        assert all(translator.translate(["page", long], "en", "de"))
    assert lengths[0] == num_tokens + 1
    assert len(lengths) == 2  # the short text is not made as long
    [message] = caplog.messages
    assert message.startswith("1 of 2 texts so far are longer than the 40 tokens of the longest")
    assert f"(one has {num_tokens})" in message


def test_long_texts_are_said_again_when_they_are_many_more(
    tiny_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run(evaluation={"beam_size": 1, "max_length_ratio": 0.001, "max_length_extra": 1})
    translator = Translator.from_run(run.run_dir)
    long = "Open the file " * 20
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            translator.translate([long, "page", long, long], "en", "de")
    assert [message[:20] for message in caplog.messages] == [
        "3 of 4 texts so far ",
        "12 of 16 texts so fa",
    ]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_long_texts_make_smaller_batches(size: int) -> None:
    lengths = np.random.default_rng(1).integers(0, 40, 100).tolist()

    def batches(*longer: int) -> list[list[int]]:
        pieces = [np.zeros(length, np.int32) for length in [*lengths, *longer]]
        return translate._batches(pieces, size, 40)

    order = sorted(range(100), key=lambda row: -lengths[row])
    assert batches() == [order[start : start + size] for start in range(0, 100, size)]
    longer = [10_000, 300, 299, 90, 45]
    all_lengths = [*lengths, *longer]
    found = batches(*longer)
    assert sorted(row for rows in found for row in rows) == list(range(105))
    for rows in found:
        padded = len(rows) * (max(all_lengths[row] for row in rows) + 1)
        assert len(rows) == 1 or padded <= size * 40
        assert len(rows) <= size
    assert found[0] == [100]


def test_a_translation_is_one_line(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator.from_run(tiny_run().run_dir)
    spelled = "\n a\r\nb\u2028 c\x85\td "
    monkeypatch.setattr(Tokenizer, "decode", lambda self, rows: [spelled for _ in rows])
    assert translator.translate(["x"], "en", "de") == ["a b c d"]


def test_the_best_of_several_is_the_translation(tiny_run: MakeRun) -> None:
    translator = Translator.from_run(tiny_run(evaluation={"batch_sentences": 2}).run_dir)
    found = translator.translate_n_best(TEXTS, "en", "de", n_best=3)
    assert [best.text for best, *_ in found] == translator.translate(TEXTS, "en", "de")
    for text, translations in zip(TEXTS, found, strict=True):
        scores = [translation.score for translation in translations]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == (3 if text.strip() else 1)
        if not text.strip():
            assert translations == [("", 0.0)]


def test_translations_begin_as_they_should(tiny_run: MakeRun) -> None:
    translator = Translator.from_run(tiny_run(evaluation={"batch_sentences": 2}).run_dir)
    prefixes = ["Öffne das", "", "Speichere", "", "unused", " Schließe  das neue Fen"]
    found = translator.translate_n_best(TEXTS, "en", "de", n_best=2, prefixes=prefixes)
    for index in (0, 2, 5):
        for translation in found[index]:
            assert translation.text.startswith(" ".join(prefixes[index].split()))
    assert found[1] == found[4] == [("", 0.0)]
    [free] = translator.translate_n_best([TEXTS[3]], "en", "de", n_best=2)
    assert [t.text for t in found[3]] == [t.text for t in free]
    without = translator.translate_n_best(TEXTS, "en", "de", prefixes=[""] * 6)
    assert without == translator.translate_n_best(TEXTS, "en", "de")


@pytest.mark.parametrize(
    ("prefixes", "message"),
    [
        (["x"], "prefixes is 1, but there are 2 texts; give one prefix for each"),
        ("xy", "prefixes is one text, but there are 2 texts"),
    ],
)
def test_each_text_has_a_prefix(tiny_run: MakeRun, prefixes: Any, message: str) -> None:
    translator = Translator.from_run(tiny_run().run_dir)
    with pytest.raises(ConfigError, match=message):
        translator.translate_n_best(["a", "b"], "en", "de", prefixes=prefixes)


def test_a_prefix_that_cannot_be_written(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = Translator.from_run(tiny_run().run_dir)
    unknown = np.array([5, UNK_ID], np.int32)  # a tokenizer without byte pieces
    monkeypatch.setattr(Tokenizer, "encode", lambda self, texts: [unknown for _ in texts])
    with pytest.raises(ConfigError, match="the prefix '❧' has characters that the tokenizer does"):
        translator.translate_n_best(["a"], "en", "de", prefixes=["❧"])


@pytest.mark.parametrize("batch_sentences", [1, 64])
def test_draws_do_not_depend_on_batches(tiny_run: MakeRun, batch_sentences: int) -> None:
    sampling = {"temperature": 1.3, "top_p": 0.9}
    evaluation = {"batch_sentences": batch_sentences, "sampling": sampling, "beam_size": 1}
    translator = Translator.from_run(tiny_run(evaluation=evaluation).run_dir)
    found = translator.translate_n_best(TEXTS, "en", "de", n_best=4)
    alone = [translator.translate_n_best([text], "en", "de", n_best=4)[0] for text in TEXTS]
    for one, other in zip(found, alone, strict=True):
        assert [t.text for t in one] == [t.text for t in other]
        assert [t.score for t in one] == pytest.approx([t.score for t in other], rel=1e-4)
    assert [len(set(one)) for one in found] == [4, 1, 4, 4, 1, 4]
    assert translator.translate(TEXTS, "en", "de") == [one.text for one, *_ in found]


def test_options_are_looked_at_before_anything_is_translated(tiny_run: MakeRun) -> None:
    translator = Translator.from_run(tiny_run(evaluation={"beam_size": 3}).run_dir)
    with pytest.raises(ConfigError, match="n_best is 4, but a search with beam_size 3"):
        translator.translate_n_best([], "en", "de", n_best=4)


def test_the_newest_checkpoint_is_used(tiny_run: MakeRun) -> None:
    run = tiny_run()
    first = Translator.from_run(run.run_dir)
    run.save(step=200, seed=2)
    second = Translator.from_run(run.run_dir)
    assert (first.info.step, second.info.step) == (100, 200)
    assert first.translate(TEXTS, "en", "de") != second.translate(TEXTS, "en", "de")


def test_a_run_without_checkpoint(tiny_run: MakeRun) -> None:
    run = tiny_run()
    (run.run_dir / "checkpoints" / "step-00000100" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        Translator.from_run(run.run_dir)


def test_a_tokenizer_made_anew_is_refused(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    load = Tokenizer.load

    def load_another(folder: Path) -> Tokenizer:
        tokenizer = load(folder)
        tokenizer.fingerprint = "another"
        return tokenizer

    monkeypatch.setattr(Tokenizer, "load", load_another)
    with pytest.raises(CheckpointError, match=r"of 310 pieces, .* is another of 310; it was made"):
        Translator.from_run(run.run_dir)


def test_texts_are_written_as_training_text_is() -> None:
    assert translate.plain_text("\ufeffO\u0308l  und\u00a0Gas\r") == "\u00d6l und Gas"
    assert translate.plain_text("Öl und Gas") == "Öl und Gas"
