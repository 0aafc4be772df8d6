"""Shards of made-up text, written straight in the format of `data_pipeline/shards/manifest.py`.

    python -m benchmarks.synthetic_shards FOLDER --pairs 500 --sentences 10000000 --power 0

No tokenizer runs and nothing is shuffled, because the text is random anyway: a gigabyte takes less
than a minute. `data_pipeline/shards/writer.py` writes the real ones.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.synthetic_text import CorpusSpec, PairTokens
from data_pipeline.config import DataConfig, StreamConfig, TokenizerConfig
from data_pipeline.shards.manifest import (
    HEADER_BYTES,
    LENGTHS,
    BlockColumns,
    PairEntry,
    ShardEntry,
    ShardManifest,
    member_file,
    write_manifest,
)
from hyperadapter.core.languages import known_languages

__all__ = ["build_config", "language_pairs", "write_shards"]

_PIVOT = "en"
_BLOCK_SENTENCES = 2048
_SPEC = "spec.json"


def language_pairs(count: int) -> list[tuple[str, str]]:
    """Returns so many pairs of real languages: those with English first, then all others."""
    others = [code for code in known_languages() if code != _PIVOT]
    return list(islice(combinations([_PIVOT, *others], 2), count))


def build_config(folder: Path, spec: CorpusSpec, stream: StreamConfig | None = None) -> DataConfig:
    """Returns the configuration of a folder that `write_shards` wrote: both ways of each pair."""
    pairs = language_pairs(spec.pairs)
    return DataConfig(
        folder=str(folder),
        shards_folder=str(folder),
        languages=tuple(dict.fromkeys(code for pair in pairs for code in pair)),
        pivot=_PIVOT,
        directions=tuple(f"{x}-{y}" for a, b in pairs for x, y in ((a, b), (b, a))),
        tokenizer=TokenizerConfig(vocab_size=spec.vocab_size),
        stream=stream or StreamConfig(),
    )


def write_shards(folder: Path, spec: CorpusSpec) -> float:
    """Writes `folder/train`, unless it is there, and returns the seconds that it took."""
    begin = time.perf_counter()
    mark = folder / _SPEC
    wanted = json.dumps(asdict(spec))
    if not mark.is_file() or mark.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        train = folder / "train"
        (train / LENGTHS).mkdir(parents=True)
        entries = [
            _write_pair(train, pair, spec.make_pair(number, sentences))
            for number, (pair, sentences) in enumerate(
                zip(language_pairs(spec.pairs), spec.sizes(), strict=True)
            )
        ]
        manifest = ShardManifest.of_pairs(tuple(entries), "synthetic", spec.vocab_size)
        write_manifest(train, manifest)
        mark.write_text(wanted, encoding="utf-8")
    return time.perf_counter() - begin


def _write_pair(folder: Path, pair: tuple[str, str], text: PairTokens) -> PairEntry:
    """Writes one tar and the lengths file of a language pair."""
    name = "-".join(pair)
    columns: dict[str, list[int]] = {c: [] for c in BlockColumns.model_fields if c != "members"}
    members: dict[str, dict[str, list[int]]] = {}
    tar = bytearray()
    lengths_file = bytearray()
    for number, (a_tokens, a, b_tokens, b) in enumerate(_blocks(text)):
        lengths = np.concatenate([a, b]).astype("<u2").tobytes()
        lengths_file += lengths
        values: dict[str, Any] = {
            "shard": 0,
            "sentences": len(a),
            "a_tokens": a.sum(),
            "b_tokens": b.sum(),
            "longer": np.maximum(a, b).sum(),
            "longer_a_tag": np.maximum(a + 1, b).sum(),
            "longer_b_tag": np.maximum(a, b + 1).sum(),
            "lengths_crc32": zlib.crc32(lengths),
        }
        for column, value in values.items():
            columns[column].append(int(value))
        arrays = {
            "a_tokens": a_tokens, "a_lengths": a.astype("<u2"),
            "b_tokens": b_tokens, "b_lengths": b.astype("<u2"),
        }  # fmt: skip
        for member, array in arrays.items():
            place = _append_member(tar, member_file(f"{name}-{number:07d}", member), array)
            for column, value in place.items():
                members.setdefault(member, {}).setdefault(column, []).append(value)
    tar += bytes(2 * HEADER_BYTES)
    return PairEntry(
        a=pair[0],
        b=pair[1],
        fingerprint="synthetic",
        sentences=len(text.a_lengths),
        a_tokens=len(text.a_tokens),
        b_tokens=len(text.b_tokens),
        a_longest=int(text.a_lengths.max()),
        b_longest=int(text.b_lengths.max()),
        dropped_long=0,
        dropped_empty=0,
        lengths=_write_file(folder, f"{LENGTHS}/{name}.u16", lengths_file),
        shards=(_write_file(folder, f"{name}-00000.tar", tar),),
        blocks=BlockColumns.model_validate({**columns, "members": members}),
    )


def _blocks(text: PairTokens) -> Iterator[PairTokens]:
    ends = [np.concatenate([[0], np.cumsum(side)]) for side in (text.a_lengths, text.b_lengths)]
    total = len(text.a_lengths)
    for first in range(0, total, _BLOCK_SENTENCES):
        last = min(first + _BLOCK_SENTENCES, total)
        a, b = (slice(int(end[first]), int(end[last])) for end in ends)
        yield PairTokens(
            text.a_tokens[a], text.a_lengths[first:last],
            text.b_tokens[b], text.b_lengths[first:last],
        )  # fmt: skip


def _append_member(tar: bytearray, name: str, array: NDArray[Any]) -> dict[str, int]:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    payload = stream.getvalue()
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    header = info.tobuf(tarfile.USTAR_FORMAT)
    place = {
        "offset": len(tar),
        "size": len(payload),
        "crc32": zlib.crc32(payload, zlib.crc32(header)),
    }
    tar += header + payload + bytes(-len(payload) % HEADER_BYTES)
    return place


def _write_file(folder: Path, name: str, data: bytearray) -> ShardEntry:
    (folder / name).write_bytes(data)
    return ShardEntry(file=name, sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))


def main() -> None:
    """Writes shards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--sentences", type=int, default=400_000, help="of all pairs together")
    parser.add_argument("--power", type=float, default=1.0, help="0: all pairs of one size")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    spec = CorpusSpec(
        arguments.pairs, arguments.sentences, power=arguments.power, seed=arguments.seed
    )
    print(f"{arguments.folder}: {write_shards(arguments.folder, spec):.1f} s")


if __name__ == "__main__":
    main()
