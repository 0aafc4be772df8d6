"""What the clean corpus depends on, as fingerprints: of each language pair, and of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.bitext import LanguagePair, language_pairs, pivoted_pairs, source_covers
from data_pipeline.config import CleanConfig, DataConfig, PivotedConfig, SplitConfig
from data_pipeline.fetching.fetch import FetchManifest
from data_pipeline.fetching.fetch_manifest import SourceFile, SourcePath, describe
from data_pipeline.sources import SourceConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.files import sha256_file
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = [
    "RULES_VERSION",
    "changed_files",
    "corpus_fingerprint",
    "pair_fingerprints",
    "require_leak_tests",
]

# Part of the fingerprints: raise it with each change of what cleaning or splitting yields.
RULES_VERSION = 4


class _PairInputs(StrictModel):
    """All that the clean text of one language pair depends on, near-duplicates apart."""

    rules_version: int
    pair: LanguagePair
    pivot: str
    sources: tuple[SourceConfig, ...]
    fetched: tuple[str, ...]
    joined: tuple[str, ...]
    pivoted: PivotedConfig | None
    clean: CleanConfig
    split: SplitConfig
    leak_tests: tuple[str, ...]


class _Inputs(StrictModel):
    """All that the clean corpus depends on."""

    pairs: dict[str, str]
    split: SplitConfig


def corpus_fingerprint(config: DataConfig, prints: dict[LanguagePair, str]) -> str:
    pairs = {"-".join(pair): prints[pair] for pair in language_pairs(config)}
    return fingerprint(_Inputs(pairs=pairs, split=config.split))


def pair_fingerprints(config: DataConfig, fetched: FetchManifest) -> dict[LanguagePair, str]:
    """Identifies the inputs of all pairs to be made, also of those that only serve for joining.

    Pairs that are joined come last.
    """
    checksums = {test: sha256_file(Path(test.path)) for test in config.split.leak_tests}
    prints: dict[LanguagePair, str] = {}
    joined = pivoted_pairs(config)
    read = [pair for pair in language_pairs(config) if pair not in joined]
    read += [(config.pivot, code) for pair in joined for code in pair]
    for pair in dict.fromkeys([*read, *joined]):
        is_joined = pair in joined
        covering = [source for source in config.sources if source_covers(source, pair)]
        tests = tuple(test for test in config.split.leak_tests if test.language in pair)
        split = config.split.model_copy(
            update={"leak_tests": tests, "near_duplicates": "mark"}
            | ({} if tests else {"near_duplicate_containment": 1.0})
        )
        inputs = _PairInputs(
            rules_version=RULES_VERSION,
            pair=pair,
            pivot=config.pivot,
            sources=tuple(covering),
            fetched=tuple(fetched.fingerprint_of(source.name) for source in covering),
            joined=tuple(prints[config.pivot, code] for code in pair) if is_joined else (),
            pivoted=config.pivoted if is_joined else None,
            clean=config.clean,
            split=split,
            leak_tests=tuple(checksums[test] for test in tests),
        )
        prints[pair] = fingerprint(inputs)
    return prints


def changed_files(fetched: FetchManifest, config: DataConfig) -> list[SourceFile]:
    """Returns the user's files whose content is no longer what was fetched.

    Raises:
        DataError: One is gone.
    """
    files = [file for file in fetched.files if not file.package]
    items = [SourcePath(file.source, Path(file.path)) for file in files]
    now = describe(items, fetched, config.num_workers).files
    return [old for old, new in zip(files, now, strict=True) if old.sha256 != new.sha256]


def require_leak_tests(config: DataConfig, pairs: Sequence[LanguagePair]) -> None:
    languages = sorted({code for pair in pairs for code in pair})
    for test in config.split.leak_tests:
        if test.language not in languages:
            raise ConfigError(
                f"data.split.leak_tests: {test.name!r} is in {test.language!r}, which no language "
                f"pair has ({', '.join(languages)}); correct its language or leave it out"
            )
        if not Path(test.path).is_file():
            raise ConfigError(
                f"data.split.leak_tests: the file {test.path} of {test.name!r} does not exist; "
                "correct the path"
            )
