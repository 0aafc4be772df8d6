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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.manifest import (
    LENGTHS,
    MANIFEST,
    REMEDY,
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
from data_pipeline.shards.reader import UnreadableError, as_array, read_member
from data_pipeline.shards.remote import ShardCache, default_cache_folder, download, fetch_bytes
from data_pipeline.workers import parallel_map
from hyperadapter.core.errors import (
    ConfigError,
    CorruptShardError,
    DataError,
    FetchError,
)
from hyperadapter.core.files import atomic_directory, sha256_file
from hyperadapter.core.languages import parse_direction

__all__ = ["BadFile", "VerifyReport", "merge", "split_pairs", "split_parts", "verify"]

log = logging.getLogger(__name__)

_BAD_SHOWN = 3  # blocks of a shard


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
    """One tar to be verified: only its own blocks, for the way to another process.

    Attributes:
        location: Path or URL.
        shard: What it should be.
        keys: Of its blocks.
        counts: Sentence pairs, tokens of side a and of side b, `[blocks, 3]`.
        members: Offset, size and CRC-32 by name, `[blocks, 3]`.
        cache: Where it is downloaded to.
    """

    location: str
    shard: ShardEntry
    keys: list[str]
    counts: NDArray[np.int64]
    members: dict[str, NDArray[np.int64]]
    cache: ShardCache


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
            checks += _checks(split_folder, pair, cache)
    checks.sort(key=lambda check: check.shard.num_bytes, reverse=True)
    for check, reason in parallel_map(_check_shard, checks, "verifying", workers):
        if reason:
            bad.append(BadFile(check.location, reason))
    return VerifyReport(
        pairs=sum(len(manifest.pairs) for manifest in manifests),
        shards=len(checks),
        blocks=sum(manifest.num_blocks for manifest in manifests),
        sentences=sum(pair.sentences for manifest in manifests for pair in manifest.pairs),
        num_bytes=sum(check.shard.num_bytes for check in checks),
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


def _checks(folder: Path, pair: PairEntry, cache: ShardCache | None) -> Iterator[_Check]:
    blocks = pair.blocks
    for number, shard in enumerate(pair.shards):
        rows = np.flatnonzero(blocks.shard == number)
        yield _Check(
            location=locate(folder, shard.file),
            shard=shard,
            keys=[pair.key(row) for row in rows.tolist()],
            counts=np.stack([blocks.sentences, blocks.a_tokens, blocks.b_tokens], 1)[rows],
            members={
                name: np.stack([columns.offset, columns.size, columns.crc32], 1)[rows]
                for name, columns in blocks.members.items()
            },
            cache=cache or ShardCache(default_cache_folder(folder)),
        )


def _check_shard(check: _Check) -> str:
    """Says what is wrong with a tar; an empty text if nothing is."""
    shard = check.shard
    try:
        remote = is_url(check.location)
        path = check.cache.path(shard) if remote else Path(check.location)
        size = path.stat().st_size
        if size != shard.num_bytes:
            return f"has {size} bytes, but its manifest promises {shard.num_bytes}"
        bad = [
            f"the block {key} {reason}"
            for row, key in enumerate(check.keys)
            if (reason := _check_block(check, row, path))
        ]
        found = sha256_file(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, FetchError) as error:
        return f"cannot be read ({error})"
    if bad:
        more = "; and more" if len(bad) > _BAD_SHOWN else ""
        shown = "; ".join(bad[:_BAD_SHOWN])
        return f"has {len(bad)} damaged of {len(check.keys)} blocks: {shown}{more}"
    return "" if found == shard.sha256 else _wrong_sum(found, shard.sha256)


def _check_block(check: _Check, row: int, path: Path) -> str:
    """Says what is wrong with a block; an empty text if nothing is."""
    counts = dict(zip(("sentences", "a", "b"), check.counts[row].tolist(), strict=True))
    payloads: dict[str, bytes] = {}
    for name, places in check.members.items():
        try:
            payloads[name] = read_member(str(path), *places[row].tolist())
        except UnreadableError as error:
            return f"{error} (member {name})"
    for side in ("a", "b"):
        lengths, tokens = (as_array(payloads[f"{side}_{what}"]) for what in ("lengths", "tokens"))
        if lengths.shape != (counts["sentences"],) or tokens.shape != (counts[side],):
            return f"has not the sentences and tokens that its manifest promises (side {side})"
        if int(lengths.sum(dtype=np.int64)) != counts[side]:
            return f"has lengths that do not sum to its tokens (side {side})"
        text = payloads.get(f"{side}_text")
        if text is not None and text.count(b"\n") != counts["sentences"]:
            return f"has text with another number of lines than sentences (side {side})"
    return ""


def merge(folders: Sequence[str], out: Path) -> None:
    """Writes manifests that put the shards of several folders together; no tar is copied.

    The tars stay where they are: the new manifests name them by relative path or by URL. Lengths
    files are copied.

    Args:
        folders: Folders or URLs of shards; one URL alone adopts remote shards.
        out: The new folder.

    Raises:
        ConfigError: `out` exists, or nothing is given to merge.
        DataError: A folder has no shards, tokenizers differ, or a pair is there twice.
        FetchError: A remote manifest cannot be read.
    """
    if not folders:
        raise ConfigError("nothing to merge; name one folder or URL of shards at least")
    _require_new(out)
    sources = [_open_splits(folder) for folder in folders]
    for folder, source in zip(folders, sources, strict=True):
        if source.keys() != sources[0].keys():
            raise DataError(
                f"{folders[0]} has {_names(sources[0])}, but {folder} has {_names(source)}; merge "
                "folders with the same splits"
            )
    _write_all({name: [source[name] for source in sources] for name in sources[0]}, out)


def split_pairs(folder: Path, out: Path, pairs: Sequence[str]) -> None:
    """Writes manifests for some language pairs of a folder of shards; no tar is copied.

    Args:
        folder: The shards.
        out: The new folder.
        pairs: Such as `en-de`, the languages in either order.

    Raises:
        ConfigError: `out` exists, or a pair is not there or no pair at all.
    """
    _require_new(out)
    if not pairs:
        raise ConfigError("no language pairs to split off; name some, such as en-de,en-fr")
    wanted = [parse_direction(pair) for pair in pairs]
    chosen: dict[str, list[_Source]] = {}
    for name, source in _open_splits(str(folder)).items():
        numbers = []
        for pair in wanted:
            found = source.manifest.find(*pair)
            if found is None:
                known = ", ".join(entry.name for entry in source.manifest.pairs)
                raise ConfigError(f"{source.place} has no language pair {pair}; it has {known}")
            numbers.append(found[0])
        chosen[name] = [source.take(sorted(set(numbers)))]
    _write_all(chosen, out)


def split_parts(folder: Path, out: Path, parts: int) -> None:
    """Deals the language pairs of a folder of shards out to `out/part-00` and so on.

    The parts have about the same number of tokens of the first split; no tar is copied.

    Raises:
        ConfigError: `out` exists, or there are fewer language pairs than parts.
    """
    _require_new(out)
    splits = _open_splits(str(folder))
    pairs = next(iter(splits.values())).manifest.pairs
    if not 1 <= parts <= len(pairs):
        raise ConfigError(
            f"{folder} has {len(pairs)} language pairs, which make no {parts} parts; choose from 1 "
            f"to {len(pairs)}"
        )
    tokens = [0] * parts
    dealt: list[list[str]] = [[] for _ in range(parts)]
    for pair in sorted(pairs, key=lambda pair: -(pair.a_tokens + pair.b_tokens)):
        # An empty part first, so that none stays empty where pairs have no tokens.
        least = min(range(parts), key=lambda part: (len(dealt[part]) > 0, tokens[part]))
        tokens[least] += pair.a_tokens + pair.b_tokens
        dealt[least].append(pair.name)
    for number, names in enumerate(dealt):
        split_pairs(folder, out / f"part-{number:02d}", names)


class _Source(NamedTuple):
    """One split of a folder of shards.

    Attributes:
        place: Folder or URL of the manifest.
        manifest: What it holds.
    """

    place: str
    manifest: ShardManifest

    def take(self, numbers: list[int]) -> _Source:
        """Returns some of the language pairs."""
        pairs = tuple(self.manifest.pairs[number] for number in numbers)
        return self._replace(manifest=self.manifest.model_copy(update={"pairs": pairs}))

    def locate(self, file: str) -> str:
        """Returns the URL or the absolute path of a file that the manifest lists."""
        if not is_url(self.place):
            return locate(Path(self.place).resolve(), file)
        if is_url(file):
            return file
        scheme, _, rest = self.place.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, file))}"


def _open_splits(folder: str) -> dict[str, _Source]:
    """Reads the manifests of a folder, by split; a single one has the name `.`."""
    if not is_url(folder):
        folders = _split_folders(Path(folder))
        single = folders == [Path(folder)]
        return {
            "." if single else path.name: _Source(str(path), read_manifest(path))
            for path in folders
        }
    url = folder.rstrip("/")
    if "@" in urlsplit(url).netloc or urlsplit(url).query:
        raise ConfigError(
            f"the URL {url} holds credentials or a query, which would stand in the new manifest; "
            "give them to the store's client in its environment variables"
        )
    return {split: _open_remote(f"{url}/{split}") for split in SHARDED_SPLITS}


def _open_remote(url: str) -> _Source:
    place = f"{url}/{MANIFEST}"
    return _Source(url, parse_manifest(fetch_bytes(place), place))


def _names(splits: dict[str, _Source]) -> str:
    return ", ".join(name for name in splits if name != ".") or "no splits but a manifest"


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; name a new folder, or remove it")


def _write_all(splits: dict[str, list[_Source]], out: Path) -> None:
    """Writes the folder `out`, each split put together from several sources."""
    for sources in splits.values():
        _require_one_tokenizer(sources)
        _require_once(sources)
    with atomic_directory(out) as part:
        for name, sources in splits.items():
            folder = part / name
            folder.mkdir(exist_ok=True)
            pairs = tuple(
                _adopt(source, pair, folder) for source in sources for pair in source.manifest.pairs
            )
            first = sources[0].manifest
            manifest = ShardManifest.of_pairs(pairs, first.tokenizer, first.vocab_size)
            write_manifest(folder, manifest)
            log.info("%s: %d language pairs of %d folders", out / name, len(pairs), len(sources))


def _require_one_tokenizer(sources: list[_Source]) -> None:
    first, *others = sources
    for source in others:
        for what in ("tokenizer", "vocab_size"):
            ours, theirs = (getattr(s.manifest, what) for s in (first, source))
            if ours != theirs:
                raise DataError(
                    f"{first.place} and {source.place} were made with different tokenizers ({what} "
                    f"{ours} and {theirs}), so their tokens do not fit together; shard one anew "
                    "with data.tokenizer.folder set to the tokenizer of the other"
                )


def _require_once(sources: list[_Source]) -> None:
    places: dict[frozenset[str], str] = {}
    for source in sources:
        for pair in source.manifest.pairs:
            other = places.get(frozenset((pair.a, pair.b)))
            if other is not None:
                raise DataError(
                    f"the language pair {pair.name} is in {other} and in {source.place}; take it "
                    "out of one with `hyperadapter data split`, and merge the rest"
                )
            places[frozenset((pair.a, pair.b))] = source.place


def _adopt(source: _Source, pair: PairEntry, part: Path) -> PairEntry:
    """Copies a pair's lengths file to `part`, and names its tars from there."""
    path = part / LENGTHS / f"{pair.name}.u16"
    path.parent.mkdir(exist_ok=True)
    place = source.locate(pair.lengths.file)
    if is_url(place):
        download(place, path, pair.lengths)
    else:
        try:
            shutil.copyfile(place, path)
        except FileNotFoundError:
            raise CorruptShardError(
                f"{place} is missing, but its manifest lists it; {REMEDY}"
            ) from None
    if (found := sha256_file(path)) != pair.lengths.sha256:
        raise CorruptShardError(f"{place} {_wrong_sum(found, pair.lengths.sha256)}; {REMEDY}")
    shards = []
    for shard in pair.shards:
        located = source.locate(shard.file)
        relative = not is_url(located) and not Path(shard.file).is_absolute()
        file = os.path.relpath(located, part.resolve()) if relative else located
        shards.append(shard.model_copy(update={"file": file}))
    lengths = pair.lengths.model_copy(update={"file": f"{LENGTHS}/{path.name}"})
    return pair.model_copy(update={"lengths": lengths, "shards": tuple(shards)})
