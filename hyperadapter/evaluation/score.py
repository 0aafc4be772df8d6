"""Scores by sacreBLEU (Post 2018), each with the signature that makes it comparable.

    BLEU     words; 13a, or what `bleu_tokenizer` says for languages written without spaces
    chrF     characters, 6-grams, beta 2 (Popovic 2015): sacreBLEU's chrF2
    chrF++   the same with word 2-grams (Popovic 2017): sacreBLEU's chrF2++
    TER      edits and shifts over the words of the reference (Snover et al. 2006); lower is better
    spBLEU   BLEU over SentencePiece pieces, flores200 (NLLB Team 2022): one tokenizer for all

Nothing is downloaded: the model of flores200 must be there already, and without it spBLEU is an
error that says where it belongs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from sacrebleu import utils
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.tokenizers import tokenizer_spm

from hyperadapter.config import Metric
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.languages import script_of
from hyperadapter.core.schema import StrictModel

__all__ = [
    "BASIC_METRICS",
    "METRICS",
    "METRIC_NAMES",
    "CorpusScorer",
    "Metric",
    "Score",
    "Scores",
    "bleu_tokenizer",
    "require_models",
    "score_corpus",
    "sentence_statistics",
]

METRICS: tuple[Metric, ...] = get_args(Metric)
BASIC_METRICS: tuple[Metric, ...] = ("bleu", "chrf", "chrfpp")

METRIC_NAMES: dict[Metric, str] = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrfpp": "chrF++",
    "ter": "TER",
    "spbleu": "spBLEU",
}
_CHINESE_SCRIPTS = {"Hans", "Hant"}
# No spaces between words, or (Korean) between what a 4-gram should count.
_CHARACTER_SCRIPTS = {"Jpan", "Khmr", "Kore", "Laoo", "Mymr", "Thai", "Tibt"}
_SPBLEU_TOKENIZER = "flores200"
_NUMBERS_OF_A_KIND = 3  # of n-grams, in chrF: of the hypothesis, of the reference, matching

Statistics: TypeAlias = NDArray[np.float64]


class Score(StrictModel):
    """One metric over one corpus.

    Attributes:
        metric: Which one.
        value: From 0 to 100; TER may be above.
        signature: Of sacreBLEU; scores with different signatures cannot be compared.
    """

    metric: Metric
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{METRIC_NAMES[self.metric]} {self.value:.1f} [{self.signature}]"


class Scores(StrictModel):
    """All metrics over one corpus; `ter` and `spbleu` are computed on request only."""

    bleu: Score
    chrf: Score
    chrfpp: Score
    ter: Score | None = None
    spbleu: Score | None = None

    def all(self) -> tuple[Score, ...]:
        """Returns the scores that were computed, in the order of `METRICS`."""
        found = (self.bleu, self.chrf, self.chrfpp, self.ter, self.spbleu)
        return tuple(score for score in found if score is not None)

    def value(self, metric: Metric) -> float:
        """Returns the value of one metric."""
        return self.score(metric).value

    def score(self, metric: Metric) -> Score:
        """Returns the score of one metric.

        Raises:
            DataError: It was not computed.
        """
        score: Score | None = getattr(self, metric)
        if score is None:
            raise DataError(
                f"{METRIC_NAMES[metric]} was not computed; add {metric} to evaluation.metrics and "
                "evaluate again, which translates nothing anew"
            )
        return score


def bleu_tokenizer(language: str) -> str:
    """Returns sacreBLEU's name of the tokenizer for BLEU into a language."""
    script = script_of(language)
    if script in _CHINESE_SCRIPTS:
        return "zh"
    return "char" if script in _CHARACTER_SCRIPTS else "13a"


def require_models(metrics: Sequence[Metric]) -> None:
    """Checks, before anything is translated, that the metrics' models are on this machine.

    Raises:
        ConfigError: The model of spBLEU is missing; sacreBLEU would try to download it.
    """
    if "spbleu" not in metrics:
        return
    url = tokenizer_spm.SPM_MODELS[_SPBLEU_TOKENIZER]["url"]
    path = Path(utils.SACREBLEU_DIR, "models", Path(url).name)
    if not path.is_file() or not path.stat().st_size:
        raise ConfigError(
            f"spbleu in evaluation.metrics needs the SentencePiece model {path}, which is not "
            f"there, and nothing is downloaded here. On a machine with network run `echo a | "
            f"sacrebleu <(echo a) --tokenize {_SPBLEU_TOKENIZER}`, or download {url}, and copy the "
            "file to that place; another folder than the first part of it can be named by the "
            "environment variable SACREBLEU. Or leave spbleu out"
        )


def _build_metric(metric: Metric, tgt: str, references: list[list[str]] | None = None) -> Any:
    # force: no warning for text that looks tokenized; it changes no figure.
    if metric == "bleu":
        return BLEU(tokenize=bleu_tokenizer(tgt), force=True, references=references)
    if metric == "spbleu":
        require_models((metric,))
        return BLEU(tokenize=_SPBLEU_TOKENIZER, force=True, references=references)
    if metric == "ter":
        return TER(references=references)
    return CHRF(word_order=2 if metric == "chrfpp" else 0, references=references)


class CorpusScorer:
    """Scores several systems, and parts of their sentences, against the same references.

    What a sentence adds to a score is counted once for all sentences and any part of them, the
    references' n-grams once for all systems, and chrF's n-grams are taken from chrF++'s.

    Args:
        references: One for each sentence.
        tgt: Their language.
        metrics: What to compute.

    Raises:
        ConfigError: The model of spBLEU is missing.
        DataError: There are no references.
    """

    def __init__(
        self, references: Sequence[str], tgt: str, metrics: Sequence[Metric] = BASIC_METRICS
    ) -> None:
        self._references, self._tgt = list(references), tgt
        _check_lines(self._references, self._references, tgt)
        # chrF's statistics are the first of chrF++'s: characters come before words.
        self._counted_as: dict[Metric, Metric] = {
            name: "chrfpp" if name == "chrf" and "chrfpp" in metrics else name for name in metrics
        }
        self._scorers = {
            name: _build_metric(
                name, tgt, [self._references] if name in self._counted_as.values() else None
            )
            for name in metrics
        }

    def scores(
        self, hypotheses: Sequence[str], parts: Sequence[Sequence[int]] = ()
    ) -> tuple[Scores, ...]:
        """Scores a system.

        Args:
            hypotheses: One for each reference.
            parts: Numbers of sentences, at least one in each.

        Returns:
            The scores of all sentences, then those of each part.

        Raises:
            DataError: The two sides differ in length.
        """
        _check_lines(hypotheses, self._references, self._tgt)
        counts = {
            name: self._scorers[name]._extract_corpus_statistics(hypotheses, None)
            for name in set(self._counted_as.values())
        }
        return tuple(self._sum(counts, rows) for rows in (range(len(self._references)), *parts))

    def _sum(self, counts: Mapping[Metric, Any], rows: Sequence[int]) -> Scores:
        found = {}
        for name, scorer in self._scorers.items():
            lines = [counts[self._counted_as[name]][row] for row in rows]
            if self._counted_as[name] != name:
                lines = [line[: _NUMBERS_OF_A_KIND * scorer.order] for line in lines]
                # What it learns from references that it never saw.
                scorer.num_refs = self._scorers[self._counted_as[name]].num_refs
            value = float(scorer._aggregate_and_compute(lines).score)
            found[name] = Score(metric=name, value=value, signature=str(scorer.get_signature()))
        return Scores(**found)


def score_corpus(
    hypotheses: Sequence[str],
    references: Sequence[str],
    tgt: str,
    metrics: Sequence[Metric] = BASIC_METRICS,
) -> Scores:
    """Scores translations into the language `tgt` against one reference each.

    Raises:
        ConfigError: The model of spBLEU is missing.
        DataError: There is nothing to score, or the two sides differ in length.
    """
    _check_lines(hypotheses, references, tgt)
    return CorpusScorer(references, tgt, metrics).scores(hypotheses)[0]


def sentence_statistics(
    hypotheses: Sequence[str], references: Sequence[str], tgt: str, metric: Metric
) -> tuple[Statistics, str]:
    """Returns what each sentence adds to a corpus score, and the score's signature.

    The statistics, `[sentences, numbers]`, are sacreBLEU's own; the score of any choice of
    sentences follows from their sum (`significance.score_of_sums`). For BLEU: length of
    hypothesis and reference, matching n-grams, all n-grams of the hypothesis, n from 1 to 4. For
    chrF: n-grams of hypothesis and reference, and matching ones, for each kind of n-gram.

    Raises:
        DataError: There is nothing to score, or the two sides differ in length.
    """
    _check_lines(hypotheses, references, tgt)
    scorer = _build_metric(metric, tgt)
    statistics = scorer._extract_corpus_statistics(hypotheses, [references])
    return np.array(statistics, dtype=np.float64), str(scorer.get_signature())


def _check_lines(hypotheses: Sequence[str], references: Sequence[str], tgt: str) -> None:
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} translations into {tgt} cannot be scored against "
            f"{len(references)} references: line n of one must belong to line n of the other"
        )
    if not hypotheses:
        raise DataError(f"there are no translations into {tgt} to score; the texts are empty")
