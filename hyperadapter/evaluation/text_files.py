"""Translates files of one sentence a line, with little memory, and goes on after any interruption.

    OUT           the translations, once they are all there
    OUT.part      those of whole chunks, before that
    OUT.json      what they are made from, and how much of OUT.part is whole

A chunk is written and flushed to disk before OUT.json counts it, and OUT.json says that all is done
before OUT.part is renamed. So whatever a kill leaves behind is either counted or cut off.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.formats.text_files import open_binary
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import read_json, sync_folder, translate_disk_full, write_json
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import StrictModel, parse_config
from hyperadapter.evaluation.pool import Chunk, DecodingSpec, translate_all
from hyperadapter.evaluation.translate import Translation

__all__ = [
    "OutputFile",
    "Render",
    "TextFile",
    "TranslationJob",
    "decode_lines",
    "inspect_text",
    "iter_text",
    "output_files",
    "translate_files",
    "translate_lines",
]

log = logging.getLogger(__name__)

# Writes the translations of some lines, given the number of the first, from 1.
Render = Callable[[int, Sequence[str], Sequence[Sequence[Translation]]], str]

_MAX_LINE_BYTES = 1_000_000
# Large enough for batches of similar length, small enough for little to be lost.
_CHUNK_BATCHES = 8


class TextFile(NamedTuple):
    """A text that can be translated.

    Attributes:
        path: Where it is, plain or compressed.
        lines: How many it has.
        sha256: Of the lines, however they are compressed.
    """

    path: Path
    lines: int
    sha256: str


def decode_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 stream, which end at `\\n` only, without their ends.

    Raises:
        DataError: A line is not UTF-8, or longer than a megabyte; the message names it.
    """
    number = 0
    while line := stream.readline(_MAX_LINE_BYTES):
        number += 1
        if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
            raise DataError(f"{name}:{number} is longer than a megabyte; one line is one sentence")
        try:
            yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number} is not UTF-8: byte 0x{error.object[error.start]:02x} at position "
                f"{error.start} of the line ({error.reason}); convert the text, for instance with "
                "iconv -f latin1 -t utf-8"
            ) from error


def iter_text(path: Path, option: str) -> Iterator[str]:
    """Yields the lines of a file, plain, `.gz`, `.xz` or `.zst`; see `decode_lines`.

    Args:
        path: The file.
        option: Which of the command line's options named it, for errors.

    Raises:
        DataError: It is missing, damaged, or not UTF-8.
    """
    with open_binary(path, option) as stream:
        yield from decode_lines(stream, str(path))


def inspect_text(path: Path, option: str) -> TextFile:
    """Reads a file once before it is translated: what is wrong with it is said at once.

    Raises:
        DataError: It is missing, damaged, or not UTF-8.
    """
    sha256, lines = hashlib.sha256(), 0
    for line in iter_text(path, option):
        sha256.update(line.encode() + b"\n")
        lines += 1
    return TextFile(path, lines, sha256.hexdigest())


class _Manifest(StrictModel):
    """What OUT.json holds.

    Attributes:
        made_from: What the translations depend on.
        lines: Of the input, whose translations are whole.
        bytes: Of the output that hold them.
        done: These are all.
    """

    made_from: dict[str, Any]
    lines: int
    bytes: int
    done: bool


def output_files(path: Path) -> tuple[Path, Path, Path]:
    """Returns all that translating to a file writes: OUT, OUT.part and OUT.json."""
    return path, path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.json")


class OutputFile:
    """A file of translations that grows by whole chunks.

    Args:
        path: Its name once it is done; the folder is made.
        made_from: What the translations depend on, as plain values.
        overwrite: Whether one that is made from something else may be replaced.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path, self._part, self._manifest_path = output_files(path)
        self._made_from = dict(made_from)
        self._overwrite = overwrite
        self._stream: BinaryIO | None = None
        self._whole = self._manifest(0, 0)

    @property
    def lines(self) -> int:
        """Lines of the input that are translated, while the file is open."""
        return self._whole.lines

    def look(self) -> tuple[int, bool]:
        """Looks at what earlier calls left.

        Returns:
            Lines that are translated, and whether these are all.

        Raises:
            DataError: The file is there but made from something else, and may not be replaced.
        """
        known = self._read_manifest()
        if not self.path.exists():
            if known is None or not known.lines or not self._part.exists():
                return 0, False
            if self._part.stat().st_size < known.bytes:
                log.warning("%s has lost its end and is translated anew", self._part)
                return 0, False
        problem = self._problem(known)
        if not problem:
            assert known is not None
            return known.lines, self.path.exists()
        if not self._overwrite:
            there = self.path if self.path.exists() else self._part
            raise DataError(
                f"{there} is there already, and {problem}; write to another --output, or replace "
                "it with --overwrite"
            )
        return 0, False

    def _problem(self, known: _Manifest | None) -> str:
        """Says why what is there is not a part of what is to be made; empty if it is."""
        if known is None:
            return f"{self._manifest_path.name}, which would say what it was made from, is not"
        there, now = known.made_from, self._made_from
        keys = [key for key in there | now if there.get(key) != now.get(key)]
        if keys:
            parts = (f"{key} {there.get(key)!r} (now {now.get(key)!r})" for key in keys)
            return "it was made with " + ", ".join(parts)
        if self.path.exists() and not (known.done and self.path.stat().st_size == known.bytes):
            return "its size is not what it was when it was done"
        return ""

    @contextmanager
    def opened(self, start: int) -> Iterator[OutputFile]:
        """Holds the file against other processes while it is written.

        What it replaces is there until the first translations come, or none of an empty text: who
        fails before that leaves all as it was.

        Args:
            start: Lines that are translated already, from `look`.

        Raises:
            DataError: Another process writes it, or has done so since then.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with translate_disk_full(self.path), open(self._part, "ab") as stream:
            self._hold(stream)
            try:
                self._start(start)
                self._stream = stream
                yield self
            except BaseException:
                if not os.fstat(stream.fileno()).st_size:
                    self._part.unlink(missing_ok=True)
                raise

    def _hold(self, stream: BinaryIO) -> None:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(stream.fileno()).st_nlink > 0  # else who had it has just removed it
        except BlockingIOError:
            held = False
        if not held:
            raise DataError(
                f"another process writes {self._part}; wait for it, or choose another --output"
            )

    def _start(self, start: int) -> None:
        known = self._read_manifest()
        if self.look() != (start, False):
            raise DataError(
                f"another process has written {self._part} just now; run the same command again"
            )
        self._whole = known if start and known is not None else self._manifest(0, 0)

    def _clear(self) -> BinaryIO:
        """Cuts off what is not whole, and before the first line removes what is replaced."""
        assert self._stream is not None
        if not self._whole.lines:  # the file goes first, so that nobody takes it for ours
            self.path.unlink(missing_ok=True)
            write_json(self._manifest_path, self._whole.model_dump())
        self._stream.truncate(self._whole.bytes)
        return self._stream

    def append(self, text: str, lines: int) -> None:
        """Adds the translations of some lines; once this returns, no kill can undo it."""
        stream, data = self._clear(), text.encode("utf-8")
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
        self._whole = self._manifest(self._whole.lines + lines, self._whole.bytes + len(data))
        write_json(self._manifest_path, self._whole.model_dump())

    def finish(self) -> None:
        """Gives the file its name."""
        self._clear()
        self._whole = self._whole.model_copy(update={"done": True})
        write_json(self._manifest_path, self._whole.model_dump())
        os.replace(self._part, self.path)
        sync_folder(self.path.parent)

    def _manifest(self, lines: int, size: int) -> _Manifest:
        return _Manifest(made_from=self._made_from, lines=lines, bytes=size, done=False)

    def _read_manifest(self) -> _Manifest | None:
        try:
            tree = read_json(self._manifest_path)
            return parse_config(_Manifest, tree, str(self._manifest_path))
        except (ConfigError, DataError):
            return None  # missing, or of something else


class TranslationJob(NamedTuple):
    """One file to translate.

    Attributes:
        direction: From which language to which.
        source: The text.
        prefixes: What each translation must begin with, line by line.
        output: Where the translations go.
    """

    direction: Direction
    source: TextFile
    prefixes: TextFile | None
    output: OutputFile


def translate_files(
    spec: DecodingSpec, jobs: Sequence[TranslationJob], render: Render, num_processes: int = 1
) -> Iterator[int]:
    """Translates files one after the other; processes go on to the next before one is done.

    Yields:
        How many sentences were done since the last time.

    Raises:
        DataError: A file changed while it was read, cannot be replaced, or is written by another
            process.
    """
    todo = [(job, lines) for job in jobs for lines, done in [job.output.look()] if not done]
    begun: deque[tuple[int, Chunk]] = deque()

    def chunks() -> Iterator[Chunk]:
        for job, start in todo:
            for first, chunk in _cut_file(job, start, _chunk_size(spec)):
                begun.append((first, chunk))
                yield chunk

    with closing(translate_all(spec, chunks(), num_processes)) as translated:
        for job, start in todo:
            with job.output.opened(start) as output:
                while output.lines < job.source.lines:
                    found = next(translated).translations
                    first, chunk = begun.popleft()
                    output.append(render(first, chunk.texts, found), len(found))
                    yield len(found)
                output.finish()


def translate_lines(
    spec: DecodingSpec,
    direction: Direction,
    lines: Iterator[str],
    prefixes: Iterator[str] | None,
    render: Render,
    num_processes: int = 1,
) -> Iterator[tuple[str, int]]:
    """Translates lines as they come.

    Yields:
        The translations of some lines, and how many lines these are.

    Raises:
        DataError: There are not as many prefixes as lines.
    """
    begun: deque[tuple[int, Chunk]] = deque()

    def chunks() -> Iterator[Chunk]:
        for first, chunk in _cut(direction, lines, prefixes, _chunk_size(spec)):
            begun.append((first, chunk))
            yield chunk

    with closing(translate_all(spec, chunks(), num_processes)) as translated:
        for result in translated:
            first, chunk = begun.popleft()
            yield render(first, chunk.texts, result.translations), len(chunk.texts)


def _chunk_size(spec: DecodingSpec) -> int:
    return spec.evaluation.batch_sentences * _CHUNK_BATCHES


def _cut_file(job: TranslationJob, start: int, size: int) -> Iterator[tuple[int, Chunk]]:
    part = output_files(job.output.path)[1]
    lines = islice(_unchanged(job.source, "--input", part), start, None)
    prefixes = job.prefixes and islice(_unchanged(job.prefixes, "--prefixes", part), start, None)
    yield from _cut(job.direction, lines, prefixes, size, start)


def _unchanged(text: TextFile, option: str, part: Path) -> Iterator[str]:
    """Yields the lines of a text; the last one only if it still is what was inspected."""
    sha256, seen = hashlib.sha256(), 0
    lines = iter_text(text.path, option)
    for seen, line in enumerate(lines, 1):
        sha256.update(line.encode() + b"\n")
        if seen >= text.lines and (
            sha256.hexdigest() != text.sha256 or next(lines, None) is not None
        ):
            break
        yield line
    else:
        if seen == text.lines:
            return
    raise DataError(
        f"{text.path} has changed since its {text.lines:,} lines were first read, and {part}, if "
        "it is there, may hold translations of other lines: delete it, and run the same command "
        "again once the text is whole"
    )


def _cut(
    direction: Direction,
    lines: Iterator[str],
    prefixes: Iterator[str] | None,
    size: int,
    start: int = 0,
) -> Iterator[tuple[int, Chunk]]:
    """Yields chunks of `size` lines and the numbers of their first lines, from 1."""
    number = start
    while texts := list(islice(lines, size)):
        forced = None if prefixes is None else list(islice(prefixes, len(texts)))
        if forced is not None and len(forced) < len(texts):
            raise DataError(
                f"--prefixes has {number + len(forced):,} lines and the text has more; give one "
                "line for each sentence, which may be empty"
            )
        yield number + 1, Chunk(*direction, texts, forced)
        number += len(texts)
    if prefixes is not None and next(prefixes, None) is not None:
        raise DataError(
            f"--prefixes has more lines than the text, which has {number:,}; give one line for "
            "each sentence"
        )
