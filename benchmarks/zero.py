"""Tokens a second and memory a rank of ZeRO stages 0 to 3, with 1, 2 and 4 processes.

    .venv/bin/python -m benchmarks.zero [--worlds 1 2 4] [--json]
    .venv/bin/python -m benchmarks.zero --device cuda --worlds 1 --model configs/models/big.yaml \
        --micro-batch-tokens 8192 --precision bf16

All groups train the same global batch, shared out over their ranks, so their speeds compare. The
groups of one world size are in memory together and run in turn, round after round; figures are
medians. `bare` is the same step in plain PyTorch: what the engine costs. `zero3_layerwise` makes
each layer's adapters from heads that ZeRO-3 gathers for that layer, twice; `zero3` gathers once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, describe_machine
from benchmarks.processes import Child
from cluster.local import free_port
from hyperadapter.config import ModelConfig
from hyperadapter.core.schema import load_config


class _Group:
    """The ranks that train together."""

    def __init__(self, name: str, world: int, spec: dict[str, Any], folder: Path) -> None:
        self.name, self.world = name, world
        path = folder / f"{name}-{world}.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.zero_rank", str(path)]
        shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
                  "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
                  "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(spec["threads"])}  # fmt: skip
        self._others = []
        for rank in range(1, world):
            log = (folder / f"{name}-{world}-{rank}.log").open("w")
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self._others.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )
        # The main rank inherits its environment, as every child does.
        os.environ.update(shared | {"RANK": "0", "LOCAL_RANK": "0"})
        self._main = Child(command, folder / f"{name}-{world}-0.log")
        self.found: list[dict[str, Any]] = []

    def measure(self) -> None:
        self.found.append(self._main.ask("go"))

    def row(self) -> dict[str, Any]:
        speeds = [item["tgt_tokens"] / item["wall_s"] for item in self.found]
        return {
            "name": self.name,
            "processes": self.world,
            "tokens_per_s": statistics.median(speeds),
            "peak_bytes": max(item["peak_bytes"] for item in self.found),
            "checkpoint_bytes_a_rank": self._main.facts["checkpoint_bytes"],
            "speeds": speeds,
        }

    def close(self) -> None:
        self._main.close()
        for process in self._others:
            process.wait(60)


def _spec(arguments: argparse.Namespace, name: str, world: int) -> dict[str, Any]:
    model = load_config(ModelConfig, arguments.model).model_dump(mode="json")
    if name == "zero3_layerwise":
        model["adapter"]["generation"] = "layer_by_layer"
    stage = int(name[4]) if name.startswith("zero") else 0
    tokens = arguments.micro_batch_tokens
    return {
        "model": model,
        "micro_batch_tokens": tokens,
        "micro_batches": arguments.micro_batches,
        "steps": arguments.steps,
        "bare": name == "bare",
        "threads": max(1, (os.cpu_count() or 1) // world),
        "training": {
            "device": arguments.device,
            "precision": arguments.precision,
            "zero_stage": 1 if name == "bare" else stage,
            "num_processes": world,
            "micro_batch_tokens": tokens,
            "global_batch_tokens": tokens * arguments.micro_batches,
            "max_steps": 10,
            "learning_rate": 1e-4,
            "schedule": {"kind": "inverse_sqrt", "warmup_steps": 1},
            "checkpoint": {"every_steps": 10},
            "validation": {"every_steps": 10},
        },
    }


def _measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for world in arguments.worlds:
        names = ["bare"] if world == 1 else []
        # Stage 0 in bf16 is refused, see TrainingConfig.
        names += ["zero0"] if arguments.precision == "fp32" else []
        names += ["zero1", "zero2", "zero3", "zero3_layerwise"]
        groups = []
        for name in names:
            print(f"starting {name} with {world} ...", file=sys.stderr)
            groups.append(_Group(name, world, _spec(arguments, name, world), folder))
        for number in range(arguments.rounds):
            for group in groups if number % 2 else reversed(groups):
                group.measure()
        for group in groups:
            rows.append(group.row())
            group.close()
    return rows


def _relate(rows: list[dict[str, Any]]) -> None:
    """Adds, to every row, its speed over that of the first group of its world, by rounds."""
    for row in rows:
        first = next(other for other in rows if other["processes"] == row["processes"])
        ratios = [a / b for a, b in zip(row["speeds"], first["speeds"], strict=True)]
        row["times_first"] = statistics.median(ratios)
    for row in rows:
        del row["speeds"]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT / "benchmarks" / "half.yaml")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--micro-batch-tokens", type=int, default=1024)
    parser.add_argument("--micro-batches", type=int, default=4, help="of a step, over all ranks")
    parser.add_argument("--steps", type=int, default=1, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    folder = ROOT / ".cache" / "bench-zero"
    folder.mkdir(parents=True, exist_ok=True)
    rows = _measure(arguments, folder)
    _relate(rows)
    if arguments.json:
        print(json.dumps({"machine": describe_machine(), "rows": rows}))
        return
    print("| group | processes | target tokens/s | over the first of its world | peak GB a rank |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['processes']} | {row['tokens_per_s']:,.0f} | "
            f"{row['times_first']:.2f} | "
            f"{row['peak_bytes'] / 1e9:.2f} |"
        )


if __name__ == "__main__":
    main()
