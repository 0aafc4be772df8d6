"""The clean corpus: read, clean, deduplicate and split every language pair, then write `clean/`.

    clean/train/{a}-{b}.tsv          source, side a, side b
    clean/{valid,test}/{a}-{b}.tsv   the same, and 1 for a near-duplicate of train, else 0
    clean/held_out/, clean/pairs/    held-out text without marks, and a record of each pair
    clean/manifest.json              counts, checksums, and the fingerprint of the inputs

All files are in the order of a salted hash of side a (`split.order_of`); no file depends on how
many processes made it.

Text of any size goes through. A process that cleans holds 16 MB of rows before it spills them. One
that deduplicates holds one group of buckets: 64 MB of clean text, which take 150 to 400 MB in
Python, or 1/4096 of a language pair's text if that is more (from 260 GB on). The search for
near-duplicates takes 9 bytes for each different n-gram of held-out text, shared by all processes.
On disk, spills take as much room as the clean text before deduplication.

A language pair is made of its own inputs alone, so it is reused while these stay the same: from the
finished corpus, and from one that was interrupted. Only the near-duplicates, which depend on all
pairs, are looked for each time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

from data_pipeline.bitext import (
    MANIFEST,
    SPLITS,
    LanguagePair,
    Split,
    catalog_languages,
    language_pairs,
    source_covers,
)
from data_pipeline.cleaning.clean_manifest import (
    CleanManifest,
    LeakCounts,
    PairRecord,
    SourceCounts,
    SplitCounts,
    add_counts,
    read_manifest,
)
from data_pipeline.cleaning.corpus_builder import CorpusBuilder
from data_pipeline.cleaning.corpus_inputs import (
    RULES_VERSION,
    changed_files,
    corpus_fingerprint,
    pair_fingerprints,
    require_leak_tests,
)
from data_pipeline.cleaning.leaks import load_leak_index
from data_pipeline.cleaning.near_duplicates import NEAR_DUPLICATE, HeldOutCounts
from data_pipeline.config import DataConfig
from data_pipeline.fetching.fetch import FetchManifest, fetch, read_fetch_manifest, roots_of
from data_pipeline.sources import CatalogSource
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import resumable_directory, write_text

__all__ = [
    "CleanManifest",
    "SourceCounts",
    "SplitCounts",
    "build_clean_corpus",
    "clean_folder",
    "expected_fingerprint",
    "read_manifest",
]

log = logging.getLogger(__name__)

_TOLD = 10
_FEW_PAIRS = 10  # a score on fewer sentences says nothing


def clean_folder(config: DataConfig) -> Path:
    """Returns the folder of the clean corpus."""
    return Path(config.folder) / "clean"


def build_clean_corpus(config: DataConfig) -> CleanManifest:
    """Makes the clean corpus, unless it is there already, and returns its manifest.

    Raises:
        ConfigError: No source can hold a language pair that the directions need, or no pair has the
            language of a test set in `split.leak_tests`.
        FetchError: Something cannot be downloaded or has the wrong checksum.
        DataError: A source is unreadable, or a language pair has an empty split.
    """
    pairs = language_pairs(config)
    require_leak_tests(config, pairs)
    fetched = fetch(config)
    prints = pair_fingerprints(config, fetched)
    identity = corpus_fingerprint(config, prints)
    folder = clean_folder(config)
    old = read_manifest(folder)
    if old is not None and old.fingerprint == identity:
        return old
    for source in config.sources:
        if not any(source_covers(source, pair) for pair in prints):
            log.warning("source %s serves none of data.directions and is not read", source.name)
    with resumable_directory(folder, f"rules {RULES_VERSION}") as part:
        builder = CorpusBuilder(config, fetched, prints, part, folder)
        records = builder.build_pairs()
        _require_unchanged(config, fetched, builder)
        wanted = {pair: records[pair] for pair in pairs}
        _require_text(config, {pair: wanted[pair].splits for pair in pairs}, records)
        held_out = builder.write_held_out(pairs)
        splits = {pair: wanted[pair].splits | held_out[pair].splits for pair in pairs}
        _require_text(config, splits, records)
        _warn_of_few(config, splits)
        unknown, ignored = _what_is_not_read(config)
        manifest = CleanManifest(
            fingerprint=identity,
            splits={"-".join(pair): counts for pair, counts in splits.items()},
            sources={
                "-".join(pair): _without(record.sources, held_out[pair])
                for pair, record in wanted.items()
            },
            leak_tests=_leak_counts(config, list(records.values())),
            unknown_languages=unknown,
            ignored_files=ignored,
        )
        builder.remove_others()
        write_text(part / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def expected_fingerprint(config: DataConfig) -> str | None:
    """Returns the fingerprint that the clean corpus of a configuration has.

    None if it cannot be told because the record of the fetched files is gone.
    """
    fetched = read_fetch_manifest(config)
    if fetched is None:
        return None
    return corpus_fingerprint(config, pair_fingerprints(config, fetched))


def _leak_counts(config: DataConfig, records: Sequence[PairRecord]) -> dict[str, LeakCounts]:
    return {
        test.name: LeakCounts(
            num_sentences=load_leak_index(test).num_sentences,
            num_found=len({n for record in records for n in record.leaks.get(test.name, ())}),
        )
        for test in config.split.leak_tests
    }


def _require_unchanged(config: DataConfig, fetched: FetchManifest, builder: CorpusBuilder) -> None:
    """Checks that the files were the same while they were read.

    Raises:
        DataError: Some were not; what was made from them is forgotten.
    """
    changed = changed_files(fetched, config)
    if not changed:
        return
    names = {file.source for file in changed}
    builder.forget([source for source in config.sources if source.name in names])
    listed = ", ".join(f"{file.path} of source {file.source!r}" for file in changed)
    raise DataError(f"changed while they were read: {listed}. Build the data again")


def _warn_of_few(config: DataConfig, splits: dict[LanguagePair, dict[str, SplitCounts]]) -> None:
    wanted: list[Split] = ["valid"] * (config.split.valid_fraction > 0)
    wanted += ["test"] * (config.split.test_fraction > 0)
    few = [
        f"{'-'.join(pair)} ({split} {counts[split].num_pairs})"
        for pair, counts in splits.items()
        for split in wanted
        if counts[split].num_pairs < _FEW_PAIRS
    ]
    if few:
        log.warning("fewer than %d held-out sentence pairs: %s", _FEW_PAIRS, ", ".join(few))


def _what_is_not_read(
    config: DataConfig,
) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, int]]]:
    """Returns, by source, codes that are not in the table of languages, and suffixes of files.

    Nobody reads catalogs with such codes, and files that are not of the source's format.
    """
    unknown: dict[str, dict[str, int]] = {}
    ignored: dict[str, dict[str, int]] = {}
    for source in config.sources:
        if not isinstance(source, CatalogSource):
            continue
        found = catalog_languages(source, roots_of(source, config))
        if found.unknown:
            log.warning(
                "source %s: %d files have language codes that are not in the table of languages "
                "and are not read: %s",
                source.name,
                sum(found.unknown.values()),
                _some(list(found.unknown)),
            )
            unknown[source.name] = found.unknown
        if found.ignored:
            log.warning(
                "source %s: %d files are not of the format %s and are not read: %s",
                source.name,
                len(found.ignored),
                source.format,
                _some(found.ignored),
            )
            ignored[source.name] = add_counts([Counter(PurePath(n).suffix for n in found.ignored)])
    return unknown, ignored


def _some(names: Sequence[str]) -> str:
    more = len(names) - _TOLD
    told = ", ".join(names[:_TOLD])
    return f"{told} and {more} more, see clean/{MANIFEST}" if more > 0 else told


def _without(sources: dict[str, SourceCounts], held_out: HeldOutCounts) -> dict[str, SourceCounts]:
    """Takes the near-duplicates that were left out from the counts of what was kept."""
    result = dict(sources)
    for name, number in held_out.dropped.items():
        counts = sources[name]
        result[name] = SourceCounts(
            num_read=counts.num_read,
            num_kept=counts.num_kept - number,
            dropped=add_counts([counts.dropped, {NEAR_DUPLICATE: number}]),
        )
    return result


def _require_text(
    config: DataConfig,
    splits: dict[LanguagePair, dict[str, SplitCounts]],
    records: dict[LanguagePair, PairRecord],
) -> None:
    """Checks that each pair has text in each split that the configuration asks for.

    Raises:
        DataError: Some have not; the message names them all.
    """
    problems = [_problem(config, pair, c, records[pair]) for pair, c in splits.items()]
    if any(problems):
        raise DataError("there is not enough text:\n  " + "\n  ".join(filter(None, problems)))


def _problem(
    config: DataConfig, pair: LanguagePair, splits: dict[str, SplitCounts], record: PairRecord
) -> str:
    name = "-".join(pair)
    counts = {split: splits[split].num_pairs for split in SPLITS}
    wanted: list[Split] = ["train"]
    wanted += ["valid"] * (config.split.valid_fraction > 0)
    wanted += ["test"] * (config.split.test_fraction > 0)
    empty = " and ".join(split for split in wanted if not counts[split])
    if not empty:
        return ""
    if sum(counts.values()):
        listed = ", ".join(f"{split} {count:,}" for split, count in counts.items())
        return (
            f"{name}: {empty} has no sentence pairs ({listed}). Add a source with this pair, "
            "raise data.split's fractions, or drop its directions"
        )
    reasons = add_counts(source.dropped for source in record.sources.values())
    if reasons:
        most = ", ".join(f"{reason} {n:,}" for reason, n in list(reasons.items())[:3])
        total = sum(reasons.values())
        return f"{name}: all {total:,} texts were dropped ({most}); see data.clean"
    return (
        f"{name}: no source has any text{_what_there_is(config, pair)}; add a source with this "
        "pair, or drop its directions"
    )


def _what_there_is(config: DataConfig, pair: LanguagePair) -> str:
    found: set[str] = set()
    for source in config.sources:
        if isinstance(source, CatalogSource) and source_covers(source, pair):
            found.update(catalog_languages(source, roots_of(source, config)).known)
    return f"; the catalogs have {', '.join(sorted(found))}" if found else ""
