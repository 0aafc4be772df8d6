"""An MLflow server of our own on the loopback, in a process group of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from cluster.local import free_port

__all__ = ["Server"]


class Server:
    """Serves what a folder keeps; it may be ended and started again.

    Attributes:
        uri: Its address, the same after every start.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 120.0) -> None:
        """Starts it, if it does not run, and waits until it answers.

        Raises:
            TimeoutError: It does not answer in time.
        """
        if self._process is not None:
            return
        command = [
            *(str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--backend-store-uri", f"sqlite:///{self._folder}/server.db"),
            *("--artifacts-destination", f"{self._folder}/artifacts"),
        ]
        environment = os.environ | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five processes for nothing
        }
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True,
                env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError((self._folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def send(self, number: int) -> None:
        """Sends a signal to all its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, number)  # our own group: start_new_session

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self.send(signal.SIGKILL)
            self._process.wait()
            self._process = None
