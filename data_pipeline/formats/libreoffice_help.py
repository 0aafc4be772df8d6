"""LibreOffice's help: HTML pages with the same names, and mostly the same structure, per language.

Two pages are parallel where their sequences of paragraphs and headings have the same tags and ids.
Where the sequences differ, paragraphs with the same id are, if the id stands once in each page; the
rest is skipped and counted. Parsing both pages anew for every language costs seconds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lxml import etree

from data_pipeline.formats.catalog import ENGLISH
from data_pipeline.formats.container import Container
from hyperadapter.core.languages import from_catalog_code

__all__ = ["FILES", "count_files", "iter_rows"]

FILES = re.compile(r"/help/(?P<code>[^/]+)/text/(?P<page>.+\.html)$")
_BLOCKS = {"h1", "h2", "h3", "h4", "h5", "h6", "p"}
_CONTENT_ID = "DisplayArea"  # the rest of a page is the same everywhere
_SWITCH = "switchinline"  # holds one <span> for each system or program, of which one is shown
_SHOWN = "default"


# What the help's own tools write into a page for a text that they do not find.
_MISSING = re.compile(r"\.xhp#\S+ not found|D['’]oh! You found a bug")


class _Block(NamedTuple):
    """A paragraph or heading."""

    tag: str
    id: str
    text: str


def count_files(roots: Sequence[Path]) -> Counter[str]:
    """Counts the pages by language code; see `CatalogFormat`."""
    with Container(roots) as container:
        counts = Counter(match["code"] for name in container.names if (match := FILES.search(name)))
    return Counter({c: n for c, n in counts.items() if from_catalog_code(c) != ENGLISH})


def iter_rows(
    roots: Sequence[Path], language: str, skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields (English, translation) of the parallel paragraphs of pages; see `CatalogFormat`."""
    with Container(roots) as container:
        pages: dict[str, dict[str, str]] = {ENGLISH: {}, language: {}}
        for name in container.names:
            match = FILES.search(name)
            code = from_catalog_code(match["code"]) if match else None
            if match and code in pages:
                pages[code][match["page"]] = name
        for page, name in pages[language].items():
            if page not in pages[ENGLISH]:
                skipped["no English page"] += 1
                continue
            english = _blocks(container.read(pages[ENGLISH][page]))
            yield from _align(english, _blocks(container.read(name)), skipped)


def _blocks(content: bytes) -> list[_Block]:
    """Returns the paragraphs and headings of a page, empty ones included."""
    root = etree.fromstring(content, etree.HTMLParser(encoding="utf-8"))
    areas = [] if root is None else root.xpath("//*[@id=$id]", id=_CONTENT_ID)
    return [
        _Block(element.tag, element.get("id", ""), " ".join("".join(_texts(element)).split()))
        for area in areas
        for element in area.iter(*_BLOCKS)
    ]


def _texts(element: Any) -> Iterator[str]:
    yield element.text or ""
    children = list(element)
    if element.get("class") == _SWITCH and children:
        shown = [child for child in children if child.get("id", "").startswith(_SHOWN)]
        children = shown[:1] or children[-1:]
    for child in children:
        if isinstance(child.tag, str):
            yield from _texts(child)
        yield child.tail or ""


def _align(
    english: list[_Block], other: list[_Block], skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    if [block[:2] for block in english] == [block[:2] for block in other]:
        pairs = list(zip(english, other, strict=True))
    else:
        by_id, other_by_id = _unique_ids(english), _unique_ids(other)
        pairs = [(block, other_by_id[id]) for id, block in by_id.items() if id in other_by_id]
        skipped["structure differs"] += max(len(english), len(other)) - len(pairs)
    for source, target in pairs:
        if _MISSING.search(source.text) or _MISSING.search(target.text):
            skipped["text was missing"] += 1
        elif source.text and target.text:
            yield source.text, target.text
        elif source.text or target.text:
            skipped["empty paragraph"] += 1


def _unique_ids(blocks: list[_Block]) -> dict[str, _Block]:
    counts = Counter(block.id for block in blocks)
    return {block.id: block for block in blocks if block.id and counts[block.id] == 1}
