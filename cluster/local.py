"""Several ranks of one program, or several programs, on this machine.

The parent only watches: it passes SIGTERM, SIGINT and SIGUSR1 on. Of ranks, it ends the others when
one of them fails, and returns the exit code that explains the end; programs have nothing to do with
each other.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NamedTuple

__all__ = [
    "EXIT_INTERRUPTED",
    "Program",
    "free_port",
    "launched_externally",
    "run_programs",
    "run_ranks",
]

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75
_PORTS = range(20_000, 32_000)
_POLL_S = 0.2
_GRACE_S = 20.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Who is asked to stop before it can listen is ended by the signal itself.
_DIED_OF_IT = {128 + signal.SIGTERM, 128 + signal.SIGUSR1}


def launched_externally(environment: Mapping[str, str] = os.environ) -> bool:
    """Says whether torchrun, srun or another launcher already gave this process a rank.

    A batch script outside srun knows SLURM_NTASKS too, but belongs to no step.
    """
    in_step = environment.get("SLURM_STEP_ID", "").isdigit()
    return "RANK" in environment or (in_step and environment.get("SLURM_NTASKS", "1") != "1")


def free_port() -> int:
    """Returns a TCP port on the loopback interface that was free a moment ago.

    It is below those that Linux gives to clients: one of them could be taken in the seconds until a
    rank listens.
    """
    while True:
        port = _PORTS.start + secrets.randbelow(len(_PORTS))
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
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
    with _forwarding(ranks) as asked:
        for rank in range(num_processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            _add(ranks, _start(command, shared | place), asked)
            if asked:
                break
        code = _watch(ranks)
        return EXIT_INTERRUPTED if asked and (code == 0 or code in _DIED_OF_IT) else code


class Program(NamedTuple):
    """A program among several that run side by side.

    Attributes:
        name: Which one.
        commands: Run one after the other, each if the one before ended with 0.
        log: What they print is added to this file.
    """

    name: str
    commands: Sequence[Sequence[str]]
    log: Path


def run_programs(
    programs: Sequence[Program],
    workers: Sequence[Mapping[str, str]],
    on_change: Callable[[str, int | None], None] = lambda name, code: None,
) -> dict[str, int]:
    """Runs programs, some at a time, in their order; one that fails does not end the others.

    After a signal no other one is started, and those that run are asked to stop.

    Args:
        programs: What to run; names differ.
        workers: As many run at a time; the environment that each gives to what it runs.
        on_change: Is told the name when a program starts (None) and when it ends (its code).

    Returns:
        The code of each program that was started, as of `run_ranks`: 75 if a signal stopped it.
    """
    waiting, free = deque(programs), deque(workers)
    running: list[_Running] = []
    processes: list[subprocess.Popen[bytes]] = []
    codes: dict[str, int] = {}
    with _forwarding(processes) as asked:
        while running or (waiting and not asked):
            while waiting and free and not asked:
                running.append(_Running(waiting.popleft(), free.popleft()))
                on_change(running[-1].program.name, None)
                _add(processes, running[-1].start_next(), asked)
            for item in list(running):
                code = item.process.poll()
                if code is None:
                    continue
                processes.remove(item.process)
                if code == 0 and item.commands and not asked:
                    _add(processes, item.start_next(), asked)
                    continue
                running.remove(item)
                free.append(item.worker)
                codes[item.program.name] = item.code(asked)
                on_change(item.program.name, codes[item.program.name])
            time.sleep(_POLL_S)
    return codes


class _Running:
    """A program that runs, and what of it is still to be run."""

    def __init__(self, program: Program, worker: Mapping[str, str]) -> None:
        self.program, self.worker = program, worker
        self.commands = deque(program.commands)
        self.process: subprocess.Popen[bytes]

    def start_next(self) -> subprocess.Popen[bytes]:
        self.process = _start(self.commands.popleft(), self.worker, self.program.log)
        return self.process

    def code(self, asked: Sequence[int]) -> int:
        """Returns how the program ended, which may be before its last command."""
        code = _shell_code(self.process.returncode)
        stopped = asked and (code in _DIED_OF_IT or (code == 0 and self.commands))
        return EXIT_INTERRUPTED if stopped else code


def _add(
    processes: list[subprocess.Popen[bytes]],
    started: subprocess.Popen[bytes],
    asked: Sequence[int],
) -> None:
    """Adds a process to those that get signals, and passes one on that came while it started."""
    processes.append(started)
    if asked:
        started.send_signal(signal.SIGTERM)


def _start(
    command: Sequence[str], environment: Mapping[str, str], log_file: Path | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process that ends with us, and that Ctrl-C reaches once: through us."""
    end_with_us = partial(_end_with_parent, os.getpid())
    output = None
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        output = log_file.open("ab")
    try:
        return subprocess.Popen(
            command,
            env=os.environ | dict(environment),
            stdin=None if output is None else subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_us,
        )
    finally:
        if output is not None:
            output.close()


@contextmanager
def _forwarding(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Passes signals on to processes, yields the signals that came, and ends what still runs."""
    asked: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        asked.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        yield asked
    finally:
        _end(processes)
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
