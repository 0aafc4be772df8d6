"""How readers are measured: one process on one core, whole units of work, wall and CPU time.

Needs numpy only, because the peers' virtual environment imports it too.
"""

# ruff: noqa: N802 (names end in the letters of their shape)
from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ROOT",
    "Batch",
    "ChildError",
    "describe_machine",
    "measure_batches",
    "memory_mb",
    "pin",
    "print_result",
    "run_child",
]

ROOT = Path(__file__).resolve().parents[1]
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")

Ints = NDArray[np.int64]


class ChildError(Exception):
    """A measuring process failed; the message is the last line that it said."""


class Batch(Protocol):
    """What every reader has to deliver: int64 arrays, tags in front, padded."""

    @property
    def src_BS(self) -> Ints: ...
    @property
    def src_lengths_B(self) -> Ints: ...
    @property
    def tgt_in_BT(self) -> Ints: ...
    @property
    def tgt_out_BT(self) -> Ints: ...
    @property
    def tgt_lengths_B(self) -> Ints: ...


def measure_batches(
    units: Iterator[Iterable[Batch]], seconds: float, warmup_units: int
) -> dict[str, float]:
    """Reads whole units of work for at least so many seconds.

    A unit is what a reader prepares at a time (a chunk of steps, a buffer that it sorts): stopping
    inside one would count work whose result has not been used.

    Args:
        units: Batches of one unit after another, without end.
        seconds: Least wall time.
        warmup_units: Units that are read before the clock starts.

    Returns:
        Positions that are no padding (`tokens`), positions in all, sentences, batches, seconds.
    """
    for _ in range(warmup_units):
        for batch in next(units):
            assert batch.src_BS.dtype == np.int64
    tokens = positions = sentences = batches = 0
    cpu, begin = time.process_time(), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for batch in next(units):
            tokens += int(batch.src_lengths_B.sum()) + int(batch.tgt_lengths_B.sum())
            positions += batch.src_BS.size + batch.tgt_out_BT.size
            sentences += len(batch.src_BS)
            batches += 1
    return {
        "wall_s": time.perf_counter() - begin,
        "cpu_s": time.process_time() - cpu,
        "tokens": tokens,
        "positions": positions,
        "sentences": sentences,
        "batches": batches,
    }


def memory_mb() -> dict[str, float]:
    """Returns the resident memory of this process now and at its peak, in MB of 10^6 bytes."""
    # Not getrusage: Linux lets a child begin with the peak of the process that started it.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    names = {"rss_mb": "VmRSS", "peak_rss_mb": "VmHWM"}
    return {key: int(fields[name].split()[0]) * 1024 / 1e6 for key, name in names.items()}


def pin(core: int | None) -> int:
    """Keeps this process and its threads on one core, the last one unless it is named."""
    chosen = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {chosen})
    return chosen


def run_child(
    python: Path | str, module: str, arguments: list[str], timeout_s: float = 900
) -> dict[str, Any]:
    """Runs a module of this folder in a fresh process and returns what it printed as JSON.

    Raises:
        ChildError: It failed.
    """
    environment = os.environ | dict.fromkeys(_ONE_THREAD, "1")
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    command = [str(python), "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChildError(str(error)) from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        if os.environ.get("BENCHMARK_DEBUG"):
            print(done.stderr, file=sys.stderr)
        raise ChildError(said[-1])
    # Some libraries talk on stdout.
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def print_result(result: dict[str, Any]) -> None:
    """Prints what `run_child` reads."""
    print(json.dumps(result), flush=True)


def describe_machine() -> dict[str, Any]:
    """Returns what a figure cannot be read without."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_1_min": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
