"""The processes of a run: where each stands, and how they agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.local import launched_externally
from hyperadapter.config import TrainingConfig
from hyperadapter.core.errors import ConfigError, HyperAdapterError
from hyperadapter.core.heap import keep_freed_memory
from hyperadapter.evaluation.translate import choose_device

__all__ = ["World", "start_world"]

Value = TypeVar("Value")

_LEAST_TIMEOUT_S = 1800.0
_NEVER_S = 30 * 86400.0


class World(NamedTuple):
    """Where this process stands among all of them.

    Attributes:
        rank: From 0 to size - 1.
        size: Number of processes.
        device: Where this process computes.
        control: A gloo group for flags and counts that never touches the GPU.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and logs."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def any(self, flag: bool) -> bool:
        """Says whether the flag is set on any rank."""
        return bool(self.most(int(flag)))

    def most(self, value: int) -> int:
        """Returns the largest value of all ranks."""
        if self.control is None:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.control)
        return int(values.item())

    def gather(self, value: Any) -> list[Any]:
        """Returns the values of all ranks, in order of the ranks."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_main(self, work: Callable[[], Value]) -> Value:
        """Runs something on the main rank only and gives its result, or its error, to all."""
        found: Value | HyperAdapterError | None = None
        if self.is_main:
            try:
                found = work()
            except HyperAdapterError as error:
                found = error
        result = self.gather(found)[0]
        if isinstance(result, HyperAdapterError):
            raise result
        value: Value = result
        return value

    def sum(self, values: Tensor) -> Tensor:
        """Adds a CPU tensor over all ranks."""
        if self.control is not None:
            dist.all_reduce(values, group=self.control)
        return values


def _launcher_rank(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Returns rank, local rank and world size as torchrun, our launcher or srun gave them."""
    if "RANK" in environment:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif launched_externally(environment):
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    else:
        return 0, 0, 1
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise ConfigError(
            f"a launcher gave this process a rank ({names[0]}={environment[names[0]]}) but not "
            f"{', '.join(missing)}; torchrun sets all of them, under srun export MASTER_ADDR (the "
            "first node) and MASTER_PORT (a free port)"
        )
    values = [environment[name] for name in names]
    if not all(value.isdigit() for value in values):
        raise ConfigError(
            "the launcher's "
            + ", ".join(f"{n}={v!r}" for n, v in zip(names, values, strict=True))
            + " must be whole numbers"
        )
    rank, local_rank, size = map(int, values)
    return rank, local_rank, size


@contextmanager
def start_world(config: TrainingConfig) -> Iterator[World]:
    """Joins the processes of this run, and leaves them at the end.

    A collective gives up later than the watchdog, which says where it hangs.

    Raises:
        ConfigError: A GPU was asked for and there is none, or fewer than processes on this node.
    """
    rank, local_rank, size = _launcher_rank(os.environ)
    cuda = choose_device(config.device).type == "cuda"
    device = _gpu(local_rank) if cuda else torch.device("cpu")
    if not cuda:
        keep_freed_memory()
    # DeepSpeed reads all of these.
    settings = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(size),
        "DS_ACCELERATOR": device.type,
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", "0"),
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    hang_s = config.recovery.hang_s
    timeout = timedelta(seconds=max(_LEAST_TIMEOUT_S, 2 * hang_s) if hang_s else _NEVER_S)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=timeout, rank=rank, world_size=size)
    try:
        control = dist.new_group(backend="gloo", timeout=timeout) if size > 1 else None
        yield World(rank, size, device, control)
    finally:
        dist.destroy_process_group()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _gpu(local_rank: int) -> torch.device:
    """Returns this rank's GPU; a launcher may show each of its tasks one GPU only."""
    count = torch.cuda.device_count()
    index = 0 if count == 1 and "SLURM_PROCID" in os.environ else local_rank
    if index >= count:
        raise ConfigError(
            f"process {local_rank} of this node has no GPU of its own: torch sees {count}. Start "
            "as many processes as there are GPUs (training.num_processes), or use device: cpu"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
