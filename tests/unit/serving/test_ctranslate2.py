"""A CTranslate2 folder is the same model: scores, translations, and what it refuses."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import build_micro_batch
from data_pipeline.tokenizer import EOS_ID
from hyperadapter.cli import cli
from hyperadapter.cli import export as export_command
from hyperadapter.config import EvaluationConfig, SamplingConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, LanguageError
from hyperadapter.core.languages import parse_direction
from hyperadapter.evaluation.evaluate import evaluate
from hyperadapter.evaluation.translate import Translator, plain_text
from hyperadapter.model.batch import Batch
from hyperadapter.serving import ctranslate2_export
from hyperadapter.serving.ctranslate2 import (
    CTranslate2Translator,
    Quantization,
    is_ctranslate2,
)
from hyperadapter.serving.ctranslate2_export import export_ctranslate2

MakeRun = Callable[..., Any]
SEQUENTIAL = {"kind": "hyper", "bottleneck_dim": 4, "hyper_network": {"hyper_dim": 8}}
PARALLEL = SEQUENTIAL | {"placement": "parallel"}
DENSE = {"kind": "none"}
TEXTS = ["Open the file", "", "Save the last image now", "page", "\ufeff", "Close the menu", "Ω"]
FILLED = [text for text in TEXTS if plain_text(text)]
EVALUATION = EvaluationConfig(beam_size=3, length_penalty=1.0)
TAGS: list[dict[str, Any]] = [
    {},
    {"encoder": "target", "decoder": "none"},
    {"encoder": "none", "decoder": "target", "decoder_start": True},
    {"encoder": "source", "decoder": "source", "decoder_start": True},
]


def export(run: Any, tmp_path: Path, **options: Any) -> Path:
    out = tmp_path / "ct2"
    export_ctranslate2(run.run_dir, out, directions=["de-en"], **options)
    return out


@torch.no_grad()
def our_scores(run: Any, sources: list[str], targets: list[list[int]]) -> np.ndarray:
    """Returns the log-probabilities of all target pieces and end marks, sentence by sentence."""
    translator = Translator.from_run(run.run_dir)
    state = translator.prepare(parse_direction("de-en"))
    src = Ragged.from_lengths(*translator.tokenizer.encode_ragged(sources))
    tgt = Ragged.from_sequences([np.array(ids) for ids in targets])
    mb = build_micro_batch(state.layout, np.zeros(len(sources), np.int64), src, tgt)
    batch, model = Batch.from_micro_batch(mb), translator.model
    memory = model.encode(batch.src_N, batch.src, state.adapters)
    hidden = model.decode(batch.tgt_in_M, batch.tgt, memory, batch.src, state.adapters)
    scores = model.logits(hidden).log_softmax(-1).view(*mb.tgt_out_BT.shape, -1).numpy()
    gold = np.take_along_axis(scores, mb.tgt_out_BT[..., None], 2).squeeze(2)
    found: np.ndarray = gold[mb.has_target_BT]
    return found


def their_scores(
    translator: CTranslate2Translator, sources: list[str], targets: list[list[int]]
) -> np.ndarray:
    pieces, opening = translator.tokenizer.pieces(), list(translator.config.target_opening)
    src = [translator._source(ids.tolist()) for ids in translator.tokenizer.encode(sources)]
    tgt = [[*opening, *(pieces[number] for number in ids)] for ids in targets]
    found = translator._translator.score_batch(src, tgt)
    return np.concatenate([row.log_probs[len(opening) :] for row in found])


def both_scores(run: Any, translator: CTranslate2Translator) -> tuple[np.ndarray, np.ndarray]:
    """Returns our and their scores of sentences of very different lengths."""
    targets = [ids.tolist() for ids in translator.tokenizer.encode(FILLED[::-1])]
    return our_scores(run, FILLED, targets), their_scores(translator, FILLED, targets)


@pytest.mark.parametrize(
    ("adapter", "tags"),
    [
        *((adapter, {}) for adapter in (SEQUENTIAL, PARALLEL, DENSE)),
        (SEQUENTIAL | {"encoder_layers": []}, {}),
        (PARALLEL | {"decoder_layers": [1]}, {}),
        *((SEQUENTIAL, tags) for tags in TAGS[1:]),
    ],
)
def test_scores_and_greedy_translations_are_ours(
    tiny_run: MakeRun, tmp_path: Path, adapter: dict[str, Any], tags: dict[str, Any]
) -> None:
    run = tiny_run(adapter=adapter, data={"tags": tags})
    translator = CTranslate2Translator(export(run, tmp_path), "cpu")
    ours, theirs = both_scores(run, translator)
    np.testing.assert_allclose(theirs, ours, rtol=0.0, atol=1e-4)
    assert np.std(ours) > 0.1
    evaluation = translator.evaluation.model_copy(update={"beam_size": 1})
    expected = Translator.from_run(run.run_dir).translate(TEXTS, "de", "en", evaluation)
    assert translator.translate(TEXTS, "de", "en", evaluation) == expected
    assert any(expected)


@pytest.mark.parametrize("quantization", ["int8", "int8_float32", "bfloat16"])
def test_quantized_models_score_alike(
    tiny_run: MakeRun, tmp_path: Path, quantization: Quantization
) -> None:
    run = tiny_run(adapter=SEQUENTIAL)
    folder = export(run, tmp_path, quantization=quantization)
    translator = CTranslate2Translator(folder, "cpu")
    ours, theirs = both_scores(run, translator)
    gaps = np.abs(theirs - ours)
    assert np.isfinite(gaps).all()
    assert gaps.mean() < 0.05
    assert gaps.max() > 1e-6


def test_scores_of_a_search(tiny_run: MakeRun, tmp_path: Path) -> None:
    """With beams: texts may differ, because the two searches end by different rules."""
    run = tiny_run(adapter=SEQUENTIAL)
    translator = CTranslate2Translator(export(run, tmp_path), "cpu")
    gaps, scores = [], []
    for text, ids in zip(FILLED, translator.tokenizer.encode(FILLED), strict=True):
        source = translator._source(ids.tolist())
        ((found,),) = translator.search(translator.direction, [ids], EVALUATION, 1, None)
        assert set(found.ids).isdisjoint({0, 1, 2, EOS_ID})
        ours = our_scores(run, [text], [list(found.ids)])
        # Theirs may be as long as allowed without an end mark.
        longest = int(len(source) * EVALUATION.max_length_ratio) + EVALUATION.max_length_extra
        mean = (ours[:-1] if len(found.ids) == longest else ours).mean()
        scores.append(mean)
        gaps.append(found.score - mean)
    # They leave out what is forbidden before probabilities add up to 1.
    np.testing.assert_allclose(gaps, 0.0, rtol=0.0, atol=1e-3)
    assert np.ptp(scores) > 0.01


def test_what_is_never_produced(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    translator = CTranslate2Translator(export(tiny_run(adapter=DENSE), tmp_path), "cpu")
    engine, calls = translator._translator, []

    class Recorder:
        def translate_batch(self, *arguments: Any, **options: Any) -> Any:
            calls.append(options)
            return engine.translate_batch(*arguments, **options)

    monkeypatch.setattr(translator, "_translator", Recorder())
    translator.translate(["page"], "de", "en", EVALUATION)
    assert calls[0]["disable_unk"] is True
    assert calls[0]["suppress_sequences"] == [["<pad>"], ["<s>"]]
    assert calls[0]["length_penalty"] == 1.0


def test_several_translations(tiny_run: MakeRun, tmp_path: Path) -> None:
    translator = CTranslate2Translator(export(tiny_run(adapter=PARALLEL), tmp_path), "cpu")
    found = translator.translate_n_best(TEXTS, "de", "en", EVALUATION, n_best=3)
    best = translator.translate(TEXTS, "de", "en", EVALUATION)
    assert [translations[0].text for translations in found] == best
    for text, translations in zip(TEXTS, found, strict=True):
        scores = [translation.score for translation in translations]
        assert scores == ([0.0] if text not in FILLED else sorted(scores, reverse=True))
        assert len(scores) == (3 if text in FILLED else 1)
    found[1].append(found[0][0])
    assert found[4] == [("", 0.0)]  # empty ones share no list


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_a_gpu_can_be_named(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    folder, seen = export(tiny_run(adapter=DENSE), tmp_path), {}
    package = SimpleNamespace(Translator=lambda path, **options: seen.update(options))
    monkeypatch.setattr("hyperadapter.serving.ctranslate2.import_ctranslate2", lambda: package)
    CTranslate2Translator(folder, device)
    assert seen["device"] == device.removesuffix(":1")
    assert seen["device_index"] == (device == "cuda:1")


def test_long_texts_are_named(
    tiny_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    translator = CTranslate2Translator(export(tiny_run(adapter=DENSE), tmp_path), "cpu")
    with caplog.at_level(logging.WARNING):
        translator.translate(["Ω" * 30, "page"], "de", "en", EVALUATION)
    assert "1 of 2 texts are longer than the 40 tokens" in caplog.text


def test_the_folder(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run(adapter=SEQUENTIAL)
    folder = export(run, tmp_path)
    assert is_ctranslate2(folder)
    vocabulary = json.loads((folder / "shared_vocabulary.json").read_text())
    assert len(vocabulary) == 312
    assert vocabulary[310:] == ["__en__", "__de__"]
    about = json.loads((folder / "hyperadapter.json").read_text())
    assert (about["source_opening"], about["target_opening"]) == (["__de__"], [])
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(about["files"]) == files - {"hyperadapter.json"}
    card = (folder / "README.md").read_text()
    assert "Translates de-en. A pre-LayerNorm Transformer with its adapters made" in card
    assert "stored as a CTranslate2 model in float32" in card
    assert "`hyperadapter.json` has all of them" in card


def test_the_card_says_whose_scores_it_shows(tiny_run: MakeRun, tmp_path: Path) -> None:
    """In float32 too: the two beam searches end by different rules."""
    run = tiny_run(adapter=DENSE)
    evaluate(run.run_dir, run.config)
    card = (export(run, tmp_path) / "README.md").read_text()
    assert "| de-en | 12 |" in card
    assert "scores are of the run in fp32, not of a CTranslate2 model in float32, whose" in card


@pytest.mark.parametrize("adapter", [SEQUENTIAL, PARALLEL])
def test_room_is_asked_for_all_that_is_written(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict[str, Any]
) -> None:
    asked: list[tuple[Path, int, str]] = []
    monkeypatch.setattr(ctranslate2_export, "require_space", lambda *given: asked.append(given))
    out = export(tiny_run(adapter=adapter), tmp_path)
    size = (out / "model.bin").stat().st_size
    ((place, num_bytes, _),) = asked
    assert place == out
    assert 0 < size - num_bytes < 10_000  # the tensors' names


def test_what_is_refused(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run(adapter=SEQUENTIAL)
    folder = export(run, tmp_path)
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        export(run, tmp_path)
    for wanted in (None, ["en-de", "de-en"]):
        with pytest.raises(ConfigError, match=r"adapters of one direction .* --directions"):
            export_ctranslate2(run.run_dir, tmp_path / "x", directions=wanted)
    translator = CTranslate2Translator(folder, "cpu")
    with pytest.raises(LanguageError, match="translates de-en and not en-de"):
        translator.translate(TEXTS, "en", "de")
    with pytest.raises(ConfigError, match="a text has 603 tokens, but the folder has 512"):
        translator.translate(["Ω" * 300], "de", "en")
    drawn = EvaluationConfig(sampling=SamplingConfig())
    with pytest.raises(ConfigError, match=r"sampling is .* CTranslate2 does not offer"):
        translator.translate(TEXTS, "de", "en", drawn)
    with pytest.raises(ConfigError, match=r"coverage_penalty is 0\.2, which"):
        translator.translate(TEXTS, "de", "en", EvaluationConfig(coverage_penalty=0.2))
    with pytest.raises(ConfigError, match=r"prefixes are given, which"):
        translator.translate_n_best(["A"], "de", "en", prefixes=["A"])
    with pytest.raises(ConfigError, match=r"n_best is 4, but .* beam_size 3 finds 1 to 3"):
        translator.translate_n_best(["A"], "de", "en", EVALUATION, n_best=4)


def test_damaged_folders(tiny_run: MakeRun, tmp_path: Path) -> None:
    folder = export(tiny_run(adapter=DENSE), tmp_path)
    (folder / "README.md").write_text("mine")  # may be edited
    assert CTranslate2Translator(folder, "cpu").evaluation.beam_size >= 1
    about = json.loads((folder / "hyperadapter.json").read_text())
    (folder / "hyperadapter.json").write_text(json.dumps(about | {"format": 2}))
    with pytest.raises(CheckpointError, match=r"has format 2, but this version .* reads format 1"):
        CTranslate2Translator(folder, "cpu")
    (folder / "hyperadapter.json").write_text(json.dumps(about))
    files = {name: x for name, x in about["files"].items() if name != "config.json"}
    (folder / "hyperadapter.json").write_text(json.dumps(about | {"files": files}))
    with pytest.raises(CheckpointError, match=r"/config\.json is missing, or not the one that"):
        CTranslate2Translator(folder, "cpu")
    (folder / "hyperadapter.json").write_text(json.dumps(about))
    with (folder / "model.bin").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    with pytest.raises(CheckpointError, match=r"model\.bin is missing, or not the one that"):
        CTranslate2Translator(folder, "cpu")


def test_without_the_package(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(adapter=DENSE)
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(ConfigError, match=r"pip install 'hyperadapter\[ctranslate2\]'"):
        export(run, tmp_path)
    assert not (tmp_path / "ct2").exists()


def test_the_command(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run(adapter=SEQUENTIAL)
    arguments = ["export", "--run", str(run.run_dir), "--directions", "fr-en"]
    ct2 = [*arguments, "--out", str(tmp_path / "x"), "--format", "ctranslate2"]
    done = CliRunner().invoke(cli, [*ct2, "--quantization", "int8", "--json"])
    report = json.loads(done.stdout)
    assert (report["direction"], report["quantization"]) == ("fr-en", "int8")
    assert (report["num_layers"], report["vocab_size"]) == (6, 312)
    done = CliRunner().invoke(cli, [*arguments, "--out", "y", "--quantization", "int8"])
    assert done.exit_code == 2
    assert "--quantization is for --format ctranslate2, not bundle" in done.stderr
    assert get_args(Quantization) == export_command._QUANTIZATIONS
