"""How many tokens a second one process delivers as batches: ours, the limit, and the peers.

    .venv/bin/python -m benchmarks.data_stream --peers-venv .cache/bench-venv

One process on one core reads the same made-up corpus in the same token budget and pads it into
int64 arrays with language tags. A round measures every reader once; figures are medians over
rounds, so that a busy moment of the machine hits all alike. `benchmarks/README.md` says what is
compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import ROOT, ChildError, describe_machine, run_child
from benchmarks.synthetic_shards import write_shards
from benchmarks.synthetic_text import CorpusSpec, FlatCorpus

_REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements.txt"
_OURS = "hyperadapter"


class Reader(NamedTuple):
    """What is measured: its name in the table, its module, whether it needs the peers' venv."""

    name: str
    module: str
    peer: bool = False


READERS = (
    Reader("memory map, gathered (limit)", "memmap_gathered"),
    Reader(_OURS, "hyperadapter"),
    Reader("memory map, sentence views", "memmap_views"),
    Reader("mosaicml-streaming", "mosaic_streaming", peer=True),
    Reader("webdataset", "webdataset_sentences", peer=True),
    Reader("datasets (streaming)", "hf_datasets", peer=True),
)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _make_venv(folder: Path) -> None:
    """Makes the peers' virtual environment, or brings it up to the requirements."""
    mark = folder / "requirements.sha256"
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
    if mark.is_file() and mark.read_text(encoding="ascii") == wanted:
        return
    _say(f"installing the peers into {folder} (some minutes, 2.5 GB) ...")
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run(
        [*command, "--disable-pip-version-check", "-r", str(_REQUIREMENTS)],
        stdout=sys.stderr, check=True,
    )  # fmt: skip
    mark.write_text(wanted, encoding="ascii")


def _prepare(arguments: argparse.Namespace, spec: CorpusSpec) -> dict[str, str]:
    """Writes the corpus in every reader's format; returns why readers cannot be measured."""
    folder: Path = arguments.folder
    begin = time.perf_counter()
    write_shards(folder / "shards", spec)
    flat = folder / "flat"
    if not (flat / "spec.json").is_file() or FlatCorpus(flat).spec != spec:
        FlatCorpus.write(flat, spec)
        for reader in READERS:
            (folder / reader.module / "done").unlink(missing_ok=True)
    _say(f"corpus and shards: {time.perf_counter() - begin:.1f} s")
    missing: dict[str, str] = {}
    for reader in _chosen(arguments):
        if not reader.peer:
            continue
        if arguments.peers_venv is None:
            missing[reader.name] = "needs --peers-venv"
            continue
        try:
            done = run_child(_python(arguments), "benchmarks.peers.run",
                             ["prepare", reader.module, str(folder)])  # fmt: skip
        except ChildError as error:
            missing[reader.name] = str(error)
        else:
            _say(f"{reader.name} {done['version']}: {done['prepare_s']:.1f} s, "
                 f"{done['disk_bytes'] / 1e6:.0f} MB")  # fmt: skip
    return missing


def _chosen(arguments: argparse.Namespace) -> list[Reader]:
    return [r for r in READERS if not arguments.readers or r.module in arguments.readers]


def _python(arguments: argparse.Namespace) -> Path:
    return Path(arguments.peers_venv).absolute() / "bin" / "python"


def _measure(reader: Reader, arguments: argparse.Namespace, number: int) -> dict[str, Any]:
    common = ["--tokens", arguments.tokens, "--mixing", arguments.mixing,
              "--seconds", arguments.seconds, "--seed", number + 1]  # fmt: skip
    if arguments.core is not None:
        common += ["--core", arguments.core]
    if reader.peer:
        python, module = _python(arguments), "benchmarks.peers.run"
        own = ["measure", reader.module, arguments.folder, "--buffer", arguments.buffer]
    else:
        python, module = Path(sys.executable), "benchmarks.stream_readers"
        own = [reader.module, arguments.folder, "--micro-batches", arguments.micro_batches]
    return run_child(python, module, [str(word) for word in (*own, *common)])


def _summarise(runs: list[dict[str, Any]], ours: list[float]) -> dict[str, Any]:
    """Medians over rounds; the ratio is taken in each round first."""
    speeds = [run["tokens"] / run["wall_s"] for run in runs]
    return {
        "tokens_per_s": statistics.median(speeds),
        "tokens_per_s_of_rounds": speeds,
        "tokens_per_cpu_s": statistics.median(run["tokens"] / run["cpu_s"] for run in runs),
        "ratio_to_ours": (
            statistics.median(speed / mine for speed, mine in zip(speeds, ours, strict=True))
            if len(ours) == len(speeds)
            else None
        ),
        "sentences_per_s": statistics.median(run["sentences"] / run["wall_s"] for run in runs),
        "padding": 1 - sum(r["tokens"] for r in runs) / sum(r["positions"] for r in runs),
        "tokens_per_batch": sum(r["tokens"] for r in runs) / sum(r["batches"] for r in runs),
        "cpu_s": sum(run["cpu_s"] for run in runs),
        "wall_s": sum(run["wall_s"] for run in runs),
        "peak_rss_mb": max((run["peak_rss_mb"] for run in runs if "peak_rss_mb" in run), default=0)
        or None,
        "version": runs[0].get("version"),
    }


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures everything and returns the report."""
    spec = CorpusSpec(arguments.pairs, arguments.sentences)
    if arguments.peers_venv is not None:
        _make_venv(arguments.peers_venv)
    missing = _prepare(arguments, spec)
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(arguments.rounds):
        for reader in _chosen(arguments):
            if reader.name in missing:
                continue
            try:
                found = _measure(reader, arguments, number)
            except ChildError as error:
                missing[reader.name] = str(error)
                runs.pop(reader.name, None)
                continue
            runs.setdefault(reader.name, []).append(found)
            speed = found["tokens"] / found["wall_s"] / 1e6
            _say(f"round {number + 1}: {reader.name}: {speed:.2f} M tokens/s")
    ours = [run["tokens"] / run["wall_s"] for run in runs.get(_OURS, [])]
    settings = {
        name: value
        for name, value in vars(arguments).items()
        if name not in ("folder", "json", "peers_venv")
    }
    return {
        "machine": describe_machine(),
        "settings": settings,
        "readers": {name: _summarise(found, ours) for name, found in runs.items()},
        "not_measured": missing,
    }


def _table(report: dict[str, Any]) -> str:
    machine, settings = report["machine"], report["settings"]
    lines = [
        f"{settings['sentences']:,} sentence pairs, {2 * settings['pairs']} directions, at most "
        f"{settings['tokens']} positions a micro-batch; one process on one core of "
        f"{machine['cores']} ({machine['cpu']}), load {machine['load_1_min']:.1f} at the end; "
        f"median of {settings['rounds']} rounds",
        "",
        "| reader | M tokens/s | M tokens/CPU s | times ours | padding | CPU s / wall s | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for reader in READERS:
        found = report["readers"].get(reader.name)
        if found is not None:
            version = f" {found['version']}" if found["version"] else ""
            ratio = "-" if found["ratio_to_ours"] is None else f"{found['ratio_to_ours']:.3f}"
            memory = "-" if found["peak_rss_mb"] is None else f"{found['peak_rss_mb']:.0f}"
            lines.append(
                f"| {reader.name}{version} | {found['tokens_per_s'] / 1e6:.2f} "
                f"| {found['tokens_per_cpu_s'] / 1e6:.2f} | {ratio} | {found['padding']:.1%} "
                f"| {found['cpu_s']:.1f} / {found['wall_s']:.1f} | {memory} |"
            )
        elif reader.name in report["not_measured"]:
            reason = report["not_measured"][reader.name]
            lines.append(f"| {reader.name} | not measured: {reason} | | | | | |")
    return "\n".join(lines)


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench-data-stream",
                        help="corpus in all formats; kept for the next time")  # fmt: skip
    parser.add_argument("--peers-venv", type=Path,
                        help="virtual environment of the peers; made if need be")  # fmt: skip
    parser.add_argument("--readers", nargs="+", choices=[reader.module for reader in READERS])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=400_000)
    parser.add_argument("--tokens", type=int, default=4096, help="positions of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=16, help="of a step (ours)")
    parser.add_argument("--mixing", type=float, default=5.0, help="temperature")
    parser.add_argument("--buffer", type=int, default=8192, help="samples sorted together (peers)")
    parser.add_argument("--seconds", type=float, default=4.0, help="a reader and round, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, help="to run on (default: the last one)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    report = run(arguments)
    print(json.dumps(report, indent=2) if arguments.json else _table(report))


if __name__ == "__main__":
    main()
