"""The clean corpus: read, clean, deduplicate and split every language pair, then write `clean/`.

    clean/train/{a}-{b}.tsv          source, side a, side b
    clean/{valid,test}/{a}-{b}.tsv   the same, and 1 for a near-duplicate of train, else 0
    clean/manifest.json              counts, and the fingerprint of what they were made from

Language pairs are worked on one at a time; only held-out text and n-gram hashes are kept from one
to the next. Held-out text is written last, when all training text of its language is known.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.bitext import (
    MANIFEST,
    SPLITS,
    LanguagePair,
    SentencePair,
    Split,
    format_line,
    iter_pairs,
    language_pairs,
    source_covers,
    split_path,
)
from data_pipeline.clean import PairCleaner
from data_pipeline.config import CleanConfig, DataConfig, SourceConfig, SplitConfig, WheelSource
from data_pipeline.dedup import deduplicate
from data_pipeline.fetch import FetchManifest, fetch, raw_folder, read_fetch_manifest
from data_pipeline.gettext_catalogs import catalog_languages, find_wheel
from data_pipeline.progress import track
from data_pipeline.split import TrainNgrams, normalise, split_of
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import atomic_directory, write_text
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = [
    "CleanManifest",
    "SourceCounts",
    "SplitCounts",
    "build_clean_corpus",
    "clean_folder",
    "expected_fingerprint",
]

log = logging.getLogger(__name__)

# Part of the fingerprint: raise it with each change of what cleaning or splitting yields.
_RULES_VERSION = 2


class SourceCounts(StrictModel):
    """What became of one source's texts in one language pair: num_read = num_kept + all dropped."""

    num_read: int
    num_kept: int
    dropped: dict[str, int]


class SplitCounts(StrictModel):
    """One split of one language pair. Words are separated by white space."""

    num_pairs: int
    num_near_duplicates: int
    words_a: int
    words_b: int
    characters_a: int
    characters_b: int
    pairs_by_source: dict[str, int]


class CleanManifest(StrictModel):
    """What `clean/manifest.json` says; keys are language pairs, such as `en-de`."""

    fingerprint: str
    splits: dict[str, dict[str, SplitCounts]]
    sources: dict[str, dict[str, SourceCounts]]


class _Inputs(StrictModel):
    """All that the clean corpus depends on."""

    rules_version: int
    fetched: str
    pairs: tuple[LanguagePair, ...]
    sources: tuple[SourceConfig, ...]
    clean: CleanConfig
    split: SplitConfig


def clean_folder(config: DataConfig) -> Path:
    """Returns the folder of the clean corpus."""
    return Path(config.folder) / "clean"


def build_clean_corpus(config: DataConfig) -> CleanManifest:
    """Makes the clean corpus, unless it is there already, and returns its manifest.

    Raises:
        ConfigError: No source can hold a language pair that the directions need.
        FetchError: A wheel cannot be downloaded or has the wrong checksum.
        DataError: A source is unreadable, or a language pair has an empty split.
    """
    pairs = language_pairs(config)
    identity = _fingerprint(config, pairs, fetch(config))
    folder = clean_folder(config)
    old = read_manifest(folder)
    if old is not None and old.fingerprint == identity:
        return old
    for source in config.sources:
        if not any(source_covers(source, pair) for pair in pairs):
            log.warning("source %s serves none of data.directions and is not read", source.name)
    with atomic_directory(folder) as part:
        builder = _Builder(config, part)
        for pair in track(pairs, len(pairs), "cleaning"):
            builder.add(pair)
        builder.require_text(pairs)
        builder.write_held_out()
        manifest = CleanManifest(
            fingerprint=identity, splits=builder.splits, sources=builder.sources
        )
        write_text(part / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def read_manifest(folder: Path) -> CleanManifest | None:
    """Returns the manifest of a clean corpus, or None if there is no valid one."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        return CleanManifest.model_validate_json(text)
    except (FileNotFoundError, UnicodeDecodeError, ValidationError):
        return None


def _fingerprint(
    config: DataConfig, pairs: tuple[LanguagePair, ...], fetched: FetchManifest
) -> str:
    return fingerprint(
        _Inputs(
            rules_version=_RULES_VERSION,
            fetched=fetched.fingerprint,
            pairs=pairs,
            sources=config.sources,
            clean=config.clean,
            split=config.split,
        )
    )


def expected_fingerprint(config: DataConfig) -> str | None:
    """Returns the fingerprint that the clean corpus of a configuration has.

    None if it cannot be told because the record of the fetched files is gone.
    """
    fetched = read_fetch_manifest(config)
    return None if fetched is None else _fingerprint(config, language_pairs(config), fetched)


class _Builder:
    """Carries what must outlive one language pair: held-out text, n-grams of train, counts."""

    def __init__(self, config: DataConfig, folder: Path) -> None:
        self.splits: dict[str, dict[str, SplitCounts]] = {}
        self.sources: dict[str, dict[str, SourceCounts]] = {}
        self._config = config
        self._folder = folder
        self._held_out: dict[tuple[Split, LanguagePair], list[SentencePair]] = {}
        self._ngrams: dict[str, TrainNgrams] = {}

    def add(self, pair: LanguagePair) -> None:
        """Reads, cleans, deduplicates and splits one language pair, and writes its train."""
        parts: dict[Split, list[SentencePair]] = {split: [] for split in SPLITS}
        ngrams_a, ngrams_b = (self._ngrams.setdefault(code, TrainNgrams(code)) for code in pair)
        for row in self._clean_rows(pair):
            text = normalise(row.a)
            split = split_of(text, self._config.split)
            parts[split].append(row)
            if split == "train":
                ngrams_a.add(text)
                ngrams_b.add(normalise(row.b))
        name = "-".join(pair)
        self.splits[name] = {split: _count(rows) for split, rows in parts.items()}
        _write(self._folder, "train", pair, (format_line(row) for row in parts["train"]))
        for split in SPLITS[1:]:
            self._held_out[split, pair] = parts[split]
        log.info(
            "%s: %s", name, ", ".join(f"{split} {len(rows):,}" for split, rows in parts.items())
        )

    def _clean_rows(self, pair: LanguagePair) -> list[SentencePair]:
        rows: list[SentencePair] = []
        read: dict[str, int] = {}
        dropped: dict[str, Counter[str]] = {}
        for source in self._config.sources:
            if not source_covers(source, pair):
                continue
            cleaner = PairCleaner(pair, self._config.clean)
            for raw in iter_pairs(source, pair, raw_folder(self._config), cleaner.dropped):
                rows += (SentencePair(a, b, source.name) for a, b in cleaner.clean(raw.a, raw.b))
            dropped[source.name] = cleaner.dropped
            read[source.name] = cleaner.dropped.total()
        read_rows = Counter(row.source for row in rows)
        unique = deduplicate(rows)
        kept = Counter(row.source for row in unique.pairs)
        self.sources["-".join(pair)] = {
            name: SourceCounts(
                num_read=read[name] + read_rows[name],
                num_kept=kept[name],
                dropped=dict((dropped[name] + unique.dropped.get(name, Counter())).most_common()),
            )
            for name in read
        }
        return unique.pairs

    def require_text(self, pairs: Iterable[LanguagePair]) -> None:
        """Checks that each pair has text in each split that the configuration asks for.

        Raises:
            DataError: Some have not; the message names them all.
        """
        problems = [problem for pair in pairs if (problem := self._problem(pair))]
        if problems:
            raise DataError("there is not enough text:\n  " + "\n  ".join(problems))

    def _problem(self, pair: LanguagePair) -> str:
        name = "-".join(pair)
        counts: dict[str, int] = {split: self.splits[name][split].num_pairs for split in SPLITS}
        split_config = self._config.split
        wanted = ["train"]
        wanted += ["valid"] * (split_config.valid_fraction > 0)
        wanted += ["test"] * (split_config.test_fraction > 0)
        if all(counts[split] for split in wanted):
            return ""
        listed = ", ".join(f"{split} {count:,}" for split, count in counts.items())
        if sum(counts.values()):
            empty = " and ".join(split for split in wanted if not counts[split])
            return (
                f"{name}: {empty} has no sentence pairs ({listed}). Add a source with this pair, "
                "raise data.split's fractions, or drop its directions"
            )
        reasons = sum((Counter(c.dropped) for c in self.sources[name].values()), Counter[str]())
        if reasons:
            most = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(3))
            return f"{name}: all {reasons.total():,} texts were dropped ({most}); see data.clean"
        return (
            f"{name}: no source has any text{self._what_there_is(pair)}; add a source with this "
            "pair, or drop its directions"
        )

    def _what_there_is(self, pair: LanguagePair) -> str:
        raw = raw_folder(self._config)
        found: set[str] = set()
        for source in self._config.sources:
            if isinstance(source, WheelSource) and source_covers(source, pair):
                wheel = find_wheel(raw, source)
                found.update(catalog_languages(wheel) if wheel else ())
        return f"; the wheels have {', '.join(sorted(found))}" if found else ""

    def write_held_out(self) -> None:
        """Marks and writes validation and test text, once all train text is known."""
        least = self._config.split.near_duplicate_containment
        for (split, pair), rows in self._held_out.items():
            sides = [self._ngrams[code] for code in pair]
            marks = [
                any(
                    ngrams.containment(normalise(text)) >= least
                    for ngrams, text in zip(sides, (row.a, row.b), strict=True)
                )
                for row in rows
            ]
            lines = (format_line(row, mark) for row, mark in zip(rows, marks, strict=True))
            _write(self._folder, split, pair, lines)
            counts = self.splits["-".join(pair)]
            counts[split] = counts[split].model_copy(update={"num_near_duplicates": sum(marks)})


def _write(folder: Path, split: Split, pair: LanguagePair, lines: Iterable[str]) -> None:
    path = split_path(folder, split, pair)
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(lines)


def _count(rows: list[SentencePair]) -> SplitCounts:
    return SplitCounts(
        num_pairs=len(rows),
        num_near_duplicates=0,
        words_a=sum(len(row.a.split()) for row in rows),
        words_b=sum(len(row.b.split()) for row in rows),
        characters_a=sum(len(row.a) for row in rows),
        characters_b=sum(len(row.b) for row in rows),
        pairs_by_source=dict(Counter(row.source for row in rows)),
    )
