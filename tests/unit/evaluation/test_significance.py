"""Paired bootstrap: sacreBLEU's scores and resamples, and a p-value that keeps its promise."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest, _compute_p_value

from hyperadapter.evaluation.score import BASIC_METRICS, Metric, score_corpus, sentence_statistics
from hyperadapter.evaluation.significance import (
    bootstrap_scores,
    compare_scores,
    holm,
    score_of_sums,
)

WORDS = ["the", "a", "file", "menu", "window", "was", "not", "found", "open", "close", "new"]
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def sentences(count: int, seed: int = 1) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in range(count)]


def spoilt(texts: list[str], share: float, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [
        " ".join(generator.choice(WORDS) if generator.random() < share else word
                 for word in text.split())
        for text in texts
    ]  # fmt: skip


REFERENCES = sentences(150)
BETTER, WORSE = spoilt(REFERENCES, 0.3, 2), spoilt(REFERENCES, 0.38, 3)


def statistics(
    metric: Metric, *systems: list[str], ref: list[str] = REFERENCES
) -> list[np.ndarray]:
    return [sentence_statistics(system, ref, "de", metric)[0] for system in systems]


@pytest.mark.parametrize("metric", BASIC_METRICS)
@pytest.mark.parametrize(
    ("hyp", "ref"),
    [
        (BETTER, REFERENCES),
        (REFERENCES, REFERENCES),
        (["the file", "open"], ["the file", "close"]),  # no 3-gram, a short hypothesis
        (["x y z v w"], ["the file was not found"]),  # nothing matches
        (["a x b y c z", "q"], ["a b c", "the new file"]),  # unigrams only
        (["", "a"], ["the file was", "a new one"]),
        (["", ""], ["a b", "c d e"]),
        (["the file was not found in the window"], ["the file"]),
    ],
)
def test_scores_of_sums_are_those_of_sacrebleu(
    metric: Metric, hyp: list[str], ref: list[str]
) -> None:
    [table] = statistics(metric, hyp, ref=ref)
    expected = score_corpus(hyp, ref, "de").value(metric)
    assert score_of_sums(metric, table.sum(axis=0)[None])[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", BASIC_METRICS)
def test_a_resample_is_scored_as_the_corpus_it_stands_for(metric: Metric) -> None:
    ref, systems = REFERENCES[:40], (BETTER[:40], WORSE[:40])
    tables = statistics(metric, *systems, ref=ref)
    scores, resampled = bootstrap_scores(metric, tables, 3, np.random.default_rng(7))
    drawn = np.random.default_rng(7).integers(40, size=(3, 40))
    for system, texts in enumerate(systems):
        expected = score_corpus(texts, ref, "de").value(metric)
        assert scores[system] == pytest.approx(expected, abs=1e-9)
        for sample, rows in enumerate(drawn):
            corpus = [texts[row] for row in rows], [ref[row] for row in rows]
            expected = score_corpus(*corpus, "de").value(metric)
            assert resampled[system, sample] == pytest.approx(expected, abs=1e-9)


def test_many_sentences_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = statistics("chrf", BETTER, WORSE)
    whole = bootstrap_scores("chrf", tables, 20, np.random.default_rng(1))[1]
    monkeypatch.setattr("hyperadapter.evaluation.significance._MAX_CELLS", 7 * 150 + 1)
    assert np.array_equal(bootstrap_scores("chrf", tables, 20, np.random.default_rng(1))[1], whole)


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_agrees_with_the_paired_bootstrap_of_sacrebleu(metric: Metric) -> None:
    scorer = BLEU(force=True) if metric == "bleu" else CHRF()
    systems = [("baseline", WORSE), ("system", BETTER)]
    _, found = PairedTest(systems, {metric: scorer}, [REFERENCES], "bs", 1000)()
    theirs = next(values for name, values in found.items() if name != "System")[1]
    tables = statistics(metric, WORSE, BETTER)
    scores, resampled = bootstrap_scores(metric, tables, 1000, np.random.default_rng(3))
    assert scores[1] == pytest.approx(theirs.score, abs=1e-9)
    assert resampled[1].mean() == pytest.approx(theirs.mean, abs=0.25)
    low, high = np.quantile(resampled[1], (0.025, 0.975))
    assert (high - low) / 2 == pytest.approx(theirs.ci, rel=0.15)
    difference = scores[1] - scores[0]
    # Their rule on our resamples: the noise of 1000 resamples is 0.01 at most.
    of_theirs = np.abs(resampled[1] - resampled[0])
    assert _compute_p_value(of_theirs - of_theirs.mean(), abs(difference)) == pytest.approx(
        theirs.p_value, abs=0.02
    )
    # Ours counts on both sides.
    ours = compare_scores(difference, resampled[1] - resampled[0]).p_value
    assert ours == pytest.approx(2 * theirs.p_value, abs=0.02)


@pytest.mark.parametrize("metric", BASIC_METRICS)
def test_a_system_and_itself(metric: Metric) -> None:
    tables = statistics(metric, BETTER, BETTER)
    scores, resampled = bootstrap_scores(metric, tables, 50, np.random.default_rng(1))
    assert tuple(compare_scores(scores[1] - scores[0], resampled[1] - resampled[0])) == (0, 0, 0, 1)


def test_the_order_of_the_systems_turns_the_sign_and_nothing_else() -> None:
    found = []
    for systems in ((BETTER, WORSE), (WORSE, BETTER)):
        scores, resampled = bootstrap_scores(
            "bleu", statistics("bleu", *systems), 200, np.random.default_rng(5)
        )
        found.append(compare_scores(scores[1] - scores[0], resampled[1] - resampled[0]))
    first, second = found
    assert first.value == -second.value < 0
    assert (first.low, first.high) == pytest.approx((-second.high, -second.low))
    assert first.p_value == second.p_value
    assert first.low < first.value < first.high


def test_a_clear_difference_is_found_and_p_is_never_zero() -> None:
    tables = statistics("chrf", spoilt(REFERENCES, 0.8, 4), BETTER)
    scores, resampled = bootstrap_scores("chrf", tables, 99, np.random.default_rng(1))
    found = compare_scores(scores[1] - scores[0], resampled[1] - resampled[0])
    assert found.low > 0
    assert found.p_value == 0.01


def test_equally_good_systems_differ_as_rarely_as_the_level_says() -> None:
    generator = np.random.default_rng(11)
    trials, count, samples = 600, 60, 200
    p_values, one_sided = [], []
    for _ in range(trials):
        difference = generator.normal(size=count)
        drawn = generator.integers(count, size=(samples, count))
        resampled = difference[drawn].mean(axis=1)
        p_values.append(compare_scores(difference.mean(), resampled).p_value)
        spread = np.abs(resampled)
        one_sided.append(_compute_p_value(spread - spread.mean(), abs(difference.mean())))
    # Three deviations of 5 % in 600 trials are 2.7 %.
    assert 0.025 < np.mean(np.array(p_values) <= 0.05) < 0.077
    assert np.mean(np.array(one_sided) <= 0.05) > 0.077  # why sacreBLEU's rule is not ours


# -------------------------------------------------------------------------------------------- Holm


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(P_VALUES)
def test_holm_keeps_the_order_and_only_raises(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert min(adjusted) == min(1, len(p_values) * min(p_values))
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


@given(P_VALUES, st.randoms(use_true_random=False))
def test_holm_does_not_depend_on_the_order(p_values: list[float], random: random.Random) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)
    shuffled = holm([p_values[i] for i in order])
    whole = holm(p_values)
    assert shuffled == [whole[i] for i in order]


@given(P_VALUES, st.data())
def test_holm_is_monotone(p_values: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(p_values) - 1))
    smaller = list(p_values)
    smaller[place] = data.draw(st.floats(0, p_values[place]))
    pairs = zip(holm(smaller), holm(p_values), strict=True)
    assert all(p <= q for p, q in pairs)
