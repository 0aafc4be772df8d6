"""The clean text of every language pair, tokenised, shuffled and written as WebDataset tars.

One set of shards per unordered language pair; both directions read the same ones. A block is one
WebDataset sample of thousands of sentence pairs:

    KEY.a_tokens.npy   pieces and end mark of every sentence of the pivot side, one after another
    KEY.a_lengths.npy  tokens of each sentence, the end mark included
    KEY.b_tokens.npy, KEY.b_lengths.npy   the other side
    KEY.a_text.txt, KEY.b_text.txt        one sentence a line, with `shards.keep_text`

`wds.WebDataset(path, shardshuffle=False).decode()` reads them; `reader.py` does so at random, and
`manifest.py` tells what lies where. A pair's shards depend on nothing but its text, the tokenizer
and the settings: the same bytes each time, and what is there already is not made again.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.bitext import LanguagePair, Split, iter_split, language_pairs, split_path
from data_pipeline.config import DataConfig, ShardConfig
from data_pipeline.ragged import Ragged
from data_pipeline.shards.manifest import (
    HEADER_BYTES,
    LENGTHS,
    MANIFEST,
    SHARDED_SPLITS,
    BlockColumns,
    PairEntry,
    ShardEntry,
    ShardManifest,
    combined_fingerprint,
    is_url,
    member_file,
    read_manifest,
    write_manifest,
)
from data_pipeline.shards.shuffle import BucketShuffle, Rows, iter_chunks, select
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.workers import parallel_map
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import (
    atomic_open,
    read_json,
    resumable_directory,
    sha256_file,
    write_text,
)
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = ["pair_fingerprints", "run"]

log = logging.getLogger(__name__)

Sample = dict[str, NDArray[Any] | bytes]  # a block, by name of the member without key and suffix

# Part of the fingerprint: raise it with each change of what is written.
_FORMAT = 2
_ENCODE_SENTENCES = 20_000
# Text of a bucket. Few languages have more than a token for two bytes, so tokens take no more.
_BUCKET_BYTES = 32_000_000
# Less text than this is written before processes, which load torch, have started.
_SMALL_BYTES = 20_000_000
_RECORDS, _SCRATCH = "records", "scratch"  # only while the shards are made
_SIDES = ("a", "b")


class _PairInputs(StrictModel):
    """All that the shards of a language pair depend on."""

    format: int = _FORMAT
    split: Split
    pair: LanguagePair
    text: str
    tokenizer: str
    shards: ShardConfig


class _Task(NamedTuple):
    """A language pair whose shards are to be written."""

    clean: Path
    folder: Path
    split: Split
    pair: LanguagePair
    fingerprint: str
    tokenizer_folder: Path
    tokenizer: str
    config: ShardConfig

    @property
    def name(self) -> str:
        return "-".join(self.pair)

    @property
    def text(self) -> Path:
        return split_path(self.clean, self.split, self.pair)

    @property
    def num_bytes(self) -> int:
        return self.text.stat().st_size


class _Counts:
    """What is counted while a pair is encoded and written."""

    def __init__(self) -> None:
        self.dropped_long = 0
        self.dropped_empty = 0
        self.longest = {"a": 0, "b": 0}


def run(config: DataConfig) -> dict[str, ShardManifest]:
    """Writes the shards of the train and valid splits, as far as they are not there already.

    Pairs whose text, tokenizer and settings did not change keep their files. What an interrupted
    call has finished is kept, too.

    Returns:
        The manifest of each split.

    Raises:
        DataError: The clean text or the tokenizer is missing.
    """
    tokenizer = Tokenizer.load(Path(config.folder) / "tokenizer")
    manifests: dict[str, ShardManifest] = {}
    builds: list[_Build] = []
    with ExitStack() as stack:
        for split in SHARDED_SPLITS:
            build = _Build(config, split, tokenizer)
            if build.finished is not None:
                manifests[split] = build.finished
            else:
                build.begin(stack)
                builds.append(build)
        tasks = [task for build in builds for task in build.tasks]
        tasks.sort(key=lambda task: task.num_bytes, reverse=True)
        small = sum(task.num_bytes for task in tasks) < _SMALL_BYTES
        workers = 1 if small else config.num_workers
        by_folder = {build.part: build for build in builds}
        for task, entry in parallel_map(_write_pair, tasks, "sharding", workers):
            by_folder[task.folder].entries[task.pair] = entry
        for build in builds:
            manifests[build.split] = build.finish()
    return {split: manifests[split] for split in SHARDED_SPLITS}


def pair_fingerprints(config: DataConfig, split: Split, tokenizer: str) -> dict[LanguagePair, str]:
    """Returns the fingerprints that a split's shards have: what each pair's are made from.

    Args:
        config: The data configuration.
        split: The split.
        tokenizer: Fingerprint of the tokenizer.

    Raises:
        DataError: The clean text of a pair is missing.
    """
    clean = Path(config.folder) / "clean"
    if not (clean / MANIFEST).is_file():
        raise DataError(f"{clean} holds no clean text; run `hyperadapter data clean` first")
    known = read_json(clean / MANIFEST).get("splits", {})
    found: dict[LanguagePair, str] = {}
    for pair in language_pairs(config):
        text = known.get("-".join(pair), {}).get(split, {}).get("sha256")
        inputs = _PairInputs(
            split=split,
            pair=pair,
            text=text or _text_sha256(clean, split, pair),
            tokenizer=tokenizer,
            shards=config.shards,
        )
        found[pair] = fingerprint(inputs)
    return found


def _text_sha256(clean: Path, split: Split, pair: LanguagePair) -> str:
    path = split_path(clean, split, pair)
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; the clean corpus lacks {'-'.join(pair)}. Run `hyperadapter "
            "data clean`"
        ) from None


class _Build:
    """The shards of one split: those that are there, and those to be written."""

    def __init__(self, config: DataConfig, split: Split, tokenizer: Tokenizer) -> None:
        self.split = split
        self.part = Path()
        self.tasks: list[_Task] = []
        self.entries: dict[LanguagePair, PairEntry] = {}
        self._config = config
        self._tokenizer = tokenizer
        self._root = Path(config.folder)
        self._folder = self._root / "shards" / split
        self._wanted = pair_fingerprints(config, split, tokenizer.fingerprint)
        self._old = self._read_old()

    def _read_old(self) -> ShardManifest | None:
        try:
            return read_manifest(self._folder)
        except DataError:  # none, or one that is damaged or of an older format
            return None

    @property
    def finished(self) -> ShardManifest | None:
        """The manifest that is there, if nothing is left to do."""
        wanted = combined_fingerprint(self._tokenizer.fingerprint, list(self._wanted.values()))
        if self._old is None or self._old.fingerprint != wanted:
            return None
        whole = all(_is_whole(self._folder, pair) for pair in self._old.pairs)
        return self._old if whole else None

    def begin(self, stack: ExitStack) -> None:
        """Opens the new folder, fills it with what can be kept, and lists the rest as tasks."""
        # The fingerprints of the pairs decide what is kept, not one of the whole.
        self.part = stack.enter_context(resumable_directory(self._folder, f"shards {_FORMAT}"))
        old = {pair.fingerprint: pair for pair in self._old.pairs} if self._old else {}
        for pair, wanted in self._wanted.items():
            entry = self._recorded(pair, wanted) or self._adopt(old.get(wanted))
            if entry is not None:
                self.entries[pair] = entry
                continue
            self.tasks.append(
                _Task(
                    self._root / "clean",
                    self.part,
                    self.split,
                    pair,
                    wanted,
                    self._root / "tokenizer",
                    self._tokenizer.fingerprint,
                    self._config.shards,
                )
            )
        log.info(
            "shards/%s: %d language pairs, %d to be written",
            self.split, len(self._wanted), len(self.tasks),
        )  # fmt: skip

    def _recorded(self, pair: LanguagePair, wanted: str) -> PairEntry | None:
        """Returns what an interrupted call has finished."""
        path = _record(self.part, "-".join(pair))
        if not path.is_file():
            return None
        entry = PairEntry.model_validate_json(path.read_bytes())
        return entry if entry.fingerprint == wanted and _is_whole(self.part, entry) else None

    def _adopt(self, entry: PairEntry | None) -> PairEntry | None:
        """Links or copies the files of a pair that did not change."""
        if entry is None or not _is_whole(self._folder, entry):
            return None
        for file in _files(entry):
            target = self.part / file.file
            target.parent.mkdir(exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(self._folder / file.file, target)
            except OSError:  # this file system has no hard links
                shutil.copyfile(self._folder / file.file, target)
        return entry

    def finish(self) -> ShardManifest:
        """Writes the manifest and removes whatever is not in it."""
        manifest = ShardManifest.of_pairs(
            tuple(self.entries[pair] for pair in self._wanted),
            self._tokenizer.fingerprint,
            self._tokenizer.vocab_size,
        )
        kept = {self.part / file.file for pair in manifest.pairs for file in _files(pair)}
        for path in (*self.part.glob("*.tar"), *(self.part / LENGTHS).glob("*")):
            if path not in kept:
                path.unlink()
        for name in (_RECORDS, _SCRATCH):
            shutil.rmtree(self.part / name, ignore_errors=True)
        write_manifest(self.part, manifest)
        return manifest


def _files(entry: PairEntry) -> tuple[ShardEntry, ...]:
    return (entry.lengths, *entry.shards)


def _is_whole(folder: Path, entry: PairEntry) -> bool:
    """Says whether all files of a pair lie in a folder and have their sizes.

    The files of a merged manifest lie elsewhere and belong to others: never link or remove them.
    """
    for file in _files(entry):
        if is_url(file.file) or Path(file.file).is_absolute() or ".." in Path(file.file).parts:
            return False
        path = folder / file.file
        if not path.is_file() or path.stat().st_size != file.num_bytes:
            return False
    return True


def _record(folder: Path, name: str) -> Path:
    return folder / _RECORDS / f"{name}.json"


@lru_cache(maxsize=1)
def _load_tokenizer(folder: Path, fingerprint: str) -> Tokenizer:
    """Loads a tokenizer once for the many pairs of a process; the fingerprint tells it apart."""
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.fingerprint == fingerprint
    return tokenizer


def _write_pair(task: _Task) -> PairEntry:
    """Writes the shards of one language pair, and a record of them last."""
    tokenizer = _load_tokenizer(task.tokenizer_folder, task.tokenizer)
    scratch = task.folder / _SCRATCH / task.name
    shutil.rmtree(scratch, ignore_errors=True)
    # The seed names the pair, so that a new pair does not reorder the others.
    rng = np.random.default_rng([zlib.crc32(f"{task.split} {task.name}".encode()), 1])
    num_buckets = task.num_bytes // _BUCKET_BYTES + 1
    shuffle = BucketShuffle(scratch, num_buckets, rng)
    counts = _Counts()
    for rows in _encode(task, tokenizer, counts):
        shuffle.add(rows)
    chunks = iter_chunks(shuffle.iter_buckets(), task.config.block_sentences)
    samples = map(_sample, chunks)
    (task.folder / LENGTHS).mkdir(exist_ok=True)
    lengths_file = task.folder / LENGTHS / f"{task.name}.u16"
    with atomic_open(lengths_file, "wb") as stream:
        table = _BlockTable(stream)
        shards = [
            _entry(path, task.folder)
            for path in _write_tars(task.folder, task.name, samples, task.config.shard_bytes, table)
        ]
    shutil.rmtree(scratch, ignore_errors=True)
    blocks = table.columns()
    entry = PairEntry(
        a=task.pair[0],
        b=task.pair[1],
        fingerprint=task.fingerprint,
        sentences=int(blocks.sentences.sum()),
        a_tokens=int(blocks.a_tokens.sum()),
        b_tokens=int(blocks.b_tokens.sum()),
        a_longest=counts.longest["a"],
        b_longest=counts.longest["b"],
        dropped_long=counts.dropped_long,
        dropped_empty=counts.dropped_empty,
        lengths=_entry(lengths_file, task.folder),
        shards=tuple(shards),
        blocks=blocks,
    )
    write_text(_record(task.folder, task.name), entry.model_dump_json())
    log.info(
        "shards/%s: %s %d pairs, dropped %d too long and %d empty",
        task.split, task.name, entry.sentences, entry.dropped_long, entry.dropped_empty,
    )  # fmt: skip
    return entry


def _entry(path: Path, folder: Path) -> ShardEntry:
    return ShardEntry(
        file=path.relative_to(folder).as_posix(),
        sha256=sha256_file(path),
        num_bytes=path.stat().st_size,
    )


def _encode(task: _Task, tokenizer: Tokenizer, counts: _Counts) -> Iterator[Rows]:
    """Tokenises a pair's text and drops what does not fit, some sentences at a time."""
    ids = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    lines = iter_split(task.clean, task.split, task.pair)
    while batch := list(islice(lines, _ENCODE_SENTENCES)):
        texts = {"a": [line.a for line in batch], "b": [line.b for line in batch]}
        rows: Rows = {}
        for side in _SIDES:
            tokens, lengths = tokenizer.encode_ragged(texts[side])
            rows[side] = Ragged.from_lengths(tokens.astype(ids), lengths)
        shorter = np.minimum(rows["a"].lengths, rows["b"].lengths)
        longer = np.maximum(rows["a"].lengths, rows["b"].lengths)
        fits = longer <= task.config.max_sentence_tokens
        counts.dropped_empty += int((shorter <= 1).sum())
        counts.dropped_long += int(((shorter > 1) & ~fits).sum())
        if task.config.keep_text:
            rows |= {f"{side}_text": _text_rows(texts[side]) for side in _SIDES}
        kept = select(rows, np.flatnonzero((shorter > 1) & fits))
        for side in _SIDES:
            longest = int(kept[side].lengths.max(initial=0))
            counts.longest[side] = max(counts.longest[side], longest)
        yield kept


def _text_rows(texts: list[str]) -> Ragged:
    """Makes rows of bytes, each with its line's end."""
    lines = [f"{text}\n".encode() for text in texts]
    flat = np.frombuffer(b"".join(lines), np.uint8)
    return Ragged.from_lengths(flat, np.fromiter(map(len, lines), np.int64, len(lines)))


def _sample(rows: Rows) -> Sample:
    sample: Sample = {}
    for side in _SIDES:
        sample[f"{side}_tokens"] = rows[side].flat()
        sample[f"{side}_lengths"] = rows[side].lengths.astype("<u2")
    texts = {name: rows[name].flat().tobytes() for name in rows if name.endswith("_text")}
    return sample | texts


class _BlockTable:
    """Collects what the manifest says of a pair's blocks, and writes the lengths file."""

    def __init__(self, lengths: IO[bytes]) -> None:
        self._lengths = lengths
        self._columns: dict[str, list[int]] = {
            name: [] for name in BlockColumns.model_fields if name != "members"
        }
        self._members: dict[str, dict[str, list[int]]] = {}

    def add_sample(self, sample: Sample, shard: int) -> None:
        """Takes a block that is written to the pair's n-th shard."""
        parts = [np.asarray(sample[f"{side}_lengths"]) for side in _SIDES]
        data = b"".join(part.tobytes() for part in parts)
        self._lengths.write(data)
        a, b = (part.astype(np.int64) for part in parts)
        values = {
            "shard": shard,
            "sentences": len(a),
            "a_tokens": a.sum(),
            "b_tokens": b.sum(),
            "longer": np.maximum(a, b).sum(),
            "longer_a_tag": np.maximum(a + 1, b).sum(),
            "longer_b_tag": np.maximum(a, b + 1).sum(),
            "lengths_crc32": zlib.crc32(data),
        }
        for name, value in values.items():
            self._columns[name].append(int(value))

    def add_shard(self, path: Path) -> None:
        """Describes the members of a tar that was just written, from its bytes on disk."""
        with tarfile.open(path) as tar, open(path, "rb") as stream:
            for member in tar:
                assert member.offset_data - member.offset == HEADER_BYTES, member.name
                stream.seek(member.offset)
                crc32 = zlib.crc32(stream.read(HEADER_BYTES + member.size))
                columns = self._members.setdefault(
                    member.name.split(".")[1], {"offset": [], "size": [], "crc32": []}
                )
                columns["offset"].append(member.offset)
                columns["size"].append(member.size)
                columns["crc32"].append(crc32)

    def columns(self) -> BlockColumns:
        """Returns all blocks."""
        tree: dict[str, Any] = {**self._columns, "members": self._members}
        return BlockColumns.model_validate(tree)


def _write_tars(
    folder: Path, stem: str, samples: Iterator[Sample], shard_bytes: int, table: _BlockTable
) -> Iterator[Path]:
    """Writes tars of about `shard_bytes`, the same bytes for the same tokens; yields each one."""
    # Imported here because it loads torch wherever torch is installed.
    from webdataset import TarWriter

    sample = next(samples, None)
    number = block = 0
    while sample is not None:
        path = folder / f"{stem}-{number:05d}.tar"
        with (
            atomic_open(path, "wb") as stream,
            TarWriter(stream, user="hyperadapter", group="hyperadapter", mtime=0) as tar,
        ):
            size = 0
            while sample is not None and (not size or size < shard_bytes):
                key = f"{stem}-{block:07d}"
                size += tar.write({"__key__": key} | _payloads(key, sample))
                table.add_sample(sample, number)
                block += 1
                sample = next(samples, None)
        table.add_shard(path)
        number += 1
        yield path


def _payloads(key: str, sample: Sample) -> dict[str, bytes]:
    """Returns the bytes of a block's members by name without the key."""
    return {
        member_file(key, name).removeprefix(f"{key}."): (
            value if isinstance(value, bytes) else _npy_bytes(value)
        )
        for name, value in sample.items()
    }


def _npy_bytes(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()
