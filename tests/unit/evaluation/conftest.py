"""A tiny run: model, tokenizer and data folders as training would leave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hyperadapter.config import RunConfig
from hyperadapter.core.schema import parse_config

HYPER = {"kind": "hyper", "bottleneck_dim": 4, "hyper_network": {"hyper_dim": 8}}


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    """Makes a run's configuration from the groups that differ from the tiny one."""

    def make(
        *,
        run_dir: str = "run",
        adapter: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        tree = {
            "name": "tiny",
            "run_dir": run_dir,
            "data": {
                "folder": "data",
                "languages": ["en", "de", "fr"],
                "sources": [
                    {"format": "tsv", "name": other, "languages": ["en", other], "path": "x.tsv"}
                    for other in ("de", "fr")
                ],
                "tokenizer": {"vocab_size": 300},
                "shards": {"max_sentence_tokens": 40},
                **(data or {}),
            },
            "model": {
                "d_model": 8,
                "ffn_dim": 16,
                "num_heads": 2,
                "num_encoder_layers": 1,
                "num_decoder_layers": 2,
                "adapter": adapter or HYPER,
            },
            "training": {
                "micro_batch_tokens": 64,
                "global_batch_tokens": 64,
                "max_steps": 1,
                "learning_rate": 0.1,
                "schedule": {"kind": "inverse_sqrt", "warmup_steps": 0},
                "checkpoint": {"every_steps": 1},
                "validation": {"every_steps": 1},
            },
            "evaluation": dict(evaluation or {}),
        }
        return parse_config(RunConfig, tree, "tiny")

    return make
