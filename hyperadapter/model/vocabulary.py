"""The symbols that a model is built for. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hyperadapter.core.languages import Direction, family_of

__all__ = ["Vocabulary", "language_groups"]


class Vocabulary(NamedTuple):
    """The symbols a model is built for.

    Attributes:
        num_pieces: SentencePiece pieces, the special ones included.
        languages: BCP 47 codes; a language's number is its place.
        directions: Trained directions; a direction's number is its place.
    """

    num_pieces: int
    languages: tuple[str, ...]
    directions: tuple[Direction, ...]


def language_groups(kind: str, languages: Sequence[str]) -> tuple[list[int], int]:
    """Returns the adapter key of every language, and how many keys there are.

    With `language` adapters every language is its own key, with `family` adapters relatives share.
    """
    names = list(languages) if kind == "language" else [family_of(code) for code in languages]
    keys = list(dict.fromkeys(names))
    return [keys.index(name) for name in names], len(keys)
