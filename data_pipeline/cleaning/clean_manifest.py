"""What is recorded about the clean corpus: counts and checksums, by language pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import Field, ValidationError

from data_pipeline.bitext import MANIFEST
from hyperadapter.core.schema import StrictModel

__all__ = [
    "CleanManifest",
    "LeakCounts",
    "PairRecord",
    "SourceCounts",
    "SplitCounts",
    "add_counts",
    "add_splits",
    "read_manifest",
]


class SourceCounts(StrictModel):
    """What became of one source's texts in one language pair: num_read = num_kept + all dropped."""

    num_read: int
    num_kept: int
    dropped: dict[str, int] = Field(description="By reason, the most frequent first")


class SplitCounts(StrictModel):
    """One split of one language pair. Words are separated by white space."""

    num_pairs: int = 0
    num_near_duplicates: int = 0
    words_a: int = 0
    words_b: int = 0
    characters_a: int = 0
    characters_b: int = 0
    pairs_by_source: dict[str, int] = Field(default={})
    num_bytes: int = Field(default=0, description="Of the file")
    sha256: str = Field(default="", description="Of the file")


class LeakCounts(StrictModel):
    """What was found of one test set that must not be trained on."""

    num_sentences: int
    num_found: int = Field(description="Sentences that train had before they were dropped")


class PairRecord(StrictModel):
    """One language pair before near-duplicates are marked; written when all its files are."""

    fingerprint: str
    splits: dict[str, SplitCounts]
    sources: dict[str, SourceCounts]
    leaks: dict[str, tuple[int, ...]] = Field(description="Sentences found, by test set")


class CleanManifest(StrictModel):
    """What `clean/manifest.json` says; keys are language pairs, such as `en-de`."""

    fingerprint: str
    splits: dict[str, dict[str, SplitCounts]]
    sources: dict[str, dict[str, SourceCounts]]
    leak_tests: dict[str, LeakCounts] = Field(default={})
    unknown_languages: dict[str, dict[str, int]] = Field(
        default={}, description="By source: codes that are not in the table, and their files"
    )
    ignored_files: dict[str, dict[str, int]] = Field(
        default={}, description="By source with `paths`: suffixes of files that no reader reads"
    )


def read_manifest(folder: Path) -> CleanManifest | None:
    """Returns the manifest of a clean corpus, or None if there is no valid one."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        return CleanManifest.model_validate_json(text)
    except (FileNotFoundError, UnicodeDecodeError, ValidationError):
        return None


def add_counts(counters: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Adds counters up; the greatest count comes first, equal ones by name."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def add_splits(parts: Iterable[SplitCounts]) -> SplitCounts:
    """Adds the counts of a split's parts up; the whole file's size and checksum are not known."""
    parts = list(parts)
    return SplitCounts(
        num_pairs=sum(part.num_pairs for part in parts),
        num_near_duplicates=sum(part.num_near_duplicates for part in parts),
        words_a=sum(part.words_a for part in parts),
        words_b=sum(part.words_b for part in parts),
        characters_a=sum(part.characters_a for part in parts),
        characters_b=sum(part.characters_b for part in parts),
        pairs_by_source=add_counts(part.pairs_by_source for part in parts),
    )
