"""What a folder of shards holds: `manifest.json`, and where everything in it lies.

A split has pairs of languages, a pair has shards (tar files) and blocks, and a block is one
WebDataset sample with the members `KEY.a_tokens.npy` and so on. Blocks are columns of numbers, one
array for all blocks of a pair, because there may be hundreds of thousands of them. They are
numbered through all pairs, in order; the key of a pair's n-th block is `{a}-{b}-{n:07d}`.

    lengths/{a}-{b}.u16   for each block all lengths of side a, then all of side b: what planning
                          needs, without opening a tar
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainSerializer, PlainValidator, field_validator, model_validator

from hyperadapter.core.errors import CorruptShardError, DataError
from hyperadapter.core.files import write_text
from hyperadapter.core.languages import parse_language
from hyperadapter.core.schema import StrictModel

if TYPE_CHECKING:
    from data_pipeline.bitext import Split

__all__ = [
    "HEADER_BYTES",
    "LENGTHS",
    "MANIFEST",
    "REMEDY",
    "SHARDED_SPLITS",
    "BlockColumns",
    "Column",
    "MemberColumns",
    "PairEntry",
    "ShardEntry",
    "ShardManifest",
    "Side",
    "combined_fingerprint",
    "is_url",
    "locate",
    "member_file",
    "parse_manifest",
    "read_manifest",
    "write_manifest",
]

Side: TypeAlias = Literal["a", "b"]
SHARDED_SPLITS: tuple[Split, ...] = ("train", "valid")
MANIFEST = "manifest.json"
LENGTHS = "lengths"
HEADER_BYTES = 512  # of a tar's member, before its payload
REMEDY = "delete it and run `hyperadapter data shard` again, or copy it anew from where it was made"
_FORMAT: Final = 2


def _to_column(value: Any) -> NDArray[np.int64]:
    """Makes a column of a list of whole numbers that are not negative."""
    column = np.asarray(value)
    if column.ndim == 1 and not len(column):
        column = column.astype(np.int64)
    if column.ndim != 1 or column.dtype.kind not in "iu" or (column < 0).any():
        raise ValueError("must be a list of whole numbers from 0 on")
    column = column.astype(np.int64)
    column.flags.writeable = False
    return column


Column: TypeAlias = Annotated[
    NDArray[np.int64], PlainValidator(_to_column), PlainSerializer(lambda column: column.tolist())
]


class _Columns(StrictModel):
    """Columns compare as lists of numbers; arrays would compare number by number."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    __hash__ = None  # type: ignore[assignment]


class MemberColumns(_Columns):
    """Where one member of every block lies in its tar.

    Attributes:
        offset: Of the tar header; the payload follows `HEADER_BYTES` later.
        size: Bytes of the payload.
        crc32: Of header and payload.
    """

    offset: Column
    size: Column
    crc32: Column


class BlockColumns(_Columns):
    """All blocks of a language pair.

    Attributes:
        shard: Index into `PairEntry.shards`.
        sentences: Sentence pairs.
        a_tokens: Tokens of side a, end marks included.
        b_tokens: Tokens of side b.
        longer: Sum over sentences of max(a, b): the width of padded sentences without tags.
        longer_a_tag: Sum of max(a + 1, b): with a tag on side a.
        longer_b_tag: Sum of max(a, b + 1): with a tag on side b.
        lengths_crc32: Of the block's lengths in the lengths file; they lie one after another there,
            four bytes a sentence pair.
        members: By the member's name without key and suffix, such as `a_tokens`.
    """

    shard: Column
    sentences: Column
    a_tokens: Column
    b_tokens: Column
    longer: Column
    longer_a_tag: Column
    longer_b_tag: Column
    lengths_crc32: Column
    members: dict[str, MemberColumns]

    def __len__(self) -> int:
        return len(self.sentences)

    @model_validator(mode="after")
    def _equally_long(self) -> BlockColumns:
        groups: list[StrictModel] = [self, *self.members.values()]
        columns = [c for group in groups for c in vars(group).values() if isinstance(c, np.ndarray)]
        if len({len(column) for column in columns}) > 1:
            raise ValueError("the columns of the blocks differ in length")
        return self


class ShardEntry(StrictModel):
    """One tar file.

    Attributes:
        file: Relative to the folder of the manifest, or an absolute path, or a URL.
        sha256: Checksum of the file.
        num_bytes: Its size.
    """

    file: str
    sha256: str
    num_bytes: int


class PairEntry(StrictModel):
    """One language pair.

    Attributes:
        a: Language of the pivot side.
        b: The other language.
        fingerprint: Identifies what the shards are made from: text, tokenizer and settings.
        sentences: Sentence pairs kept.
        a_tokens: Tokens of side a, end marks included.
        b_tokens: Tokens of side b.
        a_longest: Most tokens of a sentence of side a.
        b_longest: Most tokens of a sentence of side b.
        dropped_long: Pairs dropped because a side is over `max_sentence_tokens`.
        dropped_empty: Pairs dropped because a side has no piece.
        lengths: The lengths file.
        shards: The tars.
        blocks: What is in them.
    """

    a: str
    b: str
    fingerprint: str
    sentences: int
    a_tokens: int
    b_tokens: int
    a_longest: int
    b_longest: int
    dropped_long: int
    dropped_empty: int
    lengths: ShardEntry
    shards: tuple[ShardEntry, ...]
    blocks: BlockColumns

    @property
    def name(self) -> str:
        """Such as `en-de`."""
        return f"{self.a}-{self.b}"

    def key(self, row: int) -> str:
        """Returns WebDataset's `__key__` of the pair's n-th block, from 0."""
        return f"{self.name}-{row:07d}"

    @field_validator("a", "b")
    @classmethod
    def _is_a_language(cls, code: str) -> str:
        # It becomes part of file names: nothing but a code of the table may stand there.
        return parse_language(code)

    @model_validator(mode="after")
    def _adds_up(self) -> PairEntry:
        blocks = self.blocks
        for name in ("sentences", "a_tokens", "b_tokens"):
            found = int(getattr(blocks, name).sum())
            if found != getattr(self, name):
                raise ValueError(
                    f"{self.name}: the blocks have {found} {name}, the pair {getattr(self, name)}"
                )
        if len(blocks) and int(blocks.shard.max()) >= len(self.shards):
            raise ValueError(f"{self.name}: a block lies in a shard that is not listed")
        if self.lengths.num_bytes != 4 * self.sentences:
            raise ValueError(f"{self.name}: the lengths file does not fit {self.sentences} pairs")
        return self


class ShardManifest(StrictModel):
    """What `manifest.json` holds.

    Attributes:
        format: Of the shards and of this file.
        fingerprint: Identifies all shards together.
        tokenizer: Fingerprint of the tokenizer.
        vocab_size: Its pieces.
        pairs: The language pairs.
    """

    format: Literal[2] = _FORMAT
    fingerprint: str
    tokenizer: str
    vocab_size: int = Field(ge=1)
    pairs: tuple[PairEntry, ...]

    @classmethod
    def of_pairs(
        cls, pairs: tuple[PairEntry, ...], tokenizer: str, vocab_size: int
    ) -> ShardManifest:
        """Makes the manifest of language pairs."""
        return cls(
            fingerprint=combined_fingerprint(tokenizer, [pair.fingerprint for pair in pairs]),
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            pairs=pairs,
        )

    @property
    def num_blocks(self) -> int:
        """Blocks of all pairs."""
        return sum(len(pair.blocks) for pair in self.pairs)

    @property
    def token_dtype(self) -> type[np.uint16] | type[np.uint32]:
        """Type of the token ids in the tars."""
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32

    @cached_property
    def _numbers(self) -> dict[frozenset[str], int]:
        return {frozenset((pair.a, pair.b)): number for number, pair in enumerate(self.pairs)}

    def find(self, language: str, other: str) -> tuple[int, Side] | None:
        """Returns the number of a language pair, in either order, and the side of `language`.

        None if there is no such pair.
        """
        number = self._numbers.get(frozenset((language, other)))
        if number is None:
            return None
        return number, "a" if self.pairs[number].a == language else "b"

    @model_validator(mode="after")
    def _no_pair_twice(self) -> ShardManifest:
        count = Counter(frozenset((pair.a, pair.b)) for pair in self.pairs)
        twice = [pair.name for pair in self.pairs if count[frozenset((pair.a, pair.b))] > 1]
        if twice:
            raise ValueError(f"language pairs listed twice: {', '.join(twice)}")
        return self


def combined_fingerprint(tokenizer: str, pairs: list[str]) -> str:
    """Returns the fingerprint of a manifest from those of the tokenizer and its pairs."""
    text = "\n".join([str(_FORMAT), tokenizer, *pairs])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def member_file(key: str, name: str) -> str:
    """Returns a member's name in the tar, such as `en-de-0000000.a_tokens.npy`."""
    return f"{key}.{name}.{'txt' if name.endswith('_text') else 'npy'}"


def is_url(file: str) -> bool:
    """Says whether the name of a file or folder is a URL such as `https://...` or `s3://...`."""
    return "://" in file


def locate(folder: Path, file: str) -> str:
    """Returns the URL or the path of a file that a manifest in `folder` lists."""
    return file if is_url(file) else os.path.normpath(folder / file)


def read_manifest(folder: Path) -> ShardManifest:
    """Reads the manifest of a split's folder.

    Raises:
        DataError: There is none, or it is of an older format.
        CorruptShardError: It is not a shard manifest.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{folder} holds no shards; run `hyperadapter data shard` first") from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, place: str) -> ShardManifest:
    """Reads a manifest from its bytes; `place` is named in errors.

    Raises:
        DataError: It is of another format.
        CorruptShardError: It is not a shard manifest.
    """
    try:
        return ShardManifest.model_validate_json(data)
    except ValueError as error:
        if b'"blocks"' in data and b'"format":' not in data[:200]:
            raise DataError(
                f"{place} is of an older format than {_FORMAT}; run `hyperadapter data shard` again"
            ) from error
        raise CorruptShardError(
            f"{place} is not a shard manifest ({_first_line(error)}); {REMEDY}"
        ) from error


def _first_line(error: ValueError) -> str:
    """Shortens pydantic's list of all that is missing."""
    lines = str(error).splitlines()
    return "; ".join(line.strip() for line in lines[:3])


def write_manifest(folder: Path, manifest: ShardManifest) -> None:
    """Writes `manifest.json`, on one line for speed."""
    write_text(folder / MANIFEST, manifest.model_dump_json() + "\n")
