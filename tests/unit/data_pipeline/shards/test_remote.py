"""Remote shards arrive whole or not at all, whatever a server does, and nothing waits for ever."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.shards import remote
from data_pipeline.shards.manifest import ShardEntry, is_url, read_manifest
from data_pipeline.shards.reader import ShardReader
from data_pipeline.shards.remote import Patience, ShardCache, download, fetch_bytes
from data_pipeline.shards.tools import merge, verify
from hyperadapter.core.errors import DiskFullError, FetchError, LostBlockError

PATIENT = Patience(stall_s=20, tries=3, pause_s=0.01, lock_s=20)
HASTY = replace(PATIENT, stall_s=0.3, lock_s=0.3)
CONTENT = np.random.default_rng(1).bytes(300_000)


class Server:
    """Serves a folder over HTTP, as badly as a test asks for.

    Attributes:
        requests: Path and range of each request.
        behave: Called with the handler, the bytes asked for and the request's number; it says
            whether it has answered.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, str]] = []
        self.behave: Callable[[BaseHTTPRequestHandler, bytes, int], bool] = lambda *_: False
        self.ranges = True
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "")
        self.requests.append((handler.path, wanted))
        path = self.folder / handler.path.lstrip("/")
        if not path.is_file():
            handler.send_error(404)
            return
        data = path.read_bytes()
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if self.behave(handler, data[start:], len(self.requests)):
            return
        head(handler, 206 if start else 200, len(data) - start)
        handler.wfile.write(data[start:])

    def close(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def head(handler: BaseHTTPRequestHandler, status: int, length: int) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(length))
    handler.end_headers()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "x.tar").write_bytes(CONTENT)
    server = Server(folder)
    yield server
    server.close()


def entry(server: Server, name: str = "x.tar", content: bytes = CONTENT) -> ShardEntry:
    (server.folder / name).write_bytes(content)
    return ShardEntry(
        file=f"{server.url}/{name}",
        sha256=hashlib.sha256(content).hexdigest(),
        num_bytes=len(content),
    )


@pytest.fixture
def hasty(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", patience=HASTY)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", patience=PATIENT)


def test_a_shard_is_downloaded_once(server: Server, cache: ShardCache) -> None:
    shard = entry(server)
    assert cache.path(shard).read_bytes() == CONTENT
    assert cache.path(shard) == cache.path(shard)
    assert server.requests == [("/x.tar", "")]
    cache.discard(shard)
    assert cache.path(shard).read_bytes() == CONTENT
    assert len(server.requests) == 2


def dies_halfway(times: int) -> Callable[[BaseHTTPRequestHandler, bytes, int], bool]:
    def behave(handler: BaseHTTPRequestHandler, data: bytes, number: int) -> bool:
        if number > times:
            return False
        head(handler, 206 if number > 1 else 200, len(data))
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        time.sleep(0.3)  # a client may throw away what came together with the end
        handler.connection.close()
        return True

    return behave


def test_a_server_that_dies_is_gone_on_with(server: Server, cache: ShardCache) -> None:
    server.behave = dies_halfway(2)
    assert cache.path(entry(server)).read_bytes() == CONTENT
    starts = [int(wanted[6:-1]) for _, wanted in server.requests[1:]]
    assert len(starts) == 2
    assert 0 < starts[0] <= starts[1] < len(CONTENT)


def test_a_server_without_ranges_begins_again(server: Server, cache: ShardCache) -> None:
    server.ranges = False

    def behave(handler: BaseHTTPRequestHandler, data: bytes, number: int) -> bool:
        head(handler, 200, len(data))
        handler.wfile.write(data if number > 1 else data[:1000])
        handler.wfile.flush()
        handler.connection.close()
        return True

    server.behave = behave
    assert cache.path(entry(server)).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_server_that_keeps_dying_is_given_up(
    server: Server, cache: ShardCache, tmp_path: Path
) -> None:
    server.behave = dies_halfway(100)
    with pytest.raises(FetchError, match=r"x.tar cannot be downloaded: .*; see that the address"):
        cache.path(entry(server))
    assert len(server.requests) == PATIENT.tries
    server.behave = lambda *_: False
    assert cache.path(entry(server)).read_bytes() == CONTENT
    assert server.requests[-1][1], "what came before was thrown away"
    assert not list((tmp_path / "cache").glob("*.part"))


def test_tries_that_bring_much_do_not_count(
    server: Server, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PROGRESS_BYTES", 10_000)
    server.behave = dies_halfway(4)
    assert cache.path(entry(server)).read_bytes() == CONTENT
    assert len(server.requests) == 5 > PATIENT.tries


def test_a_silent_server_is_given_up(server: Server, hasty: ShardCache) -> None:
    def behave(handler: BaseHTTPRequestHandler, data: bytes, number: int) -> bool:
        server.over.wait()
        return True

    server.behave = behave
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"silent for 0.3 s|imeout"):
        hasty.path(entry(server))
    assert time.monotonic() - started < 5


def test_a_server_that_drips_is_given_up(server: Server, hasty: ShardCache) -> None:
    def behave(handler: BaseHTTPRequestHandler, data: bytes, number: int) -> bool:
        head(handler, 200, len(data))
        while not server.over.wait(0.02):
            try:
                handler.wfile.write(b"x")
            except OSError:
                break
        return True

    server.behave = behave
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"only \d+ bytes came in"):
        hasty.path(entry(server))
    assert time.monotonic() - started < 5


def test_a_flipped_byte_is_found(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    shard = entry(server)
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    (server.folder / "x.tar").write_bytes(changed)
    with pytest.raises(FetchError, match=r"its SHA-256 is \w+\.\., but its manifest promises"):
        cache.path(shard)
    assert len(server.requests) == PATIENT.tries
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize("content", [CONTENT[:100], CONTENT + b"more"])
def test_another_size_is_found(server: Server, cache: ShardCache, content: bytes) -> None:
    shard = entry(server)
    (server.folder / "x.tar").write_bytes(content)
    with pytest.raises(FetchError, match=r"bytes, but its manifest promises 300000|416"):
        cache.path(shard)


def test_what_is_not_there_is_not_tried_again(server: Server, cache: ShardCache) -> None:
    shard = entry(server)
    (server.folder / "x.tar").unlink()
    with pytest.raises(FetchError, match=r"cannot be downloaded: FileNotFoundError"):
        cache.path(shard)
    assert len(server.requests) == 1
    with pytest.raises(FetchError, match="cannot be downloaded: Protocol not known"):
        cache.path(shard.model_copy(update={"file": "gopher://host/x.tar"}))


def test_the_least_recently_used_go(server: Server, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", cache_bytes=250, patience=PATIENT)
    shards = [entry(server, f"{n}.tar", bytes([n]) * 100) for n in range(4)]
    for shard in shards[:2]:
        cache.path(shard)
    time.sleep(0.01)
    cache.path(shards[0])
    cache.path(shards[2])
    assert {path.stem for path in (tmp_path / "cache").glob("*.tar")} == {
        shards[0].sha256, shards[2].sha256
    }  # fmt: skip
    large = entry(server, "large.tar", b"y" * 1000)
    assert cache.path(large).stat().st_size == 1000
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 1


def test_one_downloads_and_the_others_wait(
    server: Server, hasty: ShardCache, tmp_path: Path
) -> None:
    shard = entry(server)
    paths: list[Path] = []
    server.behave = lambda *_: bool(time.sleep(0.1))  # type: ignore[func-returns-value]
    threads = [
        threading.Thread(
            target=lambda: paths.append(
                ShardCache(tmp_path / "cache", patience=PATIENT).path(shard)
            )
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3
    assert len(server.requests) == 1
    hasty.discard(shard)
    with open((tmp_path / "cache" / shard.sha256).with_suffix(".lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(FetchError, match=r"another process has been downloading .* for 0.3 s"):
            hasty.path(shard)


def test_other_stores_go_on_where_they_stopped(tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe("/toy/x.tar", CONTENT)
    shard = ShardEntry(
        file="memory://toy/x.tar",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        num_bytes=len(CONTENT),
    )
    (tmp_path / "x.part").write_bytes(CONTENT[:1234])
    download(shard.file, tmp_path / "x.tar", shard, PATIENT)
    assert (tmp_path / "x.tar").read_bytes() == CONTENT
    assert fetch_bytes(shard.file, PATIENT) == CONTENT


def test_a_full_disk_is_told(
    server: Server, cache: ShardCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote, "_append", full)
    with pytest.raises(DiskFullError, match="no space left on the disk"):
        cache.path(entry(server))


@pytest.fixture
def adopted(corpus: DataConfig, server: Server, tmp_path: Path) -> Path:
    """A folder whose shards are on the server."""
    shutil.copytree(Path(corpus.folder) / "shards", server.folder / "toy")
    merge([f"{server.url}/toy/"], tmp_path / "adopted")
    return tmp_path / "adopted"


def test_remote_shards_are_adopted_and_read(
    corpus: DataConfig, adopted: Path, server: Server, tmp_path: Path
) -> None:
    assert not [path for path, _ in server.requests if path.endswith(".tar")]
    shards = [shard for pair in read_manifest(adopted / "train").pairs for shard in pair.shards]
    assert all(is_url(shard.file) for shard in shards)
    ours = ShardReader(adopted / "train", cache=ShardCache(tmp_path / "cache", patience=PATIENT))
    theirs = ShardReader(Path(corpus.folder) / "shards/train")
    ours.lengths(0, "a")
    assert not [path for path, _ in server.requests if path.endswith(".tar")]
    for block in range(ours.manifest.num_blocks):
        np.testing.assert_array_equal(
            ours.sentences(block, "a").flat(), theirs.sentences(block, "a").flat()
        )
    assert len([path for path, _ in server.requests if path.endswith(".tar")]) == len(shards)
    assert verify(adopted / "train", 1, ShardCache(tmp_path / "cache", patience=PATIENT)).bad == ()


def test_a_damaged_copy_is_fetched_again(adopted: Path, server: Server, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", patience=PATIENT)
    reader = ShardReader(adopted / "train", cache=cache)
    wanted = reader.sentences(0, "a").flat()
    copy = cache.path(reader.manifest.pairs[0].shards[0])
    copy.write_bytes(bytes(copy.stat().st_size))
    again = ShardReader(adopted / "train", cache=cache)
    np.testing.assert_array_equal(again.sentences(0, "a").flat(), wanted)


def test_a_shard_that_cannot_be_fetched_is_lost_once(
    adopted: Path, server: Server, tmp_path: Path
) -> None:
    (server.folder / "toy/train/en-de-00000.tar").unlink()
    reader = ShardReader(adopted / "train", cache=ShardCache(tmp_path / "cache", patience=PATIENT))
    before = len(server.requests)
    for _ in range(3):
        with pytest.raises(
            LostBlockError, match=r"en-de-00000.tar: cannot be downloaded: .* is up"
        ):
            reader.sentences(0, "a")
    assert len(server.requests) == before + 1
    assert list(reader.damaged_shards) == [f"{server.url}/toy/train/en-de-00000.tar"]


def test_a_cache_that_is_too_small_is_told(
    adopted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ShardReader(adopted / "train", cache=ShardCache(tmp_path / "cache", cache_bytes=10))
    assert "raise data.stream.cache_bytes" in caplog.text
