"""Catalogs and raw text to BLEU with the one command, which must have learnt to translate."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.bitext import SPLITS, read_split
from hyperadapter.core.events import read_metric
from hyperadapter.core.files import sha256_file
from hyperadapter.core.schema import read_yaml
from hyperadapter.evaluation.evaluate import load_result
from hyperadapter.evaluation.score import score_corpus
from tests.tiny_corpus import FRENCH, GERMAN, NOT_IN_THE_CORPUS

pytestmark = pytest.mark.slow

Command = Callable[..., "subprocess.CompletedProcess[str]"]

DIRECTIONS = ("en-de", "de-en", "en-fr", "fr-en")
STEPS = 330
SENTENCES = 20


@pytest.fixture(scope="module")
def finished(
    corpus: Path, hyperadapter: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run folder after `hyperadapter run`, with MLflow on SQLite."""
    run_dir = tmp_path_factory.mktemp("e2e") / "run"
    changes = [
        f"run_dir={run_dir}", "tracking.enabled=true", "training.num_processes=2",
        "training.zero_stage=2", f"training.max_steps={STEPS}", "training.micro_batch_tokens=500",
        f"training.validation.every_steps={STEPS // 3}", f"evaluation.max_sentences={SENTENCES}",
        # Large and fast enough to learn where a word's translation stands.
        "model.d_model=64", "model.ffn_dim=128", "model.num_heads=4", "model.dropout=0.0",
        "training.learning_rate=5e-3", "training.schedule.warmup_steps=30",
        "training.label_smoothing=0.0",
    ]  # fmt: skip
    sets = [part for change in changes for part in ("--set", change)]
    done = hyperadapter("run", "--config", str(corpus / "run.yaml"), *sets)
    assert done.returncode == 0, done.stderr[-3000:]
    return run_dir, done


def lines(run_dir: Path, direction: str, kind: str) -> list[str]:
    path = run_dir / "evaluation" / "test" / f"{direction}.{kind}.txt"
    return path.read_text(encoding="utf-8").splitlines()


def test_catalogs_and_columns_arrive_whole(corpus: Path, hyperadapter: Command) -> None:
    clean = corpus / "data" / "clean"
    for language, expected in {"de": GERMAN, "fr": FRENCH}.items():
        splits = [read_split(clean, split, ("en", language)) for split in SPLITS]
        found = [row for text in splits for row in zip(text.a, text.b, strict=True)]
        assert sorted(found) == sorted(expected)
    done = hyperadapter("data", "stats", "--config", str(corpus / "run.yaml"), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["pairs"]["en-de"]["dropped"] == NOT_IN_THE_CORPUS


def test_the_model_translates(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run_dir, _ = finished
    scores = load_result(run_dir)
    assert {item.direction for item in scores.directions} == set(DIRECTIONS)
    for item in scores.directions:
        assert item.model.chrf.value > item.copy_source.chrf.value + 10, item.direction
        # A model that ignores its source would do as well against another sentence's reference.
        hyp, ref = (lines(run_dir, item.direction, kind) for kind in ("hyp", "ref"))
        other = score_corpus(hyp, ref[1:] + ref[:1], item.direction[-2:])
        assert item.model.chrf.value > other.chrf.value + 10, item.direction
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["macro_chrf_into_en"] > summary["macro_chrf_into_en_copy"] + 10
    for direction in DIRECTIONS:
        history = read_metric(run_dir, f"valid/{direction}/nll")
        assert [step for step, _ in history] == [STEPS // 3, STEPS // 3 * 2, STEPS]
        assert history[-1][1] < history[0][1] - 0.3


def test_the_summary_holds_what_a_comparison_needs(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, done = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["directions"] == len(DIRECTIONS)
    assert summary["steps"] == STEPS
    macro = load_result(run_dir).macro
    assert len(macro) >= 12
    assert {key: summary[key] for key in macro} == pytest.approx(macro, abs=0.005)
    assert 0 < summary["macro_bleu"] <= 100
    phases = summary["phase_wall_s"]
    assert set(phases) == {"fetch", "clean", "tokenizer", "shard", "train", "evaluate"}
    assert 0 < summary["train_wall_s"] <= phases["train"]
    assert summary["tokens_per_s"] > 0
    assert summary["peak_rss_bytes"]["train_all_ranks"] > 100e6
    assert "mean into en" in done.stdout
    assert "mlflow" in done.stdout
    assert "nrefs:1" in done.stdout


def test_hypotheses_references_and_plots_are_on_disk(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, _ = finished
    for direction in DIRECTIONS:
        src, ref, hyp = (lines(run_dir, direction, kind) for kind in ("src", "ref", "hyp"))
        bitext = GERMAN if "de" in direction else FRENCH
        known = {pair if direction.startswith("en") else pair[::-1] for pair in bitext}
        assert set(zip(src, ref, strict=True)) <= known
        assert len(set(src)) == len(hyp) == SENTENCES
        assert all(hyp)
    for name in ("directions_test", "loss"):
        assert (run_dir / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_mlflow_has_one_finished_run_with_its_figures(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from mlflow import MlflowClient

    run_dir, _ = finished
    client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'hyperadapter'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["model.adapter.kind"] == "hyper"
    assert run.data.metrics["train/loss"] > 0
    macro = load_result(run_dir).macro["macro_chrf_into_en"]
    assert run.data.metrics["test/macro/macro_chrf_into_en"] == pytest.approx(macro)
    last = read_metric(run_dir, "valid/en-de/nll")[-1][1]
    assert run.data.metrics["valid/en-de/nll"] == pytest.approx(last)
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "plots", "evaluation"} <= names


def test_the_same_command_again_does_nothing_twice(
    finished: tuple[Path, subprocess.CompletedProcess[str]], hyperadapter: Command
) -> None:
    run_dir, _ = finished
    weights = next((run_dir / "checkpoints").glob("*/weights.safetensors"))
    before = sha256_file(weights), weights.stat().st_mtime_ns
    done = hyperadapter("run", "--config", str(run_dir / "config.yaml"), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == STEPS
    assert (sha256_file(weights), weights.stat().st_mtime_ns) == before
    assert "decoded before with the same weights" in done.stderr


def test_translate_reads_stdin_and_knows_its_languages(
    finished: tuple[Path, subprocess.CompletedProcess[str]], hyperadapter: Command
) -> None:
    run_dir, _ = finished
    arguments = ("translate", "--run", str(run_dir), "--src", "de")
    folder = run_dir / "evaluation" / "test"
    src, hyp = ((folder / f"de-en.{kind}.txt").read_text() for kind in ("src", "hyp"))
    done = hyperadapter(*arguments, "--tgt", "en", stdin=f"{src}\n")
    assert done.returncode == 0, done.stderr[-3000:]
    # An empty line gives an empty line.
    assert done.stdout == f"{hyp}\n"
    done = hyperadapter(*arguments, "--tgt", "it", stdin="x\n")
    assert done.returncode == 3
    assert "this run has no language 'it'" in done.stderr
    assert "its languages are en, de, fr" in done.stderr


def test_the_plan_does_not_depend_on_the_world(corpus: Path, hyperadapter: Command) -> None:
    arguments = ("data", "plan", "--config", str(corpus / "run.yaml"), "--json", "--steps")
    rows = [
        [json.loads(line) for line in hyperadapter(*arguments, *rest).stdout.splitlines()]
        for rest in (("0:6", "--world-size", "1"), ("0:6", "--world-size", "4"), ("4:6",))
    ]
    assert rows[0] == rows[1]
    assert rows[0][4:] == rows[2]
    assert len({row["hash"] for row in rows[0]}) == 6
    assert sum(rows[0][0]["tokens"].values()) == rows[0][0]["target_tokens"]


def test_another_experiment_is_refused_before_it_replaces_any_data(
    finished: tuple[Path, subprocess.CompletedProcess[str]], hyperadapter: Command
) -> None:
    run_dir, _ = finished
    arguments = ("run", "--config", str(run_dir / "config.yaml"), "--set")
    folder = Path(read_yaml(run_dir / "config.yaml")["data"]["folder"])
    before = sha256_file(folder / "tokenizer" / "manifest.json")
    done = hyperadapter(*arguments, "data.tokenizer.vocab_size=300")
    assert done.returncode == 3
    assert "data.tokenizer.vocab_size: 344 in the folder, 300 now" in done.stderr
    assert "choose another run_dir" in done.stderr
    done = hyperadapter(*arguments, "data.split.test_fraction=0.0")
    assert done.returncode == 3
    assert "test_fraction and data.split.valid_fraction must be above 0" in done.stderr
    assert sha256_file(folder / "tokenizer" / "manifest.json") == before
