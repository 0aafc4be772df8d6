"""Gettext catalogs: `.po`, or `.mo` where there is no `.po` beside it.

The English side is the message's key, with two exceptions. Plone's keys are symbolic
(`label_add_item`) and the English stands in the comment `Default: "Add item"`. And of a message
with plural forms only the singular is taken, with the form that the catalog's own plural rule gives
for the number 1: the second one in Arabic, the only one in Japanese.

The language comes from the path (`de/LC_MESSAGES/x.po`, `po/de.po`, `de/x.po`, `x-de.po`), never
from the catalog's header or the package's name: headers are often those of another language's
template.
"""

from __future__ import annotations

import logging
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from gettext import c2py
from pathlib import Path, PurePosixPath

import polib

from data_pipeline.formats.catalog import ENGLISH
from data_pipeline.formats.container import Container
from hyperadapter.core.languages import from_catalog_code

__all__ = ["FILES", "count_files", "iter_rows"]

log = logging.getLogger(__name__)

FILES = re.compile(r"\.[mp]o$")

# One or several quoted strings, each of which may go over several lines of the comment.
_DEFAULT = re.compile(r'\bDefault:\s*"((?:[^"\\]|\\.|"\s*\n\s*")*)"', re.DOTALL)
_SYMBOLIC = re.compile(r"[a-z0-9]+(?:_[^\W_]+)+")  # but not "Dua_l", which has an accelerator
_OTHER_CATEGORY = re.compile(r"/LC_(?!MESSAGES/)[A-Z]+/[^/]+$")  # copies, such as LC_TIME
_PLURAL_RULE = re.compile(r"plural\s*=\s*([^;]{1,1000})")
# What some catalogs write before a text, for translators: "?plural:Texans", "paper size|Letter".
_CONTEXT = re.compile(r"^\?[\w /()\[\]-]+:")
_CONTEXT_BAR = re.compile(r"^[^|\s][^|]{0,39}\|(?=\S)")
# What polib and struct raise for damage: OSError is polib's syntax error, LookupError an unknown
# character set.
_DAMAGE = (OSError, ValueError, LookupError, AttributeError, TypeError, struct.error)


def count_files(roots: Sequence[Path]) -> Counter[str]:
    """Counts the catalogs by language code, as the paths spell it; see `CatalogFormat`."""
    with Container(roots) as container:
        codes = Counter(code for code, _ in _catalogs(container))
    return Counter({c: n for c, n in codes.items() if from_catalog_code(c) != ENGLISH})


def iter_rows(
    roots: Sequence[Path], language: str, skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields (English, translation) from all catalogs of one language; see `CatalogFormat`.

    Counts entries that are untranslated, fuzzy, obsolete or without English text, and catalogs that
    cannot be parsed, which a release may well hold.
    """
    with Container(roots) as container:
        for code, name in _catalogs(container):
            if from_catalog_code(code) != language:
                continue
            content = container.read(name)
            try:
                catalog = _parse_catalog(content, name.endswith(".po"))
            except _DAMAGE as error:
                log.warning("skipping %s, which is not a valid catalog: %s", name, error)
                skipped["unreadable catalog"] += 1
                continue
            singular = _singular_form(catalog.metadata.get("Plural-Forms", ""))
            for entry in catalog:
                row = _row_of(entry, singular)
                if isinstance(row, str):
                    skipped[row] += 1
                else:
                    yield row


def _catalogs(container: Container) -> Iterator[tuple[str, str]]:
    """Yields (language code as the path spells it, name) of the catalogs to read."""
    chosen: dict[str, str] = {}
    for name in container.names:  # sorted: .mo comes before .po, which replaces it
        if FILES.search(name) and not _OTHER_CATEGORY.search(name):
            chosen[name[:-3]] = name
    for name in chosen.values():
        yield _code_in(name), name


def _code_in(name: str) -> str:
    """Returns the part of a path that names the language, or stands where it should."""
    path = PurePosixPath(name)
    if path.parent.name == "LC_MESSAGES":
        return path.parent.parent.name
    parts = path.stem.split("-")
    suffixes = ["-".join(parts[i:]) for i in range(1, len(parts))]
    candidates = [path.stem, path.parent.name, *suffixes]
    return next((code for code in candidates if from_catalog_code(code)), path.stem)


def _parse_catalog(content: bytes, is_po: bool) -> polib.POFile | polib.MOFile:
    if not is_po:
        return polib.mofile(content)
    return polib.pofile(content.decode(polib.detect_encoding(content, binary_mode=True)))


@cache
def _singular_form(rule: str) -> int | None:
    """Returns the index of the plural form for the number 1, None if the rule cannot be read."""
    match = _PLURAL_RULE.search(rule)
    if match is None:
        return None
    try:
        return int(c2py(match[1].strip())(1))
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _row_of(entry: polib.POEntry | polib.MOEntry, singular: int | None) -> tuple[str, str] | str:
    """Returns (English, translation), or the reason why an entry has none."""
    if entry.obsolete:
        return "obsolete"
    if "fuzzy" in entry.flags:
        return "fuzzy"
    target = entry.msgstr
    if entry.msgid_plural:
        if singular is None:
            return "plural rule unknown"
        target = entry.msgstr_plural.get(singular, "")
    if not target.strip():
        return "untranslated"
    if default := _DEFAULT.search(entry.comment or ""):
        text = re.sub(r'"\s*\n\s*"', "", default[1])
        return _unescape(text), target
    if _SYMBOLIC.fullmatch(entry.msgid):
        return "no English text"
    return _without_context(entry.msgid, target)


def _without_context(english: str, target: str) -> tuple[str, str]:
    if "|" in english and "|" not in target:
        english = _CONTEXT_BAR.sub("", english)
    if english.startswith("?"):
        return _CONTEXT.sub("", english), _CONTEXT.sub("", target)
    return english, target


def _unescape(text: str) -> str:
    r"""Resolves `\"`, `\n` and `\\` in a Default comment, which is written like a message."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": " "}.get(m[1], m[1]), text)
