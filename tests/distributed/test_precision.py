"""bf16 on a CPU: what is exported are the optimizer's weights, not their rounded copies."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperadapter.checkpoint.layout import newest_checkpoint
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.core.events import read_metric

pytestmark = pytest.mark.distributed

Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_exports_master_weights(stage: int, train: Train, tmp_path: Path) -> None:
    done = train(
        "run", "training.precision=bf16", f"training.zero_stage={stage}", "training.max_steps=6",
        "training.num_processes=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    weights, _ = load_weights(newest_checkpoint(tmp_path / "run") / "weights.safetensors")
    embedding = weights["embedding.weight"]
    assert not embedding.equal(embedding.bfloat16().float())
    losses = [loss for _, loss in read_metric(tmp_path / "run", "train/loss")]
    assert losses[-1] < losses[0]
