"""Lines of JSON objects with the two texts in fields, nested or not, and scores beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.formats.text_files import TOO_LONG, BadLines, iter_lines
from data_pipeline.sources import JsonlSource

__all__ = ["iter_rows"]


def iter_rows(source: JsonlSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields two fields of each line, in the order of `source.languages`.

    Lines with a score below `min_scores` are skipped and counted, as are a few without the fields.

    Raises:
        DataError: A file is unreadable, or more than one line in a hundred lacks a field.
    """
    a, b = source.languages
    fields = source.fields or (f"translation.{a}", f"translation.{b}")
    for path in map(Path, source.paths):
        yield from _iter_file(path, source, fields, skipped)


def _iter_file(
    path: Path, source: JsonlSource, fields: tuple[str, str], skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    where = f"source {source.name!r}"
    bad = BadLines(
        where,
        f"are no JSON object with text in {fields[0]} and {fields[1]}"
        + "".join(f" and a number in {name}" for name in source.min_scores),
        "Correct the file, or `fields` and `min_scores`",
    )
    count = 0
    for count, line in enumerate(iter_lines(path, where), 1):
        if line is None:
            skipped[TOO_LONG] += 1
            continue
        if not line.strip():
            skipped["empty line"] += 1
            continue
        problem, row = _parse(line, fields, source.min_scores)
        if problem:
            skipped["unreadable line"] += 1
            bad.add(count, f"{path}:{count} {problem}")
        elif isinstance(row, str):
            skipped[row] += 1
        else:
            yield row
    bad.check(count)


def _parse(
    line: str, fields: tuple[str, str], min_scores: dict[str, float]
) -> tuple[str, tuple[str, str] | str]:
    """Returns (what is wrong with the line, its texts or the reason why it is skipped)."""
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})", ""
    for name, minimum in min_scores.items():
        score = _field(tree, name)
        if isinstance(score, bool) or not isinstance(score, int | float):
            return f"has {_describe(score)} in {name}{_keys_of(tree)}", ""
        if not score >= minimum:
            return "", f"{name} below {minimum:g}"
    texts = [_field(tree, name) for name in fields]
    for name, text in zip(fields, texts, strict=True):
        if not isinstance(text, str):
            return f"has {_describe(text)} in {name}{_keys_of(tree)}", ""
    first, second = texts
    return "", (first, second) if first.strip() and second.strip() else "empty line"


def _field(tree: Any, name: str) -> Any:
    """Follows a dotted name; None if it leads nowhere."""
    for part in name.split("."):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _describe(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _keys_of(tree: Any) -> str:
    """Lists the dotted names of an object's values, two levels deep."""
    if not isinstance(tree, dict):
        return f"; it is a {type(tree).__name__}"
    names: list[str] = []
    for key, value in tree.items():
        names += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [str(key)]
    return f"; its fields are {', '.join(names[:20])}"
