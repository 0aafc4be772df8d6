"""What the clean corpus and the tokenizer are like, as plain values. Nothing is printed here.

Counts of the corpus come from its manifest, those of tokens from the manifest of the shards. How
well the tokenizer fits each language is measured on a sample of lines, whatever the corpus' size.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.bitext import MANIFEST, SPLITS, LanguagePair, language_pairs, split_path
from data_pipeline.cleaning.clean_manifest import (
    CleanManifest,
    SourceCounts,
    SplitCounts,
    add_counts,
    read_manifest,
)
from data_pipeline.cleaning.scripts import SCRIPT_NAMES, UNSPACED_SCRIPTS
from data_pipeline.config import DataConfig
from data_pipeline.progress import track
from data_pipeline.shards.manifest import PairEntry
from data_pipeline.shards.manifest import read_manifest as read_shard_manifest
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import script_of

__all__ = ["corpus_stats", "tokenizer_stats"]

# Lines of each language pair that the tokenizer is measured on: 0.1 s a pair.
_SAMPLE_LINES = 2_000
_PERCENTILES = (50, 90, 99)


def corpus_stats(folder: Path) -> dict[str, Any]:
    """Returns the counts of a clean corpus as plain values.

    Args:
        folder: The clean corpus: `clean` in the data folder.

    Returns:
        `pairs`: by language pair the sentence pairs of each split, the near-duplicates among the
        held-out ones, words and mean words of train a side (separated by white space, which some
        scripts do not write), train pairs by source, and what became of all texts: read, kept, and
        dropped by reason, in sum and by source. `dropped`, `num_read`, `num_kept`: the same over
        all pairs. `leak_tests`: by test set its sentences and how many stood in train.
        `unknown_languages`: by source, files in languages that no table knows. `ignored_files`: by
        source, files of other kinds in its folders.

    Raises:
        DataError: There is no clean corpus.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(
            f"{folder} holds no clean corpus; build it first with `hyperadapter data clean`"
        )
    pairs = {name: _pair_stats(name, manifest) for name in manifest.splits}
    every = [counts for sources in manifest.sources.values() for counts in sources.values()]
    return {
        "fingerprint": manifest.fingerprint,
        **_fate(every),
        "leak_tests": {name: test.model_dump() for name, test in manifest.leak_tests.items()},
        "unknown_languages": manifest.unknown_languages,
        "ignored_files": manifest.ignored_files,
        "pairs": pairs,
    }


def _pair_stats(name: str, manifest: CleanManifest) -> dict[str, Any]:
    splits: dict[str, SplitCounts] = manifest.splits[name]
    sources = manifest.sources.get(name, {})  # empty for a pair built through the pivot
    train = splits["train"]
    return {
        **{split: splits[split].num_pairs for split in SPLITS},
        "near_duplicates": sum(splits[split].num_near_duplicates for split in SPLITS),
        "words_a": train.words_a,
        "words_b": train.words_b,
        "characters_a": train.characters_a,
        "characters_b": train.characters_b,
        "mean_words_a": train.words_a / max(train.num_pairs, 1),
        "mean_words_b": train.words_b / max(train.num_pairs, 1),
        "mean_characters_a": train.characters_a / max(train.num_pairs, 1),
        "mean_characters_b": train.characters_b / max(train.num_pairs, 1),
        "train_by_source": dict(train.pairs_by_source),
        **_fate(list(sources.values())),
        "sources": {source: _fate([counts]) for source, counts in sources.items()},
    }


def _fate(counts: list[SourceCounts]) -> dict[str, Any]:
    """Sums what became of the texts: read, kept, and dropped by reason, the most frequent first."""
    return {
        "num_read": sum(one.num_read for one in counts),
        "num_kept": sum(one.num_kept for one in counts),
        "dropped": add_counts(one.dropped for one in counts),
    }


@dataclass
class _LanguageSample:
    """What was seen of a language in the sample."""

    characters: Counter[str] = field(default_factory=Counter)
    num_words: int = 0
    num_pieces: int = 0
    lengths: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, texts: Sequence[str], lengths: NDArray[np.int64]) -> None:
        for text in texts:
            self.characters.update(text)
            self.num_words += len(text.split())
        self.num_pieces += int(lengths.sum()) - len(texts)  # the end mark is no piece of text
        self.lengths.append(lengths)


def tokenizer_stats(config: DataConfig) -> dict[str, Any]:
    """Returns how long sentences are in tokens, and how well the tokenizer fits each language.

    Lengths include the end mark, as everywhere in the shards.

    Returns:
        `fingerprint`, `vocab_size`. `pairs`: by language pair `sentences`, `tokens_a`, `tokens_b`,
        `dropped_long` and `dropped_empty` of the train shards, None before there are any, and
        percentiles of the length of side a and side b. `languages`: by language its `script`, the
        `sampled_characters`, their share that the vocabulary covers without spelling bytes or an
        unknown piece (`coverage`), the share of letters in the language's script (`in_script`),
        `pieces_per_word` (None where words are written without spaces between),
        `pieces_per_character`, and percentiles of the length.

    Raises:
        DataError: The clean text or the tokenizer is missing or damaged.
    """
    tokenizer = Tokenizer.load(Path(config.folder) / "tokenizer")
    spells_out = tokenizer.spells_out()
    entries = _train_entries(config)
    languages: dict[str, _LanguageSample] = {}
    pairs: dict[str, dict[str, Any]] = {}
    needed = language_pairs(config)
    for pair in track(needed, len(needed), "tokenizer statistics"):
        stats = _shard_stats(entries.get(pair))
        sides = zip(*_sample_rows(Path(config.folder) / "clean", pair), strict=True)
        for side, code, texts in zip("ab", pair, sides, strict=False):
            _, lengths = tokenizer.encode_ragged(texts)
            languages.setdefault(code, _LanguageSample()).add(texts, lengths)
            stats[f"length_{side}"] = _percentiles(lengths)
        pairs["-".join(pair)] = stats
    return {
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "pairs": pairs,
        "languages": {
            code: _language_stats(code, languages[code], tokenizer, spells_out)
            for code in config.languages
            if code in languages
        },
    }


def _train_entries(config: DataConfig) -> dict[LanguagePair, PairEntry]:
    """Returns what the train shards say of each language pair; empty before there are any."""
    folder = Path(config.shards_folder or Path(config.folder) / "shards") / "train"
    if not (folder / MANIFEST).is_file():
        return {}
    return {(entry.a, entry.b): entry for entry in read_shard_manifest(folder).pairs}


def _shard_stats(entry: PairEntry | None) -> dict[str, Any]:
    return {
        "sentences": entry and entry.sentences,
        "tokens_a": entry and entry.a_tokens,
        "tokens_b": entry and entry.b_tokens,
        "dropped_long": entry and entry.dropped_long,
        "dropped_empty": entry and entry.dropped_empty,
    }


def _sample_rows(clean: Path, pair: LanguagePair) -> Iterator[tuple[str, str]]:
    """Yields lines of a pair's train file, spread evenly over it; all lines of a small file.

    Raises:
        DataError: The file is missing, damaged or empty.
    """
    path = split_path(clean, "train", pair)
    if not path.is_file():
        raise DataError(f"{path} does not exist; run `hyperadapter data clean` first")
    size = path.stat().st_size
    if not size:
        raise DataError(f"{path} is empty; there is nothing to measure in {'-'.join(pair)}")
    with open(path, "rb") as stream:
        for index in range(_SAMPLE_LINES):
            place = index * size // _SAMPLE_LINES
            if place > stream.tell():
                stream.seek(place)
                stream.readline()  # the rest of a line
            line = stream.readline()
            if not line:
                return
            yield _columns(line, path)


def _columns(line: bytes, path: Path) -> tuple[str, str]:
    try:
        _, a, b = line.decode().rstrip("\n").split("\t")
    except ValueError as error:  # not UTF-8, or not three columns
        raise DataError(
            f"{path} has a damaged line ({error}); delete {path.parents[1]} and build the data anew"
        ) from error
    return a, b


def _percentiles(lengths: NDArray[np.int64]) -> dict[str, int]:
    values = np.percentile(lengths, _PERCENTILES, method="inverted_cdf")
    return {f"p{p}": int(value) for p, value in zip(_PERCENTILES, values, strict=True)}


def _language_stats(
    code: str, sample: _LanguageSample, tokenizer: Tokenizer, spells_out: NDArray[np.bool_]
) -> dict[str, Any]:
    script = script_of(code)
    visible = Counter({c: n for c, n in sample.characters.items() if not c.isspace()})
    total = max(visible.total(), 1)
    spelt = _spelt_characters(sorted(visible), tokenizer, spells_out)
    spaced = script not in UNSPACED_SCRIPTS
    return {
        "script": script,
        "sampled_characters": visible.total(),
        "coverage": 1 - sum(visible[character] for character in spelt) / total,
        "in_script": _share_in_script(visible, script),
        "pieces_per_word": sample.num_pieces / max(sample.num_words, 1) if spaced else None,
        "pieces_per_character": sample.num_pieces / total,
        "length": _percentiles(np.concatenate(sample.lengths)),
    }


def _spelt_characters(
    characters: list[str], tokenizer: Tokenizer, spells_out: NDArray[np.bool_]
) -> list[str]:
    """Returns the characters that become bytes or an unknown piece."""
    if not characters:
        return []
    tokens, lengths = tokenizer.encode_ragged(characters)
    spelt = np.add.reduceat(spells_out[tokens], np.cumsum(lengths) - lengths) > 0
    return [characters[index] for index in np.flatnonzero(spelt)]


def _share_in_script(characters: Counter[str], script: str) -> float | None:
    """Returns the share of letters in a script; None for a script that has no name here."""
    names = SCRIPT_NAMES.get(script)
    if names is None:
        return None
    letters = {c: n for c, n in characters.items() if c.isalpha()}
    own = sum(n for c, n in letters.items() if unicodedata.name(c, "").split(" ")[0] in names)
    return own / max(sum(letters.values()), 1)
