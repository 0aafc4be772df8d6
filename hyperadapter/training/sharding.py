"""Bytes of the state of training on the fullest rank, counted from the parameters' sizes alone.

What DeepSpeed 0.19 holds with W ranks, e bytes a number (fp32: 4, bf16: 2), N parameters and T of
them trained (runtime/zero/stage_1_and_2.py and stage3.py):

    stage          0      1                   2                            3
    parameters     e N    e N                 e N                          e (N / W + small ones)
    gathered       0      0                   0                            e (all others)
    gradients      e T    e T                 e (T / W + cut ones) [x 2]   e T / W
    optimizer      8 T    12 T / W            12 T / W                     12 T / W

- Optimizer: Adam's two moments, and fp32 weights to update, which stages 1 to 3 keep beside the
  model also when the model is fp32. (Stage 3 means to update fp32 shards in place, but asks whether
  a torch.device equals its name, which is never so.)
- Stage 1 shards optimizer states only: each rank has all gradients until the last micro-batch.
- Stage 2 cuts flat groups at any number, and a rank keeps whole gradients of parameters that are
  cut. Twice with more than one micro-batch a rank: the sum so far, and the new one.
- Stage 3 keeps parameters of 100,000 numbers and fewer whole. The others are gathered when they
  are used, and released only if 10^9 numbers are used before they are needed again: a model of less
  than half of that is whole on every rank in each step.
- Gradients travel through buffers of a fixed size, of `reduce_bucket_size` numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from hyperadapter.config import CheckpointConfig, ModelConfig, TrainingConfig
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training.engine import deepspeed_config
from hyperadapter.training.optimizer import build_optimizer, freeze

__all__ = [
    "ZERO_DEFAULTS",
    "ParameterSizes",
    "StateBytes",
    "checkpoint_bytes",
    "element_size",
    "num_checkpoints",
    "parameter_sizes",
    "state_bytes",
]

ZERO_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_param_persistence_threshold": 100_000,
    "stage3_max_live_parameters": 1_000_000_000,
}
"""What DeepSpeed takes where `deepspeed_config` says nothing."""

_FP32 = 4
_MOMENTS = 2 * _FP32


class ParameterSizes(NamedTuple):
    """How many numbers each parameter has.

    Attributes:
        groups: Of what is trained, by group of the optimizer, in its order.
        frozen: Of all others.
    """

    groups: tuple[tuple[int, ...], ...]
    frozen: tuple[int, ...]

    @property
    def trained(self) -> tuple[int, ...]:
        """Of what is trained."""
        return tuple(chain.from_iterable(self.groups))

    @property
    def total(self) -> int:
        """Of all together."""
        return sum(self.trained) + sum(self.frozen)


class StateBytes(NamedTuple):
    """Bytes on the fullest rank.

    Attributes:
        parameters: Between two steps.
        gathered: Parameters of stage 3 that are whole for as long as they are used.
        gradients: The most before the update.
        optimizer: fp32 weights and moments.
        communication: Buffers on the gradients' way to other ranks.
        update: Copies made while gradients are reduced and weights updated; activations are gone.
        host_optimizer: fp32 weights, moments and their gradients in host memory.
        host_copies: Copies in host memory on the way there and back.
    """

    parameters: int
    gathered: int
    gradients: int
    optimizer: int
    communication: int
    update: int
    host_optimizer: int = 0
    host_copies: int = 0


def parameter_sizes(
    model: ModelConfig, vocabulary: Vocabulary, config: TrainingConfig
) -> ParameterSizes:
    """Sizes the parameters of a run, without their values.

    Raises:
        ConfigError: `training.frozen` or `training.learning_rate_scale` does not fit the model.
    """
    with torch.device("meta"):
        built = Seq2Seq(model, vocabulary)
    freeze(built, config)
    groups = build_optimizer(built, config).param_groups
    return ParameterSizes(
        tuple(tuple(p.numel() for p in group["params"]) for group in groups),
        tuple(p.numel() for p in built.parameters() if not p.requires_grad),
    )


def element_size(config: TrainingConfig) -> int:
    """Returns the bytes of a number of the forward pass."""
    return 2 if config.precision == "bf16" else _FP32


def checkpoint_bytes(num_parameters: int, num_trained: int) -> int:
    """Returns the size of a checkpoint: fp32 weights, and two moments of what is trained."""
    return num_parameters * _FP32 + num_trained * _MOMENTS


def num_checkpoints(config: CheckpointConfig, max_steps: int) -> int:
    """Returns how many checkpoints exist at most, one that is being written among them."""
    forever = max_steps // config.keep_every_steps if config.keep_every_steps else 0
    saved = math.ceil(max_steps / config.every_steps)
    return min(config.keep + config.keep_best + forever, saved) + 1


def state_bytes(
    sizes: ParameterSizes, config: TrainingConfig, world_size: int, on_gpu: bool
) -> StateBytes:
    """Counts the state of training on the fullest rank; see the head of this file.

    Args:
        sizes: The model's parameters.
        config: Stage, precision, offloading, batch.
        world_size: Ranks.
        on_gpu: Buffers are reserved in full and doubled; a CPU reserves what is written.
    """
    settings: dict[str, Any] = (
        ZERO_DEFAULTS | deepspeed_config(config, world_size)["zero_optimization"]
    )
    item = element_size(config)
    trained = sum(sizes.trained)
    bucket = settings["reduce_bucket_size"]
    in_flight = item * min(trained, bucket)
    if config.zero_stage == 0:
        state = StateBytes(
            item * sizes.total, 0, item * trained, _MOMENTS * trained, 0, update=in_flight
        )
    elif config.zero_stage == 3:
        state = _stage_3(sizes, config, world_size, settings)
    else:
        state = _stage_1_and_2(sizes, config, world_size)
    if config.zero_stage:
        # Two of them where a GPU sends the one while it fills the other.
        buffers = (2 if config.zero_stage < 3 else 1) * item * bucket if on_gpu else in_flight
        state = state._replace(
            communication=state.communication + buffers, update=max(state.update, in_flight)
        )
    return state


def _stage_1_and_2(sizes: ParameterSizes, config: TrainingConfig, world_size: int) -> StateBytes:
    item = element_size(config)
    partitions = [_partition(group, world_size) for group in sizes.groups]
    owned = sum(partitions)
    whole = item * _most_touched(sizes.groups, world_size)
    # Only stage 2 adds up the gradients of several micro-batches in its share of them.
    sums = whole * (config.zero_stage == 2 and config.micro_batches_per_step > world_size)
    gradients = item * sum(sizes.trained) if config.zero_stage == 1 else whole + sums
    parameters = item * (owned * world_size + sum(sizes.frozen))
    weights_and_moments = (_FP32 + _MOMENTS) * owned
    if config.offload_optimizer:
        largest = item * max(sizes.trained)
        return StateBytes(
            parameters,
            gathered=0,
            gradients=gradients if config.zero_stage == 1 else 0,
            optimizer=0,
            communication=largest,
            update=0,
            host_optimizer=weights_and_moments + _FP32 * owned,
            host_copies=item * owned + largest + sums,
        )
    # The gradients of one group at a time as one row, once more in fp32.
    row = max(partitions) * (item if item == _FP32 else item + _FP32)
    return StateBytes(parameters, 0, gradients, weights_and_moments, 0, update=row)


def _stage_3(
    sizes: ParameterSizes, config: TrainingConfig, world_size: int, settings: dict[str, Any]
) -> StateBytes:
    item = element_size(config)
    shards = [sum(-(-numel // world_size) for numel in group) for group in sizes.groups]
    owned = sum(shards)
    everything = (*sizes.trained, *sizes.frozen)
    threshold = settings["stage3_param_persistence_threshold"]
    small = sum(numel for numel in everything if numel <= threshold)
    kept = owned + sum(-(-numel // world_size) for numel in sizes.frozen)
    gathered = min(sizes.total - small, settings["stage3_max_live_parameters"])
    if world_size == 1:  # what is gathered is the shard itself
        small = gathered = 0
    parameters, gradients = item * (kept + small), item * owned
    weights_and_moments = (_FP32 + _MOMENTS) * owned
    if config.offload_optimizer:
        return StateBytes(
            parameters,
            item * gathered,
            gradients=0,
            optimizer=0,
            communication=0,
            update=0,
            host_optimizer=weights_and_moments + _FP32 * owned,
            host_copies=gradients,
        )
    row = max(shards) * (item if item == _FP32 else item + _FP32)
    return StateBytes(parameters, item * gathered, gradients, weights_and_moments, 0, update=row)


def _partition(group: Sequence[int], world_size: int) -> int:
    """Returns a rank's share of a flat group, which is padded to pairs of numbers a rank."""
    return 2 * -(-sum(group) // (2 * world_size))


def _most_touched(groups: Sequence[Sequence[int]], world_size: int) -> int:
    """Returns the numbers of all parameters that lie at least partly on the fullest rank."""
    touched = [0] * world_size
    for group in groups:
        length, start = _partition(group, world_size), 0
        for numel in group:
            for rank in range(start // length, (start + numel - 1) // length + 1):
                touched[rank] += numel
            start += numel
    return max(touched)
