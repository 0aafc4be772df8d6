"""Cleaning text of any size: peak memory of all processes, and sentence pairs per second and core.

    python -m benchmarks.data_clean [--pairs 10000000] [--gzip] [--workers 0] [--json]

Makes up a file of sentence pairs (a seeded vocabulary with Zipf's law; one line in five is a copy
of another) and builds the clean corpus from it in a process of its own: reading, cleaning,
deduplication, splitting and the search for near-duplicates. Memory is the sum of the resident sets
of that process and all that it starts, sampled; pages that processes share count in each of them.
Pairs per second and core are those read per second of CPU time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.measure import ROOT, describe_machine, print_result
from data_pipeline.cleaning.corpus import build_clean_corpus
from data_pipeline.config import DataConfig
from hyperadapter.core.schema import parse_config

_CHUNK_PAIRS = 50_000
_SAMPLE_S = 0.05
_DUPLICATES = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=10_000_000, help="sentence pairs")
    parser.add_argument("--gzip", action="store_true", help="read a compressed file")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for each core")
    parser.add_argument("--folder", type=Path, help="where text goes; else a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print_result(build(arguments.child, arguments.workers))
        return
    machine = describe_machine()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="data_clean-") as folder:
        path = Path(folder) / ("text.tsv.gz" if arguments.gzip else "text.tsv")
        write_text(path, arguments.pairs)
        result = {"machine": machine, **measure(path, arguments.workers)}
    print(json.dumps(result, indent=2) if arguments.json else format_result(result))


def write_text(path: Path, num_pairs: int, seed: int = 1) -> None:
    """Writes made-up sentence pairs of 3 to 30 words."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a, b in product("bdfgklmnprst", "aeiou")]
    words = ["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(50_000)]
    others = [word[::-1] + "en" for word in words]
    with _open(path) as stream:
        for lines in _iter_chunks(rng, words, others, num_pairs):
            stream.writelines(lines)


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "wt", 1, encoding="utf-8")
    return open(path, "w", encoding="utf-8")


def _iter_chunks(
    rng: np.random.Generator, words: list[str], others: list[str], num_pairs: int
) -> Iterator[list[str]]:
    for start in range(0, num_pairs, _CHUNK_PAIRS):
        count = min(_CHUNK_PAIRS, num_pairs - start)
        num_old = round(count * _DUPLICATES)
        lengths = rng.integers(3, 31, count - num_old)
        ranks = (len(words) ** rng.random(int(lengths.sum()))).astype(np.int64) - 1
        fresh = []
        for sentence in np.split(ranks, np.cumsum(lengths)[:-1]):
            ids = sentence.tolist()
            a, b = " ".join(map(words.__getitem__, ids)), " ".join(map(others.__getitem__, ids))
            fresh.append(f"{a}.\t{b}.\n")
        yield fresh + [fresh[i] for i in rng.integers(0, len(fresh), num_old).tolist()]


def build(path: Path, workers: int) -> dict[str, Any]:
    """Builds the clean corpus of one file, in this process and those that it starts."""
    source = {"format": "tsv", "name": "text", "languages": ["en", "de"], "path": str(path)}
    tree = {
        "folder": str(path.parent / "data"),
        "languages": ["en", "de"],
        "sources": [source],
        "tokenizer": {"vocab_size": 1000},
        "num_workers": workers,
    }
    manifest = build_clean_corpus(parse_config(DataConfig, tree, "the benchmark"))
    counts = manifest.sources["en-de"]["text"]
    splits = manifest.splits["en-de"]
    return {
        "pairs": counts.num_read,
        "kept": counts.num_kept,
        "near_duplicates": sum(split.num_near_duplicates for split in splits.values()),
    }


def measure(path: Path, workers: int) -> dict[str, Any]:
    """Runs `build` in a process of its own and watches it."""
    command = [sys.executable, "-m", "benchmarks.data_clean", "--child", str(path)]
    command += ["--workers", str(workers)]
    begin, before = time.perf_counter(), _cpu_s()
    peak = largest = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            sizes = resident_bytes(process.pid)
            peak, largest = max(peak, sum(sizes)), max(largest, *sizes, 0)
            time.sleep(_SAMPLE_S)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"cleaning ended with {process.returncode}")
    wall_s, cpu_s = time.perf_counter() - begin, _cpu_s() - before
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return {
        **result,
        "text_mb": path.stat().st_size / 1e6,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "pairs_per_s": result["pairs"] / wall_s,
        "pairs_per_s_per_core": result["pairs"] / cpu_s,
        "peak_rss_mb": peak / 1e6,
        "peak_rss_of_one_mb": largest / 1e6,
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def resident_bytes(root: int) -> list[int]:
    """Returns the resident memory of a process and of each process under it."""
    parents, pages = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended just now
                continue
            parents[int(entry.name)], pages[int(entry.name)] = int(fields[1]), int(fields[21])
    family = {root}
    while found := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= found
    return [pages.get(pid, 0) * os.sysconf("SC_PAGE_SIZE") for pid in family]


def format_result(result: dict[str, Any]) -> str:
    """Writes one line a figure."""
    return (
        f"{result['pairs']:,} pairs ({result['text_mb']:,.0f} MB), {result['kept']:,} kept, "
        f"{result['near_duplicates']:,} near-duplicates\n"
        f"{result['wall_s']:,.1f} s: {result['pairs_per_s']:,.0f} pairs/s, "
        f"{result['pairs_per_s_per_core']:,.0f} pairs/s/core\n"
        f"peak RSS {result['peak_rss_mb']:,.0f} MB in all processes, "
        f"{result['peak_rss_of_one_mb']:,.0f} MB in the largest"
    )


if __name__ == "__main__":
    main()
