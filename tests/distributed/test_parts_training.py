"""Adapters trained on a finished dense model, whose parts stand still, in every sharding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch import Tensor

from hyperadapter.checkpoint.layout import newest_checkpoint
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.core.events import read_metric
from hyperadapter.model.parts import part_of
from tests.distributed.runs import Train, assert_ok

pytestmark = pytest.mark.distributed

ON_DENSE = (
    "training.frozen=[embedding, encoder, decoder]",
    "training.learning_rate_scale={hyper_heads: 0.5}",
    "training.learning_rate=0.01",
    "training.checkpoint.every_steps=6",
    "training.checkpoint.keep=9",
    "training.health_every_steps=4",
    "model.adapter.start=identity",
)
TRAINED = {"hyper_embeddings", "hyper_body", "hyper_heads"}


def weights_of(run_dir: Path) -> dict[str, Tensor]:
    return load_weights(newest_checkpoint(run_dir) / "weights.safetensors")[0]


def values(run_dir: Path, metric: str) -> dict[int, float]:
    return dict(read_metric(run_dir, metric))


@pytest.fixture(scope="module")
def dense(corpus: Path, hyperadapter: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a dense model."""
    run_dir = tmp_path_factory.mktemp("dense")
    sets = [f"run_dir={run_dir}", "model.adapter.kind=none", "training.max_steps=30"]
    done = hyperadapter(
        "train", "--config", str(corpus / "run.yaml"), *(p for s in sets for p in ("--set", s))
    )
    assert_ok(done)
    return run_dir


@pytest.fixture(scope="module")
def alone(
    corpus: Path, hyperadapter: Train, dense: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Hyper-adapters on the dense model, trained by one process without sharding."""
    run_dir = tmp_path_factory.mktemp("alone")
    start = newest_checkpoint(dense) / "weights.safetensors"
    sets = [
        *(f"run_dir={run_dir}", f"training.start_from={start}", "training.zero_stage=0"),
        *ON_DENSE,
    ]
    done = hyperadapter(
        "train", "--config", str(corpus / "run.yaml"), *(p for s in sets for p in ("--set", s))
    )
    assert_ok(done)
    assert "69 tensors taken over, 28 new" in done.stderr
    return run_dir


def test_adapters_begin_where_the_dense_model_ended_and_improve_it(
    dense: Path, alone: Path
) -> None:
    valid = values(alone, "valid/macro/nll")
    assert list(valid) == [0, 12]
    assert valid[0] == pytest.approx(values(dense, "valid/macro/nll")[30], abs=1e-6)
    assert valid[12] < valid[0] - 0.05
    before, after = weights_of(dense), weights_of(alone)
    assert all(after[name].equal(weight) for name, weight in before.items())
    assert {part_of(name) for name in after.keys() - before.keys()} == TRAINED


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_parts_stand_still_in_every_stage(
    stage: int, dense: Path, alone: Path, train: Train, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copy(newest_checkpoint(dense) / "weights.safetensors", start)
    changes = (
        *ON_DENSE, f"training.start_from={start}", f"training.zero_stage={stage}",
        "training.num_processes=2",
    )  # fmt: skip
    assert_ok(train("run", *changes))
    run_dir = tmp_path / "run"
    for metric in ("train/loss", "train/grad_norm", "valid/macro/nll"):
        assert values(run_dir, metric) == pytest.approx(values(alone, metric), rel=2e-5), metric
    found = weights_of(run_dir)
    assert all(found[name].equal(weight) for name, weight in weights_of(dense).items())

    # What rank 0 says of its health; each rank has its own micro-batches.
    for metric in (
        *(f"health/grad_norm/{part}" for part in TRAINED),
        *(f"health/generated_{kind}/layer_{n}" for kind in ("norm", "std") for n in range(4)),
        *(f"health/generated_norm/{side}/de" for side in ("src", "tgt")),
        *(f"health/dead_units/layer_{n}" for n in range(4)),
    ):
        steps = [6, 12] if metric.endswith("/de") else [4, 8, 12]
        if "generated" in metric and "layer" in metric:
            steps = [4, 6, 8, 12]
        expected = values(alone, metric)
        assert list(expected) == steps, metric
        assert values(run_dir, metric) == pytest.approx(expected, rel=1e-4), metric
    for step in (4, 8, 12):
        squares = [values(run_dir, f"health/grad_norm/{part}")[step] ** 2 for part in TRAINED]
        norm = values(run_dir, "train/grad_norm")[step]
        assert sum(squares) ** 0.5 == pytest.approx(norm, rel=1e-5)

    # From the checkpoint of step 6, and without the file that the run began with.
    start.unlink()
    whole = values(run_dir, "train/loss")
    shutil.rmtree(newest_checkpoint(run_dir))
    (run_dir / "events.jsonl").unlink()
    assert_ok(train("run", *changes))
    assert values(run_dir, "train/loss") == {step: whole[step] for step in range(7, 13)}
    again = weights_of(run_dir)
    assert all(again[name].equal(weight) for name, weight in found.items())


def test_frozen_parts_in_bf16_are_exported_as_they_are_used(
    dense: Path, train: Train, tmp_path: Path
) -> None:
    start = newest_checkpoint(dense) / "weights.safetensors"
    changes = (
        *ON_DENSE, f"training.start_from={start}", "training.precision=bf16",
        "training.zero_stage=3", "training.num_processes=2", "training.max_steps=6",
    )  # fmt: skip
    assert_ok(train("run", *changes))
    found = weights_of(tmp_path / "run")
    for name, weight in weights_of(dense).items():
        assert found[name].equal(weight.bfloat16().float()), name
    heads = found["adapters.heads.down.weight"]
    assert not heads.equal(heads.bfloat16().float())


def test_what_cannot_be_frozen_or_taken_over_ends_with_a_message(
    dense: Path, train: Train, tmp_path: Path
) -> None:
    done = train("odd", "training.frozen=[adapters]")
    assert done.returncode == 3
    assert "training.frozen names adapters, which this model does not have" in done.stderr
    assert "its parts are embedding, encoder, decoder, hyper_embeddings, hyper_body" in done.stderr
    start = newest_checkpoint(dense) / "weights.safetensors"
    done = train("odd", f"training.start_from={start}", "model.ffn_dim=50")
    assert done.returncode == 1
    assert "of shape [48, 32], but this model's is [50, 32]" in done.stderr
