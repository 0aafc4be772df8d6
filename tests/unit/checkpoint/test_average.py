from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipeline.config import Direction
from hyperadapter.checkpoint.average import average_weights
from hyperadapter.checkpoint.weights import WeightsInfo, load_info, load_weights, save_weights
from hyperadapter.core.errors import CheckpointError
from hyperadapter.model.vocabulary import Vocabulary

VOCABULARY = Vocabulary(8, ("en", "de"), (Direction("en", "de"),))


def write(path: Path, step: int, fingerprint: str = "f") -> Path:
    tensors = {"a": torch.full((2, 3), float(step)), "b": torch.arange(4.0) * step}
    info = WeightsInfo(step, fingerprint, VOCABULARY, "t")
    save_weights(path, tensors, info.to_metadata())
    return path


def test_the_mean_of_every_tensor(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{step}.safetensors", step) for step in (30, 10, 20)]
    out = tmp_path / "mean.safetensors"
    assert average_weights(paths, out) == load_info(out)
    assert load_info(out).step == 30
    found = load_weights(out)[0]
    assert found["a"].equal(torch.full((2, 3), 20.0))
    assert found["b"].equal(torch.arange(4.0) * 20)


def test_what_cannot_be_averaged(tmp_path: Path) -> None:
    one = write(tmp_path / "1.safetensors", 1)
    with pytest.raises(CheckpointError, match="needs two checkpoints or more, not 1"):
        average_weights([one], tmp_path / "x")
    other = write(tmp_path / "2.safetensors", 2, fingerprint="g")
    with pytest.raises(CheckpointError, match=r"experiment g\) and .* \(of f\) are not of one run"):
        average_weights([one, other], tmp_path / "x")
    with pytest.raises(CheckpointError, match="do not exist"):
        average_weights([one, tmp_path / "3.safetensors"], tmp_path / "x")
    assert not (tmp_path / "x").exists()
