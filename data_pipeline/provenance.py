"""Do the clean text, the tokenizer and the shards of a data folder belong to a configuration?

Each step's fingerprint covers its settings and the fingerprint of the step before it, so that of
the shards covers everything. Training on the data of other settings would go unnoticed otherwise.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline import corpus, shards, tokenizer
from data_pipeline.config import DataConfig
from hyperadapter.core.errors import DataError

__all__ = ["require_current"]


def require_current(config: DataConfig) -> str:
    """Checks a data folder from the clean text to the shards.

    Returns:
        The fingerprint of the training shards, which identifies the data.

    Raises:
        DataError: A step is missing, or was made with other settings; the message names the step.
    """
    root = Path(config.folder)
    expected = corpus.expected_fingerprint(config)
    if expected is not None and tokenizer.clean_fingerprint(root / "clean") != expected:
        raise _stale(root / "clean", "data.sources, data.clean or data.split", "clean")
    found = tokenizer.Tokenizer.load(root / "tokenizer").fingerprint
    if found != tokenizer.expected_fingerprint(config):
        raise _stale(root / "tokenizer", "clean text or data.tokenizer", "tokenizer")
    for split in shards.SHARDED_SPLITS:
        folder = root / "shards" / split
        wanted = shards.expected_fingerprint(config, split, found)
        if shards.read_manifest(folder).fingerprint != wanted:
            raise _stale(folder, "clean text, tokenizer or data.shards", "shard")
    return shards.expected_fingerprint(config, "train", found)


def _stale(folder: Path, settings: str, step: str) -> DataError:
    return DataError(
        f"{folder} was made with another {settings} than the configuration has; run `hyperadapter "
        f"data {step}` (and the steps after it, or `hyperadapter run`), or restore the settings"
    )
