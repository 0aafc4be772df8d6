"""A manifest that does not add up is refused, and what it holds survives being written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.shards.manifest import (
    BlockColumns,
    MemberColumns,
    PairEntry,
    ShardEntry,
    ShardManifest,
    locate,
    member_file,
    parse_manifest,
    read_manifest,
    write_manifest,
)
from hyperadapter.core.errors import CorruptShardError, DataError

Change = Callable[[dict[str, Any]], object]


OTHERS = ("de", "fr", "sw")


def make_pair(a: str, b: str, sentences: list[int]) -> PairEntry:
    """Makes a language pair whose blocks have so many sentences, of two tokens each."""
    counts = np.array(sentences, np.int64)
    zeros = counts * 0
    member = MemberColumns(offset=zeros, size=counts * 2, crc32=zeros + 2**32 - 1)
    total = sum(sentences)
    return PairEntry(
        a=a,
        b=b,
        fingerprint=f"{a}{b}",
        sentences=total,
        a_tokens=2 * total,
        b_tokens=2 * total,
        a_longest=2,
        b_longest=2,
        dropped_long=0,
        dropped_empty=0,
        lengths=ShardEntry(file=f"lengths/{a}-{b}.u16", sha256="0" * 64, num_bytes=4 * total),
        shards=(ShardEntry(file=f"{a}-{b}-00000.tar", sha256="0" * 64, num_bytes=1),),
        blocks=BlockColumns(
            shard=zeros,
            sentences=counts,
            a_tokens=2 * counts,
            b_tokens=2 * counts,
            longer=2 * counts,
            longer_a_tag=3 * counts,
            longer_b_tag=3 * counts,
            lengths_crc32=zeros,
            members={"a_tokens": member, "b_tokens": member},
        ),
    )


def make_manifest(*pairs: PairEntry) -> ShardManifest:
    return ShardManifest.of_pairs(pairs, "toy", 350)


@given(st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=3))
def test_what_is_written_is_read(sizes: list[list[int]]) -> None:
    pairs = [make_pair("en", code, size) for code, size in zip(OTHERS, sizes, strict=False)]
    manifest = make_manifest(*pairs)
    again = parse_manifest(manifest.model_dump_json().encode(), "toy")
    assert again == manifest
    assert again.num_blocks == sum(map(len, sizes))
    assert all(pair.blocks.shard.dtype == np.int64 for pair in again.pairs)


def test_it_is_one_line_of_a_file(tmp_path: Path) -> None:
    manifest = make_manifest(make_pair("en", "de", [3, 2]))
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert (tmp_path / "manifest.json").read_text().count("\n") == 1


def test_other_numbers_are_another_manifest() -> None:
    assert make_manifest(make_pair("en", "de", [3])) != make_manifest(make_pair("en", "de", [4]))


def test_a_pair_is_found_in_either_order() -> None:
    manifest = make_manifest(make_pair("en", "de", [3]), make_pair("cs", "en", [1]))
    assert manifest.find("en", "de") == (0, "a")
    assert manifest.find("de", "en") == (0, "b")
    assert manifest.find("en", "cs") == (1, "b")
    assert manifest.find("cs", "de") is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda p: p.update(sentences=4), "the blocks have 5 sentences, the pair 4"),
        (lambda p: p.update(b_tokens=11), "the blocks have 10 b_tokens, the pair 11"),
        (lambda p: p.update(shards=[]), "a block lies in a shard that is not listed"),
        (lambda p: p["blocks"]["longer"].pop(), "the columns of the blocks differ in length"),
        (
            lambda p: p["blocks"]["members"]["a_tokens"]["size"].append(1),
            "the columns of the blocks differ in length",
        ),
        (lambda p: p["blocks"].update(shard=[0, -1]), "must be a list of whole numbers from 0 on"),
        (lambda p: p["blocks"].update(shard=[0, 0.5]), "must be a list of whole numbers from 0 on"),
        (lambda p: p["blocks"].update(shard="00"), "must be a list of whole numbers from 0 on"),
        (lambda p: p["lengths"].update(num_bytes=21), "the lengths file does not fit 5 pairs"),
    ],
)
def test_what_does_not_add_up_is_refused(change: Change, complaint: str) -> None:
    tree = make_manifest(make_pair("en", "de", [3, 2])).model_dump(mode="json")
    change(tree["pairs"][0])
    with pytest.raises(CorruptShardError, match=f"toy is not a shard manifest .*{complaint}"):
        parse_manifest(json.dumps(tree).encode(), "toy")


def test_pairs_listed_twice_are_refused() -> None:
    tree = make_manifest(make_pair("en", "de", [3])).model_dump(mode="json")
    tree["pairs"].append(make_pair("de", "en", [3]).model_dump(mode="json"))
    with pytest.raises(CorruptShardError, match="language pairs listed twice: en-de, de-en"):
        parse_manifest(json.dumps(tree).encode(), "toy")


def test_the_older_format_is_named() -> None:
    with pytest.raises(DataError, match=r"is of an older format than 2; run `hyperadapter data sh"):
        parse_manifest(b'{"fingerprint": "0", "shards": [], "blocks": []}', "toy")


def test_names(tmp_path: Path) -> None:
    assert make_pair("en", "de", []).key(12) == "en-de-0000012"
    assert member_file("k", "a_tokens") == "k.a_tokens.npy"
    assert member_file("k", "b_text") == "k.b_text.txt"
    assert locate(tmp_path / "out", "../in/x.tar") == str(tmp_path / "in/x.tar")
    assert locate(tmp_path, "/data/x.tar") == "/data/x.tar"
    assert locate(tmp_path, "s3://bucket/x.tar") == "s3://bucket/x.tar"


def test_a_pair_cannot_name_a_path() -> None:
    tree = make_manifest(make_pair("en", "de", [3])).model_dump(mode="json")
    tree["pairs"][0]["b"] = "../../de"
    with pytest.raises(CorruptShardError, match=r"unknown language code '\.\./\.\./de'"):
        parse_manifest(json.dumps(tree).encode(), "toy")
