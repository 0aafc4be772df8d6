"""Micro-batches equal those of a naive loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, MicroBatch, build_micro_batch, build_prompts
from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID

VOCAB = 100
Tag = Literal["source", "target", "none"]
LayoutOf = Callable[[Tag, Tag], BatchLayout]
sentences = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=6),
        st.lists(st.integers(4, VOCAB - 1), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=8,
)
tags = st.sampled_from(["source", "target", "none"])


@pytest.fixture(scope="module")
def layout_of(make_config: Callable[..., DataConfig]) -> LayoutOf:
    def build(encoder: Tag, decoder: Tag) -> BatchLayout:
        config = make_config(Path("unused"), tags={"encoder": encoder, "decoder": decoder})
        return BatchLayout.from_config(config, VOCAB)

    return build


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged.from_sequences([np.array(row) for row in rows])


def naive(rows: list[list[int]]) -> np.ndarray[Any, Any]:
    width = max(map(len, rows))
    return np.array([row + [PAD_ID] * (width - len(row)) for row in rows])


# en-de, de-en, en-cs, cs-en with languages en, de, cs
LANGUAGES = {0: (0, 1), 1: (1, 0), 2: (0, 2), 3: (2, 0)}


def opening(tag: Tag, direction: int, otherwise: list[int]) -> list[int]:
    src, tgt = LANGUAGES[direction]
    return {"source": [VOCAB + src], "target": [VOCAB + tgt], "none": otherwise}[tag]


@settings(max_examples=60, deadline=None)
@given(rows=sentences, encoder=tags, decoder=tags)
def test_equals_naive_loop(
    layout_of: LayoutOf,
    rows: list[tuple[int, list[int], list[int]]],
    encoder: Tag,
    decoder: Tag,
) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    batch = build_micro_batch(
        layout_of(encoder, decoder),
        np.array([d for d, _, _ in rows]),
        ragged([src for _, src, _ in rows]),
        ragged([tgt for _, _, tgt in rows]),
    )
    src = [opening(encoder, d, []) + s + [EOS_ID] for d, s, _ in rows]
    np.testing.assert_array_equal(batch.src_BS, naive(src))
    np.testing.assert_array_equal(batch.src_lengths_B, [len(s) for s in src])
    np.testing.assert_array_equal(
        batch.tgt_in_BT, naive([opening(decoder, d, [BOS_ID]) + t for d, _, t in rows])
    )
    np.testing.assert_array_equal(batch.tgt_out_BT, naive([[*t, EOS_ID] for _, _, t in rows]))
    np.testing.assert_array_equal(batch.tgt_lengths_B, [len(t) + 1 for _, _, t in rows])
    assert batch.num_tgt_tokens == sum(len(t) + 1 for _, _, t in rows)
    assert batch.padded_tokens == max(batch.src_BS.size, batch.tgt_out_BT.size)
    distinct = sorted({d for d, _, _ in rows})
    assert batch.direction_P.tolist() == distinct
    assert batch.src_language_P.tolist() == [LANGUAGES[d][0] for d in distinct]
    assert batch.tgt_language_P.tolist() == [LANGUAGES[d][1] for d in distinct]
    assert batch.sentences_P.tolist() == [sum(d == e for e, _, _ in rows) for d in distinct]
    assert all(getattr(batch, name).dtype == np.int64 for name in MicroBatch.__slots__)


@settings(max_examples=30, deadline=None)
@given(rows=sentences, encoder=tags, decoder=tags)
def test_prompts_are_the_sorted_sources(
    layout_of: LayoutOf,
    rows: list[tuple[int, list[int], list[int]]],
    encoder: Tag,
    decoder: Tag,
) -> None:
    layout = layout_of(encoder, decoder)
    batch, order_B = build_prompts(
        layout, np.array([d for d, _, _ in rows]), ragged([src for _, src, _ in rows])
    )
    ordered = [rows[i] for i in order_B]
    assert [d for d, _, _ in ordered] == sorted(d for d, _, _ in rows)
    full = build_micro_batch(
        layout,
        np.array([d for d, _, _ in ordered]),
        ragged([src for _, src, _ in ordered]),
        ragged([tgt for _, _, tgt in ordered]),
    )
    np.testing.assert_array_equal(batch.src_BS, full.src_BS)
    np.testing.assert_array_equal(batch.tgt_in_BT, full.tgt_in_BT[:, :1])
    np.testing.assert_array_equal(batch.sentences_P, full.sentences_P)
    assert batch.tgt_out_BT.shape == (len(rows), 1)
    assert batch.num_tgt_tokens == 0


def test_rows_must_be_sorted_by_direction(layout_of: LayoutOf) -> None:
    text = ragged([[5], [6]])
    with pytest.raises(AssertionError, match="sorted by direction"):
        build_micro_batch(layout_of("source", "target"), np.array([1, 0]), text, text)


def test_ragged_rows_in_any_order() -> None:
    rows = Ragged.from_lengths(np.arange(10, 16), np.array([1, 3, 2])).rows(np.array([2, 0, 2]))
    assert rows.flat().tolist() == [14, 15, 10, 14, 15]
    assert Ragged.from_sequences([]).flat().tolist() == []
