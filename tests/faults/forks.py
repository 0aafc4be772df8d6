"""Starts commands that have everything imported already: in seconds less than a new interpreter.

A parent process imports torch, DeepSpeed and the trainer once. Whatever is started is a copy of it
(fork), the launcher as well as its ranks: real processes, real signals, the real launcher. What
happens before and while modules are imported is left to `running.start_fresh`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.faults import command as faults_command
from tests.faults.orders import FOLDER_VARIABLE

__all__ = ["Forks"]

REPOSITORY = Path(__file__).resolve().parents[2]


class Forks:
    """The parent, seen from the harness; a context manager. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forks"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )  # fmt: skip

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _ask(self, **request: Any) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Starts `hyperadapter ARGUMENTS` in a session of its own; returns its process id."""
        pid: int = self._ask(arguments=list(arguments), environment=environment, log=str(log))
        return pid

    def poll(self, pid: int) -> int | None:
        """Returns the exit code of what was started, None while it runs."""
        code: int | None = self._ask(poll=pid)
        return code


class _Fork:
    """As much of `subprocess.Popen` as the launcher of ranks uses."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        start_new_session: bool,
        preexec_fn: Callable[[], None],
        **streams: None,  # ours
    ) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        if start_new_session:
            os.setsid()
        preexec_fn()
        _run(command[3:], env)  # behind `python -m MODULE`

    def poll(self) -> int | None:
        """Returns the exit code, None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Waits for the end."""
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def send_signal(self, number: int) -> None:
        """Sends a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Does in a copy what a new interpreter would, and ends it."""
    import logging

    code: Any = 1
    try:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.getLogger().handlers.clear()
        os.environ.clear()
        os.environ.update(environment)
        faults_command.note_process()
        sys.argv = ["hyperadapter", *arguments]
        faults_command.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _start(request: Mapping[str, Any]) -> int:
    from cluster.local import _end_with_parent

    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    _end_with_parent(parent)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    stream = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    _run(request["arguments"], request["environment"])
    raise AssertionError


def main() -> None:
    """Imports everything, then starts what stdin asks for until it is closed."""
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (imported with the engine)

    import hyperadapter.training.trainer  # noqa: F401
    from cluster import local

    assert FOLDER_VARIABLE not in os.environ
    vars(local)["subprocess"] = SimpleNamespace(Popen=_Fork)  # not for the whole process
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" not in request:
            answer: Any = _start(request)
        else:
            pid = request["poll"]
            if pid not in codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    codes[pid] = os.waitstatus_to_exitcode(status)
            answer = codes.get(pid)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
