"""Translated descriptions of Debian packages: apt's lists `Translation-CODE`.

A paragraph of fields belongs to one package; its description has a title and, after it, paragraphs
and lists. The English one with the same checksum is in `Translation-en`. The title is one row, and
each paragraph or item of a list another, where both sides have the same number of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from data_pipeline.formats.catalog import ENGLISH
from data_pipeline.formats.container import walk
from data_pipeline.formats.text_files import TOO_LONG, iter_lines
from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import from_catalog_code

__all__ = ["FILES", "count_files", "iter_rows"]

# apt itself names its copies HOST_dists_SUITE_main_i18n_Translation-pt%5fBR.
FILES = re.compile(r"(?:^|[_/])Translation-(?P<code>[^./]+)(?:\.gz|\.xz|\.zst)?$")
_MD5 = "Description-md5: "
_DESCRIPTION = re.compile(r"Description-(?!md5)[^:]+: (.*)")
_ITEM = re.compile(r"\s*[-*+•]\s+")


class _Description(NamedTuple):
    """A title, and a list of paragraphs, each a list of its lead and its items."""

    title: str
    paragraphs: list[list[str]]


def count_files(roots: Sequence[Path]) -> Counter[str]:
    """Counts the lists by language code; see `CatalogFormat`."""
    return Counter(code for code, _ in _lists(roots) if from_catalog_code(code) != ENGLISH)


def iter_rows(
    roots: Sequence[Path], language: str, skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields (English, translation) of titles and paragraphs; see `CatalogFormat`."""
    # The translations are the smaller side: they are kept, the English ones pass by.
    translations: dict[str, _Description] = {}
    english_lists = []
    for code, path in _lists(roots):
        if from_catalog_code(code) == language:
            translations.update(_iter_descriptions(path, skipped))
        elif from_catalog_code(code) == ENGLISH:
            english_lists.append(path)
    if translations and not english_lists:
        raise DataError(
            f"there is no list Translation-{ENGLISH} in {', '.join(map(str, roots))}, which the "
            f"descriptions in {language} translate; fetch the sources again, or add its folder"
        )
    for path in english_lists:
        if not translations:
            break
        for md5, english in _iter_descriptions(path, Counter()):
            translation = translations.pop(md5, None)
            if translation is not None:
                yield from _align(english, translation, skipped)
    if translations:
        skipped["no English description"] += len(translations)


def _lists(roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yields (language code, path) of all lists, sorted by path."""
    for root in roots:
        for path in sorted(walk(root)):
            if match := FILES.search(path):
                yield unquote(match["code"]), Path(path)


def _iter_descriptions(path: Path, skipped: Counter[str]) -> Iterator[tuple[str, _Description]]:
    """Yields (checksum, description) of a list."""
    md5, title = "", ""
    body: list[str] = []
    for line in iter_lines(path, "a ddtp source"):
        if line is None:
            skipped[TOO_LONG] += 1
            md5, title = "", ""
            continue
        if line.startswith(" ") and title:
            body.append(line[1:])
            continue
        if md5 and title:
            yield md5, _Description(title, _paragraphs(body))
            md5, title = "", ""
        body = []
        if line.startswith(_MD5):
            md5 = line.removeprefix(_MD5).strip()
        elif match := _DESCRIPTION.match(line):
            title = match[1].strip()
    if md5 and title:
        yield md5, _Description(title, _paragraphs(body))


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Splits a long description at its lines with a single dot, and at the items of lists."""
    paragraphs: list[list[str]] = []
    new_paragraph = True
    for line in lines:
        text = line.strip()
        if text == ".":
            new_paragraph = True
        elif new_paragraph:
            paragraphs.append([_ITEM.sub("", line, count=1).strip() if _ITEM.match(line) else text])
            new_paragraph = False
        elif _ITEM.match(line):
            paragraphs[-1].append(_ITEM.sub("", line, count=1).strip())
        elif text:  # the end of the line stays: whether it is a space depends on the script
            paragraphs[-1][-1] += f"\n{text}"
    return paragraphs


def _align(
    english: _Description, other: _Description, skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    yield english.title, other.title
    if len(english.paragraphs) != len(other.paragraphs):
        skipped["other number of paragraphs"] += max(len(english.paragraphs), len(other.paragraphs))
        return
    for left, right in zip(english.paragraphs, other.paragraphs, strict=True):
        if len(left) == len(right):
            yield from zip(left, right, strict=True)
        else:
            skipped["other number of list items"] += 1
