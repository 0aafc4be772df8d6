"""What the nodes of a run have to spare: processors, memory, disk and GPU memory.

Read from Linux's /proc and from torch, so that a sample takes well under a millisecond and needs no
package. How busy a GPU is, its power and its temperature are left out: they need NVML.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

__all__ = ["NodeReading", "SystemSampler", "metrics_by_node"]

NodeReading = tuple[str, Mapping[str, float]]
"""The name of a node, and what one rank on it has read."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class SystemSampler:
    """Reads the state of this process and of its node.

    Args:
        run_dir: The folder whose disk is watched.
    """

    def __init__(self, run_dir: Path) -> None:
        self.node = socket.gethostname()
        self._run_dir = run_dir
        self._ticks = _processor_ticks()

    def read(self) -> dict[str, float]:
        """Returns the values of now.

        Returns:
            cpu_percent: Processor time spent by all processes of the node since the last call, of
                what all its cores have.
            memory_used_bytes: Of the node, without what it can free at once.
            rank_memory_bytes: Resident memory of this process.
            disk_free_bytes: Of the run folder's disk.
            gpu_memory_bytes, gpu_memory_peak_bytes: Tensors of this process now, and the most that
                torch has reserved for it; only where it uses a GPU.
        """
        before, self._ticks = self._ticks, _processor_ticks()
        busy, total = (now - then for now, then in zip(self._ticks, before, strict=True))
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        values = {
            "cpu_percent": 100 * busy / total if total > 0 else 0.0,
            "memory_used_bytes": float(_used_memory_bytes()),
            "rank_memory_bytes": float(resident_pages * _PAGE_BYTES),
            "disk_free_bytes": float(shutil.disk_usage(self._run_dir).free),
        }
        return values | _gpu_memory()


def _processor_ticks() -> tuple[int, int]:
    """Returns the busy and all ticks of all cores since the node was started (man 5 proc_stat)."""
    with open("/proc/stat", encoding="ascii") as stream:
        fields = [int(field) for field in stream.readline().split()[1:9]]
    idle = fields[3] + fields[4]  # idle and waiting for input or output
    return sum(fields) - idle, sum(fields)


def _used_memory_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as stream:
        kibibytes = {key: int(rest.split()[0]) for key, rest in (s.split(":") for s in stream)}
    return 1024 * (kibibytes["MemTotal"] - kibibytes["MemAvailable"])


def _gpu_memory() -> dict[str, float]:
    import torch  # not at the head of the file: login nodes import this package

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    return {
        "gpu_memory_bytes": float(torch.cuda.memory_allocated()),
        "gpu_memory_peak_bytes": float(torch.cuda.max_memory_reserved()),
    }


def metrics_by_node(readings: Iterable[NodeReading]) -> dict[str, float]:
    """Turns the readings of all ranks, in order, into metrics such as `system/node0/cpu_percent`.

    Nodes are numbered in the order of their ranks. Of the ranks on one node the largest value
    counts: the one that will run out first. The least counts of what is free.
    """
    numbers: dict[str, int] = {}
    metrics: dict[str, float] = {}
    for node, values in readings:
        number = numbers.setdefault(node, len(numbers))
        for name, value in values.items():
            key = f"system/node{number}/{name}"
            worst = min if "_free_" in name else max
            metrics[key] = worst(metrics.get(key, value), value)
    return metrics
