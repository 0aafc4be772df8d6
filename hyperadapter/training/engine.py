"""The only door to DeepSpeed: one optimizer step, evaluation, and the state of a run.

DeepSpeed averages gradients over ranks and micro-batches as if all of them held the same number of
tokens. `train_step` therefore scales each micro-batch's summed loss by

    world_size * micro_batches_per_rank / target tokens of the whole step,

so that the update is the gradient of the mean loss over the step's target tokens, however they are
shared out.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from hyperadapter.checkpoint.pieces import PieceReader
from hyperadapter.config import Part, TrainingConfig
from hyperadapter.model.adapters import Adapters, RawAdapters
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import part_of
from hyperadapter.model.seq2seq import LossSums, Seq2Seq
from hyperadapter.training.optimizer import build_optimizer, set_learning_rate
from hyperadapter.training.world import World
from hyperadapter.training.zero import ZeroState

__all__ = ["Engine", "StepResult", "deepspeed_config"]

Observer = TypeVar("Observer", bound=Adapters)


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
            # DeepSpeed's 5e8 numbers would take 2 to 4 GB of a GPU; 5e7 fill a network as well.
            "reduce_bucket_size": 50_000_000,
            "offload_optimizer": {"device": "cpu" if config.offload_optimizer else "none"},
        },
        # With offloading: AdamW as everywhere, which torch fuses on the CPU too.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


class StepResult(NamedTuple):
    """This rank's share of one optimizer step, left on the device.

    Attributes:
        loss: Sum of the smoothed loss over the rank's target tokens, nats.
        nll: Sum of the negative log-likelihood, nats.
        grad_norm: Global norm before clipping, the same on all ranks.
        part_grad_norms: The same of each trained part of the model, where it was asked for.
        bad_gradients: Parameters whose gradient is not finite, where that was asked for.
    """

    loss: Tensor
    nll: Tensor
    grad_norm: Tensor
    part_grad_norms: Mapping[Part, Tensor]
    bad_gradients: tuple[str, ...] = ()


class Engine:
    """A model with its optimizer, sharded by DeepSpeed ZeRO.

    Args:
        model: Initialised and frozen (`freeze`) equally on all ranks.
        config: Optimizer, precision and ZeRO stage.
        world: From `start_world`.

    Attributes:
        state: Weights and moments, as checkpoints keep them.
    """

    def __init__(self, model: Seq2Seq, config: TrainingConfig, world: World) -> None:
        deepspeed = _import_deepspeed()
        # Its shared-memory all-reduce serves inference only and takes minutes to compile.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # DeepSpeed calls collectives by names that torch 2.13 has deprecated.
        warnings.filterwarnings(
            "ignore", r".*torch\.distributed\.\w+` is deprecated", FutureWarning
        )
        self.config, self.world = config, world
        self.micro_batches = config.micro_batches_per_step // world.size
        optimizer = build_optimizer(model.to(world.device), config)
        self._engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(config, world.size),
            dist_init_required=False,
        )
        self.state = ZeroState(self._engine, config.zero_stage, world.rank)

    def train_step(
        self,
        batches: Sequence[Batch],
        seeds: Sequence[int],
        target_tokens: int,
        learning_rate: float,
        measure_parts: bool = False,
    ) -> StepResult:
        """Runs one optimizer step over this rank's micro-batches.

        Args:
            batches: This rank's micro-batches, `micro_batches_per_step / world size` of them.
            seeds: Seed of the dropout of each; it belongs to the micro-batch, not to the rank.
            target_tokens: Target tokens of the step over all ranks.
            learning_rate: Of this step, before the scales of the parts.
            measure_parts: Also return the gradient's norm by part, and which are not finite.
        """
        engine = self._engine
        engine.train()
        set_learning_rate(engine.optimizer.param_groups, learning_rate)
        scale = self.world.size * self.micro_batches / target_tokens
        loss = torch.zeros((), device=self.world.device)
        nll = torch.zeros((), device=self.world.device)
        squares: dict[str, Tensor] = {}
        for batch, seed in zip(batches, seeds, strict=True):
            # Dropout draws from torch's global generator; this makes it a function of the step.
            torch.manual_seed(seed)
            sums: LossSums = engine(batch, self.config.label_smoothing)
            engine.backward(sums.loss * scale)
            loss += sums.loss.detach()
            nll += sums.nll
            if engine.is_gradient_accumulation_boundary():
                if self.config.zero_stage == 0:
                    grads = [p.grad for p in engine.module.parameters() if p.grad is not None]
                    stage_0_norm = torch.nn.utils.get_total_norm(grads)
                if measure_parts:
                    squares = self._squared_grad_norms()
            engine.step()
        norm = stage_0_norm if self.config.zero_stage == 0 else engine.get_global_grad_norm()
        parts: dict[Part, list[Tensor]] = defaultdict(list)
        for name, square in squares.items():
            parts[part_of(name)].append(square)
        norms = {part: torch.stack(terms).sum().sqrt() for part, terms in parts.items()}
        finite = torch.stack([*squares.values()]).isfinite().tolist() if squares else []
        bad = tuple(name for name, good in zip(squares, finite, strict=True) if not good)
        return StepResult(loss, nll, torch.as_tensor(norm), norms, bad)

    def _squared_grad_norms(self) -> dict[str, Tensor]:
        """Computes each gradient's squared norm, between the last backward and the step.

        From stage 1 on every gradient is put together by a collective: all ranks come here in the
        same step and take the parameters in the same order. It moves as many bytes as reducing the
        gradients in fp32 once more.
        """
        from deepspeed.utils import safe_get_full_grad

        squares: dict[str, Tensor] = {}
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                grad = safe_get_full_grad(parameter)
                if grad is not None:
                    squares[name] = grad.float().square().sum()
        return squares

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Returns the summed negative log-likelihood of a micro-batch, in nats."""
        self._engine.eval()
        sums: LossSums = self._engine(batch)
        return sums.nll

    @torch.no_grad()
    def raw_adapters(
        self, src_language_P: Tensor, tgt_language_P: Tensor, direction_P: Tensor
    ) -> RawAdapters | None:
        """Provides the adapters of P directions for all layers; every rank must call it.

        ZeRO-3 gathers parameters in the hooks of the submodules that use them.
        """
        self._engine.eval()
        model: Seq2Seq = self._engine.module
        return model.raw_adapters(src_language_P, tgt_language_P, direction_P)

    @torch.no_grad()
    def observe(self, batch: Batch, wrap: Callable[[Adapters], Observer]) -> Observer:
        """Runs a micro-batch with an observer around its adapters; every rank must call it.

        Args:
            batch: The micro-batch.
            wrap: Makes the observer; the model must have adapters.
        """
        seen: list[Observer] = []

        def observe(adapters: Adapters) -> Observer:
            seen.append(wrap(adapters))
            return seen[0]

        self._engine.eval()
        # Compiled layers would be compiled anew for it.
        eager = torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()
        with eager:
            self._engine(batch, 0.0, observe)
        return seen[0]

    def load(self, folder: Path) -> None:
        """Reads the state of a checkpoint of any world size and ZeRO stage; all ranks must."""
        with PieceReader(folder) as reader:
            for piece in self.state.pieces():
                reader.fill(piece)
            self.state.steps = reader.steps
        self.state.publish()

    @torch.no_grad()
    def reset(self, model: Seq2Seq) -> None:
        """Begins anew with a model's weights, as if nothing had been trained; all ranks must.

        DeepSpeed keeps what an engine of stage 3 refers to, so a second one would not fit.
        """
        weights = dict(model.named_parameters())
        for piece in self.state.pieces():
            flat = weights[piece.name].detach().view(-1)
            if self.config.precision == "bf16":
                flat = flat.bfloat16()  # as DeepSpeed does before it copies them as fp32
            piece.weight.copy_(flat[piece.start :][: piece.weight.numel()])
            for moment in piece.moments.values():
                moment.zero_()
        self.state.steps = 0
        self.state.publish()

    def close(self) -> None:
        """Frees what DeepSpeed holds, but for models of stage 3."""
        self._engine.destroy()


def _import_deepspeed() -> Any:
    """Imports DeepSpeed without what it would load for nothing: 2.4 s and 150 MB a rank.

    Its autotuner imports MLflow if there is one, and its Muon optimizer compiles two functions at
    import, which loads all of inductor. We use neither.
    """
    if "deepspeed" in sys.modules:
        return sys.modules["deepspeed"]
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    from deepspeed.runtime import compiler

    compile_decorator = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.original_muon
    finally:
        compiler.compile = compile_decorator
    return deepspeed
