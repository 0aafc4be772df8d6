"""A process that hangs shows where, and ends."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import time
from hyperadapter.training.watchdog import Watchdog
def stuck_here():
    time.sleep(60)
with Watchdog({seconds}) as watchdog:
    for _ in range(10):
        time.sleep(0.1)
        watchdog.touch()
    {then}
time.sleep(0.7)
"""


def run(seconds: float, then: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(seconds=seconds, then=then)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False
    )


def test_it_ends_what_hangs_and_nothing_else() -> None:
    hung = run(0.6, "stuck_here()")
    assert hung.returncode == 1
    assert "Timeout" in hung.stderr
    assert "in stuck_here" in hung.stderr
    for seconds in (0.6, 0.0):
        well = run(seconds, "pass")
        assert (well.returncode, well.stderr) == (0, "")
