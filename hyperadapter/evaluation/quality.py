"""What a score does not show: translations in the wrong language, copies, empty and endless ones.

All are counts over sentences, for the translations and, with the same yardstick, for the
references: a rate of the references is what the judge gets wrong, or what translators do. See
docs/evaluation.md for how sure language identification is on short texts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from data_pipeline.cleaning.language_id import label_of, load_identifier
from data_pipeline.cleaning.scripts import UNSPACED_CHARACTERS
from hyperadapter.config import QualityConfig, RunConfig
from hyperadapter.core.schema import StrictModel

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

    from data_pipeline.tokenizer import Tokenizer

__all__ = [
    "RATES",
    "LanguageJudge",
    "Quality",
    "Rate",
    "RateName",
    "add_rates",
    "judge_translations",
    "placeholders_of",
]

RateName: TypeAlias = Literal["off_target", "copied", "empty", "overlong", "placeholders_kept"]
RATES: tuple[RateName, ...] = get_args(RateName)

_ENGLISH = "en"
_UNSPACED = re.compile(f"[{UNSPACED_CHARACTERS}]")
# One character of a script without spaces tells a language as well as so many letters.
_LETTERS_OF_UNSPACED = 3
# A translation of "OK" may be a long word: sources count as at least so many pieces.
_SHORTEST_SOURCE = 5

_CONVERSION = r"[-#0+]*(?:[0-9]+|\*)?(?:\.(?:[0-9]+|\*))?(?:hh?|ll?|[Ljztq])?[diouxXeEfFgGcrsp@]"
_PLACEHOLDER = re.compile(
    rf"%%|%(?:\([\w.-]+\)|[0-9]+\$)?{_CONVERSION}(?![A-Za-z])"  # %s %1$d %(name)s; %% is text
    r"|(?<![0-9])%[0-9]{1,2}(?![0-9])"  # %1 of Qt
    r"|\$\{[^{}]*\}|\{\{[^{}]*\}\}|\{[^{}]*\}"  # ${x} {{x}} {x}
    r"|</?[A-Za-z][\w:.-]*(?:\s[^<>]*)?/?>"  # <tag>
    r"|&(?:[A-Za-z][\w.-]+|#[0-9]+|#x[0-9A-Fa-f]+);"  # &shortcut;
)
_TAG = re.compile(r"<(/?[\w:.-]+)[^>]*>")


class Rate(StrictModel):
    """How many sentences of how many.

    Attributes:
        count: Sentences of which something holds.
        of: Sentences of which it could hold.
    """

    count: int
    of: int

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where nothing could be judged."""
        return self.count / self.of if self.of else None


class Quality(StrictModel):
    """Rates over the sentences of one direction.

    Attributes:
        off_target: In another language, of those that were judged; None if the identifier does not
            know the target language.
        too_short: Not judged, because they have too few letters.
        copied: Equal to the source.
        empty: Without any character.
        overlong: As long as the search allows, or several times as long as the source.
        placeholders_kept: With the placeholders of the source, each as often, of those where one
            side has any.
    """

    off_target: Rate | None
    too_short: int
    copied: Rate
    empty: Rate
    overlong: Rate
    placeholders_kept: Rate

    def rate(self, name: RateName) -> Rate | None:
        """Returns one rate; None if it could not be judged."""
        rate: Rate | None = getattr(self, name)
        return rate


def add_rates(rates: Iterable[Rate | None]) -> Rate | None:
    """Returns the rate over all sentences of several directions; None if none was judged."""
    known = [rate for rate in rates if rate is not None]
    if not known:
        return None
    return Rate(count=sum(rate.count for rate in known), of=sum(rate.of for rate in known))


@cache
def _identifier(labels: frozenset[str]) -> LanguageIdentifier:
    """Returns the model of cleaning, which stays as it is, without all but some labels."""
    identifier = copy(load_identifier())
    groups = {label: label_of(label) for label in identifier.labels}
    identifier.set_languages([label for label, group in groups.items() if group in labels])
    return identifier


class LanguageJudge:
    """Says in which language of a run a text is.

    The model chooses among the run's languages and English only: what a run has never seen, it
    cannot write. Close relatives, such as Croatian and Serbian, are one to it, and so are varieties
    of a language (`data_pipeline.cleaning.language_id`).

    Args:
        languages: Those of the run.
        config: Which texts are judged, and how sure the model must be.

    Attributes:
        unknown: Languages that the model does not know.
    """

    def __init__(self, languages: Iterable[str], config: QualityConfig) -> None:
        labels = {code: label_of(code) for code in dict.fromkeys((*languages, _ENGLISH))}
        self.unknown = tuple(code for code, label in labels.items() if label is None)
        self._labels = frozenset(label for label in labels.values() if label is not None)
        self._config = config

    def judge(self, texts: Sequence[str], language: str) -> tuple[Rate | None, int]:
        """Counts the texts that are in another language than they should be.

        Returns:
            The rate among those judged, None if the model does not know `language`; and how many
            are too short to be judged.
        """
        expected = label_of(language)
        words = [_PLACEHOLDER.sub(" ", text) for text in texts]
        long = [text for text in words if _count_letters(text) >= self._config.min_letters]
        short = len(texts) - len(long)
        if expected is None:
            return None, short
        return Rate(count=sum(self._is_other(text, expected) for text in long), of=len(long)), short

    def _is_other(self, text: str, expected: str) -> bool:
        # The probabilities of relatives add up, as if they were one language.
        groups: dict[str | None, float] = {}
        for label, probability in _identifier(self._labels).rank(text):
            group = label_of(label)
            groups[group] = groups.get(group, 0.0) + probability
        best = max(groups, key=lambda group: groups[group])
        return best != expected and groups[best] >= self._config.min_probability


def _count_letters(text: str) -> int:
    letters = "".join(filter(str.isalpha, text))
    return len(letters) + (_LETTERS_OF_UNSPACED - 1) * len(_UNSPACED.findall(letters))


def placeholders_of(text: str) -> Counter[str]:
    """Counts the placeholders of a text, without their spaces; tags without their attributes."""
    found = (match[0] for match in _PLACEHOLDER.finditer(text) if match[0] != "%%")
    return Counter("".join(_TAG.sub(r"<\1>", token).split()) for token in found)


def judge_translations(
    sources: Sequence[str],
    translations: Sequence[str],
    tgt: str,
    judge: LanguageJudge,
    tokenizer: Tokenizer,
    config: RunConfig,
) -> Quality:
    """Counts what is wrong with translations.

    Args:
        sources: The texts that were translated.
        translations: Theirs, line by line.
        tgt: The language they should be in.
        judge: Of languages.
        tokenizer: Of the run; lengths are counted in its pieces.
        config: Of the run: how long the search allows a translation to be, and what is overlong.
    """
    count = len(sources)
    pairs = list(zip(sources, translations, strict=True))
    off_target, too_short = judge.judge(translations, tgt)
    marked = [(placeholders_of(src), placeholders_of(hyp)) for src, hyp in pairs]
    marked = [(a, b) for a, b in marked if a or b]
    kept = sum(a == b for a, b in marked)
    copied = sum(src.strip() == hyp.strip() and bool(src.strip()) for src, hyp in pairs)
    overlong = sum(_overlong(sources, translations, tokenizer, config))
    return Quality(
        off_target=off_target,
        too_short=too_short,
        copied=Rate(count=copied, of=count),
        empty=Rate(count=sum(not hyp.strip() for hyp in translations), of=count),
        overlong=Rate(count=overlong, of=count),
        placeholders_kept=Rate(count=kept, of=len(marked)),
    )


def _overlong(
    sources: Sequence[str],
    translations: Sequence[str],
    tokenizer: Tokenizer,
    config: RunConfig,
) -> list[bool]:
    """Compares lengths in pieces; the same translation may have been written in more of them."""
    search = config.evaluation
    marks = 1 + (config.data.tags.encoder != "none")  # the end mark, and perhaps a tag
    lengths = [[len(pieces) for pieces in tokenizer.encode(t)] for t in (sources, translations)]
    found = []
    for src, hyp in zip(*lengths, strict=True):
        # As in `search.py`.
        limit = int((src + marks) * search.max_length_ratio) + search.max_length_extra
        allowed = search.quality.overlong_ratio * max(src, _SHORTEST_SOURCE)
        found.append(hyp >= limit or hyp > allowed)
    return found
