"""What the readers of catalogs have in common."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from data_pipeline.formats import ddtp, gettext, libreoffice_help, mallard, mediawiki
from data_pipeline.formats.catalog import CatalogFormat, known_codes, unknown_codes
from hyperadapter.core.errors import DataError


def test_codes_are_told_apart() -> None:
    counts = {"zh-hans": 2, "zh": 1, "pt_BR": 3, "de": 1, "qqq": 4, "en": 9, "xx_YY": 1}
    assert known_codes(counts) == ("de", "pt-BR", "zh-Hans")
    assert unknown_codes(counts) == {"qqq": 4, "xx_YY": 1}


@pytest.mark.parametrize("reader", [ddtp, gettext, libreoffice_help, mallard, mediawiki])
def test_nothing_to_read(tmp_path: Path, reader: CatalogFormat) -> None:

    root = tmp_path
    (root / "readme.txt").touch()
    assert not reader.count_files([root])
    assert list(reader.iter_rows([root], "de", Counter())) == []
    with pytest.raises(DataError, match="nothing does not exist; fetch the sources"):
        reader.count_files([root / "nothing"])
