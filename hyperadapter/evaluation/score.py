"""BLEU, chrF and chrF++ by sacreBLEU (Post 2018), each with the signature that makes it comparable.

    BLEU     words; 13a, or what `bleu_tokenizer` says for languages written without spaces
    chrF     characters, 6-grams, beta 2 (Popovic 2015): sacreBLEU's chrF2
    chrF++   the same with word 2-grams (Popovic 2017): sacreBLEU's chrF2++

Nothing is downloaded: the tokenizers that fetch a model (flores200, spm) are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import script_of
from hyperadapter.core.schema import StrictModel

__all__ = ["METRICS", "METRIC_NAMES", "Metric", "Score", "Scores", "bleu_tokenizer", "score_corpus"]

Metric: TypeAlias = Literal["bleu", "chrf", "chrfpp"]
METRICS: tuple[Metric, ...] = get_args(Metric)

METRIC_NAMES: dict[Metric, str] = {"bleu": "BLEU", "chrf": "chrF", "chrfpp": "chrF++"}
_CHINESE_SCRIPTS = {"Hans", "Hant"}
# No spaces between words, or (Korean) between what a 4-gram should count.
_CHARACTER_SCRIPTS = {"Jpan", "Khmr", "Kore", "Laoo", "Mymr", "Thai", "Tibt"}


class Score(StrictModel):
    """One metric over one corpus.

    Attributes:
        metric: Which one.
        value: From 0 to 100.
        signature: Of sacreBLEU; scores with different signatures cannot be compared.
    """

    metric: Metric
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{METRIC_NAMES[self.metric]} {self.value:.1f} [{self.signature}]"


class Scores(StrictModel):
    """All metrics over one corpus."""

    bleu: Score
    chrf: Score
    chrfpp: Score

    def all(self) -> tuple[Score, ...]:
        """Returns the scores in the order of `METRICS`."""
        return self.bleu, self.chrf, self.chrfpp

    def value(self, metric: Metric) -> float:
        """Returns the value of one metric."""
        return self.score(metric).value

    def score(self, metric: Metric) -> Score:
        """Returns the score of one metric."""
        return self.all()[METRICS.index(metric)]


def bleu_tokenizer(language: str) -> str:
    """Returns sacreBLEU's name of the tokenizer for BLEU into a language."""
    script = script_of(language)
    if script in _CHINESE_SCRIPTS:
        return "zh"
    return "char" if script in _CHARACTER_SCRIPTS else "13a"


def score_corpus(hypotheses: Sequence[str], references: Sequence[str], tgt: str) -> Scores:
    """Scores translations into the language `tgt` against one reference each.

    Raises:
        DataError: There is nothing to score, or the two sides differ in length.
    """
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} translations into {tgt} cannot be scored against "
            f"{len(references)} references: line n of one must belong to line n of the other"
        )
    if not hypotheses:
        raise DataError(f"there are no translations into {tgt} to score; the test split is empty")
    metrics: dict[Metric, Any] = {
        # force: no warning for text that looks tokenized; it changes no figure.
        "bleu": BLEU(tokenize=bleu_tokenizer(tgt), force=True),
        "chrf": CHRF(),
        "chrfpp": CHRF(word_order=2),
    }
    return Scores(
        **{
            name: Score(
                metric=name,
                value=float(metric.corpus_score(hypotheses, [references]).score),
                signature=str(metric.get_signature()),
            )
            for name, metric in metrics.items()
        }
    )
