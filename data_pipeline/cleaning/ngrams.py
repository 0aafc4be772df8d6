"""Hashes of texts and of their n-grams, in numpy, the same in every process.

A word's hash is 8 bytes of BLAKE2. That of an n-gram is the polynomial of its words' hashes modulo
2^64, so that the n-grams of many texts are a few array operations. Two different n-grams have the
same hash with a chance of about 2^-64; one of a million held-out n-grams falls together with one of
ten billion of train with a chance of 5e-4.

N-grams of one or two words are vocabulary rather than sentences and do not count. In scripts
without spaces every character counts as a word (see `normalise`), and a word is about two
characters long in Chinese and Japanese and four in Thai, Lao, Khmer and Burmese. There, n-grams of
10 and of 20 characters stand for the word 5-grams, and a shorter text counts as a whole or not at
all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from hyperadapter.core.languages import script_of

__all__ = ["HashPlaces", "Hashes", "TextHashes", "contained_share", "hash_texts", "is_in"]

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

_WORD_NGRAMS = (3, 4, 5)
_CHARACTER_NGRAMS = {
    **dict.fromkeys(("Hans", "Hant", "Jpan"), (10,)),
    **dict.fromkeys(("Thai", "Laoo", "Khmr", "Mymr"), (20,)),
}
_NGRAM_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, else its powers would end in zeros
_TEXT_FACTOR = np.uint64(0xD6E8FEB86659FD93)  # another one, so that a text is no n-gram
_MAX_WORDS = 500_000  # about 75 MB


class _WordHashes(dict[str, int]):
    """Hashes of words, computed once; forgotten when there are too many."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MAX_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "big")
        return value


_WORD_HASHES = _WordHashes()


@dataclass(frozen=True, slots=True)
class TextHashes:
    """Hashes of a batch of normalised texts.

    Attributes:
        whole: Of each text, `[texts]`.
        words: Of all texts' words, one text after another, `[words]`.
        starts: Where in `words` each text begins, and the end, `[texts + 1]`.
        lengths: The lengths of n-grams that count, ascending.
    """

    whole: Hashes
    words: Hashes
    starts: Indices
    lengths: tuple[int, ...]

    def all(self) -> Hashes:
        """Returns the hashes of all texts and n-grams."""
        return np.concatenate([self.whole, *(self.ngrams(n)[0] for n in self.lengths)])

    def longest(self) -> tuple[Hashes, Indices]:
        """Returns each text's longest n-grams that count, and the text of each.

        They have the greatest length, or as many words as the text has; shorter texts have none.
        """
        counts = np.diff(self.starts)
        found = []
        for n in self.lengths:
            hashes, texts = self.ngrams(n)
            chosen = (counts[texts] == n) if n < self.lengths[-1] else np.ones(len(texts), bool)
            found.append((hashes[chosen], texts[chosen]))
        hashes, texts = (np.concatenate(part) for part in zip(*found, strict=True))
        return hashes, texts

    def ngrams(self, n: int) -> tuple[Hashes, Indices]:
        """Returns all n-grams of one length, and the text of each."""
        num = max(len(self.words) - n + 1, 0)
        texts = np.repeat(np.arange(len(self.whole)), np.diff(self.starts))[:num]
        inside = np.arange(num) + n <= self.starts[1:][texts]
        hashes = np.zeros(num, np.uint64)
        for k in range(n):
            hashes = hashes * _NGRAM_FACTOR + self.words[k : k + num]
        return hashes[inside], texts[inside]


def hash_texts(texts: Sequence[str], language: str) -> TextHashes:
    """Hashes a batch of normalised texts; the language's script decides the n-grams' lengths."""
    words = [text.split() for text in texts]
    starts = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(one) for one in words], out=starts[1:])
    flat = np.fromiter(
        map(_WORD_HASHES.__getitem__, chain.from_iterable(words)), np.uint64, int(starts[-1])
    )
    lengths = _CHARACTER_NGRAMS.get(script_of(language), _WORD_NGRAMS)
    return TextHashes(_whole(flat, starts), flat, starts, lengths)


def _whole(words: Hashes, starts: Indices) -> Hashes:
    counts = np.diff(starts)
    powers = np.full(int(counts.max(initial=0)), _TEXT_FACTOR, np.uint64)
    np.multiply.accumulate(powers, out=powers)
    places = np.arange(len(words)) - np.repeat(starts[:-1], counts)
    sums = np.zeros(len(words) + 1, np.uint64)
    np.cumsum(words * powers[places], out=sums[1:])
    return sums[starts[1:]] - sums[starts[:-1]]


def is_in(hashes: Hashes, known: Hashes) -> NDArray[np.bool_]:
    """Says which hashes are among `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    place = np.searchsorted(known, hashes)
    np.minimum(place, len(known) - 1, out=place)
    return np.asarray(known[place] == hashes)


class HashPlaces:
    """Finds hashes in a large sorted array.

    Of hashes that the array does not have, all but a tenth are told by a bit map of one or two
    bytes for each that it has. A search costs far more: each of its steps waits for memory.
    """

    def __init__(self, known: Hashes) -> None:
        """Makes the map; `known` is sorted."""
        num_bits = max(3, (8 * len(known)).bit_length())
        self._known = known
        self._shift = np.uint64(64 - num_bits)
        index = known >> self._shift
        self._map = np.zeros(1 << (num_bits - 3), np.uint8)
        np.bitwise_or.at(self._map, index >> np.uint64(3), self._bit(index))

    @staticmethod
    def _bit(index: Hashes) -> NDArray[np.uint8]:
        return np.left_shift(np.uint8(1), (index & np.uint64(7)).astype(np.uint8))

    def find(self, hashes: Hashes) -> Indices:
        """Returns where those hashes are that the array has."""
        index = hashes >> self._shift
        hashes = hashes[(self._map[index >> np.uint64(3)] & self._bit(index)) != 0]
        return np.searchsorted(self._known, hashes[is_in(hashes, self._known)])


def contained_share(
    texts: TextHashes, is_known: Callable[[Hashes], NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """Returns the share of each text's longest n-grams that are known; 1 if the whole text is."""
    hashes, owners = texts.longest()
    num_texts = len(texts.whole)
    total = np.bincount(owners, minlength=num_texts)
    known = np.bincount(owners, weights=is_known(hashes), minlength=num_texts)
    share = known / np.maximum(total, 1)
    share[is_known(texts.whole)] = 1.0
    return np.asarray(share)
