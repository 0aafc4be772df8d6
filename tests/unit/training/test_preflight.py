"""What may change between two starts of a run, and the room that its checkpoints need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperadapter.config import RunConfig
from hyperadapter.core.schema import parse_config
from hyperadapter.training import preflight


def changed(config: RunConfig, path: str, value: Any) -> RunConfig:
    tree = config.model_dump(mode="json")
    *groups, key = path.split(".")
    node = tree
    for group in groups:
        node = node[group]
    assert node[key] != value
    node[key] = value
    return parse_config(RunConfig, tree, "test")


def test_the_way_to_generate_is_not_what_is_trained(run_config: RunConfig) -> None:
    adapter = {"kind": "hyper", "hyper_network": {"hyper_dim": 4}}
    first = changed(run_config, "model.adapter", adapter)
    other = changed(first, "model.adapter.generation", "layer_by_layer")
    assert preflight.experiment_fingerprint(other) == preflight.experiment_fingerprint(first)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.activation_checkpointing", True),
        ("training.compile", True),
        ("training.health_every_steps", 7),
        ("training.log_every_steps", 3),
        ("run_dir", "elsewhere"),
    ],
)
def test_how_a_run_is_computed_is_not_what_it_is(
    run_config: RunConfig, path: str, value: Any
) -> None:
    other = changed(run_config, path, value)
    assert preflight.identity(other) == preflight.identity(run_config)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.frozen", ["encoder"]),
        ("training.learning_rate_scale", {"encoder": 0.5}),
        ("training.start_from", "w.safetensors"),
        ("model.adapter.start", "identity"),
    ],
)
def test_what_is_trained_and_from_where_is(run_config: RunConfig, path: str, value: Any) -> None:
    other = changed(run_config, path, value)
    assert preflight.experiment_fingerprint(other) != preflight.experiment_fingerprint(run_config)


@pytest.mark.parametrize(
    ("keys", "num_trained", "expected"),
    [
        ({}, 1000, 3 * 12_000),  # two that are kept, and one that is being written
        ({}, 100, 3 * 4_800),  # frozen parameters have no moments
        ({"keep": 1, "keep_best": 3}, 1000, 5 * 12_000),
        ({"keep_every_steps": 2}, 1000, (3 + 5) * 12_000),  # of 10 steps
    ],
)
def test_room_is_asked_for_all_checkpoints_that_will_be_kept(
    run_config: RunConfig,
    keys: dict[str, int],
    num_trained: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        preflight, "require_space", lambda _, num_bytes, __: asked.append(num_bytes)
    )
    config = changed(run_config, "run_dir", str(tmp_path))
    for key, value in keys.items():
        config = changed(config, f"training.checkpoint.{key}", value)
    preflight.check_disk(config, 1000, num_trained)
    assert asked == [expected]
