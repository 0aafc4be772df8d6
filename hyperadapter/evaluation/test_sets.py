"""Test sets that are brought along: one direction each, from a file of pairs or two aligned files.

    FILE.tsv          source, tab, reference
    FILE.jsonl        {"src": "...", "ref": "..."} on each line
    SRC_FILE REF_FILE line n of one belongs to line n of the other (Moses)

All may also end in .gz, .xz or .zst. A test set is used whole: a line that cannot be used is an
error, because leaving it out would make the score one of another test set.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.formats.text_files import iter_lines
from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import Direction, parse_direction

__all__ = ["TestSet", "read_pairs", "read_test_set"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_RESERVED = ("test", "valid")
_COMPRESSED = (".gz", ".xz", ".zst")
_BOM = "\ufeff"
_Row = tuple[int, str, str]


class TestSet(NamedTuple):
    """Sentences of one direction and their references.

    Attributes:
        name: Of the folder that its results go to.
        direction: From the sources' language to that of the references.
        src: The sources.
        ref: The references, line by line.
    """

    name: str
    direction: Direction
    src: list[str]
    ref: list[str]


TestSet.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def read_test_set(paths: Sequence[Path], direction: str, name: str | None = None) -> TestSet:
    """Reads a test set.

    Args:
        paths: One file of pairs, or the sources and their references.
        direction: Such as `en-de`.
        name: Of its results; the first file's name without endings by default.

    Raises:
        DataError: A file is missing or holds something else; the message names the line.
        LanguageError: `direction` is none.
    """
    name = _plain_name(paths[0], direction) if name is None else name
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise DataError(
            f"a test set cannot be called {name!r}: --name takes letters, digits, '.', '_' and "
            f"'-', and {' and '.join(_RESERVED)} are the run's own splits"
        )
    return TestSet(name, parse_direction(direction), *read_pairs(paths, "--test-set"))


def read_pairs(paths: Sequence[Path], option: str) -> tuple[list[str], list[str]]:
    """Reads pairs of sentences from files of the forms above.

    Args:
        paths: One file of pairs, or two aligned ones.
        option: Which of the command line's options named them, for errors.

    Returns:
        Sources and references, line by line; at least one.

    Raises:
        DataError: A file is missing or holds something else; the message names the line.
    """
    if len(paths) not in (1, 2):
        raise DataError(
            f"{option} takes one file of pairs, or two aligned files, but {len(paths)} are given"
        )
    rows = (
        _iter_pairs(paths[0], option) if len(paths) == 1 else _iter_aligned(*paths, option=option)
    )
    sources: list[str] = []
    references: list[str] = []
    for number, src, ref in rows:
        if number == 1:  # a mark that Windows puts before the first line
            src, ref = src.removeprefix(_BOM), ref.removeprefix(_BOM)
        for side, text in (("source", src), ("reference", ref)):
            if not text.strip():
                raise DataError(f"{paths[0]}:{number} has an empty {side}; correct or remove it")
            if "\n" in text or "\r" in text:
                raise DataError(
                    f"{paths[0]}:{number} has a line break in its {side}; a text is one line here"
                )
        sources.append(src)
        references.append(ref)
    if not sources:
        raise DataError(f"{paths[0]} is empty; {option} needs at least one line")
    return sources, references


def _plain_name(path: Path, direction: str) -> str:
    """Returns a file's name without what says its form and its languages."""
    stem = path.name.removesuffix(path.suffix) if path.suffix in _COMPRESSED else path.name
    src, tgt = parse_direction(direction)
    for ending in ("tsv", "jsonl", "txt", src, tgt, f"{src}-{tgt}", f"{tgt}-{src}"):
        stem = stem.removesuffix(f".{ending}")
    return stem


def _iter_pairs(path: Path, option: str) -> Iterator[_Row]:
    endings = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
    ending = endings[-1] if endings else ""
    if ending not in (".tsv", ".jsonl"):
        raise DataError(
            f"{path} holds no pairs by its ending {ending!r}: one file is .tsv (source, tab, "
            'reference) or .jsonl ({"src": ..., "ref": ...} on each line); for two aligned files '
            f"give {option} twice, the sources first"
        )
    for number, line in enumerate(iter_lines(path, option), 1):
        if line is None:
            raise DataError(f"{path}:{number} is longer than a megabyte; that is no sentence")
        src, ref = _split_columns(line, path, number) if ending == ".tsv" else _parse_object(
            line, path, number
        )  # fmt: skip
        yield number, src, ref


def _split_columns(line: str, path: Path, number: int) -> tuple[str, str]:
    fields = line.split("\t")
    if len(fields) != 2:
        raise DataError(
            f"{path}:{number} has {len(fields)} columns instead of 2: source, tab, reference"
        )
    return fields[0], fields[1]


def _parse_object(line: str, path: Path, number: int) -> tuple[str, str]:
    form = '{"src": "...", "ref": "..."}'
    try:
        tree = json.loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number} is not JSON ({error}); a line is {form}") from error
    texts: list[str] = []
    for key in ("src", "ref"):
        text = tree.get(key) if isinstance(tree, dict) else None
        if not isinstance(text, str):
            found = f"the fields {', '.join(tree)}" if isinstance(tree, dict) else f"{tree!r:.50}"
            raise DataError(f"{path}:{number} has no text in {key!r} but {found}; a line is {form}")
        texts.append(text)
    return texts[0], texts[1]


def _iter_aligned(src_path: Path, ref_path: Path, *, option: str) -> Iterator[_Row]:
    columns = [list(iter_lines(path, option)) for path in (src_path, ref_path)]
    if len(columns[0]) != len(columns[1]):
        raise DataError(
            f"{src_path} has {len(columns[0]):,} lines but {ref_path} has {len(columns[1]):,}; "
            "line n of the references must belong to line n of the sources"
        )
    for number, (src, ref) in enumerate(zip(*columns, strict=True), 1):
        if src is None or ref is None:
            path = src_path if src is None else ref_path
            raise DataError(f"{path}:{number} is longer than a megabyte; that is no sentence")
        yield number, src, ref
