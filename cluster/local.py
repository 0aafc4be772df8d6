"""Several ranks of one program on this machine.

The parent only watches: it passes SIGTERM, SIGINT and SIGUSR1 on to the ranks, ends the others when
one of them fails, and returns the exit code that explains the end.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType

__all__ = ["EXIT_INTERRUPTED", "free_port", "launched_externally", "run_ranks"]

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75
_POLL_S = 0.2
_GRACE_S = 20.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def launched_externally(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether torchrun, srun or another launcher already gave this process a rank.

    A batch script outside srun knows SLURM_NTASKS too, but belongs to no step.
    """
    in_step = environment.get("SLURM_STEP_ID", "").isdigit()
    return "RANK" in environment or (in_step and environment.get("SLURM_NTASKS", "1") != "1")


def free_port() -> int:
    """Returns a TCP port on the loopback interface that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_ranks(command: Sequence[str], num_processes: int) -> int:
    """Runs `command` as ranks 0 to num_processes - 1 and waits for all of them.

    Args:
        command: Program and arguments, the same for every rank.
        num_processes: World size; the cores are shared out among the ranks.

    Returns:
        0 when every rank ended with 0, else the first failing rank's code (128 + the signal's
        number for a rank that a signal ended).
    """
    threads = max(1, len(os.sched_getaffinity(0)) // num_processes)
    shared = {
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    ranks: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    end_with_us = partial(_end_with_parent, os.getpid())
    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        for rank in range(num_processes):
            environment = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own, so that Ctrl-C reaches a rank once, through this process.
            ranks.append(
                subprocess.Popen(
                    command, env=environment, start_new_session=True, preexec_fn=end_with_us
                )
            )
            if asked:
                break
        code = _watch(ranks)
        # A rank that was asked to stop before it could listen was ended by the signal itself.
        died_of_it = code in {128 + number for number in (signal.SIGTERM, signal.SIGUSR1)}
        return EXIT_INTERRUPTED if asked and (code == 0 or died_of_it) else code
    finally:
        _end(ranks)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent(parent: int) -> None:
    """Asks Linux to send this process SIGTERM when its parent dies, however it dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died just before
        os._exit(1)


def _watch(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all ranks ended well or one did not."""
    while True:
        codes = [process.poll() for process in ranks]
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if failed:
            rank, code = failed[0]
            if code != EXIT_INTERRUPTED:
                log.error("rank %d ended with exit code %d; ending the other ranks", rank, code)
                return _shell_code(code)
            _wait(ranks, _GRACE_S)
            others = [code for code in (p.poll() for p in ranks) if code]
            wrong = [code for code in others if code not in (EXIT_INTERRUPTED, -signal.SIGTERM)]
            return _shell_code(wrong[0]) if wrong else EXIT_INTERRUPTED
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL_S)


def _shell_code(code: int) -> int:
    """Returns a process' exit code as a shell gives it: 128 + N for signal N."""
    return code if code >= 0 else 128 - code


def _wait(ranks: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(_POLL_S / 4)


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends what still runs: TERM, and KILL for whatever does not listen."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        running = [process for process in ranks if process.poll() is None]
        if not running:
            return
        for process in running:
            process.send_signal(stop)
            process.send_signal(signal.SIGCONT)  # one that somebody stopped would not listen
        _wait(running, 40.0 if stop == signal.SIGTERM else 1.0)
    for process in ranks:
        process.wait()
