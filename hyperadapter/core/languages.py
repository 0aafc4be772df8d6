"""Languages and directions: one table from every spelling of a language's code to BCP 47.

The table, `languages.yaml`, also gives each language's script (ISO 15924) and its family at the
level of the branch (germanic, slavic, turkic, ...). Varieties are languages of their own: `pt-BR`,
`zh-Hant`, `sr-Latn`, `ca-valencia`, and `de-x-informal` for a catalog that says du.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hyperadapter.core.errors import ConfigError, LanguageError
from hyperadapter.core.schema import StrictModel, parse_config, read_yaml

__all__ = [
    "Direction",
    "family_of",
    "from_catalog_code",
    "known_languages",
    "language_name",
    "parse_direction",
    "parse_language",
    "script_of",
]

_TABLE_PATH = Path(__file__).with_name("languages.yaml")


class Direction(NamedTuple):
    """An ordered pair of languages: from `src` to `tgt`."""

    src: str
    tgt: str

    def __str__(self) -> str:
        return f"{self.src}-{self.tgt}"


class _Language(StrictModel):
    name: str
    script: str
    family: str
    aliases: tuple[str, ...] = ()


@cache
def _table() -> dict[str, _Language]:
    return {
        code: parse_config(_Language, entry, f"{_TABLE_PATH}: {code}")
        for code, entry in read_yaml(_TABLE_PATH).items()
    }


@cache
def _spellings() -> dict[str, str]:
    """Maps every spelling, in lower case with hyphens, to its canonical code."""
    spellings: dict[str, str] = {}
    for code, language in _table().items():
        for spelling in (code, *language.aliases):
            other = spellings.setdefault(_normalise(spelling), code)
            if other != code:
                raise ConfigError(
                    f"{_TABLE_PATH}: {spelling!r} stands for {other!r} and for {code!r}; keep one"
                )
    return spellings


def _normalise(code: str) -> str:
    return code.strip().replace("_", "-").replace("@", "-").lower()


def _suggestions(code: str) -> str:
    """Writes the nearest known codes, by code or by English name, with their names."""
    by_name = {language.name.lower(): known for known, language in _table().items()}
    wanted = _normalise(code)
    close = [by_name[name] for name in get_close_matches(wanted, by_name, n=2, cutoff=0.75)]
    spellings = _spellings()
    close += [spellings[s] for s in get_close_matches(wanted, spellings, n=3, cutoff=0.6)]
    base = spellings.get(wanted.split("-")[0])
    if base is not None:
        close.insert(0, base)
    unique = list(dict.fromkeys(close))[:3]
    return ", ".join(f"{known!r} ({_table()[known].name})" for known in unique)


def known_languages() -> tuple[str, ...]:
    """Returns all canonical codes, sorted."""
    return tuple(sorted(_table()))


def parse_language(code: str) -> str:
    """Returns the canonical BCP 47 form of a language code.

    Args:
        code: Any known spelling, such as `pt_BR`, `zh-cn` or `sr@latin`.

    Raises:
        LanguageError: The code is not in the table; the message names the nearest ones.
    """
    canonical = _spellings().get(_normalise(code))
    if canonical is None:
        near = _suggestions(code)
        raise LanguageError(
            f"unknown language code {code!r}; "
            + (f"the nearest known codes are {near}" if near else "codes are BCP 47, such as 'de'")
            + f". The table of all {len(_table())} is {_TABLE_PATH.name} in hyperadapter/core"
        )
    return canonical


def from_catalog_code(code: str) -> str | None:
    """Returns the canonical code for the name of a catalog's folder, or None if it is not known.

    A territory that is not in the table gives None rather than the language without it: a variety
    is never mixed silently into another one.
    """
    return _spellings().get(_normalise(code))


def parse_direction(text: str) -> Direction:
    """Splits a direction such as `en-de` or `zh-Hans-pt-BR` at its one possible hyphen.

    Raises:
        LanguageError: No hyphen has a canonical language code on both sides.
    """
    parts = text.split("-")
    table = _table()
    sides = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    found = [Direction(a, b) for a, b in sides if a in table and b in table]
    if len(found) == 1:
        return found[0]
    raise LanguageError(_explain_direction(text, sides))


def _explain_direction(text: str, sides: list[tuple[str, str]]) -> str:
    form = "a direction is two language codes joined by a hyphen, such as 'en-de'"
    if not sides:
        return f"{text!r} is not a direction: {form}"
    spellings = _spellings()
    if _normalise(text) in spellings:
        return f"{text!r} is one language, not a direction: {form}"
    for a, b in sides:
        if _normalise(a) in spellings and _normalise(b) in spellings:
            return f"{text!r}: write this direction as '{parse_language(a)}-{parse_language(b)}'"
    for a, b in sides:
        for good, bad in ((a, b), (b, a)):
            if _normalise(good) in spellings:
                near = _suggestions(bad)
                hint = f"; the nearest known codes are {near}" if near else ""
                return (
                    f"{text!r} is not a direction: {good!r} is a language, but {bad!r} is not{hint}"
                )
    return f"{text!r} is not a direction: neither side is a known language; {form}"


def script_of(code: str) -> str:
    """Returns the ISO 15924 script that a language is written in, such as `Latn`."""
    return _table()[parse_language(code)].script


def family_of(code: str) -> str:
    """Returns a language's family at the level of the branch, such as `germanic`."""
    return _table()[parse_language(code)].family


def language_name(code: str) -> str:
    """Returns a language's English name."""
    return _table()[parse_language(code)].name
