"""Sentence pairs: which language pairs a configuration needs, where they come from, and where
cleaned ones lie.

A language pair is unordered and serves both directions. Its sides have a fixed order all the same,
the pivot first: `en-de`, side `a` English and side `b` German. One reader per file format stands
behind `iter_pairs`: `gettext_catalogs.py` and `plain_text.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from data_pipeline.config import DataConfig, SourceConfig, WheelSource
from data_pipeline.gettext_catalogs import find_wheel, iter_catalog_rows
from data_pipeline.plain_text import iter_moses_rows, iter_tsv_rows
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import read_json
from hyperadapter.core.languages import Direction

__all__ = [
    "MANIFEST",
    "SPLITS",
    "LanguagePair",
    "SentencePair",
    "Split",
    "SplitText",
    "format_line",
    "iter_pairs",
    "language_pairs",
    "pair_of",
    "read_split",
    "source_covers",
    "split_path",
]

LanguagePair: TypeAlias = tuple[str, str]
Split: TypeAlias = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
MANIFEST = "manifest.json"
_CATALOG_LANGUAGE = "en"  # the language of gettext's keys


@dataclass(frozen=True, slots=True)
class SentencePair:
    """Two texts with the same meaning, and the corpus that they come from."""

    a: str
    b: str
    source: str


@dataclass(frozen=True, slots=True)
class SplitText:
    """One split of one language pair, as columns of equal length.

    `near_duplicate` marks held-out pairs with a side that stands in train, wholly or in large part
    (see `split.py`); it is empty for train.
    """

    a: list[str]
    b: list[str]
    source: list[str]
    near_duplicate: list[bool]

    def __len__(self) -> int:
        return len(self.a)


def pair_of(direction: Direction, config: DataConfig) -> LanguagePair:
    """Returns the language pair that serves a direction: the pivot first, else in listed order."""
    order = [config.pivot, *config.languages]
    a, b = sorted(direction, key=order.index)
    return a, b


def language_pairs(config: DataConfig) -> tuple[LanguagePair, ...]:
    """Returns the pairs that the directions need, in the order of their first direction.

    Raises:
        ConfigError: No source can hold one of the pairs.
    """
    pairs = tuple(dict.fromkeys(pair_of(d, config) for d in config.resolved_directions()))
    for pair in pairs:
        if not any(source_covers(source, pair) for source in config.sources):
            raise ConfigError(
                f"data.directions need text in {pair[0]} and {pair[1]}, which no source in "
                "data.sources can hold: a gettext_wheel has pairs with English only. Add a moses "
                f"or tsv source with languages [{pair[0]}, {pair[1]}], or drop these directions"
            )
    return pairs


def source_covers(source: SourceConfig, pair: LanguagePair) -> bool:
    """Says whether a source can hold a language pair; a wheel may still lack the language."""
    if isinstance(source, WheelSource):
        return _CATALOG_LANGUAGE in pair
    return sorted(source.languages) == sorted(pair)


def iter_pairs(
    source: SourceConfig, pair: LanguagePair, raw: Path, skipped: Counter[str]
) -> Iterator[SentencePair]:
    """Yields the raw sentence pairs of one source in one language pair, side `a` first.

    Args:
        source: The corpus; `source_covers` must hold.
        pair: The language pair.
        raw: Folder of the fetched wheels.
        skipped: Counts, under a reason, entries that are no sentence pair.

    Raises:
        DataError: A file is missing, unreadable, or its two sides do not fit.
    """
    if isinstance(source, WheelSource):
        a_is_english = pair[0] == _CATALOG_LANGUAGE
        wheel = find_wheel(raw, source)
        if wheel is None:
            raise DataError(f"the wheel of {source.name} is not in {raw}; fetch the sources first")
        rows = iter_catalog_rows(wheel, pair[1] if a_is_english else pair[0], skipped)
        swap = not a_is_english
    elif source.format == "moses":
        rows = iter_moses_rows(source, skipped)
        swap = source.languages[0] != pair[0]
    else:
        rows = iter_tsv_rows(source, skipped)
        swap = source.languages[0] != pair[0]
    for first, second in rows:
        a, b = (second, first) if swap else (first, second)
        yield SentencePair(a, b, source.name)


def split_path(folder: Path, split: Split, pair: LanguagePair) -> Path:
    """Returns the file of one split of one pair; `folder` is the clean corpus."""
    return folder / split / f"{pair[0]}-{pair[1]}.tsv"


def format_line(pair: SentencePair, near_duplicate: bool | None = None) -> str:
    """Writes one line of a clean file; `near_duplicate` is None in train."""
    mark = "" if near_duplicate is None else f"\t{int(near_duplicate)}"
    return f"{pair.source}\t{pair.a}\t{pair.b}{mark}\n"


def read_split(folder: Path, split: Split, pair: LanguagePair) -> SplitText:
    """Reads one split of one language pair of the clean corpus.

    Args:
        folder: The clean corpus: `clean` in the data folder.
        split: `train`, `valid` or `test`.
        pair: The language pair, as `pair_of` returns it.

    Raises:
        DataError: The file is missing or damaged, or has not as many pairs as the manifest says.
    """
    path = split_path(folder, split, pair)
    remedy = f"Delete {folder} and build the data anew"
    num_columns = 3 if split == "train" else 4
    text = SplitText([], [], [], [])
    try:
        with open(path, encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                fields = line.rstrip("\n").split("\t")
                if len(fields) != num_columns:
                    raise DataError(
                        f"{path}:{number} has {len(fields)} columns instead of {num_columns}; the "
                        f"file is damaged. {remedy}"
                    )
                if not line.endswith("\n"):
                    raise DataError(f"{path}:{number} is cut short. {remedy}")
                text.source.append(fields[0])
                text.a.append(fields[1])
                text.b.append(fields[2])
                if split != "train":
                    text.near_duplicate.append(fields[3] == "1")
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; the clean corpus lacks {pair[0]}-{pair[1]}. Add the direction "
            "to data.directions and build the data anew"
        ) from error
    promised = _promised_pairs(folder, split, pair)
    if promised is not None and len(text) != promised:
        raise DataError(
            f"{path} has {len(text):,} sentence pairs, but {folder / MANIFEST} promises "
            f"{promised:,}; the file was cut short or changed. {remedy}"
        )
    return text


def _promised_pairs(folder: Path, split: Split, pair: LanguagePair) -> int | None:
    """Returns what the manifest of the clean corpus says, or None if it says nothing."""
    if not (folder / MANIFEST).exists():
        return None
    splits = read_json(folder / MANIFEST).get("splits", {})
    counts = splits.get("-".join(pair), {}).get(split)
    return int(counts["num_pairs"]) if counts else None
