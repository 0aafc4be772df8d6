from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.local import launched_externally, run_ranks


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_every_rank_knows_its_place(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; e = os.environ; "
        f"pathlib.Path({str(tmp_path)!r}, e['RANK']).write_text("
        "' '.join(e[k] for k in ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')))"
    )
    assert run_ranks(python(code), 3) == 0
    found = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [row[:3] for row in found] == [[str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({row[3] for row in found}) == 1


def test_a_failing_rank_ends_the_others() -> None:
    code = "import os, sys, time; sys.exit(3) if os.environ['RANK'] == '1' else time.sleep(60)"
    started = time.monotonic()
    assert run_ranks(python(code), 2) == 3
    assert time.monotonic() - started < 20


def test_a_rank_that_a_signal_killed_is_named_by_its_code() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert run_ranks(python(code), 1) == 128 + signal.SIGKILL


@pytest.mark.parametrize("sent", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_rank_and_75_is_kept(sent: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys, time\n"
        "for s in (signal.SIGUSR1, signal.SIGTERM): signal.signal(s, lambda n, f: sys.exit(75))\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()\n"
        "time.sleep(60)"
    )

    def send() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), sent)

    thread = threading.Thread(target=send)
    thread.start()
    assert run_ranks(python(code), 2) == 75
    thread.join()


def test_knows_other_launchers() -> None:
    assert launched_externally({"RANK": "0"})
    assert launched_externally({"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"})
    assert not launched_externally({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"})
    assert not launched_externally({"SLURM_NTASKS": "1"})
    assert not launched_externally({})
