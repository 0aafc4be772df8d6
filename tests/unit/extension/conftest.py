"""The runs of the analysis' tests, where nl is a dialect of de, and a new language: af."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hyperadapter.core.files import write_text
from tests.unit.analysis.conftest import (  # noqa: F401 (fixtures)
    WORDS,
    data_folder,
    dialect_run,
    trained,
)


@pytest.fixture
def af_pairs(tmp_path: Path) -> Path:
    """Writes pairs of English and of a new language whose words are those of de and nl."""
    generator = np.random.default_rng(5)
    lines = []
    for _ in range(60):
        words = generator.integers(0, 4, generator.integers(2, 5))
        lines.append("\t".join(" ".join(WORDS[code][k] for k in words) for code in ("en", "de")))
    path = tmp_path / "af.tsv"
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path
