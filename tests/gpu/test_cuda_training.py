"""Training on a GPU: every ZeRO stage, fp32 against the CPU and bf16 against fp32."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hyperadapter.core.events import read_metric

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

Train = Callable[..., "subprocess.CompletedProcess[str]"]


def losses(run_dir: Path) -> dict[int, float]:
    return dict(read_metric(run_dir, "train/loss"))


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "fp32"), (2, "fp32"), (1, "bf16"), (3, "bf16")]
)
def test_losses_follow_those_of_the_cpu(
    stage: int, precision: str, train: Train, tmp_path: Path
) -> None:
    # Dropout draws other numbers on a GPU.
    changes = ("model.dropout=0.0", "training.max_steps=8")
    for name, more in {
        "cpu": ("training.device=cpu", "training.zero_stage=0"),
        "cuda": (
            "training.device=cuda",
            f"training.zero_stage={stage}",
            f"training.precision={precision}",
        ),
    }.items():
        done = train(name, *changes, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=tolerance)
