"""One peer in one process of the peers' virtual environment: prepares its files, or is measured."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import measure_batches, memory_mb, pin, print_result
from benchmarks.peers.collate import iter_buffers
from benchmarks.synthetic_text import FlatCorpus

_WARMUP_BUFFERS = 1  # fills shuffle buffers, opens files


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("check", "prepare", "measure"))
    parser.add_argument("peer")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--buffer", type=int, default=8192)
    parser.add_argument("--mixing", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--core", type=int)
    arguments = parser.parse_args()
    peer = importlib.import_module(f"benchmarks.peers.{arguments.peer}")
    result: dict[str, Any] = {"version": importlib.metadata.version(peer.PACKAGE)}
    if arguments.action != "check":
        corpus = FlatCorpus(arguments.folder / "flat")
        folder = arguments.folder / arguments.peer
        if arguments.action == "prepare":
            result |= _prepare(peer, corpus, folder)
        else:
            pin(arguments.core)
            samples = peer.iter_samples(corpus, folder, arguments.mixing, arguments.seed)
            units = iter_buffers(
                samples, tokens=arguments.tokens, buffer=arguments.buffer,
                vocab_size=corpus.spec.vocab_size, seed=arguments.seed,
            )  # fmt: skip
            result |= measure_batches(units, arguments.seconds, _WARMUP_BUFFERS) | memory_mb()
    print_result(result)


def _prepare(peer: Any, corpus: FlatCorpus, folder: Path) -> dict[str, float]:
    """Writes a peer's files, unless they are there; a mark comes last."""
    begin = time.perf_counter()
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        peer.prepare(corpus, folder)
        done.touch()
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"prepare_s": time.perf_counter() - begin, "disk_bytes": num_bytes}


if __name__ == "__main__":
    main()
