"""Files at http(s) and object-store URLs, and a bounded local cache of remote shards.

The one door of fsspec; object stores need its extra packages (`s3fs`, `gcsfs`, ...), and take their
credentials from the environment. Nothing here waits for ever: a server that is silent, or much too
slow, is given up after a few tries, each of which goes on where the last one stopped.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import ShardEntry
from hyperadapter.core.errors import FetchError
from hyperadapter.core.files import sha256_file, translate_disk_full

__all__ = [
    "REMOTE_REMEDY",
    "Patience",
    "ShardCache",
    "default_cache_folder",
    "download",
    "fetch_bytes",
]

log = logging.getLogger(__name__)

REMOTE_REMEDY = "see that the address is right and the server is up, and run the same command again"
_CHUNK_BYTES = 1 << 20
_CHUNKS_AHEAD = 4
_POLL_S = 0.1
_PARTIAL_CONTENT = 206
_TRY_AGAIN_STATUS = {408, 416, 425, 429}
_PROGRESS_BYTES = 1 << 20  # a try that brought so much is no failure
_LEAST_BYTES_PER_S = 100_000  # a try that is slower counts as one that stopped


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for others.

    Attributes:
        stall_s: A server may be silent for so long.
        tries: Failures in a row, with hardly a byte in each, that end a download.
        pause_s: Before the second try; it doubles with each failure, up to `stall_s`.
        lock_s: Wait for another process that downloads the same file.
    """

    stall_s: float = 30.0
    tries: int = 5
    pause_s: float = 1.0
    lock_s: float = 900.0


_PATIENCE = Patience()


class ShardCache:
    """A folder of downloaded shards, shared by all processes of a machine.

    A file is named by its SHA-256, so whatever bears its name is the right one. The least recently
    used go when there is no room; downloads under way may pass the limit for a moment.
    """

    def __init__(
        self, folder: Path, cache_bytes: int = 10_000_000_000, patience: Patience = _PATIENCE
    ) -> None:
        """Names the folder; it is made with the first download.

        Args:
            folder: Best on a disk of this machine.
            cache_bytes: Most bytes that are kept; one shard is kept however large it is.
            patience: How long to wait for servers and for other processes.
        """
        self._folder = folder
        self._cache_bytes = cache_bytes
        self._patience = patience

    def path(self, shard: ShardEntry) -> Path:
        """Returns the local copy of a remote shard, downloading it if it is not there.

        Another process may remove the file at any time: open it at once, and ask again if it is
        gone.

        Raises:
            FetchError: It cannot be downloaded, or is not what the manifest promises.
            DiskFullError: There is no room for it.
        """
        path = self._path(shard)
        if _touch(path):
            return path
        self._folder.mkdir(parents=True, exist_ok=True)
        with _lock(path.with_suffix(".lock"), shard.file, self._patience):
            if not _touch(path):
                self._make_room(shard.num_bytes, path)
                download(shard.file, path, shard, self._patience)
        return path

    def discard(self, shard: ShardEntry) -> None:
        """Removes the local copy of a shard, which turned out to be damaged."""
        self._path(shard).unlink(missing_ok=True)

    def warn_if_small(self, num_bytes: int) -> None:
        """Logs that shards of so many bytes do not fit in the cache."""
        if num_bytes > self._cache_bytes:
            log.warning(
                "the cache of %d bytes in %s is smaller than the %d bytes of remote shards, which "
                "will be downloaded again and again; raise data.stream.cache_bytes, or copy them",
                self._cache_bytes, self._folder, num_bytes,
            )  # fmt: skip

    def _path(self, shard: ShardEntry) -> Path:
        return self._folder / f"{shard.sha256}.tar"

    def _make_room(self, num_bytes: int, path: Path) -> None:
        """Removes the least recently used files; `path` is to get `num_bytes`."""
        files = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith((".tar", ".part")) and not entry.name.startswith(path.stem):
                try:
                    stat = entry.stat()
                except FileNotFoundError:  # another process makes room, too
                    continue
                files.append((stat.st_mtime_ns, stat.st_size, Path(entry.path)))
        total = num_bytes + sum(size for _, size, _ in files)
        for _, size, oldest in sorted(files):
            if total <= self._cache_bytes:
                break
            log.info("the shard cache drops %s", oldest)
            oldest.unlink(missing_ok=True)
            total -= size


def default_cache_folder(folder: Path) -> Path:
    """Returns where the remote shards of a manifest's folder go if nothing else is said."""
    return folder / ".cache"


def download(url: str, path: Path, shard: ShardEntry, patience: Patience = _PATIENCE) -> None:
    """Downloads a file beside `path`, checks it and renames it.

    What an earlier call left is gone on with. Only one process may work on a path at a time.

    Raises:
        FetchError: It cannot be downloaded, or has not the size and SHA-256 of `shard`.
        DiskFullError: There is no room for it.
    """
    part = path.with_suffix(".part")

    def attempt() -> None:
        with translate_disk_full(path):
            _append(url, part, shard.num_bytes, patience)
        found = sha256_file(part)
        if found != shard.sha256:
            part.unlink()
            raise _RemoteError(
                f"its SHA-256 is {found[:12]}.., but its manifest promises {shard.sha256[:12]}.."
            )
        os.replace(part, path)

    _persist(url, attempt, lambda: part.stat().st_size if part.is_file() else 0, patience)


def fetch_bytes(url: str, patience: Patience = _PATIENCE) -> bytes:
    """Returns the content of a small remote file.

    Raises:
        FetchError: It cannot be read.
    """
    content = bytearray()

    def attempt() -> None:
        content.clear()
        with closing(_iter_chunks(url, 0, patience)) as chunks:
            next(chunks)
            for chunk in chunks:
                content.extend(chunk)

    _persist(url, attempt, lambda: 0, patience)
    return bytes(content)


class _RemoteError(Exception):
    """A download stopped or failed; `final` if another try would be no better."""

    def __init__(self, reason: str, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


def _persist(
    url: str, attempt: Callable[[], None], progress: Callable[[], int], patience: Patience
) -> None:
    """Calls `attempt` until it succeeds, or has failed too often without progress."""
    failures = 0
    while True:
        before = progress()
        try:
            attempt()
        except _RemoteError as error:
            failures = failures + 1 if progress() - before < _PROGRESS_BYTES else 0
            if error.final or failures >= patience.tries:
                raise FetchError(f"{url} cannot be downloaded: {error}; {REMOTE_REMEDY}") from error
            log.warning("%s: %s; trying again", url, error)
            time.sleep(min(patience.pause_s * 2.0 ** max(failures - 1, 0), patience.stall_s))
        else:
            return


def _append(url: str, part: Path, num_bytes: int, patience: Patience) -> None:
    """Downloads what `part` lacks to have `num_bytes`."""
    done = part.stat().st_size if part.is_file() else 0
    if done > num_bytes:
        done = 0
    with open(part, "r+b" if done else "wb") as stream:
        if done == num_bytes:
            return
        with closing(_iter_chunks(url, done, patience)) as chunks:
            # A server that knows no ranges begins at the front.
            done = int.from_bytes(next(chunks))
            stream.seek(done)
            stream.truncate()
            for chunk in chunks:
                done += stream.write(chunk)
                if done > num_bytes:
                    break
    if done != num_bytes:
        if done > num_bytes:
            part.unlink()
        raise _RemoteError(
            f"it has {'more than ' * (done > num_bytes)}{min(done, num_bytes)} bytes, but its "
            f"manifest promises {num_bytes}"
        )


def _iter_chunks(url: str, offset: int, patience: Patience) -> Generator[bytes, None, None]:
    """Yields where the server begins (8 bytes), then the file from there.

    A thread reads, because not every store's client gives up a silent server; this one does.
    """
    _require_store(url)
    ready: queue.Queue[bytes | _RemoteError | None] = queue.Queue(_CHUNKS_AHEAD)
    stop = threading.Event()

    def put(item: bytes | _RemoteError | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            stream, start = _open_remote(url, offset, patience.stall_s)
            with closing(stream):
                put(start.to_bytes(8))
                while not stop.is_set() and (chunk := stream.read(_CHUNK_BYTES)):
                    put(chunk)
            put(None)
        except Exception as error:  # each kind of store raises its own
            put(_RemoteError(f"{type(error).__name__}: {error}".rstrip(": "), _is_final(error)))

    threading.Thread(target=work, name="remote-read", daemon=True).start()
    started = time.monotonic()
    received = 0
    try:
        while True:
            try:
                item = ready.get(timeout=patience.stall_s)
            except queue.Empty:
                raise _RemoteError(f"the server is silent for {patience.stall_s:g} s") from None
            if item is None:
                return
            if isinstance(item, _RemoteError):
                raise item
            yield item
            received += len(item)
            waited = time.monotonic() - started - patience.stall_s
            if waited > received / _LEAST_BYTES_PER_S:
                raise _RemoteError(f"only {received} bytes came in {waited:.0f} s")
    finally:
        stop.set()


def _require_store(url: str) -> None:
    """Imports what reads a kind of URL; that takes long, but is no fault of the server."""
    import fsspec  # most shards are local

    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise _RemoteError(str(error), final=True) from error


def _open_remote(url: str, offset: int, stall_s: float) -> tuple[Any, int]:
    """Opens a remote file near `offset`; returns where it begins, too."""
    import fsspec

    protocol = url.partition("://")[0]
    if protocol not in ("http", "https"):
        stream = fsspec.open(url, "rb").open()
        stream.seek(offset)
        return stream, offset
    import aiohttp

    files = fsspec.filesystem(protocol)
    stream = files.open(
        url,
        "rb",
        block_size=0,  # as a stream
        size=1,  # else it asks the server for it first
        headers={"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {}),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s),
    )
    return stream, offset if stream.r.status == _PARTIAL_CONTENT else 0


def _is_final(error: Exception) -> bool:
    """Says whether the server has understood, and will not give the file."""
    status = getattr(error, "status", None)  # of aiohttp's ClientResponseError
    if isinstance(status, int):
        return status in range(400, 500) and status not in _TRY_AGAIN_STATUS
    return isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)


def _touch(path: Path) -> bool:
    """Marks a file as used just now; returns False if there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _lock(path: Path, url: str, patience: Patience) -> Iterator[None]:
    """Holds a lock file against other processes; one that is killed lets go by itself."""
    deadline = time.monotonic() + patience.lock_s
    with open(path, "w", encoding="utf-8") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FetchError(
                        f"another process has been downloading {url} for {patience.lock_s:g} s; "
                        f"see whether it hangs (it holds {path}), and run the same command again"
                    ) from None
                time.sleep(_POLL_S)
        yield
