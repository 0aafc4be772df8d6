"""Test sets that must not be trained on: finds their sentences in train text.

A training text holds a test sentence if both are the same in normalised form, or if it has a large
share of the sentence's n-grams (`ngrams.py` says which count).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_pipeline.cleaning.ngrams import hash_texts, is_in
from data_pipeline.cleaning.split import normalise
from data_pipeline.config import LeakTest
from data_pipeline.formats.text_files import iter_lines
from hyperadapter.core.errors import DataError

__all__ = ["LeakIndex", "load_leak_index"]


class LeakIndex:
    """The sentences of one test set, to be found in other texts.

    Args:
        sentences: The test set, as it stands.
        language: Its language.

    Attributes:
        num_sentences: How many there are.
    """

    def __init__(self, sentences: Sequence[str], language: str) -> None:
        self.num_sentences = len(sentences)
        self._language = language
        hashes = hash_texts([normalise(text) for text in sentences], language)
        self._same: defaultdict[int, list[int]] = defaultdict(list)
        for sentence, whole in enumerate(hashes.whole.tolist()):
            self._same[whole].append(sentence)
        self._having: defaultdict[int, list[int]] = defaultdict(list)
        ngrams, owners = hashes.longest()
        for ngram, sentence in zip(ngrams.tolist(), owners.tolist(), strict=True):
            self._having[ngram].append(sentence)
        self._num_ngrams = np.bincount(owners, minlength=len(sentences)).tolist()
        self._whole = np.unique(hashes.whole)
        self._ngrams = np.unique(ngrams)

    def find(self, texts: Sequence[str], least: float) -> dict[int, list[int]]:
        """Finds test sentences in a batch of texts.

        Args:
            texts: Normalised texts in the same language.
            least: The share of a sentence's n-grams that makes a text hold it.

        Returns:
            The numbers of the sentences that a text holds, for each text that holds any.
        """
        hashes = hash_texts(texts, self._language)
        found: defaultdict[int, set[int]] = defaultdict(set)
        for text in np.flatnonzero(is_in(hashes.whole, self._whole)).tolist():
            found[text].update(self._same[int(hashes.whole[text])])
        ngrams_of: defaultdict[int, set[int]] = defaultdict(set)
        for n in hashes.lengths:
            ngrams, owners = hashes.ngrams(n)
            known = is_in(ngrams, self._ngrams)
            for ngram, text in zip(ngrams[known].tolist(), owners[known].tolist(), strict=True):
                ngrams_of[text].add(ngram)
        for text, some in ngrams_of.items():
            counts = Counter(sentence for ngram in some for sentence in self._having[ngram])
            found[text].update(s for s, n in counts.items() if n >= least * self._num_ngrams[s])
        return {text: sorted(sentences) for text, sentences in found.items() if sentences}


def load_leak_index(test: LeakTest) -> LeakIndex:
    """Reads a test set, once a process while the file stays the same.

    Raises:
        DataError: The file is missing or not UTF-8.
    """
    path = Path(test.path)
    return _load(test, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=64)
def _load(test: LeakTest, mtime_ns: int) -> LeakIndex:
    where = f"data.split.leak_tests, {test.name!r}"
    sentences = []
    for number, line in enumerate(iter_lines(Path(test.path), where), 1):
        if line is None:
            raise DataError(f"{where}: {test.path}:{number} is too long for a sentence; correct it")
        if line.strip():
            sentences.append(line)
    return LeakIndex(sentences, test.language)
