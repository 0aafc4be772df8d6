"""What nodes have to spare."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest
import torch

from hyperadapter.tracking import SystemSampler, metrics_by_node


def test_the_values_are_those_of_this_process_and_machine(tmp_path: Path) -> None:
    sampler = SystemSampler(tmp_path)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        pass
    values = sampler.read()
    cores = os.cpu_count() or 1
    assert 50 / cores < values["cpu_percent"] <= 100
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 10e6 < values["rank_memory_bytes"] < values["memory_used_bytes"] < total
    disk = os.statvfs(tmp_path)
    assert values["disk_free_bytes"] == pytest.approx(disk.f_bavail * disk.f_frsize, rel=0.1)
    assert set(values) == {
        "cpu_percent",
        "memory_used_bytes",
        "rank_memory_bytes",
        "disk_free_bytes",
    }


def test_memory_that_is_taken_is_seen(tmp_path: Path) -> None:
    sampler = SystemSampler(tmp_path)
    before = sampler.read()["rank_memory_bytes"]
    with mmap.mmap(-1, 50_000_000) as taken:  # new pages, never ones that a test has freed
        taken.write(b"x" * 50_000_000)
        assert sampler.read()["rank_memory_bytes"] - before > 40e6


def test_two_reads_at_once_are_no_division_by_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hyperadapter.tracking import system

    monkeypatch.setattr(system, "_processor_ticks", lambda: (5, 10))
    assert SystemSampler(tmp_path).read()["cpu_percent"] == 0.0


def test_a_gpu_that_is_used_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5)
    values = SystemSampler(tmp_path).read()
    assert (values["gpu_memory_bytes"], values["gpu_memory_peak_bytes"]) == (3.0, 5.0)


def test_a_sample_is_cheap(tmp_path: Path) -> None:
    sampler = SystemSampler(tmp_path)
    sampler.read()
    took_s = []
    for _ in range(50):
        start = time.perf_counter()
        sampler.read()
        took_s.append(time.perf_counter() - start)
    assert sorted(took_s)[25] < 1e-3


def test_of_the_ranks_on_a_node_the_worst_counts() -> None:
    readings = [
        ("b", {"rank_memory_bytes": 1.0, "disk_free_bytes": 9.0}),
        ("b", {"rank_memory_bytes": 3.0, "disk_free_bytes": 8.0}),
        ("a", {"rank_memory_bytes": 2.0}),
        ("b", {"rank_memory_bytes": 2.0, "disk_free_bytes": 9.0}),
    ]
    assert metrics_by_node(readings) == {
        "system/node0/rank_memory_bytes": 3.0,
        "system/node0/disk_free_bytes": 8.0,
        "system/node1/rank_memory_bytes": 2.0,
    }
    assert metrics_by_node([]) == {}
