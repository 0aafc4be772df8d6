"""WebDataset tars of token blocks, and a manifest that lets us read any block and trust it.

One set of shards per unordered language pair; both directions read the same ones. A block is one
WebDataset sample of thousands of sentence pairs:

    KEY.a_tokens.npy   pieces and end mark of every sentence of the pivot side, one after another
    KEY.a_lengths.npy  tokens of each sentence, the end mark included
    KEY.b_tokens.npy, KEY.b_lengths.npy   the other side

`wds.WebDataset(path, shardshuffle=False).decode()` reads them. We do not: WebDataset 1.0.2 lets a
flipped byte pass and drops the rest of a shard behind a damaged header, silently. `ShardReader`
seeks to the member that it wants, and compares its header and payload with the manifest's CRC-32.
"""

from __future__ import annotations

import io
import logging
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_pipeline.batching import Ragged
from data_pipeline.bitext import Split, language_pairs, read_split
from data_pipeline.config import DataConfig, ShardConfig
from data_pipeline.tokenizer import Tokenizer, clean_fingerprint
from hyperadapter.core.errors import CorruptShardError, DataError
from hyperadapter.core.files import atomic_directory, sha256_file, write_json
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = [
    "SHARDED_SPLITS",
    "BlockEntry",
    "PairEntry",
    "ShardManifest",
    "ShardReader",
    "Side",
    "expected_fingerprint",
    "read_manifest",
    "run",
    "verify",
]

log = logging.getLogger(__name__)

Side = Literal["a", "b"]
Arrays = dict[str, NDArray[Any]]  # a block, by name of the member without key and suffix
SHARDED_SPLITS: tuple[Split, ...] = ("train", "valid")

_MANIFEST = "manifest.json"
_HEADER = 512
# Part of the fingerprint: raise it with each change of what is written.
_FORMAT = 1
_ENCODE_SENTENCES = 20_000
_REMEDY = "delete its folder and run `hyperadapter data shard` again"


class MemberEntry(NamedTuple):
    """Where a member lies in its tar."""

    offset: int  # of the tar header; the payload follows 512 bytes later
    size: int  # of the payload
    crc32: int  # of header and payload


class BlockEntry(StrictModel):
    """One block.

    Attributes:
        key: WebDataset's `__key__`.
        shard: File name.
        pair: Index into `ShardManifest.pairs`.
        sentences: Sentence pairs.
        a_tokens: Tokens of the pivot side, end marks included.
        b_tokens: Tokens of the other side.
        longer: Sum over sentences of max(a, b), then of max(a + 1, b), then of max(a, b + 1): the
            width of the padded sentence without tag and with a tag on either side.
        members: By the member's name without key and suffix, such as `a_tokens`.
    """

    key: str
    shard: str
    pair: int
    sentences: int
    a_tokens: int
    b_tokens: int
    longer: tuple[int, int, int]
    members: dict[str, MemberEntry]


class PairEntry(StrictModel):
    """One language pair.

    Attributes:
        a: Language of the pivot side.
        b: The other language.
        sentences: Sentence pairs kept.
        a_tokens: Tokens of side a, end marks included.
        b_tokens: Tokens of side b.
        a_longest: Most tokens of a sentence of side a.
        b_longest: Most tokens of a sentence of side b.
        dropped_long: Pairs dropped because a side is over `max_sentence_tokens`.
        dropped_empty: Pairs dropped because a side has no piece.
    """

    a: str
    b: str
    sentences: int
    a_tokens: int
    b_tokens: int
    a_longest: int
    b_longest: int
    dropped_long: int
    dropped_empty: int


class ShardEntry(StrictModel):
    """One tar file."""

    file: str
    sha256: str
    num_bytes: int


class ShardManifest(StrictModel):
    """What `shards/<split>/manifest.json` holds."""

    fingerprint: str
    tokenizer: str = Field(description="Fingerprint of the tokenizer")
    vocab_size: int
    pairs: tuple[PairEntry, ...]
    shards: tuple[ShardEntry, ...]
    blocks: tuple[BlockEntry, ...]


class _Inputs(StrictModel):
    """All that the shards of a split depend on."""

    format: int = _FORMAT
    split: Split
    clean: str
    tokenizer: str
    pairs: tuple[tuple[str, str], ...]
    shards: ShardConfig


class _Encoded(NamedTuple):
    """The tokens of a language pair in their final order."""

    a: Ragged
    b: Ragged
    dropped_long: int
    dropped_empty: int


def run(config: DataConfig) -> dict[str, ShardManifest]:
    """Writes the shards of the train and valid splits, unless they are there already.

    Returns:
        The manifest of each split.

    Raises:
        DataError: The clean text or the tokenizer is missing.
    """
    root = Path(config.folder)
    tokenizer: Tokenizer = Tokenizer.load(root / "tokenizer")
    manifests: dict[str, ShardManifest] = {}
    for split in SHARDED_SPLITS:
        folder = root / "shards" / split
        inputs = _inputs(config, split, tokenizer.fingerprint)
        if (folder / _MANIFEST).is_file():
            manifest = read_manifest(folder)
            if manifest.fingerprint == fingerprint(inputs):
                manifests[split] = manifest
                continue
        manifests[split] = _write_split(root, inputs, tokenizer)
    return manifests


def expected_fingerprint(config: DataConfig, split: Split, tokenizer: str) -> str:
    """Returns the fingerprint of the shards of a configuration, its clean text and a tokenizer."""
    return fingerprint(_inputs(config, split, tokenizer))


def _inputs(config: DataConfig, split: Split, tokenizer: str) -> _Inputs:
    return _Inputs(
        split=split,
        clean=clean_fingerprint(Path(config.folder) / "clean"),
        tokenizer=tokenizer,
        pairs=language_pairs(config),
        shards=config.shards,
    )


def read_manifest(folder: Path) -> ShardManifest:
    """Reads the manifest of a split's folder.

    Raises:
        DataError: There is none.
        CorruptShardError: It is not a shard manifest.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no shards; run `hyperadapter data shard` first")
    try:
        return ShardManifest.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise CorruptShardError(f"{path} is not a shard manifest ({error}); {_REMEDY}") from error


def _write_split(root: Path, inputs: _Inputs, tokenizer: Tokenizer) -> ShardManifest:
    pairs: list[PairEntry] = []
    blocks: list[BlockEntry] = []
    shards: list[ShardEntry] = []
    with atomic_directory(root / "shards" / inputs.split) as folder:
        for number, (a, b) in enumerate(inputs.pairs):
            text = read_split(root / "clean", inputs.split, (a, b))
            # The seed names the pair, so that a new pair does not reorder the others.
            rng = np.random.default_rng([zlib.crc32(f"{inputs.split} {a}-{b}".encode()), 1])
            encoded = _encode(tokenizer, text.a, text.b, inputs.shards.max_sentence_tokens, rng)
            samples = _iter_blocks(encoded, inputs.shards.block_sentences, tokenizer.vocab_size)
            for file, keys in _write_tars(folder, f"{a}-{b}", samples, inputs.shards.shard_bytes):
                shards.append(
                    ShardEntry(
                        file=file.name, sha256=sha256_file(file), num_bytes=file.stat().st_size
                    )
                )
                blocks.extend(_index(file, number, keys))
            pairs.append(_pair_entry(a, b, encoded))
            log.info(
                "shards/%s: %s-%s %d pairs, dropped %d too long and %d empty",
                inputs.split, a, b, len(encoded.a), encoded.dropped_long, encoded.dropped_empty,
            )  # fmt: skip
        manifest = ShardManifest(
            fingerprint=fingerprint(inputs),
            tokenizer=inputs.tokenizer,
            vocab_size=tokenizer.vocab_size,
            pairs=tuple(pairs),
            shards=tuple(shards),
            blocks=tuple(blocks),
        )
        write_json(folder / _MANIFEST, manifest.model_dump())
    return manifest


def _pair_entry(a: str, b: str, encoded: _Encoded) -> PairEntry:
    return PairEntry(
        a=a,
        b=b,
        sentences=len(encoded.a),
        a_tokens=int(encoded.a.lengths.sum()),
        b_tokens=int(encoded.b.lengths.sum()),
        a_longest=int(encoded.a.lengths.max(initial=0)),
        b_longest=int(encoded.b.lengths.max(initial=0)),
        dropped_long=encoded.dropped_long,
        dropped_empty=encoded.dropped_empty,
    )


def _encode(
    tokenizer: Tokenizer, a: list[str], b: list[str], longest: int, rng: np.random.Generator
) -> _Encoded:
    """Tokenises a pair's text, drops what does not fit, and shuffles once."""
    sides = []
    for texts in (a, b):
        parts = [
            Ragged.from_sequences(tokenizer.encode(texts[first : first + _ENCODE_SENTENCES]))
            for first in range(0, len(texts), _ENCODE_SENTENCES)
        ]
        parts = parts or [Ragged.from_sequences([])]
        tokens = np.concatenate([part.tokens.astype(np.int32) for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        sides.append(Ragged.from_lengths(tokens, lengths))
    shorter = np.minimum(sides[0].lengths, sides[1].lengths)
    longer = np.maximum(sides[0].lengths, sides[1].lengths)
    keep = rng.permutation(np.flatnonzero((shorter > 1) & (longer <= longest)))
    return _Encoded(
        sides[0].rows(keep),
        sides[1].rows(keep),
        dropped_long=int(((shorter > 1) & (longer > longest)).sum()),
        dropped_empty=int((shorter <= 1).sum()),
    )


def _iter_blocks(encoded: _Encoded, block_sentences: int, vocab_size: int) -> Iterator[Arrays]:
    ids = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    for first in range(0, len(encoded.a), block_sentences):
        rows = slice(first, first + block_sentences)
        members: Arrays = {}
        for side, text in (("a", encoded.a), ("b", encoded.b)):
            block = text.rows(rows)
            members[f"{side}_tokens"] = block.flat().astype(ids)
            members[f"{side}_lengths"] = block.lengths.astype(np.uint16)
        yield members


def _write_tars(
    folder: Path, stem: str, samples: Iterator[Arrays], shard_bytes: int
) -> Iterator[tuple[Path, dict[str, Arrays]]]:
    """Writes tars of about `shard_bytes`, the same bytes for the same tokens; yields each one."""
    # Imported here because it loads torch wherever torch is installed.
    from webdataset import TarWriter

    sample = next(samples, None)
    number = block = 0
    while sample is not None:
        path = folder / f"{stem}-{number:05d}.tar"
        written: dict[str, Arrays] = {}
        with (
            open(path, "wb") as stream,
            TarWriter(stream, user="hyperadapter", group="hyperadapter", mtime=0) as tar,
        ):
            size = 0
            while sample is not None and (not written or size < shard_bytes):
                key = f"{stem}-{block:07d}"
                size += tar.write(
                    {"__key__": key}
                    | {f"{name}.npy": _npy_bytes(array) for name, array in sample.items()}
                )
                written[key] = sample
                block += 1
                sample = next(samples, None)
        number += 1
        yield path, written


def _npy_bytes(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _index(path: Path, pair: int, samples: dict[str, Arrays]) -> Iterator[BlockEntry]:
    """Describes the blocks of a tar that was just written, from its bytes on disk."""
    members: dict[str, dict[str, MemberEntry]] = {key: {} for key in samples}
    with tarfile.open(path) as tar, open(path, "rb") as stream:
        for member in tar:
            assert member.offset_data - member.offset == _HEADER, member.name
            key, name, _ = member.name.split(".")
            stream.seek(member.offset)
            crc32 = zlib.crc32(stream.read(_HEADER + member.size))
            members[key][name] = MemberEntry(member.offset, member.size, crc32)
    for key, sample in samples.items():
        a, b = (sample[f"{side}_lengths"].astype(np.int64) for side in "ab")
        yield BlockEntry(
            key=key,
            shard=path.name,
            pair=pair,
            sentences=len(a),
            a_tokens=int(a.sum()),
            b_tokens=int(b.sum()),
            longer=(
                int(np.maximum(a, b).sum()),
                int(np.maximum(a + 1, b).sum()),
                int(np.maximum(a, b + 1).sum()),
            ),
            members=members[key],
        )


def verify(folder: Path) -> ShardManifest:
    """Reads every byte of a split's shards and compares it with the manifest.

    Raises:
        CorruptShardError: A shard is missing, cut off or changed; the first one is named.
    """
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    for shard in manifest.shards:
        found = sha256_file(folder / shard.file)
        if found != shard.sha256:
            raise CorruptShardError(
                f"{folder / shard.file} has the SHA-256 {found[:12]}.., but its manifest promises "
                f"{shard.sha256[:12]}..; {_REMEDY}"
            )
    return manifest


def _check_files(folder: Path, manifest: ShardManifest) -> None:
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            raise CorruptShardError(f"{path} is missing, but its manifest lists it; {_REMEDY}")
        found = path.stat().st_size
        if found != shard.num_bytes:
            raise CorruptShardError(
                f"{path} has {found} bytes, but its manifest promises {shard.num_bytes}; {_REMEDY}"
            )


class ShardReader:
    """Random access to the blocks of one split; every member is verified when it is read.

    Decoded members are kept up to `cache_bytes`, the least recently used go first. Not thread-safe.
    """

    def __init__(self, folder: Path, cache_bytes: int = 500_000_000) -> None:
        """Opens a split's folder.

        Raises:
            DataError: There are no shards.
            CorruptShardError: A shard is missing or has the wrong size.
        """
        self.manifest = read_manifest(folder)
        _check_files(folder, self.manifest)
        self._folder = folder
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[int, str], NDArray[Any]] = OrderedDict()
        self._cached = 0

    @property
    def cached_bytes(self) -> int:
        """Size of the decoded members that are kept."""
        return self._cached

    def lengths(self, block: int, side: Side) -> NDArray[np.uint16]:
        """Returns the tokens of each sentence, end mark included, without reading the tokens."""
        return self._member(block, f"{side}_lengths", self.manifest.blocks[block].sentences)

    def sentences(self, block: int, side: Side) -> Ragged:
        """Returns the token sequences of one side of a block, each with its end mark."""
        entry = self.manifest.blocks[block]
        total = entry.a_tokens if side == "a" else entry.b_tokens
        tokens = self._member(block, f"{side}_tokens", total)
        return Ragged.from_lengths(tokens, self.lengths(block, side))

    def _member(self, block: int, name: str, count: int) -> NDArray[Any]:
        key = (block, name)
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        array = self._read(self.manifest.blocks[block], name)
        if array.shape != (count,):
            entry = self.manifest.blocks[block]
            raise self._corrupt(entry, name, f"has the shape {array.shape}, not ({count},)")
        array.flags.writeable = False
        self._cache[key] = array
        self._cached += array.nbytes
        while self._cached > self._cache_bytes and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached -= oldest.nbytes
        return array

    def _read(self, entry: BlockEntry, name: str) -> NDArray[Any]:
        member = entry.members[name]
        try:
            with open(self._folder / entry.shard, "rb") as stream:
                stream.seek(member.offset)
                data = stream.read(_HEADER + member.size)
        except OSError as error:
            raise self._corrupt(entry, name, f"cannot be read ({error})") from error
        if len(data) != _HEADER + member.size:
            raise self._corrupt(entry, name, "is cut off")
        if (found := zlib.crc32(data)) != member.crc32:
            what = f"has the CRC-32 {found:08x}, but the manifest promises {member.crc32:08x}"
            raise self._corrupt(entry, name, what)
        return np.asarray(np.load(io.BytesIO(data[_HEADER:]), allow_pickle=False))

    def _corrupt(self, entry: BlockEntry, name: str, what: str) -> CorruptShardError:
        path = self._folder / entry.shard
        return CorruptShardError(f"{path}: the member {entry.key}.{name}.npy {what}; {_REMEDY}")
