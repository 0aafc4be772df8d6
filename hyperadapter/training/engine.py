"""The only door to DeepSpeed: one optimizer step, evaluation, and the state of a run.

DeepSpeed averages gradients over ranks and micro-batches as if all of them held the same number of
tokens. `train_step` therefore scales each micro-batch's summed loss by

    world_size * micro_batches_per_rank / target tokens of the whole step,

so that the update is the gradient of the mean loss over the step's target tokens, however they are
shared out.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.local import launched_externally
from hyperadapter.config import TrainingConfig
from hyperadapter.core.errors import CheckpointError, ConfigError
from hyperadapter.evaluation.translate import choose_device
from hyperadapter.model.adapters import AdapterStack
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import LossSums

__all__ = ["Engine", "StepResult", "World", "deepspeed_config", "start_world"]

log = logging.getLogger(__name__)

_STATE_TAG = "state"


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
def start_world(config: TrainingConfig, timeout_s: float = 1800.0) -> Iterator[World]:
    """Joins the processes of this run, and leaves them at the end.

    Raises:
        ConfigError: A GPU was asked for and there is none, or fewer than processes on this node.
    """
    rank, local_rank, size = _launcher_rank(os.environ)
    cuda = choose_device(config.device).type == "cuda"
    device = _gpu(local_rank) if cuda else torch.device("cpu")
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
    dist.init_process_group(
        "nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s), rank=rank, world_size=size
    )
    try:
        yield World(rank, size, device, dist.new_group(backend="gloo") if size > 1 else None)
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


def deepspeed_config(config: TrainingConfig, world_size: int) -> dict[str, Any]:
    """Derives DeepSpeed's settings; nothing is left to its defaults that changes the result."""
    micro_batches_per_rank = config.micro_batches_per_step // world_size
    return {
        # Only their product matters: micro-batches are counted in tokens, not sentences.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_batches_per_rank,
        "train_batch_size": config.micro_batches_per_step,
        # DeepSpeed's default is 1.0; 0 turns clipping off.
        "gradient_clipping": config.clip_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": False},
        "zero_optimization": {
            "stage": config.zero_stage,
            # Its linear wrapper rounds differently from torch: 2e-3 after 50 steps of Adam.
            "memory_efficient_linear": False,
            "overlap_comm": config.device != "cpu" and torch.cuda.is_available(),
        },
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


class StepResult(NamedTuple):
    """This rank's share of one optimizer step, left on the device.

    Attributes:
        loss: Sum of the smoothed loss over the rank's target tokens, nats.
        nll: Sum of the negative log-likelihood, nats.
        grad_norm: Global norm before clipping.
    """

    loss: Tensor
    nll: Tensor
    grad_norm: Tensor


class Engine:
    """A model with its optimizer, sharded by DeepSpeed ZeRO.

    Args:
        model: Initialised equally on all ranks.
        config: Optimizer, precision and ZeRO stage.
        world: From `start_world`.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig, world: World) -> None:
        import deepspeed

        # Its shared-memory all-reduce serves inference only and takes minutes to compile.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed calls collectives by names that torch 2.13 has deprecated.
        warnings.filterwarnings(
            "ignore", r".*torch\.distributed\.\w+` is deprecated", FutureWarning
        )
        self.config, self.world = config, world
        self.micro_batches = config.micro_batches_per_step // world.size
        optimizer = torch.optim.AdamW(
            _parameter_groups(model.to(world.device), config.weight_decay),
            lr=config.learning_rate,
            betas=config.adam_betas,
            eps=config.adam_eps,
            fused=True,
        )
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, world.size),
            dist_init_required=False,
        )

    def train_step(
        self,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        target_tokens: int,
        learning_rate: float,
    ) -> StepResult:
        """Runs one optimizer step over this rank's micro-batches.

        Args:
            batches: This rank's micro-batches, `micro_batches_per_step / world size` of them.
            seeds: Seed of the dropout of each; it belongs to the micro-batch, not to the rank.
            target_tokens: Target tokens of the step over all ranks.
            learning_rate: Of this step.
        """
        engine = self._engine
        engine.train()
        for group in engine.optimizer.param_groups:
            group["lr"] = learning_rate
        scale = self.world.size * self.micro_batches / target_tokens
        loss = torch.zeros((), device=self.world.device)
        nll = torch.zeros((), device=self.world.device)
        for batch, seed in zip(batches, seeds, strict=True):
            # Dropout draws from torch's global generator; this makes it a function of the step.
            torch.manual_seed(seed)
            sums: LossSums = engine(batch, self.config.label_smoothing)
            engine.backward(sums.loss * scale)
            loss += sums.loss.detach()
            nll += sums.nll
            if engine.is_gradient_accumulation_boundary() and self.config.zero_stage == 0:
                grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
                stage_0_norm = torch.nn.utils.get_total_norm(grads)
            engine.step()
        norm = stage_0_norm if self.config.zero_stage == 0 else engine.get_global_grad_norm()
        return StepResult(loss, nll, torch.as_tensor(norm))

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Returns the summed negative log-likelihood of a micro-batch, in nats."""
        self._engine.eval()
        sums: LossSums = self._engine(batch)
        return sums.nll

    def save(self, folder: Path) -> None:
        """Writes this rank's part of the sharded state; every rank must call it."""
        self._engine.save_checkpoint(str(folder), tag=_STATE_TAG, save_latest=False)
        if self.world.is_main:
            for script in folder.glob("zero_to_*.py"):
                # Tools that unpickle; our weights lie beside the state as safetensors.
                script.unlink()

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, on the same world size and ZeRO stage."""
        path, _ = self._engine.load_checkpoint(str(folder), tag=_STATE_TAG)
        if path is None:
            raise CheckpointError(f"{folder} holds no state that DeepSpeed can load")

    def full_weights(self) -> dict[str, Tensor]:
        """Gathers the fp32 weights on the CPU; every rank must call it, rank 0 gets them.

        With bf16 these are the optimizer's master weights, not the rounded ones.
        """
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        weights: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            if self.config.precision == "bf16":
                full = safe_get_full_fp32_param(parameter)
                if self.world.is_main:
                    weights[name] = full.detach().cpu().clone()
                continue
            sharded = self.config.zero_stage == 3
            with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
                if self.world.is_main:
                    weights[name] = parameter.detach().cpu().clone()
        return weights


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decays projections and stacked projections; embeddings, gains and biases are not decayed."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for stack in model.modules():
        if isinstance(stack, AdapterStack):
            matrices |= {id(stack.down_KLRD), id(stack.up_KLDR)}
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if id(parameter) in matrices else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    # DeepSpeed refuses an empty group.
    return [group for group in groups if group["params"]]
