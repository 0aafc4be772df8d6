"""Is one system better than another, or were the sentences kind to it?

Paired bootstrap resampling (Koehn 2004): both systems are scored on the same resamples of the test
sentences. What a sentence adds to a corpus score is counted once; a resample is then a sum of rows,
and all of them one product of matrices.

The p-value is two-sided. It asks how often resampled differences lie as far from their mean as the
measured one lies from 0 (Efron and Tibshirani 1993, section 16.4; Riezler and Maxwell 2005). Where
sacreBLEU (`significance.py`) counts on one side only, p is about half of ours; its rule finds a
difference between equally good systems at twice the rate that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hyperadapter.config import Metric

__all__ = [
    "Difference",
    "bootstrap_scores",
    "compare_scores",
    "holm",
    "score_of_sums",
]

Array: TypeAlias = NDArray[np.float64]
_MAX_CELLS = 4_000_000  # of the table of how often each sentence is in each resample
_BLEU_ORDER = 4
_CHRF_BETA = 2
_CONFIDENCE = 0.95
# Differences that are 0 but for rounding.
_EPSILON = 1e-9


class Difference(NamedTuple):
    """How a system differs from a baseline.

    Attributes:
        value: Score of the system minus that of the baseline.
        low: Lower end of the 95 % interval of the difference (percentiles).
        high: Its upper end.
        p_value: Two-sided; 1 for a system and itself.
    """

    value: float
    low: float
    high: float
    p_value: float


def score_of_sums(metric: Metric, sums: Array) -> Array:
    """Computes corpus scores from summed statistics, as sacreBLEU does.

    Args:
        metric: `bleu` (and `spbleu`), `chrf` or `chrfpp`.
        sums: `[corpora, numbers]`, sums over sentences of `score.sentence_statistics`.

    Returns:
        `[corpora]`, from 0 to 100.
    """
    formulas: dict[Metric, Callable[[Array], Array]] = {
        "bleu": _bleu, "spbleu": _bleu, "chrf": _chrf, "chrfpp": _chrf,
    }  # fmt: skip
    return formulas[metric](sums)


def _bleu(sums: Array) -> Array:
    """BLEU (Papineni et al. 2002) with exponential smoothing: the k-th order without a match counts
    as 2 ** -k matches (NIST's mteval-v13a.pl)."""
    hyp_len, ref_len = sums[:, 0], sums[:, 1]
    correct, total = sums[:, 2 : 2 + _BLEU_ORDER], sums[:, 2 + _BLEU_ORDER :]
    missed = np.cumsum((correct == 0) & (total > 0), axis=1)
    matches = np.where(correct > 0, correct, 0.5**missed)
    with np.errstate(divide="ignore", invalid="ignore"):
        # An order that no hypothesis is long enough for makes BLEU 0.
        logs = np.where(total > 0, np.log(matches / total), -np.inf).sum(axis=1) / _BLEU_ORDER
        brevity = np.where(hyp_len < ref_len, 1 - ref_len / hyp_len, 0.0)
    return np.where((correct > 0).any(axis=1), 100 * np.exp(logs + brevity), 0.0)


def _chrf(sums: Array) -> Array:
    """chrF (Popovic 2015): F-score of the precision and recall of n-grams, each averaged over the
    kinds that both sides have."""
    hyp, ref, match = (sums[:, start::3] for start in range(3))
    both = (hyp > 0) & (ref > 0)
    kinds = np.maximum(both.sum(axis=1), 1)
    precision = np.where(both, match / np.maximum(hyp, 1), 0).sum(axis=1) / kinds
    recall = np.where(both, match / np.maximum(ref, 1), 0).sum(axis=1) / kinds
    weight = _CHRF_BETA**2
    below = weight * precision + recall
    score: Array = (1 + weight) * precision * recall / np.where(below > 0, below, 1)
    return 100 * score


def bootstrap_scores(
    metric: Metric, systems: Sequence[Array], samples: int, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Scores systems on all sentences, and on the same resamples of them.

    Args:
        metric: Of the statistics.
        systems: For each, `[sentences, numbers]` of `score.sentence_statistics`.
        samples: How many resamples.
        generator: Draws the sentences, one number each.

    Returns:
        Scores `[systems]`, and resampled scores `[systems, samples]`.
    """
    table = np.concatenate(systems, axis=1)  # [sentences, systems x numbers]
    sentences, width = len(table), systems[0].shape[1]
    at_once = max(1, _MAX_CELLS // sentences)
    sums = [table.sum(axis=0, keepdims=True)]
    for start in range(0, samples, at_once):
        count = min(at_once, samples - start)
        drawn = generator.integers(sentences, size=(count, sentences))
        drawn += np.arange(count)[:, None] * sentences
        times = np.bincount(drawn.ravel(), minlength=count * sentences)
        sums.append(times.reshape(count, sentences).astype(np.float64) @ table)
    stacked = np.concatenate(sums).reshape(1 + samples, len(systems), width)
    scores = np.stack([score_of_sums(metric, stacked[:, n]) for n in range(len(systems))])
    return scores[:, 0], scores[:, 1:]


def compare_scores(value: float, resampled: Array) -> Difference:
    """Judges a difference of two systems.

    Args:
        value: The difference on all sentences.
        resampled: `[samples]`, the same on resamples.
    """
    spread = np.abs(resampled - resampled.mean())
    as_far = int((spread >= abs(value) - _EPSILON).sum())
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    # One more: the sentences as they are, of which p can never be 0.
    p_value = (as_far + 1) / (len(resampled) + 1)
    return Difference(float(value), float(low), float(high), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for how many there are (Holm 1979), in the order given.

    The chance that any of those below a level is a false alarm is then at most that level.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    highest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted
