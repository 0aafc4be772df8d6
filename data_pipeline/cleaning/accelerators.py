"""Marks of keyboard accelerators: `_File`, `E_xit`, `&Open`, `^Install`, `ファイル(_F)`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from typing import NamedTuple

__all__ = ["strip_accelerators"]

_MAY_BE_MARK = re.compile(r"[_&^~]")
_IN_PARENTHESES = re.compile(r"\s*[(（][_&~][A-Za-z0-9][)）]")
# But not in "A & B", `__init__` or `&entity;`.
_MARK = re.compile(r"(?<![_&^])[_&^](?=[^\W_])(?!\w+;)")
_BEFORE_WORD = "\"'(（[«„“‘‹「『/-—–:…،"
_WORD_END = re.compile(r"[\s/]")
_MAX_SHORT_WORDS = 8


class _Mark(NamedTuple):
    """A character that may mark an accelerator, in its word."""

    place: int
    word: str
    inside: bool


def strip_accelerators(a: str, b: str) -> tuple[str, str]:
    """Removes the marks of accelerators from both sides, where each has a single one.

    `file_name`, `MAX_SIZE`, `AT&T` and `R&D` look the same, so a mark inside a word only counts
    before a small letter and where the other side has not the same word. In long texts, one at the
    start of a word must not have the same word on the other side either.
    """
    if not _MAY_BE_MARK.search(a + b):
        return a, b
    a, b = _IN_PARENTHESES.sub("", a), _IN_PARENTHESES.sub("", b)
    marks_a, marks_b = _marks(a), _marks(b)
    words_a, words_b = ({mark.word for mark in marks} for marks in (marks_a, marks_b))
    return _strip(a, marks_a, words_b), _strip(b, marks_b, words_a)


def _marks(text: str) -> list[_Mark]:
    found = []
    for match in _MARK.finditer(text):
        place = match.start()
        before = text[place - 1] if place else " "
        inside = unicodedata.category(before)[0] in "LM"
        after = text[place + 1]
        if inside and (after.isupper() or after.isdigit()):
            continue
        if inside or before.isspace() or before in _BEFORE_WORD:
            start = max(text.rfind(" ", 0, place), text.rfind("/", 0, place)) + 1
            word = _WORD_END.split(text[start:], maxsplit=1)[0].strip(".,:;…()\"'«»„“”[]")
            if not inside or word.count("_") + word.count("&") + word.count("^") == 1:
                found.append(_Mark(place, word, inside))
    return found


def _strip(text: str, marks: list[_Mark], copied: Collection[str]) -> str:
    if not marks:
        return text
    if len(text.split()) > _MAX_SHORT_WORDS:  # where `^` and `_x` are rather names
        marks = [mark for mark in marks if text[mark.place] != "^" and mark.word not in copied]
    places = [mark.place for mark in marks if not mark.inside or mark.word not in copied]
    if len(places) != 1:
        return text
    return text[: places[0]] + text[places[0] + 1 :]
