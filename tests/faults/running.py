"""One start of a training command, seen from outside: its processes, its steps, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hyperadapter.core.events import EVENTS_FILE, read_events
from tests.faults.command import ALONE_VARIABLE
from tests.faults.forks import Forks
from tests.faults.orders import FOLDER_VARIABLE

__all__ = ["Events", "Training", "processes_of"]

REPOSITORY = Path(__file__).resolve().parents[2]


def processes_of(folder: Path) -> dict[int, str]:
    """Returns the rank, empty for the launcher, of every live process that obeys a folder."""
    found = {}
    for path in folder.glob("process-*"):
        pid = int(path.name.rpartition("-")[2])
        if _lives(pid):
            found[pid] = path.read_text()
    mark = f"{FOLDER_VARIABLE}={folder}".encode()
    for path in Path("/proc").iterdir():
        if not path.name.isdigit() or int(path.name) in found:
            continue
        try:
            entries = (path / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is not ours
            continue
        if mark in entries:  # a zombie's environment is empty
            pairs = dict(entry.decode(errors="replace").partition("=")[::2] for entry in entries)
            found[int(path.name)] = pairs.get("RANK", "0" if ALONE_VARIABLE in pairs else "")
    return found


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return False
    # Until its last thread has ended, a dead process still holds its locks.
    return state not in "XZ" or len(tasks) > 1


class Events:
    """The event file of a run, read as it grows.

    Attributes:
        steps: (start, step) of every step that was logged, in order; starts count from 1.
        status: What was last said of the run.
        starts: How often training began.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._offset = 0
        self.steps: list[tuple[int, int]] = []
        self.status = ""
        self.starts = 0

    def refresh(self) -> None:
        """Reads what is new."""
        if not (self._run_dir / EVENTS_FILE).exists():
            return
        for event in read_events(self._run_dir, self._offset):
            self._offset = event.end
            if "status" in event.value:
                self.status = event.value["status"]
                self.starts += self.status == "RUNNING"
            if "train/loss" in event.value.get("metrics", {}):
                self.steps.append((self.starts, event.value["step"]))

    @property
    def last(self) -> int:
        """The step that was logged last, 0 without one."""
        return self.steps[-1][1] if self.steps else 0


class Training:
    """A started `hyperadapter train`.

    Args:
        arguments: Those of the command.
        folder: Of the orders; the environment of all processes names it.
        log: File that stderr goes to.
        more: Further environment.
        forks: What starts it; None: a new interpreter.

    Attributes:
        pid: The command's process id.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        log: Path,
        more: Mapping[str, str],
        forks: Forks | None = None,
    ) -> None:
        self.folder, self.log = folder, log
        environment = os.environ | {FOLDER_VARIABLE: str(folder), "OMP_NUM_THREADS": "1", **more}
        log.touch()
        for old in folder.glob("process-*"):
            old.unlink()
        self._poll: Callable[[], int | None]
        if forks is not None:
            self.pid = pid = forks.start(["train", *arguments], environment, log)
            self._poll = lambda: forks.poll(pid)
            return
        with open(log, "wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.command", "train", *arguments],
                cwd=REPOSITORY, env=environment, stdout=stream, stderr=stream,
                start_new_session=True,
            )  # fmt: skip
        self.pid, self._poll = process.pid, process.poll

    def rank(self, rank: int) -> int | None:
        """Returns the process id of a rank, None if it has none."""
        for pid, name in processes_of(self.folder).items():
            if name == str(rank):
                return pid
        return None

    def send(self, number: int, pid: int | None) -> None:
        """Sends a signal to one of our processes."""
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_all(self) -> None:
        """Ends everything at once, as a node that loses its power does."""
        for pid in processes_of(self.folder):
            self.send(signal.SIGKILL, pid)

    @property
    def code(self) -> int | None:
        """The command's exit code, None while it runs."""
        return self._poll()

    def text(self) -> str:
        """What all processes wrote to stderr."""
        return self.log.read_text(errors="replace")

    def wait(self, until: Callable[[], bool], timeout_s: float, pause_s: float = 0.02) -> bool:
        """Waits until something is so; False if it is not in time."""
        deadline = time.monotonic() + timeout_s
        while not until():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
        return True

    def wait_for_end(self, timeout_s: float) -> tuple[float, int]:
        """Waits until no process is left.

        Returns:
            Seconds, and the number of processes that had to be killed after `timeout_s`.
        """
        started = time.monotonic()
        self.wait(lambda: self.code is not None, timeout_s)
        left_s = max(1.0, started + timeout_s - time.monotonic())
        over = self.wait(lambda: not processes_of(self.folder), left_s, 0.1)
        seconds = time.monotonic() - started
        left = 0 if over else len(processes_of(self.folder))
        if not over:
            self.kill_all()
            self.wait(lambda: self.code is not None, 5.0)
        return seconds, left
