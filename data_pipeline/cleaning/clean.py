r"""Cleaning: raw sentence pairs to text worth learning from, with a count for each one dropped.

The source is user interfaces and their manuals, so the steps are those that such text needs:

1. split at blank lines where both sides have equally many paragraphs;
2. strip HTML tags and invisible characters, unescape entities; collapse white space; compose
   characters (NFC);
3. take accelerators (`_File`, `E&xit`, `(_F)`) out;
4. rename placeholders (`%s`, `%(name)s`, `${x}`, `{x}`, `$x`, `@x@`) to `{0}`, `{1}`, ... in the
   order of side a, so that both sides agree and the model learns one notation;
5. drop what is not a translation, under the `Reason`s below.

Everything here is a function of one pair of texts. No file, no order, no randomness.

Cleaning takes most of the time of building a corpus, so each test first asks a cheap question that
most texts pass: is it ASCII, has it a character that any placeholder has? Characters are counted by
kind with one `str.translate` and `str.count`, which run in C.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from itertools import islice

from data_pipeline.cleaning.language_id import LanguageFilter
from data_pipeline.config import CleanConfig
from hyperadapter.core.languages import script_of

__all__ = ["PairCleaner", "Reason", "normalise_placeholders", "strip_accelerators", "strip_markup"]


class Reason(StrEnum):
    """Why a pair was dropped, in the order of the tests."""

    EMPTY = "a side is empty"
    PLACEHOLDERS = "placeholders differ"
    UNKNOWN_MARKUP = "unknown placeholder or markup"
    FORBIDDEN = "pipe or backslash"
    EQUAL = "target equals source"
    TOO_SHORT = "too few words"
    TOO_LONG = "too many characters"
    FEW_LETTERS = "too few letters"
    LENGTH_RATIO = "length ratio"
    WRONG_SCRIPT = "wrong script"
    ENGLISH_COPY = "copied words"
    LANGUAGE_ID = "language id"


# Tags that HTML has and user interfaces use. `<count>` and `<text>` are text: gramps writes
# "People with <count> children".
_TAGS = (
    "a|abbr|b|big|blockquote|body|br|button|center|cite|code|dd|del|div|dl|dt|em|font|footer|h[1-6]"
    "|head|hr|html|i|img|input|ins|kbd|label|li|mark|ol|p|pre|s|samp|script|section|small|span"
    "|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|var"
)
_TAG = re.compile(rf"<(/?)({_TAGS})\b[^<>]*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_BLOCK_TAGS = "br|p|div|li|ul|ol|h[1-6]|hr|d[dlt]|t[dhr]|table|pre|blockquote"
_BLOCK = re.compile(_BLOCK_TAGS, re.IGNORECASE)

# Marks of writing direction, soft hyphens, byte order marks, and halves of surrogate pairs, which
# JSON can hold and no file. Joiners stay: they are orthography.
_INVISIBLE = re.compile(
    r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ud800-\udfff\ufeff]"
)

_PARAGRAPH_BREAK = re.compile(r"\n[^\S\n]*\n\s*")

_PRINTF = r"[-#0+]*\d*(?:\.\d+)?(?:hh?|ll?|[Ljztq])?[diouxXeEfFgGcrs]"
_PLACEHOLDER = re.compile(
    rf"(?<!%)%(?:\([\w.-]+\)|\d+\$){_PRINTF}"  # %(name)s %1$s
    rf"|(?<!%)%{_PRINTF}(?![A-Za-z])"  # %s, but not the % in "5%off"
    r"|\$\{[^{}]*\}|\{\{[^{}]*\}\}|\{[^{}]*\}"  # ${x} {{ x }} {x}
    r"|\$[A-Za-z_]\w*|\$\d(?![\d.,])"  # $x $1, but not $100
    r"|@[A-Za-z]\w*@"  # @x@
)
_ANONYMOUS = re.compile(rf"%{_PRINTF}|\{{\}}")

_MAY_BE_MARKUP = re.compile(r"[%${}@]|\[\[")  # what every placeholder or unknown markup has
_UNKNOWN_MARKUP = re.compile(r"[{}]|\[\[|(?<!%)%[A-Za-z(]")  # what is no placeholder after all

_CJK_ACCELERATOR = re.compile(r"\s*[(（][_&][A-Za-z0-9][)）]")
_ACCELERATOR = re.compile(r"[_&](?=[^\W_])")
_MAX_ACCELERATOR_WORDS = 8

# Ideographs, kana and Hangul: a word takes few of them, so lengths count them `_CJK_WEIGHT` times.
_CJK = r"\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_CHARACTER = re.compile(f"[{_CJK}]")
_CJK_WEIGHT = 2.6
_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]+")

# Least share of a text's letters in its language's script. Far below a half, because names of
# products stay Latin, and a few ideographs say as much as many letters.
_MIN_SCRIPT_SHARE = 0.25
_MIN_COPIED_WORDS = 2
# A word between white space without the punctuation around it.
_BARE_WORD = re.compile(r"[^\W_](?:\S*[^\W_])?")

# The first word of a letter's Unicode name tells its script.
_SCRIPT_NAMES: dict[str, frozenset[str]] = {
    code: frozenset(names.split())
    for code, names in {
        "Arab": "ARABIC",
        "Armn": "ARMENIAN",
        "Beng": "BENGALI",
        "Cakm": "CHAKMA",
        "Cans": "CANADIAN",
        "Cher": "CHEROKEE",
        "Copt": "COPTIC",
        "Cyrl": "CYRILLIC",
        "Deva": "DEVANAGARI",
        "Ethi": "ETHIOPIC",
        "Geor": "GEORGIAN",
        "Goth": "GOTHIC",
        "Grek": "GREEK",
        "Gujr": "GUJARATI",
        "Guru": "GURMUKHI",
        "Hans": "CJK",
        "Hant": "CJK BOPOMOFO",
        "Hebr": "HEBREW",
        "Jpan": "CJK HIRAGANA KATAKANA KATAKANA-HIRAGANA IDEOGRAPHIC",
        "Khmr": "KHMER",
        "Knda": "KANNADA",
        "Kore": "HANGUL CJK",
        "Laoo": "LAO",
        "Latn": "LATIN",
        "Mlym": "MALAYALAM",
        "Mong": "MONGOLIAN",
        "Mtei": "MEETEI",
        "Mymr": "MYANMAR",
        "Nkoo": "NKO",
        "Olck": "OL",
        "Orya": "ORIYA",
        "Shaw": "SHAVIAN",
        "Sinh": "SINHALA",
        "Sylo": "SYLOTI",
        "Syrc": "SYRIAC",
        "Tale": "TAI",
        "Taml": "TAMIL",
        "Telu": "TELUGU",
        "Tfng": "TIFINAGH",
        "Thaa": "THAANA",
        "Thai": "THAI",
        "Tibt": "TIBETAN",
    }.items()
}
_ALL_SCRIPT_NAMES = frozenset().union(*_SCRIPT_NAMES.values())


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


def _replace_tag(match: re.Match[str]) -> str:
    name = match[2]
    return " " if name and _BLOCK.fullmatch(name) else ""


def strip_markup(text: str) -> str:
    """Removes HTML tags and comments, then resolves entities such as `&hellip;`."""
    if "<" in text:
        text = _TAG.sub(_replace_tag, text)
    return html.unescape(text) if "&" in text else text


def strip_accelerators(a: str, b: str) -> tuple[str, str]:
    """Removes the marks of keyboard accelerators: `_File`, `E_xit`, `&Open`, `ファイル(_F)`.

    Only in short texts with a single mark, at the start of a word or inside a capitalised one, so
    that `file_name`, `MAX_SIZE`, `AT&T` and `R&D` stay. And side b has a mark only if side a has.
    """
    bare_a = _strip_accelerator(a)
    return (a, b) if bare_a == a else (bare_a, _strip_accelerator(b))


def _strip_accelerator(text: str) -> str:
    if "_" not in text and "&" not in text:
        return text
    if len(text.split()) > _MAX_ACCELERATOR_WORDS:
        return text
    text = _CJK_ACCELERATOR.sub("", text)
    marks = list(_ACCELERATOR.finditer(text))
    if len(marks) != 1 or text.count("_") + text.count("&") != 1:
        return text
    start = marks[0].start()
    if start and text[start - 1].isalnum():
        before = re.split(r"\W", text[:start])[-1]
        if before[0].islower() or before[0].isdigit() or text[start + 1].isupper():
            return text
    elif start and not text[start - 1].isspace() and text[start - 1] not in "\"'(«“„[":
        return text
    return text[:start] + text[start + 1 :]


def _placeholder_keys(text: str) -> list[tuple[str, int]]:
    """Names each placeholder; those without a name or number also by their place among equals."""
    seen: Counter[str] = Counter()
    keys = []
    for match in _PLACEHOLDER.finditer(text):
        name = re.sub(r"\s+", "", match[0])
        keys.append((name, seen[name] if _ANONYMOUS.fullmatch(name) else 0))
        seen[name] += 1
    return keys


def normalise_placeholders(a: str, b: str) -> tuple[str, str] | Reason:
    """Renames placeholders to `{0}`, `{1}`, ... in the order of side a.

    Returns:
        Both texts, or the reason to drop them: the two sides have different placeholders, or
        something is left that looks like one, such as a brace without its fellow or a date's `%Y`.
    """
    if not _MAY_BE_MARKUP.search(a) and not _MAY_BE_MARKUP.search(b):
        return a, b
    keys_a, keys_b = _placeholder_keys(a), _placeholder_keys(b)
    if sorted(keys_a) != sorted(keys_b):
        return Reason.PLACEHOLDERS
    number_of = {key: i for i, key in enumerate(dict.fromkeys(keys_a))}
    for text in (a, b):
        rest = _PLACEHOLDER.sub("", text)
        if _UNKNOWN_MARKUP.search(rest):
            return Reason.UNKNOWN_MARKUP
    return _rename(a, map(number_of.__getitem__, keys_a)), _rename(
        b, map(number_of.__getitem__, keys_b)
    )


def _rename(text: str, numbers: Iterator[int]) -> str:
    return _PLACEHOLDER.sub(lambda _: f"{{{next(numbers)}}}", text).replace("%%", "%")


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
        names = (_SCRIPT_NAMES[script_of(code)] for code in pair)
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
        return " ".join(text.split())
    return unicodedata.normalize("NFC", " ".join(_INVISIBLE.sub("", text).split()))


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
