"""What is kept of the hypotheses that have finished."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.core.errors import CheckpointError
from hyperadapter.evaluation.hypotheses import Finished, Hypothesis

CPU = torch.device("cpu")
WIDTH = 3
# Few scores, so that many are equal.
one_step = st.lists(st.tuples(st.booleans(), st.integers(-4, -1)), min_size=WIDTH, max_size=WIDTH)


@given(st.lists(one_step, min_size=1, max_size=5), st.integers(1, 4))
def test_the_best_are_kept_in_order_and_of_equals_the_earlier(
    steps: list[list[tuple[bool, int]]], kept: int
) -> None:
    finished, plain = Finished.none(2, kept, CPU), []
    # The second sentence must not mix with the first.
    finished.keep_best(
        torch.tensor([[False], [True]]), torch.zeros(2, 1), torch.empty(2, 1, 0, dtype=torch.int64)
    )
    for length, step in enumerate(steps):
        ids = torch.full((2, WIDTH, length), 4) + torch.arange(WIDTH)[:, None]
        ended, scores = (torch.tensor([column] * 2) for column in zip(*step, strict=True))
        ended[1] = False
        finished.keep_best(ended, scores.float(), ids)
        plain += [
            Hypothesis((4 + k,) * length, score) for k, (end, score) in enumerate(step) if end
        ]
    assert finished.counts_A.tolist() == [len(plain), 1]
    first, second = torch.tensor([0]), torch.tensor([1])
    assert finished.select(second).to_lists() == [[Hypothesis((), 0.0)]]
    if plain:
        expected = sorted(plain, key=lambda hypothesis: -hypothesis.score)[:kept]
        assert finished.select(first).to_lists() == [expected]


def test_draws_have_their_own_places() -> None:
    finished = Finished.none(1, 3, CPU)
    ids = torch.tensor([[[4, 5], [6, 7], [8, 8]]])
    scores = torch.tensor([[-3.0, -2.0, -1.0]])
    finished.put(torch.tensor([[False, True, False]]), scores, ids[:, :, :1])
    finished.put(torch.tensor([[True, False, False]]), scores, ids)
    assert finished.counts_A.tolist() == [2]
    assert finished.to_lists() == [[Hypothesis((4, 5), -3.0), Hypothesis((6,), -2.0)]]


def test_a_sentence_without_any_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="scores that are not finite"):
        Finished.none(2, 3, CPU).to_lists()
