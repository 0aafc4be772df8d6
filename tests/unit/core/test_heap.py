"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from hyperadapter.core.heap import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
weight, hidden = torch.randn(256, 16_000, requires_grad=True), torch.randn(1024, 256)
for step in range(8):
    if step == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    (hidden @ weight).log_softmax(-1).square().mean().backward()
    weight.grad = None
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_large_tensors_are_seldom_mapped_again() -> None:
    """Whether a hole fits depends on where things lie, so not every page is found again."""
    faults = [
        int(subprocess.check_output([sys.executable, "-c", PROGRAM.format(keep=keep)], text=True))
        for keep in (False, True)
    ]
    assert faults[0] > 4 * 100_000
    assert faults[1] < faults[0] / 2
