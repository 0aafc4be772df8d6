"""The check of nodes: several of them as threads of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import node_check
from cluster.local import free_port
from cluster.node_check import collect, count_gpus, local_problems, main, report


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def in_background(*work: Callable[[], None]) -> None:
    for item in work:
        threading.Thread(target=item, daemon=True).start()


def test_nodes_without_problems_are_not_named(server: socket.socket) -> None:
    address = server.getsockname()
    in_background(*(lambda n=n: report(address, n, [], 5) for n in ("n2", "n3")))  # type: ignore[misc]
    assert collect(server, ["n2", "n3"], 5) == {}


def test_problems_silence_and_clocks_are_named(server: socket.socket) -> None:
    address = server.getsockname()

    def stranger() -> None:
        with socket.create_connection(address) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n")

    in_background(stranger, lambda: report(address, "n2", ["has 1 of 2 GPUs"], 5))
    assert collect(server, ["n2", "n3"], 0.6) == {
        "n2": ["has 1 of 2 GPUs"],
        "n3": ["does not reach the first node"],
    }
    in_background(lambda: report(address, "n2", [], 5))
    # Theirs is 60 s later than ours.
    late = collect(server, ["n2"], 5, clock=lambda: time.time() - 60)
    assert late == {"n2": ["has a clock that is +60 s off"]}


def test_a_first_node_that_cannot_be_reached_is_an_error() -> None:
    with pytest.raises(OSError, match="refused"):
        report(("127.0.0.1", free_port()), "n2", [], 0.1)


def test_folders_and_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert local_problems(tmp_path, str(tmp_path), gpus=2) == []
    assert local_problems(tmp_path / "none", "/none", gpus=4) == [
        f"cannot write in {tmp_path / 'none'} (No such file or directory)",
        "cannot write in /none (No such file or directory)",
        "has 2 of 4 GPUs",
    ]
    assert not list(tmp_path.iterdir())


def test_gpus_are_those_that_the_driver_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus({}) == 0
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: GPU-1)'\necho 'GPU 1: H100'\n")
    tool.chmod(0o755)
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == 2
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "0"}) == 0


@pytest.fixture
def first_node(monkeypatch: pytest.MonkeyPatch) -> int:
    port = free_port()
    monkeypatch.setattr(node_check, "_PORT_OFFSET", 0)
    values = {
        "SLURMD_NODENAME": "n1", "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return port


def test_the_first_node_writes_who_is_bad(
    first_node: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "bad_nodes"
    address = ("127.0.0.1", first_node)
    in_background(lambda: report(address, "n2", [], 5))
    assert main(["--out", str(out), "--", "n1", "n2"]) == 0
    assert out.read_text() == ""
    in_background(lambda: report(address, "n2", [], 5))
    words = ["--out", str(out), "--timeout", "0.8", "--scratch", "/none", "n1", "n2", "n3"]
    assert main(words) == 1
    assert out.read_text().splitlines() == ["n3", "n1"]
    assert "node n3 does not reach the first node" in caplog.text
    assert "node n1 cannot write in /none" in caplog.text


def test_a_first_node_that_nobody_reaches_is_the_bad_one(first_node: int, tmp_path: Path) -> None:
    out = tmp_path / "bad_nodes"
    assert main(["--out", str(out), "--timeout", "0.2", "n1", "n2", "n3"]) == 1
    assert out.read_text() == "n1\n"
    # Of two, nobody knows which.
    assert main(["--out", str(out), "--timeout", "0.2", "n1", "n2"]) == 1
    assert out.read_text() == "n2\n"


def test_another_node_reports_and_fails_only_if_it_reaches_nobody(
    first_node: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    words = ["--out", str(tmp_path / "bad_nodes"), "--timeout", "2", "n1", "n2"]
    with socket.create_server(("127.0.0.1", first_node)) as server:
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(main(words)))
        thread.start()
        assert collect(server, ["n2"], 5) == {}
        thread.join(5)
    assert codes == [0]
    assert main([*words[:3], "0.1", "n1", "n2"]) == 1
    assert "node n2 does not reach 127.0.0.1" in caplog.text
    assert not (tmp_path / "bad_nodes").exists()
