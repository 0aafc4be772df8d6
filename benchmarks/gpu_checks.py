"""All checks and benchmarks that need a GPU, in one call; `gpu_all.sh` starts it.

    python3 -m benchmarks.gpu_checks missing WHEELS     which wheels this machine does not have
    python3 -m benchmarks.gpu_checks run gpu.json       every part, each under a limit of time

The file is written anew after each part. A part that fails or takes too long is noted in it, and
the next one begins. With `DEVICE=cpu` the same parts run on the CPU with tiny sizes, which checks
this script and not the machine.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

_ROOT = Path(__file__).resolve().parents[1]
_TAIL_CHARS = 2000
_MESSAGE_CHARS = 600
_KILL_S = 5.0
_LEAST_S = 5.0  # with less time left, a part is not begun


class Part(NamedTuple):
    """One process.

    Attributes:
        name: In the report.
        limit_s: Longest time.
        command: Words behind the interpreter.
    """

    name: str
    limit_s: float
    command: tuple[str, ...]


def _tests(name: str, limit_s: float, *words: str) -> Part:
    # Warnings are errors in our own environment only: here the versions are others.
    # Verbose, for what was done before a limit of time: only then there is no junit.xml.
    options = ("-v", "-W", "default", "-p", "no:cacheprovider", "--junitxml=@/junit.xml")
    return Part(name, limit_s, ("-m", "pytest", *options, *words))


def gpu_parts() -> list[Part]:
    """Returns the parts for one GPU, the most wanted ones first."""
    train = (
        "-m", "benchmarks.train_step", "--device", "cuda", "--precision", "bf16", "--layout",
        "packed", "--micro-batch-tokens", "16384", "--steps", "4", "--rounds", "3", "--json",
    )  # fmt: skip
    adapters = ("--only", "dense", "language", "direction", "hyper", "naive_hyper")
    searches = ("--only", "dense", "hyper_materialised", "hyper_regenerated")
    base, big = ("--model", "configs/models/base.yaml"), ("--model", "configs/models/big.yaml")
    decode = ("-m", "benchmarks.decode", "--device", "cuda", "--batch-sentences", "64")
    training = "tests/gpu/test_cuda_training.py"
    fewer = ("--only", "dense", "direction", "hyper")
    return [
        Part("peaks", 40, ("-m", "benchmarks.gpu_checks", "peaks")),
        _tests("tests", 120, "tests/gpu", f"--ignore={training}", "-k", "not compile"),
        Part("train_base", 150, (*train, *base, *adapters, "--folder", "@/train_base")),
        _tests("tests_training", 180, training, "-k", "not compile"),
        Part("decode_base", 80, (*decode, *base, *searches, "--json", "--folder", "@/decode_base")),
        Part("train_big", 130, (*train, *big, *adapters[:-1], "--folder", "@/train_big")),
        _tests("tests_compiled", 200, "tests/gpu", "-k", "compile"),
        Part(
            "zero",
            90,
            (
                "-m",
                "benchmarks.zero",
                "--device",
                "cuda",
                "--precision",
                "bf16",
                "--worlds",
                "1",
                *base,
                "--micro-batch-tokens",
                "8192",
                "--micro-batches",
                "1",
                "--steps",
                "10",
                "--json",
            ),
        ),
        Part("train_base_compiled", 100, (*train, *base, *fewer, "--compile", "--folder", "@/c")),
    ]


def cpu_parts() -> list[Part]:
    """Returns the same kinds of parts with tiny sizes, and two that go wrong."""
    sizes = {"d_model": 64, "ffn_dim": 128, "num_heads": 4, "num_encoder_layers": 1,
             "num_decoder_layers": 1, "adapter.bottleneck_dim": 16}  # fmt: skip
    tiny = [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    base = (
        "--model", "configs/models/base.yaml", *tiny, "--vocab-size", "1000", "--rounds", "1",
        "--json", "--only", "dense",
    )  # fmt: skip
    train = ("-m", "benchmarks.train_step", *base, "hyper", "--micro-batch-tokens", "1024")
    decode = ("-m", "benchmarks.decode", *base, "hyper_materialised", "--batch-sentences", "4")
    endless = "import time; print('still here', flush=True); time.sleep(600)"
    return [
        Part("peaks", 60, ("-m", "benchmarks.gpu_checks", "peaks")),
        _tests("tests", 180, "tests/gpu", "-k", "loss_equals or adapters_equal or grouped"),
        Part("train_base", 120, (*train, "--folder", "@/train_base")),
        Part("decode_base", 120, (*decode, "--folder", "@/decode_base")),
        Part("fails", 20, ("-c", "raise SystemExit('this part fails on purpose')")),
        Part("too long", 3, ("-c", endless)),
    ]


def run_part(part: Part, limit_s: float, folder: Path) -> dict[str, Any]:
    """Runs a part in a session of its own and returns what it left."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [word.replace("@/", f"{folder}/") for word in part.command]
    begin = time.monotonic()
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=_ROOT, stdout=out, stderr=err, start_new_session=True
        )
        timed_out = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        _end(process)
    found = {
        "name": part.name,
        "ok": False,
        "rc": process.returncode,
        "timed_out": timed_out,
        "seconds": round(time.monotonic() - begin, 1),
        "command": " ".join(part.command),
    }
    found |= _results(folder)
    found["ok"] = process.returncode == 0 and not timed_out and _is_complete(found)
    if not found["ok"]:
        logs = [folder / "out", folder / "err", *sorted(folder.glob("*/*.log"))]
        texts = (path.read_text("utf-8", "replace").strip() for path in logs)
        found["tail"] = "\n".join(filter(None, texts))[-_TAIL_CHARS:]
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends whatever is left of a part: the process, or children that it left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _results(folder: Path) -> dict[str, Any]:
    """Returns what a part says: counts of tests, or the JSON that it printed."""
    if (folder / "junit.xml").exists():
        return _tests_of(folder / "junit.xml")
    try:
        report: dict[str, Any] = json.loads((folder / "out").read_text("utf-8", "replace"))
    except ValueError:
        return {}
    report.pop("profiles", None)
    return report


def _is_complete(found: dict[str, Any]) -> bool:
    """Says whether a part that ended well did what it should: skipped is not passed."""
    if "tests" in found:
        return bool(found["tests"]["passed"]) and not found["tests"]["failed"]
    return bool(found.get("rows") or found.get("peaks")) and not found.get("not_measured")


def _tests_of(path: Path) -> dict[str, Any]:
    """Counts tests, and names those that failed."""
    counts = {"passed": 0, "skipped": 0, "failed": 0}
    failures = []
    for case in ElementTree.parse(path).iter("testcase"):
        bad = [child for child in case if child.tag in ("failure", "error")]
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        failures += [
            {"test": case.get("name"), "message": (child.get("message") or "")[:_MESSAGE_CHARS]}
            for child in bad
        ]
    return {"tests": counts, "failures": failures}


def _facts(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "device": device,
    }
    try:
        import torch

        facts["torch"] = torch.__version__
        if device == "cuda":
            facts["device"] = torch.cuda.get_device_name()
            facts["memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
            facts["cuda"] = torch.version.cuda
    except Exception as error:  # the report must say so, whatever it is
        facts["problem"] = f"{type(error).__name__}: {error}"
    return facts


def run(path: Path, device: str, budget_s: float) -> int:
    """Runs all parts and writes the report after each.

    Returns:
        How many failed or were not begun for want of time.
    """
    begin = time.monotonic()
    report = _facts(device) | {"parts": []}
    path.parent.mkdir(parents=True, exist_ok=True)
    os.environ["GPU_TESTS_DEVICE"] = device
    # Plugins of other packages on the machine have no business here.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(gpu_parts() if device == "cuda" else cpu_parts()):
            left_s = budget_s - (time.monotonic() - begin) - 2 * _KILL_S
            if left_s < _LEAST_S:
                found: dict[str, Any] = {"name": part.name, "ok": False, "rc": None, "seconds": 0.0}
            else:
                found = run_part(part, min(part.limit_s, left_s), Path(folder) / str(number))
            report["parts"].append(found)
            report["seconds"] = round(time.monotonic() - begin, 1)
            beside = path.with_suffix(".part")
            beside.write_text(json.dumps(report, indent=1), encoding="utf-8")
            beside.replace(path)
            print(_line(found), flush=True)
    return sum(not part["ok"] for part in report["parts"])


def _line(found: dict[str, Any]) -> str:
    """Says in one line how a part went; then what its rows say."""
    state = "ok" if found["ok"] else f"FAILED, rc {found['rc']}"
    state = "no time left" if found["rc"] is None else state
    state = "timed out" if found.get("timed_out") else state
    lines = [f"{found['name']}: {state}, {found['seconds']} s {found.get('tests', '')}"]
    lines += [
        f"  FAILED {one['test']}: {one['message'][:200]}" for one in found.get("failures", [])
    ]
    for row in found.get("rows", []):
        speed = row.get("tokens_per_s", row.get("tgt_tokens_per_s", float("nan")))
        lines.append(f"  {row['name']}: {speed:,.0f} target tokens/s")
    lines += [f"  {key}: {value:.4g}" for key, value in found.get("peaks", {}).items()]
    lines += [f"  {key}: not measured: {why}" for key, why in found.get("not_measured", {}).items()]
    if "tail" in found:
        lines.append("  " + found["tail"].strip().replace("\n", "\n  "))
    return "\n".join(lines)


def measure_peaks(device: str) -> dict[str, float]:
    """Measures matrix products and copies: what the figures of models are compared with."""
    import torch

    cuda = device == "cuda"
    size, elements = (8192, 1 << 30) if cuda else (512, 1 << 22)
    peaks = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        seconds = _median_seconds(partial(torch.mm, a, b), cuda)
        peaks[f"matmul_{str(dtype).removeprefix('torch.')}_flops_per_s"] = 2 * size**3 / seconds
    source = torch.ones(elements, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    seconds = _median_seconds(partial(target.copy_, source), cuda)
    return peaks | {"copy_bytes_per_s": 4 * elements / seconds}


def _median_seconds(call: Callable[[], object], cuda: bool, repeats: int = 20) -> float:
    import torch

    times = []
    for _ in range(3 + repeats):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[3:])


def missing_wheels(folder: Path) -> list[Path]:
    """Returns the wheels of packages that are not installed, or in an older version only."""
    wanted = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        try:
            installed = importlib.metadata.version(name.replace("_", "-"))
        except importlib.metadata.PackageNotFoundError:
            wanted.append(path)
            continue
        if _numbers(installed) < _numbers(version):
            wanted.append(path)
    return wanted


def _numbers(version: str) -> list[int]:
    """Returns the leading numbers of a version; packaging may be one of the missing packages."""
    numbers = []
    for word in version.split("+")[0].split("."):
        if not word.isdigit():
            break
        numbers.append(int(word))
    return numbers


def main() -> int:
    """Does what the first argument says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("missing", "peaks", "run"))
    parser.add_argument("path", type=Path, nargs="?", help="folder of wheels, or the report")
    arguments = parser.parse_args()
    device = os.environ.get("DEVICE", "cuda")
    if arguments.what == "peaks":
        print(json.dumps({"peaks": measure_peaks(device)}))
        return 0
    if arguments.path is None:
        parser.error(f"{arguments.what} needs a path")
    if arguments.what == "missing":
        print("\n".join(map(str, missing_wheels(arguments.path))))
        return 0
    return min(1, run(arguments.path, device, float(os.environ.get("BUDGET_S", "540"))))


if __name__ == "__main__":
    sys.exit(main())
