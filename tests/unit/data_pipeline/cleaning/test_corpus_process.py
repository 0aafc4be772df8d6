"""A build as a process of its own: its memory, and what is left when it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.cleaning.clean_manifest import read_manifest
from data_pipeline.cleaning.corpus import clean_folder
from data_pipeline.config import DataConfig
from hyperadapter.core.schema import to_yaml
from tests.unit.data_pipeline.cleaning.test_corpus import LETTERS, files_of, translate, write_tsv

MakeConfig = Callable[..., DataConfig]
BUILD = """
import sys
from pathlib import Path
from data_pipeline.cleaning import pair_corpus
from data_pipeline.cleaning import spill
from data_pipeline.config import DataConfig
from data_pipeline.cleaning.corpus import build_clean_corpus
from hyperadapter.core.schema import load_config
if __name__ == "__main__":
    config = load_config(DataConfig, Path(sys.argv[1]))
    pair_corpus._BUCKET_BYTES, spill._RUN_BYTES = 300_000, 300_000
    build_clean_corpus(config)
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def start_build(folder: Path, config: DataConfig) -> subprocess.Popen[str]:
    """Builds in a process of its own, which tells its greatest resident memory in kB."""
    script = folder / "build_corpus.py"
    script.write_text(BUILD, encoding="utf-8")
    path = Path(config.folder).with_suffix(".yaml")
    path.write_text(to_yaml(config), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    return subprocess.Popen(
        [sys.executable, str(script), str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )


def write_long_tsv(folder: Path, name: str, num_pairs: int) -> dict[str, Any]:
    words = [x + y for x in LETTERS for y in "aeiou"]
    rng = np.random.default_rng(num_pairs)
    rows = [" ".join(words[k] for k in ids) for ids in rng.integers(0, 80, (num_pairs, 6)).tolist()]
    return write_tsv(folder, name, [(row, translate(row, "de")) for row in rows])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path, make_config: MakeConfig) -> None:
    peak_kb: list[int] = []
    for num_pairs in (10_000, 80_000):
        folder = tmp_path / str(num_pairs)
        folder.mkdir()
        source = write_long_tsv(folder, "long-de", num_pairs)
        split = {"valid_fraction": 0.001, "test_fraction": 0.001}
        config = make_config(
            folder / "data", ("en", "de"), sources=[source], split=split, num_workers=1
        )
        output, _ = start_build(folder, config).communicate(timeout=300)
        peak_kb.append(int(output))
    assert peak_kb[1] < peak_kb[0] + 10_000  # with all text in memory, 40,000 more


@pytest.mark.slow
def test_a_killed_build_goes_on(tmp_path: Path, make_config: MakeConfig) -> None:
    sources = [write_long_tsv(tmp_path, f"long-{code}", 15_000) for code in ("de", "cs", "fr")]
    config = make_config(tmp_path / "data", ("en", "de", "cs", "fr"), sources=sources)
    part = clean_folder(config).with_name("clean.part")
    killed = start_build(tmp_path, config.model_copy(update={"num_workers": 2}))
    deadline = time.monotonic() + 120
    while not list(part.glob("work/*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert list(part.glob("work/*/*.spill"))
    assert read_manifest(clean_folder(config)) is None
    whole = config.model_copy(update={"folder": str(tmp_path / "whole")})
    for restarted in (config, whole):
        output, _ = start_build(tmp_path, restarted).communicate(timeout=300)
        assert output
    assert files_of(config) == files_of(whole)
