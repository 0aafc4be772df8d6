"""The tiny run of the evaluation's tests, and bundles of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.serving.export import export_bundle
from tests.unit.evaluation.conftest import (  # noqa: F401 (fixtures)
    TinyRun,
    data_folder,
    tiny_config,
    tiny_run,
)

ADAPTERS: dict[str, dict[str, Any]] = {
    "none": {"kind": "none"},
    "hyper": {"kind": "hyper", "bottleneck_dim": 4, "hyper_network": {"hyper_dim": 8}},
    "shared norm": {
        "kind": "hyper",
        "bottleneck_dim": 4,
        "generated_layer_norm": False,
        "hyper_network": {"hyper_dim": 8},
    },
    "some layers": {
        "kind": "hyper",
        "bottleneck_dim": 4,
        "placement": "parallel",
        "encoder_layers": [],
        "decoder_layers": [1],
        "hyper_network": {"hyper_dim": 8, "rescale": "mip"},
    },
    "language": {"kind": "language", "bottleneck_dim": 4},
    "family": {"kind": "family", "bottleneck_dim": 4, "placement": "parallel"},
    "direction": {"kind": "direction", "bottleneck_dim": 4},
}


@pytest.fixture
def make_bundle(
    tiny_run: Callable[..., TinyRun],  # noqa: F811
    tmp_path: Path,
) -> Callable[..., tuple[TinyRun, Path]]:
    """Makes a run with adapters of a kind, and a bundle of it."""

    def make(
        kind: str = "hyper", *, run: dict[str, Any] | None = None, **options: Any
    ) -> tuple[TinyRun, Path]:
        made = tiny_run(adapter=ADAPTERS[kind], **(run or {}))
        out = tmp_path / "bundle"
        export_bundle(made.run_dir, out, **options)
        return made, out

    return make
