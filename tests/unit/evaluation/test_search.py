"""Beam search against slow references that know neither batches nor caches."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from hyperadapter.config import EvaluationConfig, RunConfig
from hyperadapter.core.errors import CheckpointError, ConfigError
from hyperadapter.evaluation import candidates, hypotheses, search
from hyperadapter.evaluation.search import Hypothesis
from hyperadapter.model.cache import LayerCache
from hyperadapter.model.seq2seq import Seq2Seq
from tests.unit.evaluation.made_search import Sources, Task, assert_same, make_task, options


@pytest.fixture(scope="module")
def task(tiny_config: Callable[..., RunConfig]) -> Callable[..., Task]:
    return functools.partial(make_task, tiny_config)


some_sources = st.lists(
    st.lists(st.integers(4, 8), min_size=1, max_size=5).map(tuple), min_size=1, max_size=4
)


@settings(max_examples=20)
@given(
    some_sources,
    st.integers(0, 4),
    st.integers(1, 5),
    st.sampled_from([(0.0, 2), (0.6, 2), (1.0, 4), (2.0, 8)]),
)
def test_equals_a_search_without_batch_or_cache(
    task: Callable[..., Task],
    sources: Sources,
    seed: int,
    beam_size: int,
    penalty_extra: tuple[float, int],
) -> None:
    tiny = task(seed=seed)
    penalty, extra = penalty_extra
    config = options(beam_size, length_penalty=penalty, max_length_extra=extra)
    expected = [tiny.reference(source, config) for source in sources]
    assert_same(tiny.search(sources, config), expected)


def all_outputs(
    tiny: Task, source: Sequence[int], longest: int, config: EvaluationConfig
) -> list[Hypothesis]:
    """All outputs of a vocabulary of three pieces, the best first."""
    assert tiny.longest(source, config) == longest
    log_probs = functools.cache(lambda prefix: tiny.log_probs(source, prefix).tolist())
    outputs = []
    for length in range(longest + 1):
        for ids in itertools.product((4, 5, 6), repeat=length):
            pieces = (*ids, EOS_ID)
            score = sum(log_probs(pieces[:t])[pieces[t]] for t in range(length + 1))
            outputs.append(tiny.hypothesis(source, ids, score, config))
    return sorted(outputs, key=lambda hypothesis: -hypothesis.score)


@pytest.mark.parametrize("kind", ["none", "hyper", "language", "direction"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_translations(
    task: Callable[..., Task], kind: str, penalty: float
) -> None:
    tiny = task(num_pieces=7, seed=3, kind=kind)
    source = (4, 6)
    config = options(400, length_penalty=penalty, max_length_ratio=0.1, max_length_extra=4)
    expected = all_outputs(tiny, source, 4, config)
    assert_same(tiny.search([source], config), expected[:1])
    [found] = tiny.n_best([source], config, 40)
    assert_same(found, expected[:40])


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_coverage_changes_which_translations_are_best(task: Callable[..., Task], seed: int) -> None:
    tiny, source = task(num_pieces=7, seed=seed), (4, 6, 5, 5)
    sizes = {"length_penalty": 1.0, "max_length_ratio": 0.1, "max_length_extra": 3}
    config = options(400, coverage_penalty=0.7, **sizes)
    expected = all_outputs(tiny, source, 3, config)
    [found] = tiny.n_best([source], config, 20)
    assert_same(found, expected[:20])
    [without] = tiny.n_best([source], options(400, **sizes), 20)
    assert [h.ids for h in without] != [h.ids for h in found]


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_no_run_of_pieces_comes_twice(task: Callable[..., Task], ngram: int) -> None:
    tiny, source = task(num_pieces=7, seed=3), (4, 6)
    config = options(400, max_length_ratio=0.1, max_length_extra=4, no_repeat_ngram=ngram)

    def repeats(ids: Sequence[int]) -> bool:
        runs = [ids[start : start + ngram] for start in range(len(ids) - ngram + 1)]
        return len(set(runs)) < len(runs)

    all_of_them = all_outputs(tiny, source, 4, config)
    expected = [output for output in all_of_them if not repeats(output.ids)]
    assert len(expected) == {1: 16, 2: 97, 3: 118}[ngram]
    [found] = tiny.n_best([source], config, 400)
    assert_same(found, expected)


@pytest.mark.parametrize("prefix", [(), (5,), (6, 4, 4)])
def test_a_prefix_leaves_the_best_of_what_begins_with_it(
    task: Callable[..., Task], prefix: tuple[int, ...]
) -> None:
    tiny, source = task(num_pieces=7, seed=3), (4, 6)
    config = options(400, max_length_ratio=0.75, max_length_extra=1)
    outputs = all_outputs(tiny, source, 4, config)
    expected = [output for output in outputs if output.ids[: len(prefix)] == prefix]
    found, beside = tiny.n_best([source, (5, 5, 6)], config, 30, [prefix, ()])
    assert_same(found, expected[:30])
    assert_same(beside, tiny.n_best([(5, 5, 6)], config, 30)[0])


some_options = st.fixed_dictionaries(
    {
        "length_penalty": st.sampled_from([0.0, 1.0, 2.0]),
        "max_length_extra": st.integers(1, 5),
        "coverage_penalty": st.sampled_from([0.0, 0.3, 2.0]),
        "no_repeat_ngram": st.integers(0, 3),
    }
)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(4, 8), min_size=1, max_size=4),
            st.lists(st.integers(4, 8), max_size=4),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 4),
    st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted),
    some_options,
    st.sampled_from([1, 4]),
)
def test_all_options_together_equal_the_reference(
    task: Callable[..., Task],
    pairs: list[tuple[list[int], list[int]]],
    seed: int,
    sizes: list[int],
    changes: dict[str, float],
    steps: int,
) -> None:
    tiny, (n_best, beam_size) = task(seed=seed), sizes
    config = options(beam_size, **changes)
    sources, prefixes = zip(*pairs, strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_STEPS_BETWEEN_LOOKS", {"cpu": steps})
        patch.setattr(candidates, "_PIECES_AT_A_TIME", {"cpu": 4})
        found = tiny.n_best(sources, config, n_best, prefixes)
    for source, prefix, of_sentence in zip(sources, prefixes, found, strict=True):
        expected = tiny.reference_n_best(source, config, n_best, prefix)
        assert_same(of_sentence, expected)


def test_the_search_goes_on_until_all_that_are_kept_are_sure(task: Callable[..., Task]) -> None:
    """The best is found in one step, the second best is not."""
    tiny = task()
    with torch.no_grad():
        tiny.model.decoder.norm.bias.fill_(1.0)
        tiny.model.embedding.weight[EOS_ID] = 9.0
    steps: list[int] = []
    step = tiny.model.step

    def counted(last_R: Tensor, *rest: object) -> Tensor:
        steps.append(len(last_R))
        return step(last_R, *rest)  # type: ignore[arg-type]

    tiny.model.step = counted  # type: ignore[method-assign, assignment]
    config = options(4, length_penalty=0.0, max_length_extra=50)
    counts = []
    for n_best in (1, 2, 4):
        steps.clear()
        [found] = tiny.n_best([(4, 5)], config, n_best)
        assert len(found) == n_best
        counts.append(len(steps))
    assert counts[0] == 1 < counts[1] <= counts[2] < 10


def test_without_coverage_no_probabilities_are_computed(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(LayerCache, "_cross_probabilities", fail)
    task().search([(4, 5)], options())
    with pytest.raises(AssertionError):
        task().search([(4, 5)], options(coverage_penalty=0.1))


@pytest.mark.parametrize("decoder_start", [False, True])
def test_the_prompt_neither_covers_nor_repeats(
    task: Callable[..., Task], decoder_start: bool
) -> None:
    tiny = task(seed=4, decoder_start=decoder_start)
    sources, config = [(4, 5, 6), (7,), (8, 4)], options(coverage_penalty=1.0, no_repeat_ngram=1)
    found = tiny.n_best(sources, config, 3)
    for source, of_sentence in zip(sources, found, strict=True):
        assert_same(of_sentence, tiny.reference_n_best(source, config, 3))


def test_a_prefix_may_be_longer_than_the_longest_output(task: Callable[..., Task]) -> None:
    tiny, prefix = task(), (4, 5, 6, 7, 8) * 4
    config = options(3, max_length_ratio=0.1, max_length_extra=2)
    [found] = tiny.n_best([(4, 5)], config, 3, [prefix])
    assert_same(found, tiny.reference_n_best((4, 5), config, 3, prefix))
    assert all(h.ids[:20] == prefix and len(h.ids) <= 22 for h in found)
    assert len(found) == 3


def test_fewer_are_returned_where_there_are_no_more(task: Callable[..., Task]) -> None:
    """Of one piece, which may not come twice, there are two outputs."""
    tiny = task(num_pieces=5)
    config = options(5, no_repeat_ngram=1, max_length_extra=9)
    [found] = tiny.n_best([(4, 4)], config, 5)
    assert {h.ids for h in found} == {(), (4,)}


@pytest.mark.parametrize(
    ("n_best", "message"),
    [
        (0, "n_best is 0; ask for 1"),
        (5, "n_best is 5, but a search with beam_size 4 .*; set beam_size to 5 or more"),
    ],
)
def test_options_that_do_not_go_together(
    task: Callable[..., Task], n_best: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        task().n_best([(4,)], options(), n_best)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_prompt_may_have_two_positions(task: Callable[..., Task], beam_size: int) -> None:
    """As M2M100 and NLLB have it: the end mark, then the tag."""
    tiny = task(seed=4, decoder_start=True)
    sources, config = [(4, 5, 6), (7,), (8, 4)], options(beam_size)
    prompts = tiny.prompts(sources)
    assert prompts.tgt_in_M.view(3, -1).tolist() == [[EOS_ID, 9 + 2]] * 3
    found = tiny.search(sources, config)
    assert_same(found, [tiny.reference(source, config) for source in sources])
    assert found != task(seed=4).search(sources, config)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_sources, st.integers(1, 4), st.integers(1, 6))
def test_when_sentences_leave_does_not_matter(
    task: Callable[..., Task],
    monkeypatch: pytest.MonkeyPatch,
    sources: Sources,
    beam_size: int,
    steps: int,
) -> None:
    tiny, config = task(), options(beam_size)
    expected = tiny.search(sources, config)
    with monkeypatch.context() as patch:
        patch.setattr(search, "_STEPS_BETWEEN_LOOKS", {"cpu": steps})
        patch.setattr(hypotheses, "_LEAST_SHARE_THAT_LEAVES", 1.0)
        assert_same(tiny.search(sources, config), expected)


@pytest.mark.parametrize("size", [4, 5, 8])
def test_the_vocabulary_may_be_taken_in_parts(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    tiny, config = task(), options(3)
    sources = [(4, 5, 6), (7,), (8, 4)]
    expected = tiny.search(sources, config)
    monkeypatch.setattr(candidates, "_PIECES_AT_A_TIME", {"cpu": size})
    assert_same(tiny.search(sources, config), expected)


@settings(max_examples=15)
@given(some_sources, st.integers(0, 4))
def test_beam_of_one_takes_the_best_piece_each_time(
    task: Callable[..., Task], sources: Sources, seed: int
) -> None:
    tiny = task(seed=seed)
    config = options(1)
    for source, found in zip(sources, tiny.search(sources, config), strict=True):
        ids: list[int] = []
        while len(ids) < tiny.longest(source, config):
            piece = int(tiny.log_probs(source, ids).argmax())
            if piece == EOS_ID:
                break
            ids.append(piece)
        assert found.ids == tuple(ids)


@settings(max_examples=20)
@given(some_sources, st.integers(1, 4))
def test_a_batch_equals_its_sentences_alone(
    task: Callable[..., Task], sources: Sources, beam_size: int
) -> None:
    tiny, config = task(), options(beam_size)
    alone = [tiny.search([source], config)[0] for source in sources]
    assert_same(tiny.search(sources, config), alone)


def test_an_empty_source_can_be_translated(task: Callable[..., Task]) -> None:
    assert len(task().search([(), (4, 5)], options())) == 2


@pytest.mark.parametrize("beam_size", [1, 4])
def test_special_pieces_are_never_produced(task: Callable[..., Task], beam_size: int) -> None:
    tiny = task()
    with torch.no_grad():
        # The best rows by far, in whatever direction a hidden state points.
        direction = tiny.model.decoder.norm.bias
        direction.fill_(1.0)
        tiny.model.embedding.weight[[PAD_ID, UNK_ID, BOS_ID]] = 9.0
    for hypothesis in tiny.search([(4, 5, 6), (7,)], options(beam_size)):
        assert not set(hypothesis.ids) & {PAD_ID, UNK_ID, BOS_ID, EOS_ID}
        assert max(hypothesis.ids, default=4) < 9
        assert hypothesis.score < -3


@pytest.mark.parametrize("beam_size", [1, 3])
def test_a_model_that_never_ends_is_cut_at_the_longest_output(
    task: Callable[..., Task], beam_size: int
) -> None:
    tiny = task()
    with torch.no_grad():
        tiny.model.decoder.norm.bias.fill_(1.0)
        tiny.model.embedding.weight[EOS_ID] = -9.0
    config = options(beam_size, max_length_ratio=2.0)
    sources = [(4,), (4, 5, 6), (7, 8)]
    found = tiny.search(sources, config)
    assert [len(h.ids) for h in found] == [8, 12, 10]
    assert [len(h.ids) for h in found] == [tiny.longest(source, config) for source in sources]


def test_done_sentences_leave_the_batch(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = task(seed=2)
    rows: list[int] = []
    step = Seq2Seq.step

    def spy(self: Seq2Seq, last_R: Tensor, *rest: object) -> Tensor:
        rows.append(len(last_R))
        return step(self, last_R, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Seq2Seq, "step", spy)
    sources = [(4, 5, 6, 7, 8, 4, 5, 6), (4,), (5, 6)]
    tiny.search(sources, options(1, max_length_extra=1, max_length_ratio=0.5))
    assert rows[0] == 3
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] == 1


def test_search_stops_when_nothing_better_can_come(task: Callable[..., Task]) -> None:
    """Without length penalty a first finished hypothesis in the lead wins: one step."""
    tiny = task()
    with torch.no_grad():
        tiny.model.decoder.norm.bias.fill_(1.0)
        tiny.model.embedding.weight[EOS_ID] = 9.0
    steps = 0
    step = tiny.model.step

    def counted(*arguments: object) -> Tensor:
        nonlocal steps
        steps += 1
        return step(*arguments)  # type: ignore[arg-type]

    tiny.model.step = counted  # type: ignore[method-assign, assignment]
    tiny.search([(4, 5)], options(4, length_penalty=0.0, max_length_extra=50))
    assert steps == 1


def test_weights_that_are_not_finite_are_an_error(task: Callable[..., Task]) -> None:
    tiny = task()
    with torch.no_grad():
        tiny.model.encoder.norm.weight[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"scores that are not finite.*earlier checkpoint"):
        tiny.search([(4, 5)], options())


def test_results_carry_no_graph_and_the_model_is_unchanged(task: Callable[..., Task]) -> None:
    tiny = task()
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    tiny.search([(4, 5)], options())
    assert all(torch.equal(before[n], t) for n, t in tiny.model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny.model.parameters())
