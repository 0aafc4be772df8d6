"""Gettext catalogs inside Python wheels: `.po`, or `.mo` where the wheel has no `.po`.

The English side is the message's key, with two exceptions. Plone's keys are symbolic
(`label_add_item`) and the English stands in the comment `Default: "Add item"`. And of a message
with plural forms only the singular is taken, with the form that the catalog's own plural rule gives
for the number 1: the second one in Arabic, the only one in Japanese.

The language comes from the folder (`de/LC_MESSAGES/x.po`), never from the catalog's header or the
package's name: headers are often those of another language's template.
"""

from __future__ import annotations

import logging
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from gettext import c2py
from pathlib import Path

import polib

from data_pipeline.config import WheelSource
from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import from_catalog_code

__all__ = ["catalog_languages", "find_wheel", "iter_catalog_rows", "wheel_pattern"]

log = logging.getLogger(__name__)

_MEMBER = re.compile(r"(?:^|/)(?P<code>[^/]+)/LC_MESSAGES/(?P<domain>[^/]+)\.(?P<suffix>po|mo)$")
# One or several quoted strings, each of which may go over several lines of the comment.
_DEFAULT = re.compile(r'\bDefault:\s*"((?:[^"\\]|\\.|"\s*\n\s*")*)"', re.DOTALL)
_SYMBOLIC = re.compile(r"[a-z0-9]+(?:_[^\W_]+)+")  # but not "Dua_l", which has an accelerator
_PLURAL_RULE = re.compile(r"plural\s*=\s*([^;]+)")


def wheel_pattern(source: WheelSource) -> str:
    """Returns the glob pattern of a wheel's file name, which ends in tags not known beforehand."""
    name = re.sub(r"[-_.]+", "_", source.package)
    return f"{name}-{source.version}-*.whl"


def find_wheel(raw: Path, source: WheelSource) -> Path | None:
    """Returns the wheel of a source in a folder, or None."""
    matches = sorted(raw.glob(wheel_pattern(source)))
    return matches[0] if matches else None


def _members(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    """Returns the catalogs in a wheel by canonical language; unknown languages are left out."""
    chosen: dict[tuple[str, str], str] = {}
    for name in sorted(archive.namelist()):  # .mo comes before .po, which replaces it
        if match := _MEMBER.search(name):
            chosen[name[: match.end("domain")], match["code"]] = name
    by_language: dict[str, list[str]] = {}
    for (_, code), name in sorted(chosen.items()):
        language = from_catalog_code(code)
        if language is not None:
            by_language.setdefault(language, []).append(name)
    return by_language


@contextmanager
def _open_wheel(wheel: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{wheel} is not a readable wheel ({error}); delete it and fetch it again"
        ) from error


def catalog_languages(wheel: Path) -> tuple[str, ...]:
    """Returns the known languages for which a wheel has catalogs, sorted."""
    with _open_wheel(wheel) as archive:
        return tuple(sorted(_members(archive)))


def iter_catalog_rows(
    wheel: Path, language: str, skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields (English, translation) from all catalogs of one language in a wheel.

    Args:
        wheel: The wheel's file.
        language: Canonical code; a wheel without it yields nothing.
        skipped: Counts entries that are untranslated, fuzzy, obsolete or without English text, and
            catalogs that cannot be parsed, which a release may well hold.

    Raises:
        DataError: The wheel cannot be read.
    """
    with _open_wheel(wheel) as archive:
        for name in _members(archive).get(language, ()):
            try:
                catalog = _parse_catalog(archive.read(name), name.endswith(".po"))
            except (OSError, ValueError, struct.error) as error:  # OSError is polib's syntax error
                log.warning("%s: skipping %s, which is not a valid catalog: %s", wheel, name, error)
                skipped["unreadable catalog"] += 1
                continue
            singular = _singular_form(catalog.metadata.get("Plural-Forms", ""))
            for entry in catalog:
                row = _row_of(entry, singular)
                if isinstance(row, str):
                    skipped[row] += 1
                else:
                    yield row


def _parse_catalog(content: bytes, is_po: bool) -> polib.POFile | polib.MOFile:
    if not is_po:
        return polib.mofile(content)
    return polib.pofile(content.decode(polib.detect_encoding(content, binary_mode=True)))


def _singular_form(rule: str) -> int | None:
    """Returns the index of the plural form for the number 1, None if the rule cannot be read."""
    match = _PLURAL_RULE.search(rule)
    if match is None:
        return None
    try:
        return int(c2py(match[1].strip())(1))
    except ValueError:
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
    return entry.msgid, target


def _unescape(text: str) -> str:
    r"""Resolves `\"`, `\n` and `\\` in a Default comment, which is written like a message."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": " "}.get(m[1], m[1]), text)
