"""The text that the tokenizer is trained on: sampled by temperature, in memory of a fixed size.

A text is chosen by a seeded hash of its language and content, so the choice does not depend on the
order of files or pairs nor on the number of processes, and a text that stands in many pairs (the
pivot side) counts once. Two passes over the train text:

1. How much distinct text has each language? Of each, the k smallest hashes are kept with the sizes
   of their texts ("k minimum values", Bar-Yossef et al. 2002). Up to k distinct texts the answer is
   exact. Beyond, they are a uniform sample of known density, and the relative standard error is
   sqrt((1 + v^2) / k), v the standard deviation of the sizes over their mean: 0.8 % for v = 1.
2. The budget is shared by temperature (Arivazhagan et al. 2019), which gives each language the
   highest hash it may keep; the texts below it are collected.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.bitext import LanguagePair, iter_split, language_pairs, split_path
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.mixing import temperature_weights
from data_pipeline.workers import parallel_map
from hyperadapter.core.errors import DataError

__all__ = ["TrainingText", "sample_training_text"]

log = logging.getLogger(__name__)

_SKETCH_TEXTS = 32_768  # k: half a megabyte a language
_CHUNK_TEXTS = 32_768
_HASHES = 2**64
# Starting processes takes longer than one of them needs for this much text.
_PARALLEL_FROM_BYTES = 50_000_000

Hashes = NDArray[np.uint64]
Sketch = tuple[Hashes, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class TrainingText:
    """The sample.

    Attributes:
        texts: All languages' distinct texts, in an order that depends on nothing but themselves.
        available_bytes: Distinct text per language; an estimate for large corpora, see above.
        sampled_bytes: Text per language that was chosen.
        word_characters: Characters of all languages' distinct words, separated by white space.
    """

    texts: list[str]
    available_bytes: dict[str, int]
    sampled_bytes: dict[str, int]
    word_characters: int


def sample_training_text(clean: Path, config: DataConfig) -> TrainingText:
    """Chooses about `tokenizer.max_training_bytes` of train text.

    Args:
        clean: The clean corpus.
        config: The data configuration.

    Raises:
        DataError: The clean text is missing, damaged or empty.
    """
    sizes = {pair: _file_bytes(clean, pair) for pair in language_pairs(config)}
    pairs = sorted(sizes, key=lambda pair: (-sizes[pair], pair))
    workers = config.num_workers if sum(sizes.values()) >= _PARALLEL_FROM_BYTES else 1
    keys = {code: _hash_key(config.tokenizer.seed, code) for pair in pairs for code in pair}

    counting = partial(_sketch_pair, clean, keys)
    sketches: defaultdict[str, Sketch] = defaultdict(_empty_sketch)
    for pair, found in parallel_map(counting, pairs, "tokenizer: measuring text", workers):
        for code, sketch in zip(pair, found, strict=True):
            sketches[code] = _merge(sketches[code], *sketch)
    available = {code: _distinct_bytes(sketches[code]) for code in sorted(sketches)}
    if not any(available.values()):
        raise DataError(
            f"the train split in {clean} holds no text; check the sources in the configuration and "
            "run `hyperadapter data clean` again"
        )

    highest = _highest_hashes(available, config.tokenizer)
    choosing = partial(_choose_pair, clean, keys, highest)
    chosen: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for pair, texts in parallel_map(choosing, pairs, "tokenizer: sampling text", workers):
        for code, part in zip(pair, texts, strict=True):
            chosen[code].update(part)
    return TrainingText(
        texts=[chosen[code][number] for code in available for number in sorted(chosen[code])],
        available_bytes=available,
        sampled_bytes={code: _num_bytes(chosen[code].values()) for code in available},
        word_characters=sum(_word_characters(chosen[code].values()) for code in available),
    )


def _file_bytes(clean: Path, pair: LanguagePair) -> int:
    path = split_path(clean, "train", pair)
    return path.stat().st_size if path.exists() else 0  # reading it says what is missing


def _num_bytes(texts: Iterable[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _word_characters(texts: Iterable[str]) -> int:
    return sum(map(len, {word for text in texts for word in text.split()}))


def _hash_key(seed: int, code: str) -> bytes:
    return hashlib.blake2b(f"{seed}:{code}".encode(), digest_size=32).digest()


def _iter_hashed(
    clean: Path, pair: LanguagePair, keys: dict[str, bytes]
) -> Iterator[list[tuple[list[bytes], Hashes]]]:
    """Yields for both sides of a pair some texts in UTF-8, and their seeded hashes of 64 bits."""
    hashers = [hashlib.blake2b(digest_size=8, key=keys[code]) for code in pair]
    lines = iter(iter_split(clean, "train", pair))
    while rows := list(islice(lines, _CHUNK_TEXTS)):
        sides = ([row.a.encode() for row in rows], [row.b.encode() for row in rows])
        yield [(texts, _hash(texts, keyed)) for texts, keyed in zip(sides, hashers, strict=True)]


def _hash(texts: list[bytes], keyed: Any) -> Hashes:
    digests = []
    for text in texts:
        hasher = keyed.copy()  # quicker than starting with the key each time
        hasher.update(text)
        digests.append(hasher.digest())
    return np.frombuffer(b"".join(digests), "<u8")


def _empty_sketch() -> Sketch:
    return np.empty(0, np.uint64), np.empty(0, np.int64)


def _merge(sketch: Sketch, hashes: Hashes, sizes: NDArray[np.int64]) -> Sketch:
    """Returns the k + 1 smallest distinct hashes of a sketch and of others, with their sizes."""
    if len(sketch[0]) > _SKETCH_TEXTS:
        low = hashes < sketch[0][-1]
        hashes, sizes = hashes[low], sizes[low]
    distinct, first = np.unique(np.concatenate((sketch[0], hashes)), return_index=True)
    sizes = np.concatenate((sketch[1], sizes))[first]
    return distinct[: _SKETCH_TEXTS + 1], sizes[: _SKETCH_TEXTS + 1]


def _sketch_pair(clean: Path, keys: dict[str, bytes], pair: LanguagePair) -> list[Sketch]:
    """Returns the sketches of both sides of one language pair."""
    sketches = [_empty_sketch(), _empty_sketch()]
    for sides in _iter_hashed(clean, pair, keys):
        for side, (texts, hashes) in enumerate(sides):
            sizes = np.fromiter(map(len, texts), np.int64, len(texts))
            sketches[side] = _merge(sketches[side], hashes, sizes)
    return sketches


def _distinct_bytes(sketch: Sketch) -> int:
    """Returns the bytes of a language's distinct texts: exact for up to k texts."""
    hashes, sizes = sketch
    if len(hashes) <= _SKETCH_TEXTS:
        return int(sizes.sum())
    return round(int(sizes[:-1].sum()) * (_HASHES / int(hashes[-1])))


def _highest_hashes(available: dict[str, int], config: TokenizerConfig) -> dict[str, int]:
    """Returns for each language the highest hash that is chosen, -1 for none."""
    budget = _budgets(available, config)
    return {
        code: min(_HASHES, int(budget[code] / max(available[code], 1) * _HASHES)) - 1
        for code in available
    }


def _budgets(available: dict[str, int], config: TokenizerConfig) -> dict[str, float]:
    """Shares `max_training_bytes` by temperature; what a language cannot supply goes to the others.

    The shares keep to the temperature among the languages that are not exhausted.
    """
    weight = dict(
        zip(
            available,
            temperature_weights(np.array(list(available.values())), config.temperature),
            strict=True,
        )
    )
    budget: dict[str, float] = {}
    rest = float(config.max_training_bytes)
    open_weight = sum(float(weight[code]) for code in available)
    # The language whose text runs out first at rising shares is settled first.
    for code in sorted(available, key=lambda c: available[c] / max(float(weight[c]), 1e-300)):
        share = rest * float(weight[code]) / open_weight if open_weight > 0 else 0.0
        budget[code] = min(float(available[code]), share)
        rest -= budget[code]
        open_weight -= float(weight[code])
    return budget


def _choose_pair(
    clean: Path, keys: dict[str, bytes], highest: dict[str, int], pair: LanguagePair
) -> list[dict[int, str]]:
    """Returns for both sides of one language pair the chosen texts by their hashes."""
    chosen: list[dict[int, str]] = [{}, {}]
    limits = [highest[code] for code in pair]
    for sides in _iter_hashed(clean, pair, keys):
        for part, limit, (texts, hashes) in zip(chosen, limits, sides, strict=True):
            if limit >= 0:
                for index in np.flatnonzero(hashes <= np.uint64(limit)).tolist():
                    part.setdefault(int(hashes[index]), texts[index].decode())
    return chosen
