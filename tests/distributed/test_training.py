"""Training as a user starts it: real processes, real DeepSpeed, real shards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperadapter.checkpoint.layout import complete_checkpoints, newest_checkpoint
from hyperadapter.checkpoint.weights import load_weights
from tests.distributed.runs import Train, assert_ok, losses

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def reference(
    corpus: Path, hyperadapter: Train, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, float]:
    """Losses of one process at stage 0 with hyper-adapters and dropout."""
    run_dir = tmp_path_factory.mktemp("reference")
    done = hyperadapter(
        "train", "--config", str(corpus / "run.yaml"), "--set", f"run_dir={run_dir}",
        "--set", "training.zero_stage=0",
    )  # fmt: skip
    assert_ok(done)
    return losses(run_dir)


@pytest.mark.parametrize(("stage", "world_size"), [(3, 2), (2, 4)])
def test_losses_do_not_depend_on_stage_and_world_size(
    stage: int, world_size: int, train: Train, tmp_path: Path, reference: dict[int, float]
) -> None:
    done = train("run", f"training.zero_stage={stage}", f"training.num_processes={world_size}")
    assert_ok(done)
    found = losses(tmp_path / "run")
    assert found.keys() == reference.keys() == set(range(1, 13))
    # Dropout is a function of the micro-batch, so even with it the sums differ by rounding only.
    assert found == pytest.approx(reference, rel=2e-5)
    assert reference[12] < reference[1] - 0.3


def test_ranks_with_different_directions_train_as_one(train: Train, tmp_path: Path) -> None:
    """With one module per language, stages 1 to 3 would go wrong here without an error."""
    changes = (
        "model.adapter.kind=direction",
        "data.stream.policy=one_direction_per_micro_batch",
        "training.global_batch_tokens=2000",
        "training.max_steps=6",
    )
    assert_ok(train("alone", *changes, "training.zero_stage=0"))
    assert_ok(train("shared", *changes, "training.zero_stage=2", "training.num_processes=2"))
    alone, shared = losses(tmp_path / "alone"), losses(tmp_path / "shared")
    assert shared == pytest.approx(alone, rel=2e-5)
    assert len(alone) == 6


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stopped_run_ends_as_one_that_was_not(
    stage: int, corpus: Path, train: Train, tmp_path: Path
) -> None:
    changes = (
        f"training.zero_stage={stage}",
        "training.num_processes=2",
        "training.max_steps=60",
        "training.checkpoint.every_steps=7",
    )
    assert_ok(train("whole", *changes))

    sets = [
        part
        for change in (*changes, f"run_dir={tmp_path / 'stopped'}")
        for part in ("--set", change)
    ]
    command = [sys.executable, "-m", "hyperadapter", "train", "--config", str(corpus / "run.yaml")]
    process = subprocess.Popen(
        [*command, *sets],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    events = tmp_path / "stopped" / "events.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (
        events.exists() and len(losses(events.parent)) >= 10
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 75, log[-3000:]
    stopped_at = complete_checkpoints(tmp_path / "stopped")[-1][0]
    assert 10 <= stopped_at < 60, log[-3000:]

    assert_ok(train("stopped", *changes))
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "stopped")
    assert resumed == whole
    one, _ = load_weights(newest_checkpoint(tmp_path / "whole") / "weights.safetensors")
    other, _ = load_weights(newest_checkpoint(tmp_path / "stopped") / "weights.safetensors")
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert weight.equal(other[name]), name


def test_mistakes_end_with_a_message(train: Train, tmp_path: Path) -> None:
    done = train("odd", "training.num_processes=3")
    assert done.returncode == 3
    assert "3 processes cannot share the 4 micro-batches" in done.stderr
    assert "use 1 or 2 or 4 processes" in done.stderr

    assert_ok(train("again", "training.max_steps=5"))
    done = train("again", "training.max_steps=5", "training.seed=9")
    assert done.returncode == 3
    assert "training.seed: 1 in the folder, 9 now" in done.stderr

    state = newest_checkpoint(tmp_path / "again") / "optimizer" / "rank-00000.safetensors"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    done = train("again", "training.max_steps=5")
    assert done.returncode == 1
    assert f"{state} has a wrong checksum" in done.stderr
    assert "all 1 checkpoints" in done.stderr
    assert "start the same command again to train from the beginning" in done.stderr
