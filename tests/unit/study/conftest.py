"""Small studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.schema import merge_trees, parse_config, read_config_tree
from hyperadapter.study.config import StudyConfig

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture
def make_study(repository: Path, tmp_path: Path) -> MakeStudy:
    """Makes a study of the quickstart's run, whose data do not exist."""
    run = read_config_tree(repository / "configs" / "runs" / "quickstart.yaml")
    run["data"]["folder"] = str(tmp_path / "data")

    def make(**changes: Any) -> StudyConfig:
        base = {"name": "small", "folder": str(tmp_path / "study"), "run": run}
        return parse_config(StudyConfig, merge_trees(base, changes), "the study")

    return make


@pytest.fixture
def kinds() -> dict[str, Any]:
    """An axis of three kinds of adapters."""
    names = {"hyper": "hyper", "language": "language", "direction": "direction", "dense": "none"}
    return {"options": {name: {"model.adapter.kind": kind} for name, kind in names.items()}}
