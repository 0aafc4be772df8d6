"""The decoder's memory of a search, against attention over each hypothesis's own history."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyperadapter.model.cache import DecoderCache

HEADS, HEAD_DIM, SRC = 2, 4, 5


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def padding(num_sentences: int) -> Tensor:
    """Sources of 5, 4, 3, ... positions."""
    lengths = SRC - torch.arange(num_sentences) % SRC
    return torch.arange(SRC) >= lengths[:, None]


class Search:
    """A cache of one layer and, beside it, the plain history of each row."""

    def __init__(self, num_sentences: int, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        shape = num_sentences, HEADS, SRC, HEAD_DIM
        self.cross = draw(self.generator, *shape), draw(self.generator, *shape)
        self.mask = padding(num_sentences)
        self.cache = DecoderCache.start([self.cross], self.mask)
        self.sentences = list(range(num_sentences))
        self.width = 1
        # Every other source position counts.
        self.counted = (torch.arange(SRC) % 2 == 0) & ~self.mask
        self.cache.count_coverage(self.counted)
        self.coverage = [torch.zeros(SRC, dtype=torch.float64) for _ in range(num_sentences)]
        self.keys: list[list[Tensor]] = [[] for _ in range(num_sentences)]
        self.values: list[list[Tensor]] = [[] for _ in range(num_sentences)]

    def step(self) -> None:
        """Does a step and compares what every row found."""
        rows = len(self.sentences) * self.width
        q, k, v = (draw(self.generator, rows, HEADS, HEAD_DIM) for _ in range(3))
        layer = self.cache.layers[0]
        found_self, found_cross = layer.self_attend(q, k, v), layer.cross_attend(q)
        self.cache.advance()
        for row in range(rows):
            self.keys[row].append(k[row])
            self.values[row].append(v[row])
            expected = attend(
                q[row], torch.stack(self.keys[row], 1), torch.stack(self.values[row], 1)
            )
            torch.testing.assert_close(found_self[row], expected)
            sentence = self.sentences[row // self.width]
            real = ~self.mask[sentence]
            keys, values = (part[sentence][:, real] for part in self.cross)
            torch.testing.assert_close(found_cross[row], attend(q[row], keys, values))
            # Values that say their position make attention say its probabilities.
            looks = attend(
                q[row], keys, torch.eye(SRC, dtype=torch.float64)[real].expand(2, -1, -1)
            )
            self.coverage[row] = self.coverage[row] + looks.mean(dim=0)
        uncovered = [
            coverage[self.counted[self.sentences[row // self.width]]].clamp(max=1.0).log().sum()
            for row, coverage in enumerate(self.coverage)
        ]
        found = self.cache.uncovered()
        assert found.shape == (len(self.sentences), self.width)
        torch.testing.assert_close(
            found.flatten().double(), torch.stack(uncovered), rtol=1e-4, atol=1e-4
        )

    def branch(self, parents: list[list[int]]) -> None:
        """Continues hypotheses, the parents counted within their sentences."""
        self.cache.branch(torch.tensor(parents))
        rows = [
            sentence * self.width + parent
            for sentence, of_sentence in enumerate(parents)
            for parent in of_sentence
        ]
        self._select(rows)
        self.width = len(parents[0])

    def keep(self, kept: list[int]) -> None:
        """Goes on with some sentences, counted among those that are left."""
        self.cache.keep(torch.tensor(kept))
        self._select([place * self.width + beam for place in kept for beam in range(self.width)])
        self.sentences = [self.sentences[place] for place in kept]

    def _select(self, rows: list[int]) -> None:
        self.coverage = [self.coverage[row] for row in rows]
        self.keys = [list(self.keys[row]) for row in rows]
        self.values = [list(self.values[row]) for row in rows]


def attend(q_NH: Tensor, k_NCH: Tensor, v_NCH: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q_NH[:, None], k_NCH, v_NCH)[:, 0]


@settings(max_examples=30)
@given(st.data(), st.integers(1, 3), st.integers(1, 12), st.integers(0, 9))
def test_every_row_sees_its_own_history_and_its_own_source(
    data: st.DataObject, num_sentences: int, steps: int, seed: int
) -> None:
    search = Search(num_sentences, seed)
    for _ in range(steps):
        search.step()
        if data.draw(st.booleans(), "branch"):
            width = data.draw(st.integers(1, 4), "width")
            parent = st.integers(0, search.width - 1)
            of_sentence = st.lists(parent, min_size=width, max_size=width)
            search.branch([data.draw(of_sentence) for _ in search.sentences])
        if data.draw(st.booleans(), "keep"):
            places = st.sampled_from(range(len(search.sentences)))
            search.keep(data.draw(st.lists(places, min_size=1, max_size=3, unique=True)))
    search.step()
    assert search.cache.length == steps + 1


def test_one_hypothesis_needs_no_mask_and_keeps_every_position() -> None:
    search = Search(2)
    for _ in range(40):
        search.step()
        search.branch([[0], [0]])
    assert 40 < search.cache.num_slots <= 2 * 41 + 8


def test_branching_moves_no_keys() -> None:
    search = Search(2)
    search.step()
    search.branch([[0, 0, 0], [0, 0, 0]])
    before = search.cache.layers[0].own[0].data_ptr()
    for _ in range(4):
        search.step()
        search.branch([[2, 0, 0], [1, 1, 2]])
        assert search.cache.layers[0].own[0].data_ptr() == before


def test_slots_of_dead_hypotheses_are_left_behind() -> None:
    search = Search(1)
    search.step()
    search.branch([[0] * 8])
    for _ in range(60):
        search.step()
        search.branch([[3] * 8])
    # 1 + 60 positions survive; 480 slots were filled.
    assert search.cache.num_slots <= 2 * (61 + 2 * 8) + 8


def test_leaving_sentences_take_their_slots_with_them() -> None:
    """The sentence that stays has one living slot a step, the one that leaves has four."""
    search = Search(2)
    search.step()
    search.branch([[0] * 4] * 2)
    for _ in range(30):
        search.step()
        search.branch([[0, 1, 2, 3], [0] * 4])
    before = search.cache.num_slots
    search.keep([1])
    assert search.cache.num_slots < before / 2
    search.step()


def test_a_source_without_padding_needs_no_mask() -> None:
    search = Search(2)
    search.mask = torch.zeros_like(search.mask)
    search.cache = DecoderCache.start([search.cross], None)
    search.cache.count_coverage(search.counted)
    search.step()
    search.keep([1])
    search.step()


def test_the_rows_of_a_mask_are_aligned() -> None:
    """Kernels for half precision would copy it otherwise, in every layer."""
    search = Search(3)
    search.step()
    search.branch([[0, 0, 0]] * 3)
    for mask in (search.cache._slots.mask(), search.cache.layers[0].cross_mask):
        assert mask is not None
        assert all(stride % 8 == 0 for stride in mask.stride()[:-1])


def test_a_position_that_nobody_looks_at_costs_a_finite_amount() -> None:
    keys = torch.tensor([0.0, -500.0])[None, None, :, None]
    cache = DecoderCache.start([(keys, keys)], None)
    cache.count_coverage(torch.tensor([[True, True]]))
    cache.layers[0].cross_attend(torch.ones(1, 1, 1))
    assert -88 < float(cache.uncovered()) < -87


def test_coverage_is_that_of_the_last_layer() -> None:
    far, near = (torch.tensor([0.0, x])[None, None, :, None] for x in (-500.0, 0.0))
    cache = DecoderCache.start([(far, far), (near, near)], None)
    cache.count_coverage(torch.tensor([[True, True]]))
    for layer in cache.layers:
        layer.cross_attend(torch.ones(1, 1, 1))
    assert float(cache.uncovered()) == pytest.approx(2 * math.log(0.5))
