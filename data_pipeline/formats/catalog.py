"""What the readers of catalogs have in common: English beside many languages, told by the path."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hyperadapter.core.languages import from_catalog_code

__all__ = ["ENGLISH", "CatalogFormat", "known_codes", "unknown_codes"]

ENGLISH = "en"  # the language that every catalog translates


class CatalogFormat(Protocol):
    """One reader; modules of this package are such.

    Attributes:
        FILES: Finds something in the paths of the files that the reader reads.
    """

    FILES: re.Pattern[str]

    def count_files(self, roots: Sequence[Path]) -> Counter[str]:
        """Counts the catalogs by language code, as the files spell it, English left out.

        Raises:
            DataError: A root cannot be read.
        """

    def iter_rows(
        self, roots: Sequence[Path], language: str, skipped: Counter[str]
    ) -> Iterator[tuple[str, str]]:
        """Yields (English, translation) of one language; nothing if the roots lack it.

        Args:
            roots: Folders, files and wheels of the source.
            language: Canonical code, not English.
            skipped: Counts, under a reason, what is no sentence pair.

        Raises:
            DataError: A root cannot be read.
        """


def known_codes(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the canonical languages among the codes of files, sorted."""
    known = {from_catalog_code(code) for code in counts} - {None, ENGLISH}
    return tuple(sorted(code for code in known if code is not None))


def unknown_codes(counts: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of files of each code that is not in the table of languages."""
    return {code: n for code, n in sorted(counts.items()) if from_catalog_code(code) is None}
