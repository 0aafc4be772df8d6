from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster.local import (
    Program,
    _end_with_parent,
    launched_externally,
    run_programs,
    run_ranks,
)


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


def test_a_stopped_rank_is_woken_to_end() -> None:
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "if os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(2 if os.environ['RANK'] == '0' else 60); sys.exit(3)"
    )
    started = time.monotonic()
    assert run_ranks(python(code), 2) == 3
    assert time.monotonic() - started < 15


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


def test_ranks_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    rank = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid()))\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", f"from cluster.local import run_ranks; run_ranks({python(rank)}, 2)"]
    )
    deadline = time.monotonic() + 20
    pids: list[int] = []
    while time.monotonic() < deadline and len(pids) < 2:
        texts = [path.read_text() for path in tmp_path.iterdir()]
        pids = [int(text) for text in texts if text]
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while time.monotonic() < deadline and any(is_running(pid) for pid in pids):
        time.sleep(0.02)
    assert [is_running(pid) for pid in pids] == [False, False]


def test_a_rank_whose_parent_died_before_it_could_ask_ends() -> None:
    rank = subprocess.Popen(
        python("import time; time.sleep(60)"), preexec_fn=lambda: _end_with_parent(os.getppid() + 1)
    )
    assert rank.wait(20) == 1


def is_running(pid: int) -> bool:
    """Says whether a process exists and is not a zombie that nobody has reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


DEAF = "import time; open({!r}, 'w').close(); time.sleep(60)"


def program(tmp_path: Path, name: str, *codes: str) -> Program:
    return Program(name, [python(code) for code in codes], tmp_path / name / "log")


def test_programs_share_the_workers_and_a_failure_is_their_own(tmp_path: Path) -> None:
    note = (
        f"import os, time; place = {str(tmp_path)!r} + '/'; worker = os.environ['WORKER']; "
        "os.mkdir(place + worker); print('from', worker, flush=True); "
    )
    work = note + "time.sleep(0.3); os.rmdir(place + worker)"
    programs = [program(tmp_path, name, work) for name in "abcd"]
    programs[1] = program(tmp_path, "b", "raise SystemExit(7)", "print('never')")
    programs.append(program(tmp_path, "e", "print(1)", "import sys; print(2); sys.exit(3)"))
    said: list[tuple[str, int | None]] = []
    codes = run_programs(
        programs, [{"WORKER": "0"}, {"WORKER": "1"}], lambda *change: said.append(change)
    )
    # mkdir fails where two programs have one worker at a time.
    assert codes == {"a": 0, "b": 7, "c": 0, "d": 0, "e": 3}
    assert [name for name, code in said if code is None] == list("abcde")
    assert {(name, code) for name, code in said if code is not None} == set(codes.items())
    assert (tmp_path / "b" / "log").read_text() == ""
    assert (tmp_path / "e" / "log").read_text() == "1\n2\n"
    assert (tmp_path / "a" / "log").read_text() in ("from 0\n", "from 1\n")


def test_a_signal_stops_programs_and_starts_no_other(tmp_path: Path) -> None:
    wait = (
        "import signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit({})); "
        f"open({str(tmp_path)!r} + '/{{}}', 'w').close(); time.sleep(60)"
    )
    programs = [
        program(tmp_path, "saves", wait.format(75, 1)),
        program(tmp_path, "ends", wait.format(0, 2), "print('next command')"),
        program(tmp_path, "breaks", wait.format(5, 3)),
        program(tmp_path, "deaf", DEAF.format(str(tmp_path / "4"))),
        program(tmp_path, "waits", "pass"),
    ]  # fmt: skip

    def send() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not all((tmp_path / n).exists() for n in "1234"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=send)
    thread.start()
    codes = run_programs(programs, [{}] * 4)
    thread.join()
    assert codes == {"saves": 75, "ends": 75, "breaks": 5, "deaf": 75}
    assert (tmp_path / "ends" / "log").read_text() == ""
