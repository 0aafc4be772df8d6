"""What tests of whole runs share: the command, and looks into its run folders."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from hyperadapter.core.events import read_metric

__all__ = ["Train", "assert_ok", "losses"]

Train = Callable[..., "subprocess.CompletedProcess[str]"]
"""Runs `hyperadapter` with some arguments."""


def losses(run_dir: Path) -> dict[int, float]:
    """Returns the training loss by step."""
    return dict(read_metric(run_dir, "train/loss"))


def assert_ok(done: subprocess.CompletedProcess[str]) -> None:
    """Shows the end of the log where a command failed."""
    assert done.returncode == 0, done.stderr[-3000:]
