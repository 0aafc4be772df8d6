"""Train, validation and test by a hash of the text.

A text's split is a function of the salt and of its normalised form alone. So a text of the pivot is
in the same split in every language and direction, `Save 3 files.` goes where `save {0} files` goes,
and more data moves nothing. Raising a fraction moves texts out of train only. What leaks all the
same is marked by `near_duplicates.py`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

from data_pipeline.bitext import Split
from data_pipeline.config import SplitConfig

__all__ = ["normalise", "order_of", "split_of"]

_SCRIPTS_WITHOUT_SPACES = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


class _Simplify(dict[int, str]):
    """A `str.translate` table, filled as characters come: punctuation, symbols and space to one
    space, digits to 0, and spaces around characters of scripts that write none."""

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        category = unicodedata.category(character)
        if category[0] in "PSZC":
            simple = " "
        elif category[0] == "N":
            simple = "0"
        elif unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_SPACES):
            simple = f" {character} " if category[0] == "L" else character
        else:
            simple = character
        self[codepoint] = simple
        return simple


_SIMPLIFY = _Simplify()
_DIGITS = re.compile("0+")


def normalise(text: str) -> str:
    """Returns words in lower case without punctuation, numbers and placeholders all as `0`."""
    simple = text.lower().translate(_SIMPLIFY)
    if "00" in simple:
        simple = _DIGITS.sub("0", simple)
    return " ".join(simple.split()) or text


def split_of(normalised: str, config: SplitConfig) -> Split:
    """Returns the split of a normalised text: a salted hash, read as a number from 0 to 1."""
    digest = hashlib.blake2b(f"{config.seed}\n{normalised}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < config.test_fraction:
        return "test"
    return "valid" if place >= 1 - config.valid_fraction else "train"


def order_of(text: str, seed: int) -> int:
    """Returns a text's place in the files of the clean corpus: a salted hash of 64 bits.

    All files are in this order of side a, so they are shuffled, the first n texts are a random
    sample that is the same in every language pair, and pairs that share a side can be merged.
    """
    digest = hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=8, person=b"order").digest()
    return int.from_bytes(digest, "big")
