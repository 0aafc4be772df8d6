"""Placeholders of many notations, renamed to one: `{0}`, `{1}`, ..."""

from __future__ import annotations

import re
from collections import Counter
from typing import TypeAlias

from data_pipeline.cleaning.reasons import Reason

__all__ = ["normalise_placeholders"]

_Name: TypeAlias = tuple[str, int]

_CONVERSION = (
    r"(?:[-#0+]*(?:[0-9]+|\*)?(?:\.(?:[0-9]+|\*))?(?:hh?|ll?|[Ljztqw])?[diouxXeEfFgGcrspn@]"
    r"|'[0-9]*l*[diufg]"  # with a separator of thousands
    r"|q[+#]*[A-Za-z])"  # of gcc: %qs, %q+D
)
_TOKEN = re.compile(
    r"(?P<literal>%%|(?<![0-9])%<|%>|(?<=[A-Za-z>])%'|~%(?![0-9]))"
    rf"|%(?:\([\w.-]+\)|[0-9]+\$){_CONVERSION}"  # %(name)s %1$s
    rf"|%{_CONVERSION}(?![A-Za-z])"  # %s, but not the % in "5%off"
    r"|(?P<number>%L?[0-9]{1,3})(?![0-9$])"  # %1, or 50 % in Turkish and Basque
    r"|\$\{[^{}]*\}|\{\{[^{}]*\}\}|\{[^{}]*\}"  # ${x} {{ x }} {x}
    r"|\$[A-Za-z_]\w*|\$[0-9](?![0-9]|[.,][0-9])"  # $x $1, but not $100
    r"|@[A-Za-z]\w*@"  # @x@
    r"|(?<![\w/~])~[asd](?![\w/])"  # ~a of Scheme
)
# What gcc writes for quotes, and Scheme for a new line.
_LITERALS = {"%%": "%", "%<": "‘", "%>": "’", "%'": "’", "~%": " "}
_ANONYMOUS = re.compile(rf"%{_CONVERSION}|\{{\}}|~[asd]")

_MAY_BE_MARKUP = re.compile(r"[%${}@~]|\[\[")  # what every placeholder or unknown markup has
# What is no placeholder after all: a brace without its fellow, a date's %Y, half a %1$s.
_UNKNOWN_MARKUP = re.compile(r"[{}]|\[\[|%[A-Za-z(0-9]|(?<![0-9])%[<>'@*]")


def normalise_placeholders(a: str, b: str) -> tuple[str, str] | Reason:
    """Renames placeholders to `{0}`, `{1}`, ... in the order of side a.

    Returns:
        Both texts, or the reason to drop them: the two sides have different placeholders, or
        something is left that looks like one, such as a brace without its fellow or a date's `%Y`.
    """
    if not _MAY_BE_MARKUP.search(a + b):
        return a, b
    pieces_a, tokens_a = _parse(a, b)
    pieces_b, tokens_b = _parse(b, a)
    named_a = [token for token in tokens_a if isinstance(token, tuple)]
    if sorted(named_a) != sorted(token for token in tokens_b if isinstance(token, tuple)):
        return Reason.PLACEHOLDERS
    if any(_UNKNOWN_MARKUP.search(" ".join(pieces)) for pieces in (pieces_a, pieces_b)):
        return Reason.UNKNOWN_MARKUP
    number_of = {name: i for i, name in enumerate(dict.fromkeys(named_a))}
    return _join(pieces_a, tokens_a, number_of), _join(pieces_b, tokens_b, number_of)


def _parse(text: str, other: str) -> tuple[list[str], list[_Name | str]]:
    """Returns the text between tokens, and each token: a placeholder's name, or its plain text.

    The name of one that has no name or number is also its place among equals.
    """
    pieces: list[str] = []
    tokens: list[_Name | str] = []
    seen: Counter[str] = Counter()
    end = 0
    for match in _TOKEN.finditer(text):
        pieces.append(text[end : match.start()])
        end = match.end()
        token, kind = match[0], match.lastgroup
        if kind == "literal":
            tokens.append(_LITERALS[token])
        elif kind == "number" and _is_percentage(token, other):
            tokens.append(token)
        else:
            name = "".join(token.split())
            tokens.append((name, seen[name] if _ANONYMOUS.fullmatch(name) else 0))
            seen[name] += 1
    pieces.append(text[end:])
    return pieces, tokens


def _is_percentage(token: str, other: str) -> bool:
    """Says whether the other side has `50%` or `50 %` for this side's `%50`."""
    return re.search(rf"(?<![0-9%]){token[1:]}\s?%(?![0-9])", other) is not None


def _join(pieces: list[str], tokens: list[_Name | str], number_of: dict[_Name, int]) -> str:
    parts = [pieces[0]]
    for token, piece in zip(tokens, pieces[1:], strict=True):
        parts += (token if isinstance(token, str) else f"{{{number_of[token]}}}", piece)
    return "".join(parts)
