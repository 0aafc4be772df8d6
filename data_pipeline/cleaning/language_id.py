"""Language identification of texts: the one door to py3langid, whose model is in its wheel.

The model gives each of about 140 languages a probability. It cannot tell close relatives apart, so
their probabilities are added up, and a text in one of them is never a mistake for another. It was
trained on one script of most languages; varieties in another script are not judged.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from data_pipeline.config import LanguageIdConfig

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

__all__ = ["LanguageFilter", "label_of", "load_identifier"]

log = logging.getLogger(__name__)

_RELATIVES = (
    ("ar", "ary", "arz"),
    ("bs", "hr", "sr"),
    ("da", "nn", "no"),
    ("el", "grc"),
    ("gcf", "gcr", "ht"),
    ("he", "hbo"),
    ("id", "ms"),
    ("ku", "sdh"),
    ("lv", "ltg"),
    ("uz", "uzs"),
    ("wuu", "yue", "zh"),
)
_GROUP_OF = {label: group[0] for group in _RELATIVES for label in group}
_LABELS = {"nb": "no", "fil": "tl", "iw": "he", "lzh": "zh"}  # our codes by other names
_SCRIPTS_IN_THE_MODEL = frozenset({"sr-Latn", "sr-Cyrl", "zh-Hans", "zh-Hant"})
_NO_LANGUAGE = "zxx"
_SCRIPT_SUBTAG_LENGTH = 4


@cache
def load_identifier() -> LanguageIdentifier:
    """Loads the model: a second or two, once a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # loads at the first text only

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@cache
def label_of(language: str) -> str | None:
    """Returns the group of a BCP 47 code, or None if the model does not know the language."""
    base, *subtags = language.split("-")
    has_script = any(len(tag) == _SCRIPT_SUBTAG_LENGTH and tag.isalpha() for tag in subtags)
    label = _LABELS.get(base, base)
    if (
        has_script and language not in _SCRIPTS_IN_THE_MODEL
    ) or label not in load_identifier().labels:
        log.info("language identification does not know %s; its texts are not judged", language)
        return None
    return _GROUP_OF.get(label, label)


class LanguageFilter:
    """Says whether a text is clearly in another language than it should be.

    Args:
        language: The language that texts should be in.
        config: Which texts are judged, and how sure the model must be.
    """

    def __init__(self, language: str, config: LanguageIdConfig) -> None:
        self._language = language
        self._config = config

    def is_other(self, text: str) -> bool:
        """Says whether another language is the most probable one, and probable enough."""
        if len(text) < self._config.min_chars:
            return False
        expected = label_of(self._language)
        if expected is None:
            return False
        label, probability = load_identifier().classify(text)
        group = _GROUP_OF.get(label, label)
        if group in (expected, _NO_LANGUAGE):
            return False
        if probability < self._config.min_probability and group in _GROUP_OF:
            ranks = load_identifier().rank(text)
            probability = sum(p for other, p in ranks if _GROUP_OF.get(other) == group)
        return bool(probability >= self._config.min_probability)
