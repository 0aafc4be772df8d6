"""Checks each node of a job before training starts: `python -m cluster.node_check` under srun.

One task a node looks at its folders and GPUs and tells the first node, which compares clocks and
names whoever has a problem or does not answer. With --all-reduce, all ranks of training measure how
fast they add up numbers instead. Only this part needs torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["collect", "count_gpus", "local_problems", "main", "measure_all_reduce", "report"]

log = logging.getLogger(__name__)

MOST_CLOCK_SKEW_S = 5.0
"""More would put times of one run's log lines and files in a wrong order."""

_REDUCED_BYTES = 1 << 26
_REPEATS = 5
_PORT_OFFSET = 5000


def local_problems(folder: Path, scratch: str, gpus: int) -> list[str]:
    """Returns what this node lacks, in words.

    Args:
        folder: Shared by all nodes; files are written there.
        scratch: A folder of this node for fast files; empty: none is needed.
        gpus: How many GPUs the job was promised on each node.
    """
    problems = []
    for place in (str(folder), scratch):
        if not place:
            continue
        try:
            with tempfile.NamedTemporaryFile(dir=place) as stream:
                stream.write(b"x")
        except OSError as error:
            problems.append(f"cannot write in {place} ({error.strerror})")
    found = count_gpus(os.environ) if gpus else 0
    if found < gpus:
        problems.append(f"has {found} of {gpus} GPUs")
    return problems


def count_gpus(environment: Mapping[str, str]) -> int:
    """Counts the GPUs that answer the driver; without its tool, those that Slurm has handed out."""
    handed_out = environment.get("CUDA_VISIBLE_DEVICES", "")
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return len(handed_out.split(",")) if handed_out else 0
    try:
        done = subprocess.run(
            [tool, "--list-gpus"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0  # a driver that hangs has no GPUs to offer
    return done.stdout.count("GPU ")


def report(address: tuple[str, int], node: str, problems: Sequence[str], timeout_s: float) -> None:
    """Tells the first node what this one found, and how much later its clock is.

    Raises:
        OSError: It cannot be reached in that time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=5.0)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    with connection, connection.makefile("rwb") as stream:
        connection.settimeout(timeout_s)
        # Written when it took our call, which may be long after we made it.
        skew = time.time() - float(stream.readline())
        line = json.dumps({"node": node, "problems": list(problems), "skew_s": skew})
        stream.write(line.encode() + b"\n")
        stream.flush()


def collect(
    server: socket.socket, others: Sequence[str], timeout_s: float,
    clock: Callable[[], float] = time.time,
) -> dict[str, list[str]]:  # fmt: skip
    """Hears the other nodes, and returns the problems of each that has any.

    Args:
        server: Listens.
        others: Their names.
        timeout_s: Who has not answered by then has a problem.
        clock: Of this node.
    """
    found: dict[str, list[str]] = {}
    deadline = time.monotonic() + timeout_s
    while len(found) < len(others) and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
            connection.settimeout(max(1.0, min(left, 5.0)))
            with connection, connection.makefile("rwb") as stream:
                stream.write(f"{clock()!r}\n".encode())
                stream.flush()
                told = json.loads(stream.readline())
        except (OSError, ValueError):
            continue  # who asks is not one of us, or has gone
        if told.get("node") in others:
            problems = list(told["problems"])
            if abs(told["skew_s"]) > MOST_CLOCK_SKEW_S:
                problems.append(f"has a clock that is {told['skew_s']:+.0f} s off")
            found[told["node"]] = problems
    silent = {node: ["does not reach the first node"] for node in others if node not in found}
    return {node: problems for node, problems in (found | silent).items() if problems}


def _port() -> int:
    return int(os.environ["MASTER_PORT"]) + _PORT_OFFSET


def _check(options: argparse.Namespace) -> int:
    """Checks this node, and on the first one tells of all; 1 if a node cannot be used."""
    problems = local_problems(options.out.parent, options.scratch, options.gpus)
    name = os.environ["SLURMD_NODENAME"]
    port = _port()
    if os.environ["SLURM_NODEID"] != "0":
        try:
            report((os.environ["MASTER_ADDR"], port), name, problems, options.timeout)
        except OSError as error:
            log.error("node %s does not reach %s: %s", name, os.environ["MASTER_ADDR"], error)
            return 1
        return 0
    others = [node for node in options.nodes if node != name]
    with socket.create_server(("", port)) as server:
        bad = collect(server, others, options.timeout)
    if len(others) > 1 and all("does not reach" in bad.get(node, [""])[0] for node in others):
        bad = {name: ["is reached by no other node"]}
    if problems:
        bad[name] = [*problems, *bad.get(name, [])]
    for node, words in bad.items():
        log.error("node %s %s", node, ", ".join(words))
    options.out.write_text("".join(f"{node}\n" for node in bad), encoding="utf-8")
    return int(bool(bad))


def measure_all_reduce(size_bytes: int = _REDUCED_BYTES, repeats: int = _REPEATS) -> float:
    """Returns the bus bandwidth of all-reduce over all ranks of the step, in GB/s.

    A ring moves `2 (n - 1) / n` of the buffer over each link, so that the number can be compared
    with the link's whatever the number n of ranks (NCCL tests, PERFORMANCE.md).
    """
    # By name, so that this package is seen to run without torch: only the job has to have it.
    torch: Any = importlib.import_module("torch")
    dist: Any = importlib.import_module("torch.distributed")
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    device = "cpu"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        device = f"cuda:{int(os.environ['SLURM_LOCALID']) % count}"
        torch.cuda.set_device(device)
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl", rank=rank, world_size=size,
        init_method=f"tcp://{os.environ['MASTER_ADDR']}:{_port()}",
    )  # fmt: skip
    try:
        buffer = torch.zeros(size_bytes // 4, device=device)
        dist.all_reduce(buffer)  # makes the connections
        took = []
        for _ in range(repeats):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(buffer)
            buffer[0].item()  # waits for the device
            took.append(time.perf_counter() - started)
    finally:
        dist.destroy_process_group()
    return float(2 * (size - 1) / size * size_bytes / min(took) / 1e9)


def _measure(least: float) -> int:
    found = measure_all_reduce()
    if os.environ["SLURM_PROCID"] == "0":
        log.warning("all-reduce over all ranks: %.2f GB/s", found)
    if found < least:
        log.error(
            "all-reduce reaches %.2f GB/s instead of %.2f (min_all_reduce_gb_per_s); is the fast "
            "network used (NCCL_SOCKET_IFNAME, NCCL_DEBUG=INFO)?", found, least,
        )  # fmt: skip
        return 1
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Runs one of the two checks, and returns 1 if it found something."""
    parser = argparse.ArgumentParser(prog="python -m cluster.node_check", description=__doc__)
    parser.add_argument("--out", type=Path, help="gets the names of bad nodes, one a line")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that each node must have")
    parser.add_argument("--scratch", default="", help="a folder that each node must have")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for nodes")
    parser.add_argument("--all-reduce", type=float, help="GB/s that must be reached instead")
    parser.add_argument("nodes", nargs="*", help="all nodes of the job")
    options = parser.parse_args(words)
    logging.basicConfig(format="%(asctime)s node check: %(message)s", datefmt="%H:%M:%S")
    return _check(options) if options.all_reduce is None else _measure(options.all_reduce)


if __name__ == "__main__":
    sys.exit(main())
