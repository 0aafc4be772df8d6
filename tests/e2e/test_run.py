"""Raw text to BLEU with the one command, and what a user may do wrong on the way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperadapter.core.files import sha256_file

pytestmark = pytest.mark.slow

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def finished(
    corpus: Path, hyperadapter: Command, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run folder after `hyperadapter run`, with MLflow on SQLite."""
    run_dir = tmp_path_factory.mktemp("e2e") / "run"
    changes = [
        f"run_dir={run_dir}", "tracking.enabled=true", "training.num_processes=2",
        "training.zero_stage=2", "training.max_steps=30", "evaluation.max_sentences=10",
        "training.validation.every_steps=15",
    ]  # fmt: skip
    sets = [part for change in changes for part in ("--set", change)]
    done = hyperadapter("run", "--config", str(corpus / "run.yaml"), *sets)
    assert done.returncode == 0, done.stderr[-3000:]
    return run_dir, done


def test_the_summary_holds_what_a_comparison_needs(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, done = finished
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["directions"] == 4
    assert summary["steps"] == 30
    for key in ("macro_chrf_into_en", "macro_chrf_into_en_copy", "macro_bleu", "train_wall_s"):
        assert summary[key] >= 0
    assert summary["tokens_per_s"] > 0
    assert summary["peak_rss_bytes"]["train_all_ranks"] > 100e6
    assert {"fetch", "clean", "tokenizer", "shard", "train", "evaluate"} == set(
        summary["phase_wall_s"]
    )
    assert "mean into en" in done.stdout
    assert "mlflow" in done.stdout
    assert "nrefs:1" in done.stdout


def test_hypotheses_references_and_plots_are_on_disk(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, _ = finished
    for direction in ("en-de", "de-en", "en-fr", "fr-en"):
        texts = [
            (run_dir / "evaluation" / "test" / f"{direction}.{kind}.txt").read_text().splitlines()
            for kind in ("src", "ref", "hyp")
        ]
        assert [len(lines) for lines in texts] == [10, 10, 10]
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
    assert run.data.metrics["test/macro/macro_chrf_into_en"] >= 0
    assert run.data.metrics["valid/en-de/nll"] > 0
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
    assert json.loads(done.stdout)["steps"] == 30
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


def test_the_plan_does_not_depend_on_the_world(
    finished: tuple[Path, subprocess.CompletedProcess[str]], hyperadapter: Command
) -> None:
    run_dir, _ = finished
    arguments = ("data", "plan", "--config", str(run_dir / "config.yaml"), "--json", "--steps")
    rows = [
        [json.loads(line) for line in hyperadapter(*arguments, *rest).stdout.splitlines()]
        for rest in (("0:6", "--world-size", "1"), ("0:6", "--world-size", "4"), ("4:6",))
    ]
    assert rows[0] == rows[1]
    assert rows[0][4:] == rows[2]
    assert len({row["hash"] for row in rows[0]}) == 6
    assert sum(rows[0][0]["tokens"].values()) == rows[0][0]["target_tokens"]
