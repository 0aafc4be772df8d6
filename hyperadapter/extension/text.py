"""Sentence pairs of a new language: what is held out, how well the pieces spell it, and batches.

Which pairs are held out depends on the pivot's text alone, so equal sentences stay on one side.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_micro_batch
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import Direction
from hyperadapter.evaluation.score import Scores, score_corpus
from hyperadapter.evaluation.test_sets import read_pairs
from hyperadapter.evaluation.translate import TextTranslator, plain_text
from hyperadapter.extension.model import NewLanguage
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq

__all__ = [
    "Coverage",
    "EncodedText",
    "Pairs",
    "encode",
    "make_batches",
    "measure_coverage",
    "read_new_text",
    "sample_pairs",
    "score_pairs",
    "split_pairs",
    "without",
]

log = logging.getLogger(__name__)

Pieces = NDArray[np.int32]
_LEAST_HELD_OUT = 2
_MUCH_SPELLED_OUT = 0.05
"""Share of characters without a piece from which on translations suffer."""


class Pairs(NamedTuple):
    """Sentences of the pivot, and the same in the new language."""

    pivot: list[str]
    new: list[str]

    def select(self, rows: Sequence[int]) -> Pairs:
        """Returns some of the pairs."""
        return Pairs([self.pivot[row] for row in rows], [self.new[row] for row in rows])

    def __bool__(self) -> bool:
        return bool(self.pivot)


class EncodedText(NamedTuple):
    """Pairs as pieces without end marks, which pairs they are, and how many were too long."""

    pivot: list[Pieces]
    new: list[Pieces]
    rows: list[int]
    too_long: int


class Coverage(NamedTuple):
    """How the tokenizer, which has not seen the language, writes it.

    Attributes:
        pieces_per_character: Of the new language; the pivot's is about 0.25 with 32,000 pieces.
        pieces_per_character_pivot: Of the same sentences in the pivot.
        spelled_out: Share of characters that have no piece and are spelled in bytes.
        worst: The characters without a piece that are most frequent, with their counts.
    """

    pieces_per_character: float
    pieces_per_character_pivot: float
    spelled_out: float
    worst: tuple[tuple[str, int], ...]


def read_new_text(
    paths: Sequence[Path], columns: Direction, new: NewLanguage, option: str
) -> Pairs:
    """Reads pairs, writes them as training text is, and drops what is there twice.

    Args:
        paths: One file of pairs, or two aligned ones, see `evaluation/test_sets.py`.
        columns: Languages of the first and second column, or file.
        new: The new language and the pivot, which must be those two.
        option: Which option named the files, for errors.

    Raises:
        DataError: A file cannot be read, or the columns are of other languages.
    """
    if set(columns) != {new.code, new.pivot}:
        raise DataError(
            f"{option} are of {columns}, but {new.code} is added beside {new.pivot}; write "
            f"--columns {new.pivot}-{new.code}, or {new.code}-{new.pivot}"
        )
    first, second = read_pairs(paths, option)
    plain = [[plain_text(text) for text in side] for side in (first, second)]
    pivot, other = plain if columns.src == new.pivot else reversed(plain)
    unique = dict.fromkeys(zip(pivot, other, strict=True))
    if len(unique) < len(first):
        log.info("%s: %d of %d pairs are there twice and dropped once", option,
                 len(first) - len(unique), len(first))  # fmt: skip
    return Pairs([pair[0] for pair in unique], [pair[1] for pair in unique])


def split_pairs(pairs: Pairs, fraction: float, most: int) -> tuple[Pairs, Pairs]:
    """Holds out pairs.

    Args:
        pairs: All of them.
        fraction: Of the distinct sentences of the pivot.
        most: Pairs held out at most.

    Returns:
        Pairs to learn from, and pairs held out, in the order of the file.

    Raises:
        DataError: There are too few.
    """
    digests = {text: hashlib.sha256(text.encode()).digest() for text in pairs.pivot}
    wanted = min(most, round(len(digests) * fraction))
    held = set(sorted(digests, key=digests.__getitem__)[:wanted])
    rows = [index for index, text in enumerate(pairs.pivot) if text in held]
    rest = [index for index, text in enumerate(pairs.pivot) if text not in held]
    if len(rows) < _LEAST_HELD_OUT or not rest:
        raise DataError(
            f"{len(pairs.pivot)} pairs are too few to hold some out ({len(rows)}) and learn from "
            f"others ({len(rest)}); give more, or held-out pairs of your own with --valid"
        )
    return pairs.select(rest), pairs.select(rows)


def without(pairs: Pairs, held_out: Pairs) -> Pairs:
    """Drops pairs whose sentence of the pivot is held out."""
    held = set(held_out.pivot)
    return pairs.select([row for row, text in enumerate(pairs.pivot) if text not in held])


def sample_pairs(pairs: Pairs, count: int, seed: int = 1) -> Pairs:
    """Draws so many pairs, or all; they stay in order."""
    if len(pairs.pivot) <= count:
        return pairs
    drawn = np.random.default_rng(seed).permutation(len(pairs.pivot))[:count]
    return pairs.select(sorted(drawn.tolist()))


def score_pairs(
    translator: TextTranslator, pairs: Pairs, new: NewLanguage, direction: Direction
) -> Scores:
    """Translates one side of pairs and scores it by the other.

    Args:
        translator: Of a model that knows the language.
        pairs: Of the language and the pivot.
        new: The language; the model may have been trained on it.
        direction: One between the two.
    """
    src, references = pairs if direction.src == new.pivot else pairs[::-1]
    return score_corpus(translator.translate(src, *direction), references, direction.tgt)


def measure_coverage(tokenizer: Tokenizer, pairs: Pairs) -> Coverage:
    """Measures how the tokenizer writes the new language, and warns if it has to spell it."""
    spells = tokenizer.spells_out()
    characters = "".join(pairs.new).replace(" ", "")
    counts: dict[str, int] = {}
    for character in characters:
        counts[character] = counts.get(character, 0) + 1
    distinct = list(counts)
    # A character alone is spelled out if no piece of the vocabulary can stand for it.
    missing = {
        character: counts[character]
        for character, ids in zip(distinct, tokenizer.encode(distinct), strict=True)
        if spells[ids].any()
    }
    found = Coverage(
        pieces_per_character=_rate(tokenizer, pairs.new),
        pieces_per_character_pivot=_rate(tokenizer, pairs.pivot),
        spelled_out=sum(missing.values()) / max(1, len(characters)),
        worst=tuple(sorted(missing.items(), key=lambda item: (-item[1], item[0]))[:10]),
    )
    if found.spelled_out > _MUCH_SPELLED_OUT:
        log.warning(
            "%.0f %% of the new language's characters have no piece and are spelled in bytes "
            "(%s, ...): translations will be long and poor; a tokenizer that has seen the script "
            "needs a model trained with it",
            100 * found.spelled_out, " ".join(character for character, _ in found.worst[:5]),
        )  # fmt: skip
    return found


def _rate(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    pieces = sum(len(ids) for ids in tokenizer.encode(texts))
    return pieces / max(1, sum(map(len, texts)))


def encode(tokenizer: Tokenizer, pairs: Pairs, max_tokens: int) -> EncodedText:
    """Turns pairs into pieces.

    Args:
        tokenizer: Of the model.
        pairs: What to encode.
        max_tokens: Longest sentence, end mark included; pairs with a longer one are left out.

    Raises:
        DataError: All are too long.
    """
    sides = [tokenizer.encode(side) for side in pairs]
    rows = [
        number
        for number, row in enumerate(zip(*sides, strict=True))
        if max(map(len, row)) < max_tokens
    ]
    too_long = len(pairs.pivot) - len(rows)
    if not rows:
        raise DataError(
            f"all {too_long} pairs have a sentence of more than {max_tokens} tokens, the longest "
            "that the model was trained on; split them into sentences"
        )
    if too_long:
        log.warning(
            "%d of %d pairs have a sentence of more than %d tokens and are left out",
            *(too_long, len(pairs.pivot), max_tokens),
        )
    pivot, new = ([side[row] for row in rows] for side in sides)
    return EncodedText(pivot, new, rows, too_long)


def make_batches(
    text: EncodedText,
    new: NewLanguage,
    model: Seq2Seq,
    config: RunConfig,
    directions: Sequence[Direction],
    most_pairs: int = 32,
) -> list[Batch]:
    """Makes batches of similar lengths; a pair is there once in each of the directions.

    Args:
        text: Pairs of the language.
        new: The language; the model may know it.
        model: Says how many pieces there are, and where batches go.
        config: Of the model; `training.micro_batch_tokens` limits a batch too.
        directions: One or both of the language's.
        most_pairs: In a batch, so that few pairs make several steps.
    """
    layout = BatchLayout.from_config(config.data, model.vocabulary.num_pieces)
    known = config.data.resolved_directions()
    numbers = sorted((known.index(direction), direction) for direction in directions)
    device = model.embedding.weight.device
    longest = [max(len(a), len(b)) + 2 for a, b in zip(text.pivot, text.new, strict=True)]
    batches = []
    for rows in _cut(longest, config.training.micro_batch_tokens // len(directions), most_pairs):
        pivot_side, new_side = ([side[row] for row in rows] for side in text[:2])
        src, tgt = [], []
        for _, direction in numbers:
            outward = direction.tgt == new.code
            src += pivot_side if outward else new_side
            tgt += new_side if outward else pivot_side
        of_rows = np.repeat([number for number, _ in numbers], len(rows))
        batch = build_micro_batch(
            layout, of_rows, Ragged.from_sequences(src), Ragged.from_sequences(tgt)
        )
        batches.append(Batch.from_micro_batch(batch, device))
    return batches


def _cut(lengths: Sequence[int], tokens: int, most: int) -> Iterator[list[int]]:
    """Yields rows of similar length: so many at most, which padded have so many tokens at most."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if rows and (len(rows) == most or lengths[rows[0]] * (len(rows) + 1) > tokens):
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
