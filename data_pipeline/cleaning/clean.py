r"""Cleaning: raw sentence pairs to text worth learning from, with a count for each one dropped.

The source is user interfaces and their manuals, so the steps are those that such text needs:

1. split at blank lines where both sides have equally many paragraphs;
2. strip tags and invisible characters, unescape entities (`markup.py`); collapse white space;
   compose characters (NFC);
3. take accelerators such as `_File` and `E&xit` out (`accelerators.py`);
4. rename placeholders such as `%s` and `{x}` to `{0}`, `{1}`, ... in the order of side a, so that
   both sides agree and the model learns one notation (`placeholders.py`);
5. drop what is not a translation, under the reasons of `reasons.py`.

Everything here is a function of one pair of texts. No file, no order, no randomness.

Cleaning takes most of the time of building a corpus, so each test first asks a cheap question that
most texts pass: is it ASCII, has it a character that any placeholder has? Characters are counted by
kind with one `str.translate` and `str.count`, which run in C.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from data_pipeline.cleaning.accelerators import strip_accelerators
from data_pipeline.cleaning.language_id import LanguageFilter
from data_pipeline.cleaning.markup import strip_markup
from data_pipeline.cleaning.placeholders import normalise_placeholders
from data_pipeline.cleaning.reasons import Reason
from data_pipeline.cleaning.scripts import SCRIPT_NAMES, UNSPACED_CHARACTERS
from data_pipeline.config import CleanConfig
from hyperadapter.core.languages import script_of

__all__ = ["PairCleaner"]

# Control characters but white space, marks of writing direction, soft hyphens, byte order marks,
# and halves of surrogate pairs, which JSON can hold and no file. Joiners stay: they are spelling.
_INVISIBLE = re.compile(
    r"[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069"
    r"\ud800-\udfff\ufeff]"
)

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n\s*")
# The end of a line within running text of a script that writes no spaces.
_UNSPACED_BREAK = re.compile(
    rf"(?<=[{UNSPACED_CHARACTERS}])[^\S\n]*\n\s*(?=[{UNSPACED_CHARACTERS}])"
)

# America/Thunder_Bay, MAX_SIZE; and the keywords of a desktop entry, "Network;Wireless;".
_IDENTIFIER = re.compile(
    r"(?:Africa|America|Antarctica|Arctic|Asia|Atlantic|Australia|Europe|Indian|Mideast|Pacific|US)"
    r"/\S+|\S*[^\W_]_[^\W_]\S*"
)
_KEYWORDS = re.compile(r"(?:[^;]+;){2,}")

# Ideographs, kana and Hangul: a word takes few of them, so lengths count them `_CJK_WEIGHT` times.
_CJK = r"\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_CJK_WEIGHT = 2.6
_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]+")

# Least share of a text's letters in its language's script. Far below a half, because names of
# products stay Latin, and a few ideographs say as much as many letters.
_MIN_SCRIPT_SHARE = 0.25
_MIN_COPIED_WORDS = 2
# Longer texts are dropped unseen: they could keep a regular expression busy for minutes.
_MAX_RAW_CHARS = 20_000
# A word between white space without the punctuation around it.
_BARE_WORD = re.compile(r"[^\W_](?:\S*[^\W_])?")

_ALL_SCRIPT_NAMES = frozenset().union(*SCRIPT_NAMES.values())


# Kinds of characters, each an ASCII character, so that ASCII text is translated fast.
_SPACE, _OTHER, _PLAIN_LETTER = " ", ".", "-"
_KIND_OF_SCRIPT = {name: chr(ord("0") + i) for i, name in enumerate(sorted(_ALL_SCRIPT_NAMES))}
_PLACEHOLDER_NAME = re.compile(r"\{\d+\}")


class _Kinds(dict[int, str]):
    """A `str.translate` table, filled as characters come: to the kind of each character.

    A letter's kind is its script; marks, and letters of a script without a name here, are plain.
    """

    def __missing__(self, codepoint: int) -> str:
        character = chr(codepoint)
        kind = _OTHER
        if character == " ":
            kind = _SPACE
        elif unicodedata.category(character)[0] in "LM":
            kind = _PLAIN_LETTER
            if character.isalpha():
                word = unicodedata.name(character, "").split(" ")[0]
                kind = _KIND_OF_SCRIPT.get(word, _PLAIN_LETTER)
        self[codepoint] = kind
        return kind


_KINDS = _Kinds()


def _weighted_length(text: str) -> float:
    if text.isascii():
        return len(text)
    return len(text) + (_CJK_WEIGHT - 1) * len(_CJK_CHARACTER.findall(text))


def _kinds(text: str) -> str:
    """Returns the kind of each visible character, a `{0}` being one."""
    if "{" in text:
        text = _PLACEHOLDER_NAME.sub("#", text)
    return text.translate(_KINDS).replace(_SPACE, "")


def _letter_share(kinds: str) -> float:
    """Returns the share of letters and their marks among visible characters."""
    return 1 - kinds.count(_OTHER) / len(kinds) if kinds else 0.0


class PairCleaner:
    """Cleans the pairs of one source in one language pair, and counts.

    Args:
        pair: The two languages.
        config: The limits.
        pivot: The side in this language has the first limit of characters, all others the second.

    Attributes:
        dropped: How many paragraphs fell to each reason.
    """

    def __init__(self, pair: tuple[str, str], config: CleanConfig, pivot: str = "en") -> None:
        self.dropped: Counter[str] = Counter()
        self._config = config
        self._max_chars = tuple(config.max_chars[code != pivot] for code in pair)
        names = (SCRIPT_NAMES[script_of(code)] for code in pair)
        self._scripts = tuple([_KIND_OF_SCRIPT[name] for name in sorted(side)] for side in names)
        identify = config.language_id
        self._languages = [LanguageFilter(code, identify) for code in pair] if identify else []

    def clean(self, a: str, b: str) -> Iterator[tuple[str, str]]:
        """Yields the clean paragraphs of one raw pair: none, one, or several."""
        for one, other in _paragraphs(a, b):
            result = self._clean_paragraph(one, other)
            if isinstance(result, Reason):
                self.dropped[result.value] += 1
            else:
                yield result

    def _clean_paragraph(self, a: str, b: str) -> tuple[str, str] | Reason:
        if len(a) > _MAX_RAW_CHARS or len(b) > _MAX_RAW_CHARS:
            return Reason.TOO_LONG
        a, b = strip_accelerators(_tidy(a), _tidy(b))
        if not a or not b:
            return Reason.EMPTY
        renamed = normalise_placeholders(a, b)
        if isinstance(renamed, Reason):
            return renamed
        a, b = renamed
        return self._reason_to_drop(a, b) or (a, b)

    def _reason_to_drop(self, a: str, b: str) -> Reason | None:
        config = self._config
        if "|" in a or "\\" in a or "|" in b or "\\" in b:
            return Reason.FORBIDDEN
        folded_a, folded_b = a.casefold(), b.casefold()
        if folded_a == folded_b:
            return Reason.EQUAL
        if (" " not in a and _IDENTIFIER.fullmatch(a)) or (a[-1] == ";" and _KEYWORDS.fullmatch(a)):
            return Reason.IDENTIFIER
        if sum(1 for _ in islice(_WORD.finditer(a), config.min_words)) < config.min_words:
            return Reason.TOO_SHORT
        if len(a) > self._max_chars[0] or len(b) > self._max_chars[1]:
            return Reason.TOO_LONG
        kinds_a, kinds_b = _kinds(a), _kinds(b)
        if min(_letter_share(kinds_a), _letter_share(kinds_b)) < config.min_letters:
            return Reason.FEW_LETTERS
        if max(len(a), len(b)) >= config.length_ratio_from_chars:
            low, high = config.length_ratio
            if not low <= _weighted_length(b) / _weighted_length(a) <= high:
                return Reason.LENGTH_RATIO
        if not all(map(_is_in_script, (kinds_a, kinds_b), self._scripts)):
            return Reason.WRONG_SCRIPT
        if _copied_share(folded_a, folded_b) >= config.max_english_copy:
            return Reason.ENGLISH_COPY
        if self._languages and any(map(LanguageFilter.is_other, self._languages, (a, b))):
            return Reason.LANGUAGE_ID
        return None


def _paragraphs(a: str, b: str) -> list[tuple[str, str]]:
    if "\n" in a and "\n" in b:
        left, right = _PARAGRAPH_BREAK.split(a.strip()), _PARAGRAPH_BREAK.split(b.strip())
        if len(left) == len(right):
            return list(zip(left, right, strict=True))
    return [(a, b)]


def _tidy(text: str) -> str:
    """Strips markup and invisible characters, collapses white space, composes characters."""
    text = strip_markup(text)
    if text.isascii():
        text = " ".join(text.split())
        return text if text.isprintable() else _INVISIBLE.sub("", text).strip()
    text = _INVISIBLE.sub("", text)
    if "\n" in text:
        text = _UNSPACED_BREAK.sub("", text)
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _is_in_script(kinds: str, wanted: list[str]) -> bool:
    """Says whether enough of a text's letters belong to a script; no letters at all are fine."""
    total = len(kinds) - kinds.count(_OTHER) - kinds.count(_PLAIN_LETTER)
    return sum(map(kinds.count, wanted)) >= _MIN_SCRIPT_SHARE * total


def _copied_share(a: str, b: str) -> float:
    """Returns the share of side b's words that stand in side a, both case-folded; 0 for one word.

    A compound such as `XML-Sicherung` is one word, and no copy of `XML`.
    """
    words_b = _bare_words(b)
    if len(words_b) < _MIN_COPIED_WORDS:
        return 0.0
    known = set(_bare_words(a))
    return sum(map(known.__contains__, words_b)) / len(words_b)


def _bare_words(text: str) -> list[str]:
    """Returns the words between white space that have a letter, without punctuation around them."""
    words = [word if word.isalpha() else _bare_word(word) for word in text.split()]
    return [word for word in words if word]


def _bare_word(word: str) -> str:
    match = _BARE_WORD.search(word)
    return match[0] if match and not match[0].isdigit() else ""
