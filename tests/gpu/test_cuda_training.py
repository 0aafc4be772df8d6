"""Training on a GPU: every ZeRO stage, fp32 against the CPU and bf16 against fp32."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hyperadapter.core.events import read_metric
from tests.tiny_corpus import run_hyperadapter

pytestmark = pytest.mark.gpu


def losses(corpus: Path, run_dir: Path, *changes: str) -> dict[int, float]:
    """Trains with `key=value` changes and returns the loss of every step."""
    # Dropout draws other numbers on a GPU.
    fixed = (f"run_dir={run_dir}", "model.dropout=0.0", "training.max_steps=8")
    sets = [part for change in (*fixed, *changes) for part in ("--set", change)]
    done = run_hyperadapter("train", "--config", str(corpus / "run.yaml"), *sets)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(read_metric(run_dir, "train/loss"))


@pytest.fixture(scope="module")
def on_cpu(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[int, float]]:
    """The CPU's losses by layout of the batches: packed ones hold more sentences."""

    @functools.cache
    def train(layout: str) -> dict[int, float]:
        run_dir = tmp_path_factory.mktemp("cpu") / "run"
        return losses(corpus, run_dir, layout, "training.zero_stage=0")

    return train


@pytest.mark.parametrize(
    ("stage", "precision", "layout", "changes"),
    [
        (0, "fp32", "padded", ()),
        (2, "fp32", "packed", ()),
        (1, "bf16", "packed", ("training.activation_checkpointing=true",)),
        (3, "bf16", "padded", ()),
        pytest.param(1, "bf16", "packed", ("training.compile=true",), id="compiled"),
    ],
)
def test_losses_follow_those_of_the_cpu(
    stage: int,
    precision: str,
    layout: str,
    changes: tuple[str, ...],
    device: torch.device,
    corpus: Path,
    on_cpu: Callable[[str], dict[int, float]],
    tmp_path: Path,
) -> None:
    layout = f"data.stream.layout={layout}"
    found = losses(
        corpus,
        tmp_path / "run",
        layout,
        f"training.device={device.type}",
        f"training.zero_stage={stage}",
        f"training.precision={precision}",
        *changes,
    )
    tolerance = 1e-3 if precision == "fp32" else 2e-2
    assert found == pytest.approx(on_cpu(layout), rel=tolerance)


def test_a_checkpoint_of_the_gpu_is_resumed_at_another_stage(
    device: torch.device, corpus: Path, tmp_path: Path
) -> None:
    """Weights and moments go through pinned memory, and offloaded ones lie on the host."""
    run_dir = tmp_path / "run"
    common = (
        "data.stream.layout=padded",
        f"training.device={device.type}",
        "training.precision=bf16",
        "training.checkpoint.every_steps=4",
    )
    whole = losses(corpus, run_dir, *common, "training.zero_stage=3")
    kept = run_dir / "checkpoints" / "step-00000004"
    for number, changes in enumerate(
        (
            ("training.zero_stage=3",),
            ("training.zero_stage=1",),
            ("training.zero_stage=2", "training.offload_optimizer=true"),
        )
    ):
        again = tmp_path / f"again{number}"
        shutil.copytree(kept, again / "checkpoints" / kept.name)
        found = losses(corpus, again, *common, *changes)
        assert list(found) == [5, 6, 7, 8]
        exact = changes == ("training.zero_stage=3",)
        expected = {step: whole[step] for step in found}
        assert found == pytest.approx(expected, rel=1e-4 if exact else 2e-2), changes
