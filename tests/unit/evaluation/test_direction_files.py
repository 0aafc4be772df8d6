"""What an evaluation knows of earlier ones: texts and scores, and what asks for new ones."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperadapter.core.files import read_json, sha256_file, write_json, write_text
from hyperadapter.evaluation.evaluate import evaluate
from hyperadapter.evaluation.score import CorpusScorer
from hyperadapter.evaluation.translate import Translator
from tests.unit.evaluation.test_evaluate import (
    decoded,  # noqa: F401 (a fixture)
    lines,
    scores_file,
    with_evaluation,
)

MakeRun = Callable[..., Any]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the corpora in the order in which they are scored."""
    calls: list[int] = []
    scores = CorpusScorer.scores

    def spy(self: CorpusScorer, hypotheses: Sequence[str], *rest: Any) -> Any:
        calls.append(len(hypotheses))
        return scores(self, hypotheses, *rest)

    monkeypatch.setattr(CorpusScorer, "scores", spy)
    return calls


def test_what_was_scored_is_not_scored_again(
    tiny_run: MakeRun, scored: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run()
    first = evaluate(run.run_dir, run.config)
    assert scored == [12, 12] * 4  # translations and sources
    scored.clear()
    monkeypatch.setattr("hyperadapter.evaluation.evaluate.judge_translations", None)
    assert evaluate(run.run_dir, run.config) == first
    assert scored == []


@pytest.mark.parametrize("change", ["metrics", "quality", "reference", "package", "fresh"])
def test_what_changed_is_scored_again(
    tiny_run: MakeRun,
    scored: list[int],
    tmp_path: Path,
    data_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    run = tiny_run()
    shutil.copytree(data_folder, tmp_path / "data")
    data = run.config.data.model_copy(update={"folder": str(tmp_path / "data")})
    config = run.config.model_copy(update={"data": data})
    first = evaluate(run.run_dir, config, directions=["en-de", "en-fr"])
    scored.clear()
    path = tmp_path / "data" / "clean" / "test" / "en-de.tsv"
    text = path.read_text(encoding="utf-8")
    if change == "metrics":
        config = with_evaluation(config, metrics=("bleu", "chrf", "chrfpp", "ter"))
    elif change == "quality":
        quality = config.evaluation.quality.model_copy(update={"min_letters": 1000})
        config = with_evaluation(config, quality=quality)
    elif change == "reference":
        write_text(path, text.replace("Bild", "Foto"))
    elif change == "package":
        monkeypatch.setattr("hyperadapter.evaluation.direction_files.version", lambda _: "9.9")
    else:
        head, _, rest = text.partition("\n")
        assert head.endswith("\t1")
        write_text(path, f"{head[:-1]}0\n{rest}")
    second = evaluate(run.run_dir, config, directions=["en-de", "en-fr"])
    own = change in ("reference", "fresh")
    assert scored == [12, 12] * (1 if own else 2)
    assert (first.directions[0] == second.directions[0]) is (change == "package")


def test_older_manifests_without_scores_are_known(
    tiny_run: MakeRun,
    decoded: list[str],  # noqa: F811
    scored: list[int],
) -> None:
    run = tiny_run()
    first = evaluate(run.run_dir, run.config, directions=["en-de"])
    path = scores_file(run, "en-de.json")
    manifest = read_json(path)
    write_json(path, {k: v for k, v in manifest.items() if k not in ("scored", "result")})
    decoded.clear()
    scored.clear()
    assert evaluate(run.run_dir, run.config, directions=["en-de"]) == first
    assert (decoded, scored) == ([], [12, 12])


@pytest.mark.parametrize("damage", ["score", "translation"])
def test_scores_that_cannot_be_read_cost_no_translations(
    tiny_run: MakeRun,
    decoded: list[str],  # noqa: F811
    scored: list[int],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    run = tiny_run()
    first = evaluate(run.run_dir, run.config, directions=["en-de"])
    path = scores_file(run, "en-de.json")
    manifest = read_json(path)
    if damage == "score":
        manifest["result"]["later"] = 1  # of another version
    else:
        manifest["sentences"] = "twelve"
    write_json(path, manifest)
    decoded.clear()
    scored.clear()
    with caplog.at_level(logging.WARNING):
        second = evaluate(run.run_dir, run.config, directions=["en-de"])
    assert second.directions[0].model == first.directions[0].model
    assert scored == [12, 12]
    assert decoded == ([] if damage == "score" else ["en-de"])
    assert f"en-de is {'scored' if damage == 'score' else 'decoded'} again: " in caplog.text


def test_older_translations_are_known(tiny_run: MakeRun) -> None:
    run = tiny_run()
    evaluate(run.run_dir, run.config, directions=["en-de"])
    search = {
        "beam_size": 4,
        "length_penalty": 1.0,
        "max_length_ratio": 0.5,
        "max_length_extra": 3,
        "batch_sentences": 64,
        "max_sentences": 1000,
    }
    weights = sha256_file(next((run.run_dir / "checkpoints").glob("*/weights.safetensors")))
    src = lines(scores_file(run, "en-de.src.txt"))
    identity = json.dumps([weights, search, "cpu", "en-de", src], sort_keys=True)
    # As it was before searches had more settings.
    known = hashlib.sha256(identity.encode()).hexdigest()
    assert read_json(scores_file(run, "en-de.json"))["fingerprint"] == known


def test_there_are_no_more_processes_than_chunks(
    tiny_run: MakeRun,
    decoded: list[str],  # noqa: F811
) -> None:
    run = tiny_run()
    several = with_evaluation(run.config, num_processes=3)
    result = evaluate(run.run_dir, several, directions=["en-de"])
    assert decoded == ["en-de"]  # by this process, with all its threads
    assert (result.speed.world_size, result.speed.threads) == (1, torch.get_num_threads())


def test_the_number_of_processes_decides_no_result(
    tiny_run: MakeRun,
    decoded: list[str],  # noqa: F811
    scored: list[int],
) -> None:
    run = tiny_run(evaluation={"batch_sentences": 1})  # chunks of 4
    several = with_evaluation(run.config, num_processes=2)
    first = evaluate(run.run_dir, several)
    assert (first.speed.world_size, decoded) == (2, [])
    folder = run.run_dir / "evaluation" / "test"
    translator = Translator.from_run(run.run_dir)
    for src, tgt in (("en", "de"), ("fr", "en")):
        hyp = translator.translate(lines(folder / f"{src}-{tgt}.src.txt"), src, tgt)
        assert lines(folder / f"{src}-{tgt}.hyp.txt") == hyp
    decoded.clear()
    scored.clear()
    second = evaluate(run.run_dir, run.config)
    assert (decoded, scored) == ([], [])
    assert second.directions == first.directions
    assert second.settings == first.settings == run.config.evaluation
    assert second.speed.world_size == 1
