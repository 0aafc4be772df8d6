"""Start, resumption and memory of one data worker as the number of directions grows.

    .venv/bin/python -m benchmarks.data_startup

For each number of directions fresh processes are timed: from the start of the interpreter to the
first batch (`start`), and from the construction of the stream to the first batch of a step far
ahead (`resume`), with the resident memory after some steps. Writes the shards on first use, and a
plot beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import (
    ROOT,
    describe_machine,
    memory_mb,
    pin,
    print_result,
    run_child,
)
from benchmarks.synthetic_text import CorpusSpec

_TARGETS = {"start_s": 5.0, "resume_s": 2.0, "peak_rss_mb": 500.0}
_TITLES = {
    "start_s": "process start to first batch, s",
    "resume_s": "stream built to first batch of step {step:,}, s",
    "peak_rss_mb": "peak resident memory, MB",
}


def measure_worker(arguments: argparse.Namespace) -> dict[str, float]:
    """Measures this very process: builds the stream, takes steps, and reads its memory."""
    # Imported here because their time is part of the start.
    from benchmarks.synthetic_shards import build_config
    from data_pipeline.stream.streams import TrainStream

    pin(arguments.core)
    folder = arguments.folder / f"{arguments.directions:04d}"
    spec = CorpusSpec(**json.loads((folder / "spec.json").read_text(encoding="utf-8")))
    imported = time.monotonic()
    config = build_config(folder, spec)
    configured = time.monotonic()
    stream = TrainStream(
        folder, config, micro_batch_tokens=arguments.tokens,
        micro_batches_per_step=arguments.micro_batches, seed=1,
        world_size=arguments.world_size,
    )  # fmt: skip
    built = time.monotonic()
    batch = stream.step(arguments.step).micro_batches[0]
    first = time.monotonic()
    assert batch.num_tgt_tokens > 0
    result = {
        "start_s": first - arguments.begun,
        "import_s": imported - arguments.begun,
        "config_s": configured - imported,
        "stream_s": built - configured,
        "first_step_s": first - built,
        "resume_s": first - configured,
        "first_rss_mb": memory_mb()["rss_mb"],
    }
    for step in range(arguments.step, arguments.step + arguments.steps):
        stream.step(step)
    result["steps_s"] = time.monotonic() - first
    return result | memory_mb() | {"chunk_steps": len(stream.plan.steps_of(0))}


def _write(folder: Path, directions: int, sentences: int) -> Path:
    from benchmarks.synthetic_shards import write_shards

    pairs = directions // 2
    spec = CorpusSpec(pairs, pairs * sentences, power=0.0)
    seconds = write_shards(folder / f"{directions:04d}", spec)
    print(f"{directions} directions: shards in {seconds:.1f} s", file=sys.stderr, flush=True)
    return folder


def _drop_from_page_cache(folder: Path) -> None:
    """Makes the next reader wait for the disk, as after a change of node."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())  # only clean pages can be dropped
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _run_worker(arguments: argparse.Namespace, directions: int, step: int) -> dict[str, Any]:
    if arguments.cold:
        _drop_from_page_cache(arguments.folder / f"{directions:04d}")
    words: list[object] = [
        "--worker", "--folder", arguments.folder, "--directions", directions, "--step", step,
        "--steps", arguments.steps, "--tokens", arguments.tokens,
        "--micro-batches", arguments.micro_batches, "--world-size", arguments.world_size,
        "--begun", time.monotonic(),  # one clock for all processes of a machine
    ]  # fmt: skip
    if arguments.core is not None:
        words += ["--core", arguments.core]
    return run_child(sys.executable, "benchmarks.data_startup", [str(word) for word in words])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all numbers of directions and returns the report."""
    points = []
    for directions in arguments.counts:
        _write(arguments.folder, directions, arguments.sentences)
        # Once for nothing: the files come into the page cache, where a restarted job finds them.
        _run_worker(arguments, directions, arguments.step)
        starts, resumes = [], []
        for _ in range(arguments.rounds):
            starts.append(_run_worker(arguments, directions, 0))
            resumes.append(_run_worker(arguments, directions, arguments.step))
        point: dict[str, Any] = {"directions": directions}
        for kind, found in (("start", starts), ("resume", resumes)):
            point[kind] = {key: statistics.median(one[key] for one in found) for key in found[0]}
        point["start_s"] = point["start"]["start_s"]
        point["resume_s"] = point["resume"]["resume_s"]
        for key in ("peak_rss_mb", "rss_mb"):
            point[key] = max(one[key] for one in (*starts, *resumes))
        points.append(point)
        print(
            f"{directions} directions: start {point['start_s']:.2f} s, "
            f"resume {point['resume_s']:.2f} s, peak {point['peak_rss_mb']:.0f} MB",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    settings = {
        name: getattr(arguments, name)
        for name in (
            "sentences", "tokens", "micro_batches", "world_size", "step", "steps", "rounds", "cold"
        )
    }  # fmt: skip
    return {
        "machine": describe_machine(),
        "settings": settings,
        "targets": _TARGETS,
        "points": points,
    }


def _plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    counts = [point["directions"] for point in report["points"]]
    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    for panel, (key, title) in zip(panels, _TITLES.items(), strict=True):
        values = [point[key] for point in report["points"]]
        panel.plot(counts, values, "o-")
        for count, value in zip(counts, values, strict=True):
            panel.annotate(
                f"{value:.3g}", (count, value),
                xytext=(0, 6), textcoords="offset points", ha="center",
            )  # fmt: skip
        panel.axhline(_TARGETS[key], color="tab:red", linestyle="--", label="target: below")
        panel.set(xscale="log", xlabel="directions", ylim=(0, 1.1 * max(*values, _TARGETS[key])))
        panel.set_title(title.format(**report["settings"]), fontsize=10)
        panel.legend(loc="center left")
    pyplot.savefig(path, dpi=120)
    pyplot.close(figure)


def _table(report: dict[str, Any]) -> str:
    settings, machine = report["settings"], report["machine"]
    lines = [
        f"{settings['sentences']:,} sentence pairs a language pair, {settings['micro_batches']} "
        f"micro-batches of {settings['tokens']} positions a step over {settings['world_size']} "
        f"ranks; page cache {'cold' if settings['cold'] else 'warm'}; one core of "
        f"{machine['cpu']}, "
        f"load {machine['load_1_min']:.1f} at the end; "
        f"median of {settings['rounds']} rounds (memory: most)",
        "",
        f"| directions | start s | resume at {settings['step']:,} s "
        "| import / configuration / stream / first step of it s "
        f"| RSS after {settings['steps']} steps MB | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for point in report["points"]:
        parts = " / ".join(
            f"{point['resume'][key]:.2f}"
            for key in ("import_s", "config_s", "stream_s", "first_step_s")
        )
        lines.append(
            f"| {point['directions']} | {point['start_s']:.2f} | {point['resume_s']:.2f} | {parts} "
            f"| {point['rss_mb']:.0f} | {point['peak_rss_mb']:.0f} |"
        )
    targets = [
        f"{key} {'met' if report['points'][-1][key] < most else 'MISSED'} (< {most:g})"
        for key, most in report["targets"].items()
    ]
    return "\n".join([*lines, "", "Targets at the largest number: " + ", ".join(targets)])


def main() -> None:
    """Prints a table, or JSON, and writes a plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench-data-startup",
                        help="shards; kept for the next time (1.1 GB by default)")  # fmt: skip
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000],
                        help="numbers of directions")  # fmt: skip
    parser.add_argument("--sentences", type=int, default=20_000, help="of a language pair")
    parser.add_argument("--tokens", type=int, default=4096, help="positions of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=16, help="of a step, over all ranks")
    parser.add_argument("--world-size", type=int, default=1, help="ranks that share them")
    parser.add_argument("--step", type=int, default=1_000_000, help="to resume at")
    parser.add_argument("--steps", type=int, default=200, help="taken before memory is read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="drop shards from the page cache first")
    parser.add_argument("--core", type=int, help="to run on (default: the last one)")
    parser.add_argument("--plot", type=Path, help="PNG (default: FOLDER/data_startup.png)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    for name, kind in (("--directions", int), ("--begun", float)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print_result(measure_worker(arguments))
        return
    report = run(arguments)
    plot = arguments.plot or arguments.folder / "data_startup.png"
    _plot(report, plot)
    print(json.dumps(report, indent=2) if arguments.json else _table(report))
    print(f"plot: {plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
