"""Draws against the exact distribution, and what they must not depend on."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, gumbel_r, kstest
from torch import Tensor

from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from hyperadapter.config import RunConfig, SamplingConfig
from hyperadapter.core.errors import CheckpointError
from hyperadapter.evaluation import sampling, search
from hyperadapter.evaluation.sampling import draw_keys
from tests.unit.evaluation.made_search import Task, assert_same, make_task, options, repeats

FIRST_KEYS = [40979834761513457, 5541861173002360454]
SOURCES = [(4, 5, 6), (7,), (8, 4, 4, 4, 6), (5, 6)]


@pytest.fixture(scope="module")
def task(tiny_config: Callable[..., RunConfig]) -> Callable[..., Task]:
    return functools.partial(make_task, tiny_config)


def plain_distribution(log_probs: Sequence[float], how: SamplingConfig) -> dict[int, float]:
    """What a piece is drawn from, one step after the other as the words say it."""
    scores = {p: s / how.temperature for p, s in enumerate(log_probs) if s > -np.inf}
    best = sorted(scores, key=lambda piece: -scores[piece])[: how.top_k]
    total = sum(np.exp(scores[piece]) for piece in best)
    kept, before = {}, 0.0
    for piece in best:
        if before < how.top_p:
            kept[piece] = np.exp(scores[piece]) / total
        before += np.exp(scores[piece]) / total
    return {piece: share / sum(kept.values()) for piece, share in kept.items()}


@pytest.mark.parametrize(
    ("how", "ngram", "prefix"),
    [
        ({}, 0, ()),
        ({"temperature": 0.5}, 0, ()),
        ({"top_k": 2}, 0, ()),
        ({"top_p": 0.7}, 0, ()),
        ({"top_k": 3, "top_p": 0.8, "temperature": 2.0}, 0, ()),
        ({}, 1, ()),
        ({}, 0, (6,)),
    ],
)
def test_translations_come_as_often_as_they_should(
    task: Callable[..., Task], how: dict[str, float], ngram: int, prefix: tuple[int, ...]
) -> None:
    tiny, source, longest, draws = task(num_pieces=7, seed=3), (4, 6), 2, 1000
    tree = {"sampling": how, "no_repeat_ngram": ngram, "length_penalty": 0.5}
    config = options(1, max_length_ratio=0.25, max_length_extra=1, **tree)
    assert tiny.longest(source, config) == longest
    assert config.sampling is not None
    # Every output's probability of being drawn, and its score.
    chances, scores = {}, {}
    for length in range(longest + 1):
        for ids in itertools.product((4, 5, 6), repeat=length):
            chance, score = 1.0, 0.0
            for step, piece in enumerate((*ids, EOS_ID)):
                log_probs = tiny.log_probs(source, ids[:step]).tolist()
                score += log_probs[piece]
                if step < len(prefix):
                    chance *= piece == prefix[step]
                    continue
                allowed = [
                    -np.inf if repeats((*ids[:step], p), ngram) else s
                    for p, s in enumerate(log_probs)
                ]
                if step < longest:
                    chance *= plain_distribution(allowed, config.sampling).get(piece, 0.0)
            if chance > 0:
                chances[ids], scores[ids] = chance, score / (length + 1) ** 0.5
    assert sum(chances.values()) == pytest.approx(1.0)
    [found] = tiny.n_best([source], config, draws, [prefix])
    assert len(found) == draws
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(scores[hypothesis.ids], rel=1e-4)
    drawn = Counter(hypothesis.ids for hypothesis in found)
    # The test is of use where five or more are expected; the rare outputs are counted together.
    common = [ids for ids in chances if chances[ids] * draws >= 5]
    counts = [drawn[ids] for ids in common]
    expected = [chances[ids] * draws for ids in common]
    test = (
        chisquare([*counts, draws - sum(counts)], [*expected, draws - sum(expected)])
        if len(common) < len(chances)
        else chisquare(counts, expected)
    )
    assert test.pvalue > 0.01


@pytest.mark.parametrize("how", [{}, {"top_p": 0.8}, {"top_k": 4, "temperature": 1.5}])
def test_draws_depend_on_their_sentence_only(
    task: Callable[..., Task], how: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = task()
    config = options(1, sampling=how, max_length_ratio=2.0)
    expected = tiny.n_best(SOURCES, config, 5)
    alone = [tiny.n_best([source], config, 5)[0] for source in SOURCES]
    backwards = tiny.n_best(SOURCES[::-1], config, 5)[::-1]
    fewer = tiny.n_best(SOURCES, config, 2)
    monkeypatch.setattr(search, "_STEPS_BETWEEN_LOOKS", {"cpu": 4})
    monkeypatch.setattr(sampling, "_SCORES_AT_A_TIME", 18)
    monkeypatch.setattr(sampling, "_NOISE_AT_A_TIME", {"cpu": 1})
    rarely = tiny.n_best([*SOURCES, SOURCES[0]], config, 5)
    for place, of_sentence in enumerate(expected):
        for other in (alone, backwards, rarely):
            assert_same(other[place], of_sentence)
        assert_same(fewer[place], of_sentence[:2])
    assert_same(rarely[-1], expected[0])
    drawn = {h.ids for of_sentence in expected for h in of_sentence}
    assert len(drawn) > 4


def test_another_seed_draws_others(task: Callable[..., Task]) -> None:
    tiny = task()
    one, two = (tiny.n_best(SOURCES, options(sampling={"seed": s}), 3) for s in (1, 2))
    assert [h.ids for s in one for h in s] != [h.ids for s in two for h in s]


def test_the_best_piece_only_is_greedy_search(task: Callable[..., Task]) -> None:
    tiny = task()
    greedy = tiny.search(SOURCES, options(1))
    for how in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}):
        found = tiny.n_best(SOURCES, options(5, sampling=how), 2)
        assert_same([h for s in found for h in s], [h for h in greedy for _ in range(2)])
        assert_same(tiny.search(SOURCES, options(5, sampling=how)), greedy)


def test_keys_are_of_the_sentence_and_the_draw(task: Callable[..., Task]) -> None:
    prompts = task().prompts([*SOURCES, SOURCES[0]])
    keys = draw_keys(prompts, 50, seed=3)
    assert torch.equal(keys[0], keys[4])
    assert torch.equal(draw_keys(prompts, 20, seed=3), keys[:, :20])
    assert len(keys[:4].unique()) == 200
    assert not set(keys.flatten().tolist()) & set(draw_keys(prompts, 50, 4).flatten().tolist())
    # The same in all versions and on all machines.
    assert keys[1, :2].tolist() == FIRST_KEYS


def test_the_hash_is_splitmix64() -> None:
    """Against plain Python without a sign; the first numbers of seed 1234567 are published."""

    def plain(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    step = 0x9E3779B97F4A7C15
    states = [(1234567 + number * step) % 2**64 for number in range(1, 9)]
    expected = [plain(state) for state in states]
    assert expected[:2] == [6457827717110365317, 3203168211198807973]
    signed = torch.from_numpy(np.array(states, np.uint64).view(np.int64))
    assert sampling._mixed(signed).numpy().view(np.uint64).tolist() == expected


def test_noise_is_gumbel_and_no_two_pieces_share_it() -> None:
    keys = sampling._mixed(torch.arange(40))
    noise = sampling._gumbel_noise(keys, torch.arange(500).expand(40, -1))
    assert noise.isfinite().all()
    assert kstest(noise.flatten().numpy(), gumbel_r.cdf).pvalue > 0.01
    assert len(noise.unique()) > 0.99 * noise.numel()
    for one, other in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.03
    # A piece has its noise wherever it stands, so a pool may be in any order.
    some = torch.tensor([[7, 3, 499]] * 40)
    assert torch.equal(sampling._gumbel_noise(keys, some), noise[:, [7, 3, 499]])


@given(
    st.integers(0, 10**6),
    st.sampled_from([0.05, 0.5, 0.999]),
    st.sampled_from([None, 2, 30]),
    st.integers(1, 900),
)
def test_the_pool_is_the_fewest_pieces_that_have_top_p(
    seed: int, top_p: float, top_k: int | None, num_pieces: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # One row is sure and one is not: it needs more than the pieces that are looked at first.
    scores = torch.tensor([[5.0], [0.1]]) * torch.randn(2, num_pieces, generator=generator)
    how = SamplingConfig(top_p=top_p, top_k=top_k)
    found, pieces = sampling._pool(scores, how)
    for row in range(2):
        kept = set(pieces[row][found[row].isfinite()].tolist())
        assert kept == set(plain_distribution(scores[row].log_softmax(0).tolist(), how))
    assert torch.equal(found[found.isfinite()], scores.gather(1, pieces)[found.isfinite()])


def test_special_pieces_are_never_drawn(task: Callable[..., Task]) -> None:
    tiny = task()
    with torch.no_grad():
        tiny.model.decoder.norm.bias.fill_(1.0)
        tiny.model.embedding.weight[[PAD_ID, UNK_ID, BOS_ID]] = 9.0
    for of_sentence in tiny.n_best(SOURCES, options(sampling={}), 20):
        for hypothesis in of_sentence:
            assert not set(hypothesis.ids) & {PAD_ID, UNK_ID, BOS_ID, EOS_ID}
            assert hypothesis.score < -3


def test_weights_that_are_not_finite_are_an_error(task: Callable[..., Task]) -> None:
    tiny = task()
    with torch.no_grad():
        tiny.model.encoder.norm.weight[0] = torch.nan
    for how_ in ({}, {"top_p": 0.5}, {"top_k": 3}):
        with pytest.raises(CheckpointError, match="scores that are not finite"):
            tiny.n_best(SOURCES, options(sampling=how_), 2)


def test_sentences_leave_when_all_their_draws_have_ended(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, rows = task(), []
    step = tiny.model.step

    def spy(last_R: Tensor, *rest: object) -> Tensor:
        rows.append(len(last_R))
        return step(last_R, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny.model, "step", spy)
    config = options(1, sampling={}, max_length_ratio=3.0)
    found = tiny.n_best(SOURCES, config, 3)
    assert rows[0] == 12
    assert rows == sorted(rows, reverse=True)
    assert len(rows) == 1 + max(len(h.ids) for s in found for h in s)
