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

from collections.abc import Sequence
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


def _build_metric(metric: Metric, tgt: str) -> Any:
    # force: no warning for text that looks tokenized; it changes no figure.
    if metric == "bleu":
        return BLEU(tokenize=bleu_tokenizer(tgt), force=True)
    if metric == "spbleu":
        require_models((metric,))
        return BLEU(tokenize=_SPBLEU_TOKENIZER, force=True)
    if metric == "ter":
        return TER()
    return CHRF(word_order=2 if metric == "chrfpp" else 0)


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
    scores = {}
    for name in metrics:
        metric = _build_metric(name, tgt)
        value = float(metric.corpus_score(hypotheses, [references]).score)
        scores[name] = Score(metric=name, value=value, signature=str(metric.get_signature()))
    return Scores(**scores)


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
