"""Which pieces may come next, against plain Python."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.tokenizer import EOS_ID, PAD_ID
from hyperadapter.evaluation import candidates
from hyperadapter.evaluation.candidates import forbid, repeating_pieces
from tests.unit.evaluation.made_search import repeats


@given(st.integers(1, 400), st.integers(1, 12), st.integers(0, 99))
def test_top_finds_what_topk_finds(num_pieces: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that many are equal.
    scores = torch.randint(-20, 20, (3, num_pieces), generator=generator).float()
    scores[:, : num_pieces // 3] = -torch.inf
    best, places = candidates.top(scores, count)
    assert torch.equal(best, scores.topk(min(count, num_pieces), dim=1).values)
    assert torch.equal(scores.gather(1, places), best)
    assert all(len(set(row)) == len(row) for row in places.tolist())


@given(
    st.integers(0, 12).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(4, 7), min_size=length, max_size=length), min_size=4, max_size=4
        )
    ),
    st.integers(1, 4),
)
def test_repeating_pieces_are_those_that_complete_a_run(rows: list[list[int]], ngram: int) -> None:
    found = repeating_pieces(torch.tensor(rows, dtype=torch.int64).view(2, 2, -1), ngram)
    expected = [{piece for piece in range(4, 9) if repeats((*row, piece), ngram)} for row in rows]
    if found is None:
        assert not any(expected)
        assert len(rows[0]) < ngram
    else:
        assert [set(row) - {PAD_ID} for row in found.tolist()] == expected
    assert repeating_pieces(torch.tensor(rows, dtype=torch.int64).view(2, 2, -1), 0) is None


@given(st.integers(1, 20), st.lists(st.integers(3, 19), max_size=6), st.integers(0, 9))
def test_what_is_forbidden_is_forbidden_in_its_part(
    size: int, pieces: list[int], seed: int
) -> None:
    scores = torch.randn(1, 20, generator=torch.Generator().manual_seed(seed))
    expected = scores.clone()
    expected[0, [0, 1, 2, *pieces]] = -torch.inf
    parts = list(scores.clone().split(max(size, 3), dim=1))
    first = 0
    for part in parts:
        forbid(part, torch.tensor([pieces], dtype=torch.int64), first)
        first += part.size(1)
    assert torch.equal(torch.cat(parts, dim=1), expected)
    forbid(scores, None, 0)
    assert (scores[0, :EOS_ID] == -torch.inf).all()
    assert scores[0, EOS_ID:].isfinite().all()
