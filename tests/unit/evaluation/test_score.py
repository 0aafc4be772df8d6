"""Scores are sacreBLEU's own, and never travel without their signature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.languages import known_languages
from hyperadapter.evaluation import score as score_module
from hyperadapter.evaluation.score import (
    BASIC_METRICS,
    METRICS,
    Metric,
    Score,
    Scores,
    bleu_tokenizer,
    require_models,
    score_corpus,
    sentence_statistics,
)

REFERENCES = {
    "de": [
        "Die Datei wurde nicht gefunden.",
        "Öffnen Sie das Menü.",
        "Ein Fehler ist aufgetreten!",
    ],
    "zh-Hans": ["找不到文件。", "打开菜单。", "发生了一个错误！"],
    "ja": ["ファイルが見つかりません。", "メニューを開きます。", "エラーが発生しました。"],
}
HYPOTHESES = {
    "de": ["Die Datei wurde nie gefunden.", "Öffne das Menü.", "Ein Fehler ist aufgetreten ."],
    "zh-Hans": ["找不到该文件。", "打开这个菜单。", "发生了错误！"],
    "ja": ["ファイルは見つかりません。", "メニューを開く。", "エラーが発生しました。"],
}


@pytest.mark.parametrize(("tgt", "tokenizer"), [("de", "13a"), ("zh-Hans", "zh"), ("ja", "char")])
def test_figures_and_signatures_equal_the_command_line(
    tmp_path: Path, tgt: str, tokenizer: str
) -> None:
    for name, lines in (("ref", REFERENCES[tgt]), ("hyp", HYPOTHESES[tgt])):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    scores = score_corpus(HYPOTHESES[tgt], REFERENCES[tgt], tgt, (*BASIC_METRICS, "ter"))
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-w", "9", "-f", "json"]
    runs = {
        ("bleu",): ["-m", "bleu", "--tokenize", tokenizer],
        ("chrf",): ["-m", "chrf"],
        ("chrfpp",): ["-m", "chrf", "--chrf-word-order", "2"],
    }
    if tgt == "de":
        runs = {("bleu", "chrfpp", "ter"): ["-m", "bleu", "chrf", "ter", "--chrf-word-order", "2"]}
    for metrics, options in runs.items():
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout)
        found = found if isinstance(found, list) else [found]
        for metric, report in zip(metrics, found, strict=True):
            score: Score = getattr(scores, metric)
            assert score.value == pytest.approx(report["score"], abs=1e-8)
            assert score.signature == report["signature"]
            assert 0 < score.value < 100


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("en", "13a"),
        ("ru", "13a"),
        ("ar", "13a"),
        ("zh-Hans", "zh"),
        ("zh-Hant", "zh"),
        ("yue", "zh"),
        ("ja", "char"),
        ("ko", "char"),
        ("th", "char"),
        ("km", "char"),
        ("my", "char"),
        ("lo", "char"),
        ("bo", "char"),
    ],
)
def test_tokenizer_of_the_target_language(language: str, tokenizer: str) -> None:
    assert bleu_tokenizer(language) == tokenizer
    assert f"|tok:{tokenizer}|" in score_corpus(["a"], ["a"], language).bleu.signature


def test_no_tokenizer_needs_a_download() -> None:
    assert {bleu_tokenizer(code) for code in known_languages()} == {"13a", "char", "zh"}


def test_a_perfect_translation_and_a_wrong_one() -> None:
    lines = REFERENCES["de"]
    assert score_corpus(lines, lines, "de").bleu.value == pytest.approx(100)
    worst = score_corpus(["", "", ""], lines, "de")
    assert [worst.value(metric) for metric in BASIC_METRICS] == [0.0, 0.0, 0.0]


def test_chrf_and_chrfpp_differ_as_their_signatures_say() -> None:
    scores = score_corpus(HYPOTHESES["de"], REFERENCES["de"], "de")
    assert scores.chrf.value != scores.chrfpp.value
    assert "|nw:0|" in scores.chrf.signature
    assert "|nw:2|" in scores.chrfpp.signature


def test_a_score_shows_its_signature_and_cannot_be_made_without() -> None:
    score = score_corpus(["a b c d e"], ["a b c d f"], "de").chrf
    assert str(score) == f"chrF {score.value:.1f} [{score.signature}]"
    with pytest.raises(ValidationError, match="signature"):
        Score(metric="bleu", value=1.0)  # type: ignore[call-arg]


def test_scores_come_back_from_json() -> None:
    scores = score_corpus(["a b c d e"], ["a b c d f"], "de")
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_nothing_to_score() -> None:
    with pytest.raises(DataError, match="no translations into de to score"):
        score_corpus([], [], "de")
    with pytest.raises(DataError, match=r"1 translations into de cannot .* 2 references: line n"):
        score_corpus(["a"], ["a", "b"], "de")


# ------------------------------------------------------------------------------ what is asked for


@pytest.fixture
def flores200(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as SACREBLEU names it, for this process and those that it starts; still empty."""
    monkeypatch.setenv("SACREBLEU", str(tmp_path))
    for module in (score_module.utils, score_module.tokenizer_spm):
        monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))
    return tmp_path / "models" / "flores200sacrebleuspm"


def test_spbleu_equals_the_command_line(tmp_path: Path, flores200: Path) -> None:
    import sentencepiece

    flores200.parent.mkdir()
    with flores200.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(REFERENCES["de"]), model_writer=stream, vocab_size=34,
            minloglevel=2,
        )  # fmt: skip
    for name, lines in (("ref", REFERENCES["de"]), ("hyp", HYPOTHESES["de"])):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    scores = score_corpus(HYPOTHESES["de"], REFERENCES["de"], "de", (*BASIC_METRICS, "spbleu"))
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-w", "9", "-f", "json"]
    done = subprocess.run(
        [*command, "--tokenize", "flores200"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert scores.spbleu is not None
    assert scores.spbleu.value == pytest.approx(report["score"], abs=1e-8)
    assert scores.spbleu.signature == report["signature"]
    assert "tok:flores200" in scores.spbleu.signature
    assert scores.spbleu.value != scores.bleu.value


@pytest.mark.parametrize("empty", [False, True])
def test_without_its_model_spbleu_says_which_file_belongs_where(
    flores200: Path, empty: bool
) -> None:
    if empty:  # what an interrupted download leaves
        flores200.parent.mkdir()
        flores200.touch()
    with pytest.raises(ConfigError) as error:
        require_models(METRICS)
    for part in (str(flores200), "nothing is downloaded", "--tokenize flores200", "SACREBLEU"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="spbleu in evaluation"):
        score_corpus(["a"], ["a"], "de", METRICS)
    require_models((*BASIC_METRICS, "ter"))


def test_a_metric_that_was_not_asked_for_is_missing_and_says_how_to_get_it() -> None:
    scores = score_corpus(["a b"], ["a c"], "de")
    assert [score.metric for score in scores.all()] == list(BASIC_METRICS)
    with pytest.raises(DataError, match=r"TER was not computed; add ter to evaluation\.metrics"):
        scores.value("ter")
    assert score_corpus(["a b"], ["a c"], "de", (*BASIC_METRICS, "ter")).value("ter") == 50


@pytest.mark.parametrize("metric", BASIC_METRICS)
def test_statistics_of_sentences_carry_the_signature_of_the_score(metric: Metric) -> None:
    statistics, signature = sentence_statistics(HYPOTHESES["ja"], REFERENCES["ja"], "ja", metric)
    scores = score_corpus(HYPOTHESES["ja"], REFERENCES["ja"], "ja")
    assert signature == scores.score(metric).signature
    assert statistics.shape == (3, {"bleu": 10, "chrf": 18, "chrfpp": 24}[metric])
    with pytest.raises(DataError, match="1 translations into de cannot"):
        sentence_statistics(["a"], [], "de", metric)
