"""The benchmark of serving measures what the run is now."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving
from hyperadapter.checkpoint.layout import WEIGHTS_FILE
from hyperadapter.core.files import sha256_file
from hyperadapter.serving.loader import load
from tests.unit.evaluation.conftest import (  # noqa: F401 (fixtures)
    TinyRun,
    data_folder,
    tiny_config,
    tiny_run,
)


def test_the_newest_whole_checkpoint_is_exported_anew(
    tiny_run: Callable[..., TinyRun],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiny_run()
    folders: list[Path] = []
    outputs: list[list[str]] = []

    def measure(arguments: argparse.Namespace, path: Path) -> tuple[dict[str, Any], dict[str, str]]:
        task = json.loads(path.read_text(encoding="utf-8"))
        folders.extend(map(Path, task["folders"].values()))
        assert [folder.name for folder in folders[-2:]] == ["hyperadapter", "ctranslate2-int8"]
        outputs.append(load(folders[-2], "cpu").translate(task["texts"], "en", "de"))
        return {}, {}

    monkeypatch.setattr(serving, "_measure", measure)
    arguments = argparse.Namespace(
        run=run.run_dir, direction="en-de", sentences=5, single=1, beam_size=None, threads=1,
        rounds=1, only=["hyperadapter", "ctranslate2 int8"], folder=tmp_path / "bench",
    )  # fmt: skip
    for seed in (1, 2):  # of the same step
        for name in ("step-00000200.part", "step-00000300.damaged"):
            (run.run_dir / "checkpoints" / name).mkdir(exist_ok=True)
        weights = run.run_dir / "checkpoints" / "step-00000100" / WEIGHTS_FILE
        report = serving.run(arguments)
        assert report["checkpoint"] == "step-00000100"
        assert report["weights_sha256"] == sha256_file(weights)
        if seed == 1:
            run.save(seed=2)
    assert outputs[0] != outputs[1]
    assert not any(folder.exists() for folder in folders)
