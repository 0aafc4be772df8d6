"""Sentence pairs: which language pairs a configuration needs, where they come from, and where
cleaned ones lie.

A language pair is unordered and serves both directions. Its sides have a fixed order all the same,
the pivot first: `en-de`, side `a` English and side `b` German. One reader for each file format, in
`formats/`, stands behind `iter_pairs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from data_pipeline.config import DataConfig
from data_pipeline.formats import (
    ddtp,
    gettext,
    jsonl,
    libreoffice_help,
    mallard,
    mediawiki,
    moses,
    parquet,
    tmx,
    tsv,
)
from data_pipeline.formats.catalog import ENGLISH, CatalogFormat, known_codes, unknown_codes
from data_pipeline.formats.container import Container
from data_pipeline.sources import (
    CatalogSource,
    JsonlSource,
    MosesSource,
    PairSource,
    ParquetSource,
    SourceConfig,
    TmxSource,
)
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import read_json
from hyperadapter.core.languages import Direction

__all__ = [
    "MANIFEST",
    "SPLITS",
    "CatalogLanguages",
    "LanguagePair",
    "SentencePair",
    "Split",
    "SplitRow",
    "SplitText",
    "catalog_languages",
    "cleaned_pairs",
    "format_line",
    "iter_pairs",
    "iter_split",
    "language_pairs",
    "pair_of",
    "pivoted_pairs",
    "read_split",
    "source_covers",
    "split_path",
]

LanguagePair: TypeAlias = tuple[str, str]
Split: TypeAlias = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
MANIFEST = "manifest.json"
_CATALOG_FORMATS: Mapping[str, CatalogFormat] = {
    "gettext": gettext,
    "mediawiki": mediawiki,
    "libreoffice_help": libreoffice_help,
    "mallard": mallard,
    "ddtp": ddtp,
}


@dataclass(frozen=True, slots=True)
class SentencePair:
    """Two texts with the same meaning, and the corpus that they come from."""

    a: str
    b: str
    source: str


class SplitRow(NamedTuple):
    """One line of the clean corpus; `near_duplicate` is False in train."""

    source: str
    a: str
    b: str
    near_duplicate: bool


class CatalogLanguages(NamedTuple):
    """The languages of a catalog source.

    Attributes:
        known: Canonical codes, sorted, without English.
        unknown: Number of files of each code that is not in the table of languages.
        ignored: Files among the user's `paths` that the format's reader does not read.
    """

    known: tuple[str, ...]
    unknown: dict[str, int]
    ignored: tuple[str, ...]


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
        ConfigError: No source can hold one of the pairs, nor can it be joined through the pivot.
    """
    pairs = tuple(dict.fromkeys(pair_of(d, config) for d in config.resolved_directions()))
    for pair in pairs:
        if not _is_covered(pair, config):
            _require_pivot_pairs(pair, config)
    return pairs


def pivoted_pairs(config: DataConfig) -> tuple[LanguagePair, ...]:
    """Returns those of `language_pairs` that no source holds and that the pivot joins instead.

    Raises:
        ConfigError: As `language_pairs`.
    """
    return tuple(pair for pair in language_pairs(config) if not _is_covered(pair, config))


def _is_covered(pair: LanguagePair, config: DataConfig) -> bool:
    return any(source_covers(source, pair) for source in config.sources)


def _require_pivot_pairs(pair: LanguagePair, config: DataConfig) -> None:
    a, b = pair
    place = (
        f"data.directions need text in {a} and {b}, which no source in data.sources can hold: "
        "catalogs have pairs with English only. "
    )
    own = f"add a source with languages [{a}, {b}], or drop these directions"
    if config.pivot in pair:
        raise ConfigError(f"{place}{own[0].upper()}{own[1:]}")
    if config.pivoted is None:
        raise ConfigError(f"{place}Set data.pivoted to join them through {config.pivot!r}, {own}")
    for code in pair:
        if not _is_covered((config.pivot, code), config):
            raise ConfigError(
                f"{place}Nor can data.pivoted join them: no source can hold {config.pivot} and "
                f"{code}. Add one with languages [{config.pivot}, {code}], {own}"
            )


def source_covers(source: SourceConfig, pair: LanguagePair) -> bool:
    """Says whether a source can hold a language pair; a catalog may still lack the language."""
    if isinstance(source, CatalogSource):
        return ENGLISH in pair
    return sorted(source.languages) == sorted(pair)


def catalog_languages(source: CatalogSource, roots: Sequence[Path]) -> CatalogLanguages:
    """Returns the languages that a catalog source has beside English.

    Args:
        source: The corpus.
        roots: Its files and folders, from `roots_of`.

    Raises:
        DataError: A root is missing or damaged.
    """
    reader = _CATALOG_FORMATS[source.format]
    counts = reader.count_files(roots)
    ignored: tuple[str, ...] = ()
    if source.paths:  # packages hold much else, and what text they have is known
        with Container(roots) as container:
            ignored = tuple(name for name in container.names if not reader.FILES.search(name))
    return CatalogLanguages(known_codes(counts), unknown_codes(counts), ignored)


def iter_pairs(
    source: SourceConfig, pair: LanguagePair, roots: Sequence[Path], skipped: Counter[str]
) -> Iterator[SentencePair]:
    """Yields the raw sentence pairs of one source in one language pair, side `a` first.

    Args:
        source: The corpus; `source_covers` must hold.
        pair: The language pair.
        roots: Files and folders of a catalog source, from `roots_of`; others name their own.
        skipped: Counts, under a reason, what is no sentence pair.

    Raises:
        DataError: A file is missing, unreadable, or its two sides do not fit.
    """
    if isinstance(source, CatalogSource):
        swap = pair[0] != ENGLISH
        language = pair[0] if swap else pair[1]
        rows = _CATALOG_FORMATS[source.format].iter_rows(roots, language, skipped)
    else:
        swap = source.languages[0] != pair[0]
        rows = _iter_pair_rows(source, skipped)
    for first, second in rows:
        a, b = (second, first) if swap else (first, second)
        yield SentencePair(a, b, source.name)


def _iter_pair_rows(source: PairSource, skipped: Counter[str]) -> Iterator[tuple[str, str]]:
    if isinstance(source, MosesSource):
        return moses.iter_rows(source, skipped)
    if isinstance(source, TmxSource):
        return tmx.iter_rows(source, skipped)
    if isinstance(source, JsonlSource):
        return jsonl.iter_rows(source, skipped)
    if isinstance(source, ParquetSource):
        return parquet.iter_rows(source, skipped)
    return tsv.iter_rows(source, skipped)


def split_path(folder: Path, split: Split, pair: LanguagePair) -> Path:
    """Returns the file of one split of one pair; `folder` is the clean corpus."""
    return folder / split / f"{pair[0]}-{pair[1]}.tsv"


def format_line(pair: SentencePair, near_duplicate: bool | None = None) -> str:
    """Writes one line of a clean file; `near_duplicate` is None in train."""
    mark = "" if near_duplicate is None else f"\t{int(near_duplicate)}"
    return f"{pair.source}\t{pair.a}\t{pair.b}{mark}\n"


def iter_split(folder: Path, split: Split, pair: LanguagePair) -> Iterator[SplitRow]:
    """Yields one split of one language pair of the clean corpus, line by line.

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
    number = 0
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
                yield SplitRow(fields[0], fields[1], fields[2], fields[3:] == ["1"])
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; the clean corpus lacks {pair[0]}-{pair[1]}. Add the direction "
            "to data.directions, and a source that has it, and build the data anew; to score a "
            "test set of yours instead, see `hyperadapter evaluate --test-set`"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 after line {number}. {remedy}") from error
    promised = _promised_pairs(folder, split, pair)
    if promised is not None and number != promised:
        raise DataError(
            f"{path} has {number:,} sentence pairs, but {folder / MANIFEST} promises "
            f"{promised:,}; the file was cut short or changed. {remedy}"
        )


def read_split(folder: Path, split: Split, pair: LanguagePair) -> SplitText:
    """Reads one split of one language pair of the clean corpus; see `iter_split`.

    Raises:
        DataError: As `iter_split`.
    """
    text = SplitText([], [], [], [])
    for row in iter_split(folder, split, pair):
        text.source.append(row.source)
        text.a.append(row.a)
        text.b.append(row.b)
        if split != "train":
            text.near_duplicate.append(row.near_duplicate)
    return text


def cleaned_pairs(folder: Path) -> frozenset[str]:
    """Returns the language pairs that a clean corpus was made with, such as `en-de`.

    A run may know directions that its data never had. A pair that is listed here and cannot be
    read is damage. None are listed without a manifest.
    """
    return frozenset(_splits(folder))


def _promised_pairs(folder: Path, split: Split, pair: LanguagePair) -> int | None:
    """Returns what the manifest of the clean corpus says, or None if it says nothing."""
    counts = _splits(folder).get("-".join(pair), {}).get(split)
    return int(counts["num_pairs"]) if counts else None


def _splits(folder: Path) -> dict[str, Any]:
    """Returns the counts in the manifest of the clean corpus, by language pair and split."""
    if not (folder / MANIFEST).exists():
        return {}
    splits: dict[str, Any] = read_json(folder / MANIFEST).get("splits", {})
    return splits
