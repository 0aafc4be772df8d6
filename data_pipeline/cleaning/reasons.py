"""Why a sentence pair is dropped."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Reason"]


class Reason(StrEnum):
    """Why a pair was dropped, in the order of the tests."""

    EMPTY = "a side is empty"
    PLACEHOLDERS = "placeholders differ"
    UNKNOWN_MARKUP = "unknown placeholder or markup"
    FORBIDDEN = "pipe or backslash"
    EQUAL = "target equals source"
    IDENTIFIER = "identifier, time zone or list of keywords"
    TOO_SHORT = "too few words"
    TOO_LONG = "too many characters"
    FEW_LETTERS = "too few letters"
    LENGTH_RATIO = "length ratio"
    WRONG_SCRIPT = "wrong script"
    ENGLISH_COPY = "copied words"
    LANGUAGE_ID = "language id"
