"""MediaWiki's messages: folders `i18n` of JSON files, one a language, beside `en.json`.

Messages are wikitext. Links become their label, formatting is stripped, PLURAL becomes its last
form (the one for many) and GENDER its first (the one for an unknown gender). Messages with anything
else in double braces, which stands for text that is not there, are skipped and counted.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from data_pipeline.formats.catalog import ENGLISH
from data_pipeline.formats.container import Container
from hyperadapter.core.languages import from_catalog_code

__all__ = ["FILES", "count_files", "iter_rows"]

log = logging.getLogger(__name__)

FILES = re.compile(r"/i18n/(?:[^/]+/)*(?P<code>[^/]+)\.json$")
_NO_LANGUAGE = {"qqq"}  # notes for translators
_LINK = re.compile(r"\[\[:?(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
_URL_LINK = re.compile(r"\[(?:(?:(?:https?:)?//|mailto:)[^\s\[\]]*\s*|\$\d+\s+)([^\[\]]*)\]")
_CALL = re.compile(r"\{\{\s*(PLURAL|GENDER)\s*:([^{}]*)\}\}", re.IGNORECASE)
_EXPLICIT_FORM = re.compile(r"\d+=")
_QUOTES = re.compile(r"'{2,5}")
_HEADING_OR_LIST = re.compile(r"^(?:(=+)\s*(.+?)\s*\1|[*#:;]+\s*(.*))$", re.MULTILINE)


def count_files(roots: Sequence[Path]) -> Counter[str]:
    """Counts the files of messages by language code; see `CatalogFormat`."""
    with Container(roots) as container:
        return Counter(code for code, _, _ in _translations(container))


def iter_rows(
    roots: Sequence[Path], language: str, skipped: Counter[str]
) -> Iterator[tuple[str, str]]:
    """Yields (English, translation) of all messages of one language; see `CatalogFormat`."""
    with Container(roots) as container:
        for code, name, english_name in _translations(container):
            if from_catalog_code(code) != language:
                continue
            english = _read_messages(container, english_name, skipped)
            for key, text in _read_messages(container, name, skipped).items():
                if key not in english:
                    skipped["no English text"] += 1
                    continue
                source, target = _plain_text(english[key]), _plain_text(text)
                if source is None or target is None:
                    skipped["template in braces"] += 1
                elif source and target:
                    yield source, target
                else:
                    skipped["empty message"] += 1


def _translations(container: Container) -> Iterator[tuple[str, str, str]]:
    """Yields (language code, name, name of the English file) of all but the English files."""
    names = set(container.names)
    for name in container.names:
        match = FILES.search(name)
        if match is None or match["code"] in _NO_LANGUAGE:
            continue
        english_name = str(PurePosixPath(name).with_name(f"{ENGLISH}.json"))
        if name != english_name and english_name in names:
            yield match["code"], name, english_name


def _read_messages(container: Container, name: str, skipped: Counter[str]) -> dict[str, str]:
    """Reads the messages of one file by key; nothing, and a warning, if it is not valid."""
    try:
        tree = json.loads(container.read(name))
    except (ValueError, RecursionError) as error:
        log.warning("skipping %s, which is not valid JSON: %s", name, error)
        tree = None
    if not isinstance(tree, dict):
        skipped["unreadable catalog"] += 1
        return {}
    return {key: text for key, text in tree.items() if isinstance(text, str)}


def _plain_text(text: str) -> str | None:
    """Returns a message without wikitext, or None if something in braces is left."""
    count = 1
    while count:  # links and calls stand in each other, and both have bars: the innermost first
        text, count = _CALL.subn(_chosen_form, _LINK.sub(r"\1", text))
    if "{{" in text or "}}" in text:
        return None
    text = _URL_LINK.sub(r"\1", text)
    text = _HEADING_OR_LIST.sub(lambda match: match[2] or match[3] or "", text)
    return _QUOTES.sub("", text).strip()


def _chosen_form(match: re.Match[str]) -> str:
    forms = match[2].split("|")[1:] or [""]
    if match[1].upper() == "GENDER":
        return forms[0]
    general = [form for form in forms if not _EXPLICIT_FORM.match(form)]
    return (general or forms)[-1]
