"""Translation memories (TMX 1.4), read as a stream of units."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lxml import etree

from data_pipeline.formats.text_files import open_binary
from data_pipeline.sources import TmxSource
from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import from_catalog_code, script_of

__all__ = ["iter_rows"]

_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
# Elements that hold the codes of a native format rather than text; <hi> and <sub> hold text.
_CODES = {"bpt", "ept", "it", "ph", "ut"}
_ELSEWHERE = "\0"  # an entity that the file defines, which XML text cannot be


def iter_rows(source: TmxSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields the texts of each unit that has both languages, in the order of `source.languages`.

    A text in a regional variety (`EN-GB` for en) is taken where a unit has none in the language
    itself, unless the variety has another script (`zh-TW` is no zh-Hans).

    Raises:
        DataError: The file is unreadable, not XML, or has no unit in one of the languages.
    """
    where = f"source {source.name!r}"
    path = Path(source.path)
    codes: Counter[str] = Counter()
    with open_binary(path, where) as stream:
        try:
            for unit in _iter_units(stream):
                texts: dict[str, str] = {}
                for code, text in unit:
                    codes[code] += 1
                    texts.setdefault(code, text)
                row = [_text_in(texts, language) for language in source.languages]
                missing = [c for c, text in zip(source.languages, row, strict=True) if text is None]
                first, second = row
                if missing:
                    skipped[f"no text in {' and '.join(missing)}"] += 1
                elif _ELSEWHERE in f"{first}{second}":
                    skipped["text stands elsewhere"] += 1
                elif first and second:
                    yield first, second
                else:
                    skipped["empty segment"] += 1
        except etree.XMLSyntaxError as error:
            raise DataError(
                f"{where}: {path} is not valid XML ({error}); copy it again, or correct the file"
            ) from error
    for language in source.languages:
        if not any(_fit(code, language) for code in codes):
            found = ", ".join(f"{code} ({n:,})" for code, n in codes.most_common(20)) or "none"
            raise DataError(
                f"{where}: no unit of {path} has a text in {language!r}; the languages in the file "
                f"are: {found}. Correct `languages`"
            )


def _iter_units(stream: Any) -> Iterator[list[tuple[str, str]]]:
    """Yields the (language code, text) of each unit, and frees what has been read."""
    # Entities that a file defines itself are refused: they can grow without bounds.
    events = etree.iterparse(
        stream, events=("end",), tag="{*}tu", resolve_entities=False, no_network=True
    )
    for _, unit in events:
        found = []
        for variant in unit.iterchildren("{*}tuv"):
            code = variant.get(_XML_LANG) or variant.get("lang") or ""
            segment = variant.find("{*}seg")
            if segment is not None:
                found.append((code, " ".join("".join(_texts(segment)).split())))
        yield found
        unit.clear()
        while unit.getprevious() is not None:
            del unit.getparent()[0]


def _texts(element: Any) -> Iterator[str]:
    """Yields the text of a segment, without the codes in it but with the text between them."""
    yield element.text or ""
    for child in element:
        if child.tag is etree.Entity:
            yield _ELSEWHERE
        elif isinstance(child.tag, str) and etree.QName(child).localname not in _CODES:
            yield from _texts(child)
        yield child.tail or ""


def _text_in(texts: dict[str, str], language: str) -> str | None:
    best = max(texts, key=lambda code: _fit(code, language), default="")
    return texts[best] if best and _fit(best, language) else None


@cache
def _fit(code: str, language: str) -> int:
    """Says how well a code of the file stands for a language: 2 exactly, 1 by region, 0 not."""
    known = from_catalog_code(code)
    if known == language:
        return 2
    base, _, region = code.replace("_", "-").rpartition("-")
    is_region = (len(region) == 2 and region.isalpha()) or (len(region) == 3 and region.isdigit())
    same_script = known is None or script_of(known) == script_of(language)
    return int(is_region and same_script and from_catalog_code(base) == language)
