from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.config import CheckpointConfig, ModelConfig, TrainingConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import parse_config
from hyperadapter.model.accounting import count_parameters
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training.sharding import (
    ParameterSizes,
    StateBytes,
    checkpoint_bytes,
    num_checkpoints,
    parameter_sizes,
    state_bytes,
)

VOCABULARY = Vocabulary(50, ("en", "de"), (Direction("en", "de"),))
SIZES = ParameterSizes(groups=((300_000, 500_000), (100, 700_000)), frozen=(400_000, 60))
TRAINED, TOTAL = 1_500_100, 1_900_160


def training(stage: int = 1, **keys: Any) -> TrainingConfig:
    tree = {
        "device": "cpu",
        "zero_stage": stage,
        "micro_batch_tokens": 100,
        "global_batch_tokens": 100 * 64,
        "max_steps": 10,
        "learning_rate": 0.001,
        "schedule": {"kind": "inverse_sqrt", "warmup_steps": 1},
        "checkpoint": {"every_steps": 1},
        "validation": {"every_steps": 1},
    }
    return parse_config(TrainingConfig, tree | keys, "test")


def state(stage: int, world_size: int = 4, on_gpu: bool = False, **keys: Any) -> StateBytes:
    return state_bytes(SIZES, training(stage, **keys), world_size, on_gpu)


def model(**adapter: Any) -> ModelConfig:
    sizes = {"d_model": 16, "ffn_dim": 40, "num_heads": 2}
    layers = {"num_encoder_layers": 3, "num_decoder_layers": 2}
    tree = {"kind": "hyper", "bottleneck_dim": 6, "hyper_network": {"hyper_dim": 8}} | adapter
    return parse_config(ModelConfig, sizes | layers | {"adapter": tree}, "test")


def test_a_run_without_sharding() -> None:
    held = state(0)
    assert held.parameters == 4 * TOTAL
    assert held.gradients == 4 * TRAINED
    assert held.optimizer == 8 * TRAINED
    assert (held.gathered, held.communication) == (0, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stages_1_and_2_keep_fp32_weights_beside_the_model(precision: str) -> None:
    """Two groups, each in four equal parts."""
    item = 4 if precision == "fp32" else 2
    one, two = (state(stage, precision=precision) for stage in (1, 2))
    assert one.parameters == two.parameters == item * (TOTAL + 4)  # padded to pairs a rank
    assert one.optimizer == two.optimizer == 12 * (200_000 + 175_026)
    assert one.gradients == item * TRAINED
    # The second rank has parts of 300,000, 500,000 and 700,000: the sum so far, and the new one.
    assert two.gradients == 2 * item * 1_500_000


def test_copies_for_offloading() -> None:
    """Shares in bf16, the largest gradient, and in stage 2 the sum of the gradients so far."""
    shares = 2 * (200_000 + 175_026) + 2 * 700_000
    one, two = (state(n, precision="bf16", offload_optimizer=True) for n in (1, 2))
    assert one.host_copies == shares
    assert two.host_copies == shares + 2 * 1_500_000


def test_stage_3_shards_all_but_small_parameters() -> None:
    held = state(3)
    shards = (300_000 + 500_000 + 100 + 700_000) // 4
    assert held.optimizer == 12 * shards
    assert held.gradients == 4 * shards
    assert held.parameters == 4 * (shards + 100_000 + 15 + 160)
    assert held.gathered == 4 * (TOTAL - 160)
    half = state(3, precision="bf16")
    assert half.optimizer == 12 * shards
    assert half.parameters * 2 == held.parameters
    alone = state(3, world_size=1)
    assert (alone.parameters, alone.gathered) == (4 * TOTAL, 0)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_moves_the_optimizer_to_the_host(stage: int) -> None:
    device, moved = (
        state(stage, precision="bf16"),
        state(stage, precision="bf16", offload_optimizer=True),
    )
    assert moved.optimizer == 0
    # Its gradients are there too.
    assert moved.host_optimizer == device.optimizer // 12 * 16
    assert (device.host_optimizer, device.host_copies) == (0, 0)
    assert moved.host_copies > 0
    assert moved.gradients == (device.gradients if stage == 1 else 0)


@given(st.integers(1, 64), st.integers(1, 3))
def test_more_ranks_hold_no_more_each_and_no_less_together(world_size: int, stage: int) -> None:
    if 64 % world_size:
        return
    alone, shared = state(stage, 1), state(stage, world_size)
    assert shared.optimizer <= alone.optimizer
    assert shared.optimizer * world_size >= alone.optimizer
    assert shared.gradients <= alone.gradients


def test_a_gpu_has_buffers_of_their_full_size() -> None:
    assert [state(n, on_gpu=True).communication for n in range(4)] == [
        0, 2 * 4 * 50_000_000, 2 * 4 * 50_000_000, 4 * 50_000_000,
    ]  # fmt: skip
    assert state(1).communication == 4 * TRAINED


def test_sizes_are_those_of_the_model() -> None:
    config = model()
    sizes = parameter_sizes(config, VOCABULARY, training())
    assert sizes.total == sum(count_parameters(config, VOCABULARY).values())
    assert sizes.frozen == ()
    adapters_only = parameter_sizes(
        config, VOCABULARY, training(frozen=["embedding", "encoder", "decoder"])
    )
    assert adapters_only.total == sizes.total
    counts = count_parameters(config, VOCABULARY)
    assert sum(adapters_only.frozen) == sum(
        counts[part] for part in ("embedding", "encoder", "decoder")
    )


def test_a_part_that_the_model_lacks() -> None:
    with pytest.raises(ConfigError, match=r"training.frozen names adapters, which this model does"):
        parameter_sizes(model(), VOCABULARY, training(frozen=["adapters"]))


def test_checkpoints() -> None:
    assert checkpoint_bytes(1_000, 900) == 4 * 1_000 + 8 * 900
    config = {"every_steps": 10, "keep": 3, "keep_best": 2, "keep_every_steps": 100}
    assert num_checkpoints(parse_config(CheckpointConfig, config, "test"), 1_050) == 3 + 2 + 10 + 1
    few = parse_config(CheckpointConfig, {"every_steps": 10}, "test")
    assert num_checkpoints(few, 1_050) == 2 + 1
