"""Mallard help pages (XML), as GNOME ships them: `help/C/APP/x.page` is the English side.

A translated page repeats the English one, element by element, but names its translators too. Both
trees are walked together. Where the children of an element differ, those with the same id are still
parallel, and the rest is skipped and counted.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lxml import etree

from data_pipeline.formats.container import Container
from hyperadapter.core.languages import from_catalog_code

__all__ = ["FILES", "count_files", "iter_rows"]

log = logging.getLogger(__name__)

FILES = re.compile(r"^(?P<app>.*/help)/(?P<code>[^/]+)/(?P<page>.+\.(?:page|xml))$")
_ENGLISH_CODE = "C"
_TEXTS = {"p", "title", "subtitle", "desc", "td"}
_NO_TEXT = {"credit", "comment"}  # people, and remarks that no reader sees
# A link without text shows the title of its target; an entity is defined elsewhere.
_ELSEWHERE = "\0"
# What a reader sees between the parts of a menu path and of a key combination.
_SEPARATORS = {"guiseq": " ▸ ", "keyseq": "+"}


def count_files(roots: Sequence[Path]) -> Counter[str]:
    """Counts the pages by language code; see `CatalogFormat`."""
    with Container(roots) as container:
        return Counter(code for code, _, _ in _pages(container))


def iter_rows(
    roots: Sequence[Path], language: str, skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields (English, translation) of the parallel texts of all pages; see `CatalogFormat`."""
    with Container(roots) as container:
        names = set(container.names)
        for code, name, english_name in _pages(container):
            if from_catalog_code(code) != language:
                continue
            if english_name not in names:
                skipped["no English page"] += 1
                continue
            english, other = _parse(container, english_name), _parse(container, name)
            if english is None or other is None:
                skipped["unreadable page"] += 1
            else:
                yield from _align(english, other, skipped)


def _pages(container: Container) -> Iterator[tuple[str, str, str]]:
    """Yields (language code, name, name of the English page) of all but the English pages."""
    for name in container.names:
        match = FILES.match(name)
        if match and match["code"] != _ENGLISH_CODE:
            yield match["code"], name, f"{match['app']}/{_ENGLISH_CODE}/{match['page']}"


def _parse(container: Container, name: str) -> Any:
    """Returns the root of a page; None, and a warning, if it is not valid XML."""
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True
    )
    try:
        return etree.fromstring(container.read(name), parser)
    except etree.XMLSyntaxError as error:
        log.warning("skipping %s, which is not valid XML: %s", name, error)
        return None


def _align(english: Any, other: Any, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields the texts of two elements with the same tag."""
    if _is_text(english) and _is_text(other):
        source, target = (" ".join("".join(_texts(e)).split()) for e in (english, other))
        if _ELSEWHERE in source + target:
            skipped["text stands elsewhere"] += 1
        elif source and target:
            yield source, target
        elif source or target:
            skipped["empty text"] += 1
        return
    for left, right in _parallel_children(english, other, skipped):
        yield from _align(left, right, skipped)


def _parallel_children(english: Any, other: Any, skipped: Counter[str]) -> list[tuple[Any, Any]]:
    """Pairs the children of two elements: all, or if they differ, those with the same id."""
    left, right = _children(english), _children(other)
    if [_key(child) for child in left] == [_key(child) for child in right]:
        return list(zip(left, right, strict=True))
    by_key = {_key(child): child for child in right if child.get("id")}
    pairs = [(child, by_key[_key(child)]) for child in left if _key(child) in by_key]
    skipped["structure differs"] += max(len(left), len(right)) - len(pairs)
    return pairs


def _children(element: Any) -> list[Any]:
    return [child for child in element if _name(child) not in _NO_TEXT]


def _key(element: Any) -> tuple[str, str]:
    return _name(element), element.get("id", "")


def _name(element: Any) -> str:
    """Returns the tag without its namespace; nothing for what is no element."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _is_text(element: Any) -> bool:
    """Says whether an element holds running text: a table's cell may hold paragraphs instead."""
    if _name(element) not in _TEXTS:
        return False
    return not any(_name(inner) in _TEXTS for inner in element.iterdescendants())


def _texts(element: Any) -> Iterator[str]:
    name = _name(element)
    if not name or (name == "link" and not len(element) and not (element.text or "").strip()):
        yield _ELSEWHERE
        return
    if separator := _SEPARATORS.get(name):
        yield separator.join("".join(_texts(child)).strip() for child in element)
        return
    yield element.text or ""
    for child in element:
        yield from _texts(child)
        yield child.tail or ""
