"""Do the clean text, the tokenizer and the shards of a data folder belong to a configuration?

Each step's fingerprint covers its settings and what it was made from, so those of the shards cover
everything. Training on the data of other settings would go unnoticed otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipeline import tokenizer
from data_pipeline.bitext import LanguagePair, pair_of
from data_pipeline.cleaning import corpus
from data_pipeline.config import DataConfig
from data_pipeline.shards import writer as shards
from data_pipeline.shards.manifest import (
    SHARDED_SPLITS,
    ShardManifest,
    combined_fingerprint,
    read_manifest,
)
from hyperadapter.core.errors import DataError

__all__ = ["require_current"]

_NAMED = 5  # language pairs in an error


def require_current(config: DataConfig) -> str:
    """Checks a data folder from the clean text to the shards.

    Of shards made elsewhere (`shards_folder`), only the tokenizer and the language pairs are.

    Returns:
        A fingerprint of the training shards that the directions need: it identifies the data.

    Raises:
        DataError: A step is missing, or was made with other settings; the message names the step.
    """
    root = Path(config.folder)
    if config.shards_folder:
        if not (root / "tokenizer").is_dir():
            raise DataError(
                f"{root} has no tokenizer; set data.tokenizer.folder to the one that "
                f"{config.shards_folder} was made with, and run `hyperadapter data tokenizer`"
            )
        return _require_fitting(config, tokenizer.Tokenizer.load(root / "tokenizer").fingerprint)
    expected = corpus.expected_fingerprint(config)
    if expected is not None and tokenizer.clean_fingerprint(root / "clean") != expected:
        raise _stale(root / "clean", "data.sources, data.clean or data.split", "clean")
    found = tokenizer.Tokenizer.load(root / "tokenizer").fingerprint
    if found != tokenizer.expected_fingerprint(config):
        raise _stale(root / "tokenizer", "clean text or data.tokenizer", "tokenizer")
    for split in SHARDED_SPLITS:
        folder = root / "shards" / split
        there = _fingerprints(read_manifest(folder))
        wanted = shards.pair_fingerprints(config, split, found)
        other = [pair for pair in wanted if there.get(pair) != wanted[pair]]
        if other:
            settings = f"clean text, tokenizer or data.shards ({_names(other)})"
            raise _stale(folder, settings, "shard")
    wanted = shards.pair_fingerprints(config, "train", found)
    return combined_fingerprint(found, list(wanted.values()))


def _require_fitting(config: DataConfig, found: str) -> str:
    """Checks that shards made elsewhere have this tokenizer's ids and all language pairs."""
    needed = list(dict.fromkeys(pair_of(d, config) for d in config.resolved_directions()))
    fingerprints: list[str] = []
    for split in reversed(SHARDED_SPLITS):
        folder = Path(config.shards_folder) / split
        manifest = read_manifest(folder)
        if manifest.tokenizer != found:
            raise DataError(
                f"{folder} was made with the tokenizer {manifest.tokenizer}, but "
                f"{Path(config.folder) / 'tokenizer'} is {found}; set data.tokenizer.folder to the "
                "tokenizer of the shards, and run `hyperadapter data tokenizer`"
            )
        places = {pair: manifest.find(*pair) for pair in needed}
        missing = [pair for pair, place in places.items() if place is None]
        if missing:
            raise DataError(
                f"{folder} has no shards of {_names(missing)}, which data.directions need; drop "
                "these directions, or `hyperadapter data merge` the folder with one that has them"
            )
        fingerprints = [
            manifest.pairs[place[0]].fingerprint for place in places.values() if place is not None
        ]
    return combined_fingerprint(found, fingerprints)


def _fingerprints(manifest: ShardManifest) -> dict[LanguagePair, str]:
    return {(pair.a, pair.b): pair.fingerprint for pair in manifest.pairs}


def _names(pairs: Sequence[LanguagePair]) -> str:
    names = ", ".join("-".join(pair) for pair in pairs[:_NAMED])
    return names if len(pairs) <= _NAMED else f"{names} and {len(pairs) - _NAMED} more"


def _stale(folder: Path, settings: str, step: str) -> DataError:
    return DataError(
        f"{folder} was made with another {settings} than the configuration has; run `hyperadapter "
        f"data {step}` (and the steps after it, or `hyperadapter run`), or restore the settings"
    )
