"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.core.errors import DataError, DiskFullError
from hyperadapter.core.files import (
    atomic_directory,
    atomic_open,
    locked,
    read_json,
    require_space,
    resumable_directory,
    sha256_file,
    translate_disk_full,
    write_json,
    write_text,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


class CrashError(Exception):
    """Stands for anything that goes wrong."""


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_and_fail() -> NoReturn:
        with atomic_open(path, mode) as stream:
            stream.write("half" if mode == "w" else b"half")
            stream.flush()
            raise CrashError

    with pytest.raises(CrashError):
        write_and_fail()
    assert tree(tmp_path) == {"file": b"old"}


def test_until_the_end_readers_see_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with atomic_open(path) as stream:
        stream.write("new")
        stream.flush()
        assert path.read_text() == "old"
    assert tree(tmp_path) == {"file": b"new"}


def test_text_is_utf8_with_plain_line_ends_and_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b", "ß\nþ\r\n")
    assert (tmp_path / "a" / "b").read_bytes() == "ß\nþ\r\n".encode()


def test_what_is_renamed_has_been_flushed_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(*args: Any) -> Any:
            done.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, watched)

    watch("fsync")
    watch("replace")
    write_text(tmp_path / "file", "x")
    assert done == ["fsync", "replace"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("door", ["fsync", "replace"])
def test_a_full_disk_is_told_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, door: str
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, door, full)
    with pytest.raises(DiskFullError, match="no space left on the disk while writing") as caught:
        write_text(path, "new")
    assert str(path) in str(caught.value)
    assert "Free some space" in str(caught.value)
    assert tree(tmp_path) == {"file": b"old"}


def test_a_really_full_device() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def fill() -> None:
        with translate_disk_full(Path("x")), open("/dev/full", "w") as stream:
            stream.write("x")

    with pytest.raises(DiskFullError, match="while writing x"):
        fill()


def test_other_failures_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError), translate_disk_full(tmp_path):
        raise NotADirectoryError(errno.ENOTDIR, "no")


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    for name in ("old", "new"):
        with atomic_directory(path) as part:
            (part / name).write_text(name)
            assert not (path / name).exists()
    assert tree(tmp_path) == {"deep/folder/new": b"new"}


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_directory(path) as part:
        (part / "a").write_text("old")

    def write_and_fail() -> NoReturn:
        with atomic_directory(path) as part:
            (part / "a").write_text("half")
            raise CrashError

    with pytest.raises(CrashError):
        write_and_fail()
    assert tree(tmp_path) == {"folder/a": b"old"}


def test_the_files_of_a_folder_are_on_the_disk_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    flushed: set[int] = set()

    def watch(descriptor: int) -> None:
        assert not path.exists()
        flushed.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", watch)
    with atomic_directory(path) as part:
        (part / "deep").mkdir()
        for name in ("a", "deep/b"):
            (part / name).write_text(name)
    assert flushed == {(path / name).stat().st_ino for name in ("a", "deep/b")}


def test_a_disk_that_is_full_at_the_flush_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_text("old")

    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "full")

    def fill() -> None:
        with atomic_directory(tmp_path / "folder") as part:
            (part / "a").write_text("new")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="folder"):
        fill()
    assert tree(tmp_path) == {"folder/a": b"old"}


def test_leftovers_of_a_killed_process_do_not_come_in(tmp_path: Path) -> None:
    (tmp_path / "folder.part").mkdir()
    (tmp_path / "folder.part" / "junk").touch()
    with atomic_directory(tmp_path / "folder") as part:
        (part / "a").touch()
    assert tree(tmp_path) == {"folder/a": b""}


def test_a_disk_that_fills_up_inside_a_folder(tmp_path: Path) -> None:
    def fill() -> NoReturn:
        with atomic_directory(tmp_path / "folder") as part:
            (part / "a").touch()
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(DiskFullError, match="folder"):
        fill()
    assert tree(tmp_path) == {}


@given(JSON)
def test_json_comes_back_as_it_was(tmp_path: Path, value: Any) -> None:
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(DataError, match=r"x\.json does not exist"):
        read_json(path)
    for broken in (b'{"a": ', b"\xff"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"x\.json is not valid JSON .* make it anew"):
            read_json(path)


@given(st.binary(max_size=100))
def test_sha256(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_space_is_asked_for_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=2_500_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    folder = tmp_path / "not" / "made" / "yet"
    require_space(folder, 2_500_000, "the tokenizer")
    with pytest.raises(DiskFullError, match=r"the tokenizer needs 2\.6 MB but .* has 2\.5 MB free"):
        require_space(folder, 2_600_000, "the tokenizer")
    assert not folder.exists()


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    ask = (
        "import sys, pathlib; from hyperadapter.core.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1])) as free: print(free)"
    )

    def other_process() -> str:
        command = [sys.executable, "-c", ask, str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with locked(folder) as free:
        assert free
        assert other_process() == "False"
    assert other_process() == "True"


def interrupted(path: Path, fingerprint: str) -> None:
    """Writes one file into a folder that is never finished."""
    with suppress(RuntimeError), resumable_directory(path, fingerprint) as part:
        write_text(part / "first", "1")
        raise RuntimeError


def test_resumable_directory_keeps_what_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "made"
    interrupted(path, "one")
    assert not path.exists()
    with resumable_directory(path, "one") as part:
        assert (part / "first").read_text() == "1"
        write_text(part / "second", "2")
    assert sorted(file.name for file in path.iterdir()) == ["first", "second"]
    assert [file.name for file in tmp_path.iterdir()] == ["made"]


def test_resumable_directory_of_another_fingerprint_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "made"
    interrupted(path, "one")
    with resumable_directory(path, "two") as part:
        assert [file.name for file in part.iterdir()] == [".fingerprint"]
    with resumable_directory(path, "three") as part:
        write_text(part / "third", "3")
    assert [file.name for file in path.iterdir()] == ["third"]
