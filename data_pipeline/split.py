"""Train, validation and test by a hash of the text, and near-duplicates between them.

A text's split is a function of the salt and of its normalised form alone. So a text of the pivot is
in the same split in every language and direction, `Save 3 files.` goes where `save {0} files` goes,
and more data moves nothing. Raising a fraction moves texts out of train only.

Two things still leak. Templates (`The order has been changed.`, `The event has been changed.`), and
the other side: `Close` in test and `Shut` in train may both be `Schliessen`. So a held-out pair is
marked when either side is found in the training text of its language, all language pairs together:

- the whole text, at any length, is a training text;
- or a large share of its word 5-grams stands in training texts;
- or it has three or four words, which stand in a row in a training text.

Parts of one or two words are vocabulary rather than sentences and do not count. In scripts without
spaces every character counts as a word (see `normalise`), and a word is about two characters long
in Chinese and Japanese and four in Thai, Lao, Khmer and Burmese. There, n-grams of 10 and of 20
characters stand for the word 5-grams, and a shorter text is marked as a whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from data_pipeline.bitext import Split
from data_pipeline.config import SplitConfig
from hyperadapter.core.languages import script_of

__all__ = ["TrainNgrams", "normalise", "split_of"]

_WORD_NGRAMS = (3, 4, 5)
_CHARACTER_NGRAMS = {
    **dict.fromkeys(("Hans", "Hant", "Jpan"), (10,)),
    **dict.fromkeys(("Thai", "Laoo", "Khmr", "Mymr"), (20,)),
}
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
    simple = " ".join(_DIGITS.sub("0", text.lower().translate(_SIMPLIFY)).split())
    return simple or text


def split_of(normalised: str, config: SplitConfig) -> Split:
    """Returns the split of a normalised text: a salted hash, read as a number from 0 to 1."""
    digest = hashlib.blake2b(f"{config.seed}\n{normalised}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < config.test_fraction:
        return "test"
    return "valid" if place >= 1 - config.valid_fraction else "train"


class TrainNgrams:
    """The n-grams of the training texts of one language and the texts as a whole, as hashes.

    A new n-gram falls together with one of ten million with a chance of about 1e-12.

    Args:
        language: Its script decides the lengths of the n-grams, see the head of this file.
    """

    def __init__(self, language: str) -> None:
        self._lengths = _CHARACTER_NGRAMS.get(script_of(language), _WORD_NGRAMS)
        self._texts: set[int] = set()
        self._new = array("q")
        self._sorted: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def add(self, normalised: str) -> None:
        """Adds a training text; adding one twice changes nothing."""
        if hash(normalised) in self._texts:
            return
        self._texts.add(hash(normalised))
        words = normalised.split()
        for n in self._lengths:
            self._new.extend(_hashes(words, n))

    def containment(self, normalised: str) -> float:
        """Returns the share of a text's longest n-grams that stand in train; 1 for a whole text."""
        if hash(normalised) in self._texts:
            return 1.0
        words = normalised.split()
        if len(words) < self._lengths[0]:
            return 0.0
        if self._new:
            fresh = np.frombuffer(self._new, dtype=np.int64)
            self._sorted = np.union1d(self._sorted, fresh)
            del fresh  # an array cannot change while a view of it exists
            self._new = array("q")
        if not len(self._sorted):
            return 0.0
        wanted = np.fromiter(_hashes(words, min(self._lengths[-1], len(words))), dtype=np.int64)
        place = np.searchsorted(self._sorted, wanted).clip(max=len(self._sorted) - 1)
        return float(np.mean(self._sorted[place] == wanted))


def _hashes(words: list[str], n: int) -> Iterator[int]:
    return (hash(tuple(words[i : i + n])) for i in range(len(words) - n + 1))
