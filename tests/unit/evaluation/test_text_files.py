"""Files of translations: order and number of lines, and what any interruption leaves behind."""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperadapter.config import EvaluationConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import read_json, write_json
from hyperadapter.core.languages import Direction
from hyperadapter.evaluation import text_files
from hyperadapter.evaluation.pool import DecodingSpec
from hyperadapter.evaluation.text_files import (
    OutputFile,
    TextFile,
    TranslationJob,
    decode_lines,
    inspect_text,
    iter_text,
    translate_files,
    translate_lines,
)
from hyperadapter.evaluation.translate import Translation

MADE_FROM = {"weights": "abc", "beam_size": 4}
# Chunks of 8 lines.
SETTINGS = EvaluationConfig(batch_sentences=1)
LINES = [f"line {number} ä" for number in range(20)] + [""]


class Shouter:
    """Translates into capitals."""

    seen: list[str]

    def __init__(self, device: torch.device) -> None:
        type(self).seen = []

    def translate_n_best(
        self, texts: Sequence[str], *_: Any, prefixes: Sequence[str] | None, **__: Any
    ) -> list[list[Translation]]:
        self.seen.extend(texts)
        starts = prefixes or [""] * len(texts)
        return [[Translation(a + b.upper(), -1.0)] for a, b in zip(starts, texts, strict=True)]


SPEC = DecodingSpec(Shouter, SETTINGS)  # type: ignore[arg-type]
WANTED = "".join(f"{line.upper()}\n" for line in LINES)


def plain(first: int, texts: Sequence[str], found: Sequence[Sequence[Translation]]) -> str:
    return "".join(f"{best.text}\n" for best, *_ in found)


def write(path: Path, lines: Sequence[str] = LINES) -> TextFile:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return inspect_text(path, "--input")


@pytest.fixture(autouse=True)
def _no_wait_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., TranslationJob]:
    source = write(tmp_path / "in.txt")

    def make(overwrite: bool = False, **changes: Any) -> TranslationJob:
        output = OutputFile(tmp_path / "new" / "out.txt", MADE_FROM | changes, overwrite)
        return TranslationJob(Direction("en", "de"), source, None, output)

    return make


def run(*jobs: TranslationJob) -> list[int]:
    return list(translate_files(SPEC, jobs, plain))


# ------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
def test_a_line_is_what_ends_at_a_line_end(end: str) -> None:
    data = f"a\u2028b\r\n\n c \n\x85{end}".encode()
    assert list(decode_lines(io.BytesIO(data), "x")) == ["a\u2028b", "", " c ", "\x85"]
    assert list(decode_lines(io.BytesIO(b""), "x")) == []


def test_a_line_that_is_not_utf_8_is_named() -> None:
    lines = decode_lines(io.BytesIO(b"a\nb\nsch\xf6n\n"), "stdin")
    assert [next(lines), next(lines)] == ["a", "b"]
    with pytest.raises(DataError, match=r"stdin:3 is not UTF-8: byte 0xf6 at position 3 of the"):
        next(lines)
    endless = decode_lines(io.BytesIO(b"a\n" + b"x" * 1_000_001), "stdin")
    assert next(endless) == "a"
    with pytest.raises(DataError, match="stdin:2 is longer than a megabyte"):
        next(endless)


def test_compressed_text_is_the_same_text(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt")
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    assert inspect_text(path, "--input")[1:] == text[1:]
    assert text.lines == 21
    assert list(iter_text(path, "--input")) == LINES
    assert write(tmp_path / "b.txt", LINES[:-1]).sha256 != text.sha256
    with pytest.raises(DataError, match=r"--input: the file .*c.txt does not exist"):
        inspect_text(tmp_path / "c.txt", "--input")


# ------------------------------------------------------------------------------------------ output


def test_files_are_translated_once(
    job: Callable[..., TranslationJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "2.txt"
    second = job()._replace(
        source=write(source, ["x"]), output=OutputFile(tmp_path / "2.out", MADE_FROM)
    )
    empty = job()._replace(
        source=write(tmp_path / "0.txt", []), output=OutputFile(tmp_path / "0.out", MADE_FROM)
    )
    jobs = [job(), empty, second]
    assert run(*jobs) == [8, 8, 5, 1]
    assert [entry.output.path.read_text(encoding="utf-8") for entry in jobs] == [WANTED, "", "X\n"]
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["out.txt", "out.txt.json"]
    monkeypatch.setattr(Shouter, "__init__", None)  # nothing is loaded
    assert run(*jobs) == []
    source.unlink()  # nor read
    assert run(second) == []


def test_prefixes_go_with_their_lines(job: Callable[..., TranslationJob], tmp_path: Path) -> None:
    prefixes = write(tmp_path / "prefixes.txt", [str(number) for number in range(len(LINES))])
    made = job()._replace(prefixes=prefixes)
    results = translate_files(SPEC, [made], plain)
    assert next(results) == 8
    results.close()  # type: ignore[attr-defined]
    run(made)  # goes on with the right one
    wanted = [f"{number}{line.upper()}" for number, line in enumerate(LINES)]
    assert list(iter_text(made.output.path, "x")) == wanted


def states(path: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in path.iterdir()}


def restore(path: Path, files: dict[str, bytes]) -> None:
    for found in path.iterdir():
        found.unlink()
    for name, data in files.items():
        (path / name).write_bytes(data)


@pytest.fixture
def moments(
    job: Callable[..., TranslationJob], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, bytes]]:
    """The files as a kill would leave them before and after each write of a manifest or rename."""
    made, found = job(), []

    def seen(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> None:
            found.append(states(made.output.path.parent))
            function(*arguments)
            found.append(states(made.output.path.parent))

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(text_files, "write_json", seen(write_json))
        patch.setattr("os.replace", seen(os.replace))
        run(made)
    return found


def test_a_kill_at_any_moment_and_a_cut_at_any_byte_are_safe(
    job: Callable[..., TranslationJob], moments: list[dict[str, bytes]]
) -> None:
    folder = job().output.path.parent
    generator = random.Random(1)
    assert len(moments) > 10
    resumed = set()
    for files in moments:
        parts = [name for name in files if name.endswith(".part")]
        variants = [files]
        for name in parts:
            whole = files[name]
            for _ in range(3):  # also shorter than it can be: the disk lost something
                cut = whole[: generator.randint(0, len(whole))]
                variants.append(files | {name: cut})
            variants.append(files | {name: whole + "half a l\u00e4".encode()[:-1]})
        if "out.txt" not in files and "out.txt.json" in files:
            broken = files["out.txt.json"]
            variants.append(files | {"out.txt.json": broken[: generator.randint(0, len(broken))]})
        for variant in variants:
            restore(folder, variant)
            Shouter.seen = []
            run(job())
            resumed.add(len(Shouter.seen))
            assert (folder / "out.txt").read_text(encoding="utf-8") == WANTED
            assert not (folder / "out.txt.part").exists()
            assert run(job()) == []
    assert resumed == {0, 5, 13, 21}  # whole chunks are not translated again


def test_what_was_made_from_something_else_is_not_replaced_unasked(
    job: Callable[..., TranslationJob], moments: list[dict[str, bytes]]
) -> None:
    folder = job().output.path.parent
    half = next(files for files in moments if b'"lines": 8' in files.get("out.txt.json", b""))
    other = {"weights": "abd", "new": 1}
    for files, there in ((moments[-1], "out.txt"), (half, "out.txt.part")):
        restore(folder, files)
        with pytest.raises(DataError) as caught:
            run(job(**other))
        assert str(caught.value) == (
            f"{folder / there} is there already, and it was made with weights 'abc' "
            "(now 'abd'), new None (now 1); write to another --output, or replace it with "
            "--overwrite"
        )
        assert states(folder) == files
        assert sum(run(job(overwrite=True, **other))) == len(LINES)
        assert read_json(folder / "out.txt.json")["made_from"] == MADE_FROM | other
        assert run(job(overwrite=True, **other)) == []


def test_a_file_that_others_made_or_changed_is_not_replaced_unasked(
    job: Callable[..., TranslationJob],
) -> None:
    path = job().output.path
    path.parent.mkdir()
    path.write_text("mine\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"out.txt.json, which would say what it was made from, is"):
        run(job())
    run(job(overwrite=True))
    path.write_text(WANTED + "mine\n", encoding="utf-8")
    with pytest.raises(DataError, match="its size is not what it was when it was done"):
        run(job())
    run(job(overwrite=True))
    assert path.read_text(encoding="utf-8") == WANTED


def test_what_replaces_a_file_is_gone_on_with_too(job: Callable[..., TranslationJob]) -> None:
    run(job())
    replacing = translate_files(SPEC, [job(overwrite=True, new=1)], plain)
    assert next(replacing) == 8
    replacing.close()  # type: ignore[attr-defined]
    for overwrite in (True, False):
        assert sum(run(job(overwrite=overwrite, new=1))) == (len(LINES) - 8) * overwrite


def test_who_fails_before_the_first_translation_leaves_all_as_it_was(
    job: Callable[..., TranslationJob],
) -> None:
    def no_model(device: torch.device) -> Shouter:
        raise DataError("there is no model")

    folder = job().output.path.parent
    failing = SPEC._replace(load=no_model)  # type: ignore[arg-type]
    folder.mkdir()
    for names in (set(), {"out.txt", "out.txt.json"}):
        files = states(folder)
        assert files.keys() == names
        with pytest.raises(DataError, match="there is no model"):
            list(translate_files(failing, [job(overwrite=True, new=1)], plain))
        assert states(folder) == files
        run(job())
    interrupted = translate_files(SPEC, [job(overwrite=True, new=2)], plain)
    assert next(interrupted) == 8
    files = states(folder)
    assert files.keys() == {"out.txt.part", "out.txt.json"}
    interrupted.close()  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="there is no model"):
        list(translate_files(failing, [job(new=2)], plain))
    assert states(folder) == files


def test_what_an_empty_text_replaces_is_replaced(
    job: Callable[..., TranslationJob], tmp_path: Path
) -> None:
    run(job())
    half = translate_files(SPEC, [job(overwrite=True, new=2)], plain)
    next(half)
    half.close()  # type: ignore[attr-defined]
    empty = job(overwrite=True, new=1)._replace(source=write(tmp_path / "0.txt", []))
    assert run(empty) == []
    assert empty.output.path.read_bytes() == b""
    assert empty.output.look() == (0, True)


def test_a_half_of_the_file_is_not_taken_for_the_whole(
    job: Callable[..., TranslationJob], moments: list[dict[str, bytes]]
) -> None:
    folder = job().output.path.parent
    half = next(files for files in moments if b'"lines": 8' in files.get("out.txt.json", b""))
    restore(folder, half | {"out.txt": half["out.txt.part"]})
    with pytest.raises(DataError, match="its size is not what it was when it was done"):
        run(job())


def test_two_processes_do_not_write_one_file(job: Callable[..., TranslationJob]) -> None:
    part = job().output.path.with_name("out.txt.part")
    part.parent.mkdir()
    with part.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process writes .*out.txt.part; wait for it"):
            run(job())
    first = translate_files(SPEC, [job()], plain)
    next(first)
    with pytest.raises(DataError, match=r"another process writes"):
        run(job())
    first.close()  # type: ignore[attr-defined]
    late = job()
    start, _ = late.output.look()
    run(job())
    with pytest.raises(DataError, match="another process has written"), late.output.opened(start):
        pass
    assert late.output.path.read_text(encoding="utf-8") == WANTED
    assert not part.exists()


def test_a_part_that_was_removed_between_opening_and_holding_is_not_written(
    job: Callable[..., TranslationJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, flock = job(), fcntl.flock
    part = made.output.path.with_name("out.txt.part")

    def late(*arguments: Any) -> None:
        part.unlink()
        flock(*arguments)

    monkeypatch.setattr("fcntl.flock", late)
    with pytest.raises(DataError, match=r"another process writes .*out.txt.part; wait for it"):
        run(made)


@pytest.mark.parametrize("num_lines", [21, 16])  # the last chunk is full or not
@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:9],
        lambda lines: lines[:-1],
        lambda lines: [*lines, "more"],
        lambda lines: lines * 2,
        lambda lines: ["another", *lines[1:]],
        lambda lines: [*lines[:-1], "another"],
        lambda lines: [],
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_text_that_changes_meanwhile_is_said(
    job: Callable[..., TranslationJob],
    change: Callable[[list[str]], list[str]],
    num_lines: int,
    begun: bool,
) -> None:
    path = job().source.path
    made = job()._replace(source=write(path, LINES[:num_lines]))
    if begun:  # so that the changed line is one that is skipped
        results = translate_files(SPEC, [made], plain)
        next(results)
        results.close()  # type: ignore[attr-defined]
    write(path, change(LINES[:num_lines]))
    with pytest.raises(DataError) as caught:
        run(made)
    part = made.output.path.with_name("out.txt.part")
    assert str(caught.value) == (
        f"{path} has changed since its {num_lines} lines were first read, and {part}, if it is "
        "there, may hold translations of other lines: delete it, and run the same command again "
        "once the text is whole"
    )
    assert not made.output.path.exists()
    part.unlink(missing_ok=True)
    write(path, LINES[:num_lines])
    assert sum(run(made)) == num_lines


def test_prefixes_that_change_meanwhile_are_said(
    job: Callable[..., TranslationJob], tmp_path: Path
) -> None:
    prefixes = write(tmp_path / "prefixes.txt", ["a"] * len(LINES))
    made = job()._replace(prefixes=prefixes)
    write(prefixes.path, ["b"] * len(LINES))
    with pytest.raises(DataError, match=r"prefixes.txt has changed since its 21 lines"):
        run(made)


def test_an_empty_text_that_grows_lends_its_lines_to_nobody(
    job: Callable[..., TranslationJob], tmp_path: Path
) -> None:
    empty = job()._replace(
        source=write(tmp_path / "0.txt", []), output=OutputFile(tmp_path / "0.out", MADE_FROM)
    )
    write(empty.source.path, ["new"] * 9)
    second = job()
    with pytest.raises(DataError, match=r"0.txt has changed since its 0 lines"):
        run(empty, second)
    assert states(second.output.path.parent) == {}


# ------------------------------------------------------------------------------------------- lines


def test_lines_come_out_as_they_are_done() -> None:
    taken = []

    def lines() -> Iterator[str]:
        for line in LINES:
            taken.append(line)
            yield line

    results = translate_lines(SPEC, Direction("en", "de"), lines(), None, plain)
    text, count = next(results)
    assert (count, len(taken)) == (8, 8)
    rest = list(results)
    assert text + "".join(part for part, _ in rest) == WANTED
    assert count + sum(number for _, number in rest) == len(LINES)


@pytest.mark.parametrize(
    ("count", "message"),
    [(3, "--prefixes has 3 lines and the text has more"), (22, "more lines than the text.* 21;")],
)
def test_prefixes_must_be_as_many_as_lines(count: int, message: str) -> None:
    prefixes = iter(["x"] * count)
    with pytest.raises(DataError, match=message):
        list(translate_lines(SPEC, Direction("en", "de"), iter(LINES), prefixes, plain))
