"""Shards as something to check, put together and pass on; no tar is ever copied.

A folder of shards holds `train/` and `valid/`, each with a manifest; a folder with a manifest of
its own stands for one split. Folders to merge may be URLs: merging one alone adopts remote shards,
of which only the manifest and the lengths are downloaded.
"""

from __future__ import annotations

import logging
import os
import posixpath
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from data_pipeline.manifest import (
    HEADER_BYTES,
    LENGTHS,
    MANIFEST,
    SHARDED_SPLITS,
    PairEntry,
    ShardEntry,
    ShardManifest,
    is_url,
    locate,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from data_pipeline.reader import ShardReader
from data_pipeline.remote import ShardCache, download, fetch_bytes
from data_pipeline.workers import parallel_map
from hyperadapter.core.errors import (
    ConfigError,
    CorruptShardError,
    DataError,
    FetchError,
    LostBlockError,
)
from hyperadapter.core.files import atomic_directory, sha256_file
from hyperadapter.core.languages import parse_direction

__all__ = ["BadFile", "VerifyReport", "merge", "split_pairs", "split_parts", "verify"]

log = logging.getLogger(__name__)


class BadFile(NamedTuple):
    """A file that is not what its manifest promises."""

    path: str
    reason: str


class VerifyReport(NamedTuple):
    """What was checked, and all that is wrong."""

    pairs: int
    shards: int
    blocks: int
    sentences: int
    num_bytes: int
    bad: tuple[BadFile, ...]


class _Check(NamedTuple):
    """One tar to be verified."""

    folder: Path
    pair: PairEntry
    shard: int
    cache: ShardCache | None


def verify(folder: Path, workers: int = 0, cache: ShardCache | None = None) -> VerifyReport:
    """Reads every byte of the shards in a folder and compares it with the manifest.

    Args:
        folder: Holds a manifest, or the folders of the splits.
        workers: Processes; 0 means one for each core.
        cache: Where remote shards are downloaded to; without it, beside the manifest.

    Returns:
        What was checked; `bad` lists each bad file, and is empty if all is well.

    Raises:
        DataError: There are no shards.
        CorruptShardError: A manifest is damaged, so that nothing can be said of its files.
    """
    checks: list[_Check] = []
    bad: list[BadFile] = []
    manifests = []
    for split_folder in _split_folders(folder):
        manifest = read_manifest(split_folder)
        manifests.append(manifest)
        for pair in manifest.pairs:
            bad += _check_lengths(split_folder, pair)
            checks += [
                _Check(split_folder, pair, number, cache) for number in range(len(pair.shards))
            ]
    checks.sort(key=lambda check: check.pair.shards[check.shard].num_bytes, reverse=True)
    for check, reason in parallel_map(_check_shard, checks, "verifying", workers):
        if reason:
            shard = check.pair.shards[check.shard]
            bad.append(BadFile(locate(check.folder, shard.file), reason))
    return VerifyReport(
        pairs=sum(len(manifest.pairs) for manifest in manifests),
        shards=len(checks),
        blocks=sum(manifest.num_blocks for manifest in manifests),
        sentences=sum(pair.sentences for manifest in manifests for pair in manifest.pairs),
        num_bytes=sum(check.pair.shards[check.shard].num_bytes for check in checks),
        bad=tuple(sorted(bad)),
    )


def _split_folders(folder: Path) -> list[Path]:
    if (folder / MANIFEST).is_file():
        return [folder]
    found = [folder / split for split in SHARDED_SPLITS if (folder / split / MANIFEST).is_file()]
    if not found:
        raise DataError(
            f"{folder} holds no shards: neither a {MANIFEST}, nor {' or '.join(SHARDED_SPLITS)} "
            "with one; name the folder that `hyperadapter data shard` wrote, FOLDER/shards"
        )
    return found


def _check_lengths(folder: Path, pair: PairEntry) -> list[BadFile]:
    path = locate(folder, pair.lengths.file)
    try:
        found = sha256_file(Path(path))
    except OSError as error:
        return [BadFile(path, f"cannot be read ({error.strerror})")]
    if found != pair.lengths.sha256:
        return [BadFile(path, _wrong_sum(found, pair.lengths.sha256))]
    return []


def _wrong_sum(found: str, wanted: str) -> str:
    return f"has the SHA-256 {found[:12]}.., but its manifest promises {wanted[:12]}.."


def _check_shard(check: _Check) -> str:
    """Says what is wrong with a tar; an empty text if nothing is."""
    shard = check.pair.shards[check.shard]
    path = Path(locate(check.folder, shard.file))
    try:
        if is_url(shard.file):
            cache = check.cache or ShardCache(check.folder / ".cache")
            path = cache.path(shard)
        size = path.stat().st_size
        if size != shard.num_bytes:
            return f"has {size} bytes, but its manifest promises {shard.num_bytes}"
        problems = [f"block {key} {reason}" for key, reason in _bad_blocks(check, path)]
        found = sha256_file(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, FetchError) as error:
        return f"cannot be read ({error})"
    if problems:
        rest = f" and {len(problems) - 3} more blocks" if len(problems) > 3 else ""
        return "; ".join(problems[:3]) + rest
    return "" if found == shard.sha256 else _wrong_sum(found, shard.sha256)
