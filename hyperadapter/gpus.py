"""Which GPU a run fits on, and what to change where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import parse_config

__all__ = ["GPUS", "Gpu", "changes_that_fit", "find_gpu", "usable_bytes"]

Settings = dict[str, Any]


class Gpu(NamedTuple):
    """A type of GPU.

    Attributes:
        memory_gb: Of one, in 10^9 bytes.
        fp32_tflops: Of matrix products in fp32, without TF32, which torch does not use unasked.
        bf16_tflops: In bf16 without sparsity; None where there is no bf16.
    """

    memory_gb: int
    fp32_tflops: float
    bf16_tflops: float | None

    def flops_per_s(self, precision: str) -> float:
        """Returns the peak of matrix products in a precision that the type has."""
        tflops = self.bf16_tflops if precision == "bf16" else self.fp32_tflops
        assert tflops is not None
        return tflops * 1e12


# NVIDIA's data sheets: B200 (HGX, a GPU of eight), H200, H100, A100, A40, A10, L40S, L4, V100.
# Where they give figures with sparsity, ours are the half. V100's 125 TFLOP/s are fp16.
GPUS: Mapping[str, Gpu] = {
    "B200": Gpu(180, 75, 2250),
    "H200": Gpu(141, 67, 989),
    "H100": Gpu(80, 67, 989),
    "H100-PCIE": Gpu(80, 51, 756),
    "A100": Gpu(80, 19.5, 312),
    "A100-40GB": Gpu(40, 19.5, 312),
    "L40S": Gpu(48, 91.6, 362),
    "A40": Gpu(48, 37.4, 149.7),
    "A10": Gpu(24, 31.2, 125),
    "L4": Gpu(24, 30.3, 121),
    "V100": Gpu(32, 15.7, None),
    "V100-16GB": Gpu(16, 15.7, None),
}
"""Types that hours and memory can be forecast for."""

# The rest is for CUDA itself, NCCL, and what the allocator cannot use.
_USABLE = 0.95


def usable_bytes(gpu: Gpu) -> int:
    """Returns how many bytes of a GPU a run can fill: 95 % of them."""
    return int(_USABLE * gpu.memory_gb * 1e9)


def find_gpu(name: str, precision: str) -> Gpu:
    """Returns a type by its name.

    Raises:
        ConfigError: There is no such type, or it cannot compute in this precision.
    """
    card = GPUS.get(name.upper())
    if card is None:
        raise ConfigError(f"--gpu {name}: unknown; choose one of {', '.join(GPUS)}")
    if precision == "bf16" and card.bf16_tflops is None:
        raise ConfigError(
            f"--gpu {name}: it has no bf16; set training.precision to fp32, or choose another GPU"
        )
    return card


def changes_that_fit(
    config: RunConfig, world_size: int, bytes_of: Callable[[RunConfig], int], limit: int
) -> list[dict[str, Any]]:
    """Finds the changes that make a run fit: each that suffices alone, or else all it takes.

    Args:
        config: The run.
        world_size: Ranks.
        bytes_of: Counts a changed run.
        limit: What a GPU has.

    Returns:
        `set`, as for --set, and `total`, in bytes; empty if the run fits or nothing helps.
    """
    if bytes_of(config) <= limit:
        return []
    alone: dict[str, dict[str, Any]] = {}
    for settings in _candidates(config, world_size):
        key = next(iter(settings))
        changed = None if key in alone else _with(config, settings)
        if changed is not None and bytes_of(changed) <= limit:
            alone[key] = _change(settings, bytes_of(changed))
    if alone:
        return list(alone.values())
    together: Settings = {}
    for settings in _candidates(config, world_size):
        changed = _with(config, together | settings)
        if changed is None:
            continue
        together |= settings
        if bytes_of(changed) <= limit:
            return [_change(together, bytes_of(changed))]
    return []


def _change(settings: Settings, total: int) -> dict[str, Any]:
    return {"set": [f"{key}={_plain(value)}" for key, value in settings.items()], "total": total}


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _candidates(config: RunConfig, world_size: int) -> Iterator[Settings]:
    """Yields what saves memory, the cheapest first; smaller micro-batches last."""
    training = config.training
    stages = (2, 3) if world_size > 1 else ()
    yield from ({"training.zero_stage": n} for n in stages if n > training.zero_stage)
    if config.model.adapter.kind == "hyper":
        yield {"model.adapter.generation": "layer_by_layer"}
    yield {"training.activation_checkpointing": True}
    if not training.offload_optimizer:
        # Nothing can be offloaded without ZeRO.
        zero = {} if training.zero_stage or world_size > 1 else {"training.zero_stage": 1}
        yield {"training.offload_optimizer": True, **zero}
    tokens = training.micro_batch_tokens
    while tokens % 2 == 0:
        tokens //= 2
        yield {"training.micro_batch_tokens": tokens}


def _with(config: RunConfig, settings: Settings) -> RunConfig | None:
    """Returns the changed run, or None if it is not valid."""
    tree = config.model_dump(mode="json")
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = tree
        for group in groups:
            node = node[group]
        node[last] = value
    try:
        return parse_config(RunConfig, tree, "the changed run")
    except ConfigError:
        return None
