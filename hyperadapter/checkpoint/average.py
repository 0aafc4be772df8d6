"""The mean of several checkpoints' weights, which often translates better than the last of them.

Vaswani et al. 2017, section 6.1, average the last 5 or 20 checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from safetensors import safe_open

from hyperadapter.checkpoint.weights import WeightsInfo, load_info, save_weights
from hyperadapter.core.errors import CheckpointError

__all__ = ["average_weights"]


def average_weights(paths: Sequence[Path], out: Path) -> WeightsInfo:
    """Writes the mean of weights files of one run.

    In memory are the mean, and one tensor of one file at a time.

    Args:
        paths: Two or more weights files.
        out: The file to write; its metadata are those of the file with the highest step.

    Raises:
        CheckpointError: There are fewer than two, or they are not of one model.
        DiskFullError: The disk is full.
    """
    if len(paths) < 2:
        raise CheckpointError(
            f"an average needs two checkpoints or more, not {len(paths)}; keep more of them "
            "(training.checkpoint.keep or keep_every_steps)"
        )
    loaded = [load_info(path) for path in paths]
    newest, first = max(loaded, key=lambda info: info.step), loaded[0]
    for path, info in zip(paths, loaded, strict=True):
        if info._replace(step=0) != first._replace(step=0):
            raise CheckpointError(
                f"{path} (of the experiment {info.fingerprint}) and {paths[0]} (of "
                f"{first.fingerprint}) are not of one run; average the checkpoints of one"
            )
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        mean = {}
        for name in files[0].keys():  # noqa: SIM118 (not a dictionary)
            total = files[0].get_tensor(name).double()
            for file in files[1:]:
                total += file.get_tensor(name)
            mean[name] = (total / len(files)).float()
    save_weights(out, mean, newest.to_metadata())
    return newest
