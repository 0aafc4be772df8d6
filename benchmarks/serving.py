"""What a trained run costs to serve, in each format that `hyperadapter export` writes.

    python -m benchmarks.serving --run runs/quickstart --direction en-de

Each translator runs in a process of its own, from text to text, with the same sentences, beam,
batches and threads. They take turns, round after round, so that a busy moment of the machine hits
all alike.

    sentences/s         all sentences in one call, batched; the median round
    latency             one sentence a call; median and 95th percentile of all calls and rounds
    peak memory         resident memory of the process at its peak, Python and packages with it
    beyond imports      that, less what was resident when the packages were imported
    disk                the exported folder
    chrF++              sacreBLEU, against the references
    same as ours        share of the outputs that are equal to hyperadapter's, letter by letter

Distrust a run with a load above the threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from benchmarks.measure import ROOT, ChildError, describe_machine
from benchmarks.processes import Child
from benchmarks.serving_task import NAMES, ServingTask
from data_pipeline.bitext import pair_of, read_split
from hyperadapter.checkpoint.layout import WEIGHTS_FILE, newest_checkpoint
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError, HyperAdapterError
from hyperadapter.core.files import sha256_file, write_json, write_text
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.core.schema import load_config
from hyperadapter.serving.ctranslate2_export import export_ctranslate2
from hyperadapter.serving.export import export_bundle
from hyperadapter.serving.m2m100 import export_m2m100

_FOLDER = ROOT / ".cache" / "bench-serving"
_OURS = NAMES[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _sentences(
    run: Path, config: RunConfig, direction: Direction, count: int
) -> tuple[list[str], list[str]]:
    """Returns sources and references, at equal distances in what was evaluated or held out."""
    folder = run / "evaluation" / "test"
    src_path, ref_path = (folder / f"{direction}.{side}.txt" for side in ("src", "ref"))
    if src_path.is_file() and ref_path.is_file():
        src, ref = (path.read_text("utf-8").splitlines() for path in (src_path, ref_path))
    else:
        pair = pair_of(direction, config.data)
        text = read_split(Path(config.data.folder) / "clean", "test", pair)
        src, ref = (text.a, text.b) if direction.src == pair[0] else (text.b, text.a)
    if not src:
        raise ConfigError(f"{direction} has no test sentences; choose another direction")
    rows = np.linspace(0, len(src), min(count, len(src)), endpoint=False).astype(int)
    return [src[row] for row in rows], [ref[row] for row in rows]


def _export(
    run: Path, weights: Path, direction: str, folder: Path, names: list[str]
) -> dict[str, str]:
    """Exports the same weights in all formats, and returns the folders."""
    folders = {name: folder / name.replace(" ", "-") for name in names}
    what: dict[str, Any] = {"which": str(weights), "directions": [direction]}
    for name, out in folders.items():
        _say(f"exporting {name} ...")
        if name == "hyperadapter":
            export_bundle(run, out, **what)
        elif name == "transformers":
            export_m2m100(run, out, **what)
        else:
            quantization: Any = name.split()[-1]
            export_ctranslate2(run, out, quantization=quantization, **what)
    return {name: str(out.resolve()) for name, out in folders.items()}


def _measure(
    arguments: argparse.Namespace, task: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Returns what was measured by name, and why others are missing."""
    found: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    children: dict[str, Child] = {}
    for name in json.loads(task.read_text(encoding="utf-8"))["folders"]:
        _say(f"starting {name} ...")
        command = [sys.executable, "-m", "benchmarks.serving_task", name, str(task)]
        log = task.parent / f"{name.replace(' ', '-')}.log"
        try:
            children[name] = Child(command, log)
        except ChildError as error:
            missing[name] = str(error)
            continue
        found[name] = {**children[name].facts, "batched": [], "latencies_s": []}
    for number in range(arguments.rounds):
        order = list(children) if number % 2 == 0 else list(children)[::-1]
        for name in order:
            found[name]["batched"].append(children[name].ask("batched"))
            found[name]["latencies_s"] += children[name].ask("single")["latencies_s"]
            _say(f"  {name}: {found[name]['batched'][-1]['wall_s']:.1f} s")
    for child in children.values():
        child.close()
    return found, missing


def _row(
    name: str, facts: dict[str, Any], task: ServingTask, references: list[str], ours: list[str]
) -> dict[str, Any]:
    """Summarises one translator."""
    outputs, batched = facts["outputs"], facts["batched"]
    walls = [found["wall_s"] for found in batched]
    files = [path for path in Path(task.folders[name]).rglob("*") if path.is_file()]
    chrf = CHRF(word_order=2)
    row = {
        "name": name,
        "version": facts["version"],
        "load_s": facts["load_s"],
        "sentences_per_s": len(outputs) / statistics.median(walls),
        "wall_s_of_rounds": walls,
        "cpu_s_of_rounds": [found["cpu_s"] for found in batched],
        "latency_s_median": float(np.median(facts["latencies_s"])),
        "latency_s_p95": float(np.quantile(facts["latencies_s"], 0.95)),
        "peak_rss_mb": max(found["peak_rss_mb"] for found in batched),
        "peak_beyond_imports_mb": max(found["peak_beyond_imports_mb"] for found in batched),
        "disk_mb": sum(path.stat().st_size for path in files) / 1e6,
        "chrfpp": chrf.corpus_score(outputs, [references]).score,
        "chrfpp_signature": str(chrf.get_signature()),
    }
    if ours:
        pairs = list(zip(outputs, ours, strict=True))
        row["same_as_ours"] = sum(a == b for a, b in pairs) / len(pairs)
    return row


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Exports, measures, and returns everything that was measured."""
    config = load_config(RunConfig, arguments.run / "config.yaml")
    direction = parse_direction(arguments.direction)
    texts, references = _sentences(arguments.run, config, direction, arguments.sentences)
    names = [name for name in NAMES if name in (arguments.only or NAMES)]
    # One checkpoint in all formats, also of a run that goes on training.
    weights = newest_checkpoint(arguments.run) / WEIGHTS_FILE
    folder = arguments.folder / f"{arguments.run.resolve().name}-{direction}"
    folder.mkdir(parents=True, exist_ok=True)
    search = config.evaluation
    # Exported anew each time: nothing of older weights, settings or formats is measured.
    with tempfile.TemporaryDirectory(dir=folder, prefix="exports-") as exports:
        task = ServingTask(
            folders=_export(arguments.run, weights, str(direction), Path(exports), names),
            src=direction.src,
            tgt=direction.tgt,
            texts=texts,
            single=min(arguments.single, len(texts)),
            threads=arguments.threads or len(os.sched_getaffinity(0)),
            beam_size=arguments.beam_size or search.beam_size,
            length_penalty=search.length_penalty,
            max_length_ratio=search.max_length_ratio,
            max_length_extra=search.max_length_extra,
            batch_sentences=search.batch_sentences,
        )
        path = (folder / "task.json").resolve()
        task.write(path)
        found, missing = _measure(arguments, path)
        ours = found[_OURS]["outputs"] if _OURS in found else []
        rows = [_row(name, found[name], task, references, ours) for name in found]
    return {
        "machine": describe_machine(),
        "run": config.name,
        "checkpoint": weights.parent.name,
        "weights_sha256": sha256_file(weights),
        "placement": config.model.adapter.placement,
        "adapter": config.model.adapter.kind,
        "direction": str(direction),
        "sentences": len(texts),
        "single": task.single,
        "rounds": arguments.rounds,
        "threads": task.threads,
        "beam_size": task.beam_size,
        "batch_sentences": task.batch_sentences,
        "rows": rows,
        "not_measured": missing,
    }


def _table(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        f"{report['run']} ({report['checkpoint']}, {report['adapter']} adapters, "
        f"{report['placement']}), {report['direction']}, {report['sentences']} sentences, beam "
        f"{report['beam_size']}, batches of {report['batch_sentences']}; {machine['cpu']}, "
        f"{report['threads']} threads, load {machine['load_1_min']:.1f}, {report['rounds']} rounds",
        "",
        "| translator | sentences/s | latency ms, median | p95 | peak memory MB | beyond imports "
        "| disk MB | chrF++ | same as ours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['name']} | {row['sentences_per_s']:.1f} | {1e3 * row['latency_s_median']:.0f} "
            f"| {1e3 * row['latency_s_p95']:.0f} | {row['peak_rss_mb']:.0f} "
            f"| {row['peak_beyond_imports_mb']:.0f} | {row['disk_mb']:.1f} | {row['chrfpp']:.1f} "
            f"| {row.get('same_as_ours', float('nan')):.0%} |"
        )
    lines += [f"| {name} | not measured: {why} |" for name, why in report["not_measured"].items()]
    signatures = {row["chrfpp_signature"] for row in report["rows"]}
    return "\n".join([*lines, "", *(f"chrF++: `{signature}`" for signature in signatures), ""])


def main() -> None:
    """Prints a table, and writes it beside the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a run folder")
    parser.add_argument("--direction", default="en-de")
    parser.add_argument("--sentences", type=int, default=300, help="of the test split")
    parser.add_argument("--single", type=int, default=50,
                        help="of them translated one by one, in each round")  # fmt: skip
    parser.add_argument("--beam-size", type=int, help="default: the run's")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, help="what to measure")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="for logs and results")
    arguments = parser.parse_args()
    try:
        report = run(arguments)
    except HyperAdapterError as error:
        raise SystemExit(str(error)) from error
    out = arguments.folder / f"{report['run']}-{report['direction']}"
    write_json(out.with_name(f"{out.name}.json"), report)
    write_text(out.with_name(f"{out.name}.md"), _table(report))
    print(_table(report))


if __name__ == "__main__":
    main()
