"""One rank of the parity runs: many tiny trainings, one after another in one process group.

    python -m tests.distributed.parity_worker FOLDER

FOLDER/cases.json lists (variant, stage) pairs; stage `PLAIN` is a loop of plain PyTorch, without
DeepSpeed, over the whole batch. Rank 0 writes FOLDER/results.json and the final weights.

The data are a function of the step, and each step is difficult in a way of its own: see `STEPS`.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cluster.local import free_port
from data_pipeline.ragged import Ragged
from data_pipeline.stream import batching
from hyperadapter.config import ModelConfig, TrainingConfig
from hyperadapter.core.languages import parse_direction
from hyperadapter.core.schema import parse_config
from hyperadapter.model.adapters import AdapterStack, RawAdapters
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training import engine as engine_module
from hyperadapter.training.optimizer import build_optimizer, freeze, set_learning_rate
from hyperadapter.training.world import World, start_world
from tests.distributed.gathering import gathered_weights

PLAIN = -1
QUARTERS = 4
STEPS = ("mixed", "apart", "absent", "uneven", "empty", "mixed")
"""What is special about each step; a quarter is what one of four ranks gets.

apart: every quarter has a direction of its own. absent: two languages are in no sentence. uneven:
the first quarter has one sentence of one piece, the others have many. empty: damage has left the
second quarter without a sentence.
"""

# de is of en's family.
LANGUAGES = ("en", "de", "fr", "et")
VOCABULARY = Vocabulary(
    29,
    LANGUAGES,
    tuple(parse_direction(f"{a}-{b}") for x in LANGUAGES[1:] for a, b in (("en", x), (x, "en"))),
)
KINDS = ("none", "language", "direction", "family", "hyper")


@dataclass(frozen=True)
class Variant:
    """What is trained, apart from the stage.

    Attributes:
        kind: Of the adapters.
        training: Changes to the training's settings.
        adapter: Changes to the adapters' settings.
        micro_batches: Of a step; fewer than 4 hold the same sentences in fewer, larger ones.
        packed: Without padding.
        dropout: Everywhere.
    """

    kind: str
    training: dict[str, Any] = field(default_factory=dict)
    adapter: dict[str, Any] = field(default_factory=dict)
    micro_batches: int = QUARTERS
    packed: bool = False
    dropout: float = 0.1


_OPTIONS: dict[str, dict[str, Any]] = {
    "clipped": {"training": {"clip_norm": 0.05}},
    "unclipped": {"training": {"clip_norm": 0}},
    "recomputed": {"training": {"activation_checkpointing": True}},
    "frozen": {"training": {"frozen": ["embedding", "encoder"]}},
    "rates": {"training": {"learning_rate_scale": {"decoder": 0.3, "embedding": 2.0}}},
    "decay": {"training": {"weight_decay": 1.0}},
    "packed": {"packed": True},
}
VARIANTS: dict[str, Variant] = {
    **{kind: Variant(kind) for kind in KINDS},
    **{
        f"{kind}-{option}": Variant(kind, **settings)
        for kind in ("hyper", "language")
        for option, settings in _OPTIONS.items()
    },
    "hyper-layers": Variant("hyper", adapter={"generation": "layer_by_layer"}),
    **{
        f"hyper-batches-{count}": Variant("hyper", micro_batches=count, dropout=0.0)
        for count in (1, 2, 4)
    },
    **{f"{kind}-bf16": Variant(kind, {"precision": "bf16"}) for kind in ("hyper", "language")},
}


class Result(NamedTuple):
    """What a training gave: one number a step each, sums over all ranks.

    Attributes:
        loss: Smoothed, nats.
        nll: Negative log-likelihood, nats.
        norm: Of the gradient, before clipping.
        leaked: Whether the model outlived its closed engine.
    """

    loss: list[float]
    nll: list[float]
    norm: list[float]
    leaked: bool


def model_config(variant: Variant) -> ModelConfig:
    """Builds the configuration of a tiny model; its sizes divide badly among ranks."""
    adapter: dict[str, Any] = {"kind": variant.kind, "bottleneck_dim": 5, **variant.adapter}
    if variant.kind == "hyper":
        adapter["hyper_network"] = {
            "hyper_dim": 9, "num_blocks": 1, "language_dim": 7, "layer_dim": 3,
            "dropout": variant.dropout,
        }  # fmt: skip
    tree = {
        "d_model": 18, "ffn_dim": 21, "num_heads": 3, "num_encoder_layers": 2,
        "num_decoder_layers": 1, "dropout": variant.dropout, "adapter": adapter,
    }  # fmt: skip
    return parse_config(ModelConfig, tree, "parity")


def training_config(variant: Variant, stage: int) -> TrainingConfig:
    """Builds the configuration of the training."""
    tree = {
        "device": "cpu",
        "zero_stage": max(stage, int(variant.training.get("precision") == "bf16")),
        "micro_batch_tokens": 64,
        "global_batch_tokens": 64 * variant.micro_batches,
        "max_steps": len(STEPS),
        "learning_rate": 0.003,
        # Some gradients are 0 but for rounding, such as those of the keys' biases. With the usual
        # 1e-8 Adam makes whole steps of that noise.
        "adam_eps": 1e-5,
        "schedule": {"kind": "inverse_sqrt", "warmup_steps": 0},
        "checkpoint": {"every_steps": 1},
        "validation": {"every_steps": 1},
    }
    return parse_config(TrainingConfig, tree | variant.training, "parity")


def rate_of(step: int, config: TrainingConfig) -> float:
    """Returns the learning rate of a step: never the same twice in a row."""
    return config.learning_rate * (1 + step % 3) / 3


class Sentence(NamedTuple):
    """A sentence pair: direction and pieces."""

    direction: int
    src: np.ndarray
    tgt: np.ndarray


def quarters(step: int) -> list[list[Sentence]]:
    """Returns the sentences of a step in four parts."""
    rng = np.random.default_rng((5, step))
    kind = STEPS[step]

    def draw(count: int, directions: Sequence[int], longest: int = 6) -> list[Sentence]:
        def text() -> np.ndarray:
            return rng.integers(4, VOCABULARY.num_pieces, rng.integers(1, longest + 1))

        return [Sentence(int(rng.choice(directions)), text(), text()) for _ in range(count)]

    everything = range(len(VOCABULARY.directions))
    if kind == "apart":
        return [draw(2, [quarter + 1]) for quarter in range(QUARTERS)]
    if kind == "absent":
        return [draw(2, [0, 1]) for _ in range(QUARTERS)]
    if kind == "uneven":
        return [draw(1, everything, 1), *(draw(6, everything, 9) for _ in range(QUARTERS - 1))]
    parts = [draw(3, everything) for _ in range(QUARTERS)]
    return [[] if kind == "empty" and i == 1 else part for i, part in enumerate(parts)]


def target_tokens(step: int) -> int:
    """Returns the pieces and end marks to predict in a step."""
    return sum(len(sentence.tgt) + 1 for part in quarters(step) for sentence in part)


def micro_batches(step: int, variant: Variant) -> list[Batch]:
    """Returns the micro-batches of a step, of all ranks."""
    parts = quarters(step)
    size = QUARTERS // variant.micro_batches
    merged = [
        [sentence for part in parts[i : i + size] for sentence in part]
        for i in range(0, QUARTERS, size)
    ]
    number = {code: index for index, code in enumerate(LANGUAGES)}
    src = np.array([number[direction.src] for direction in VOCABULARY.directions])
    tgt = np.array([number[direction.tgt] for direction in VOCABULARY.directions])
    layout = batching.BatchLayout(src, tgt, None, tgt + VOCABULARY.num_pieces)
    build: Any = batching.build_packed_batch if variant.packed else batching.build_micro_batch
    empty: Any = batching.build_empty_packed_batch if variant.packed else batching.build_empty_batch

    def batch(sentences: list[Sentence]) -> Batch:
        if not sentences:
            return Batch.from_micro_batch(empty(layout))
        rows = sorted(sentences, key=lambda sentence: sentence.direction)
        direction = np.array([row.direction for row in rows])
        src, tgt = (Ragged.from_sequences([row[side] for row in rows]) for side in (1, 2))
        return Batch.from_micro_batch(build(layout, direction, src, tgt))

    return [batch(sentences) for sentences in merged]


def seeds(step: int, variant: Variant) -> list[int]:
    """Returns the seed of the dropout of each micro-batch of a step."""
    return [1000 + QUARTERS * step + i for i in range(variant.micro_batches)]


def build(variant: Variant, config: TrainingConfig) -> Seq2Seq:
    """Builds the model, the same on all ranks."""
    model = build_model(model_config(variant), VOCABULARY, seed=3)
    freeze(model, config)
    model.activation_checkpointing = config.activation_checkpointing
    return model


class ModulePerDirection(nn.Module):
    """What must not be: a module of its own for each direction, used only where it occurs."""

    def __init__(self, model: Seq2Seq) -> None:
        super().__init__()
        config = model.config
        self.num_layers = len(config.adapted_layers)
        self.stack = nn.ModuleList(
            AdapterStack(1, self.num_layers, config.d_model, config.adapter.bottleneck_dim)
            for _ in model.vocabulary.directions
        )
        for number, stack in enumerate(self.stack):
            stack.reset_parameters(torch.Generator().manual_seed(number))

    def context(self, _: Tensor, __: Tensor, direction_P: Tensor) -> Tensor:
        """Returns each direction's module in each layer [P, L]."""
        return direction_P[:, None].expand(-1, self.num_layers)

    def generate(self, context_PL: Tensor, layers: slice = slice(None)) -> RawAdapters:
        """Takes every direction's adapters from its module."""
        only = torch.zeros_like(context_PL[:1])
        found = [self.stack[int(number)](only, layers) for number in context_PL[:, 0]]
        return RawAdapters(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def train_engine(variant: Variant, stage: int, world: World) -> tuple[Result, dict[str, Tensor]]:
    """Trains this rank's share with our engine."""
    config = training_config(variant, stage)
    model = build(variant, config)
    engine = engine_module.Engine(model, config, world)
    rows = []
    for step in range(len(STEPS)):
        share = slice(world.rank * engine.micro_batches, (world.rank + 1) * engine.micro_batches)
        result = engine.train_step(
            micro_batches(step, variant)[share],
            seeds(step, variant)[share],
            target_tokens(step),
            rate_of(step, config),
        )
        sums = world.sum(torch.stack([result.loss, result.nll]).double())
        rows.append((*sums.tolist(), float(result.grad_norm)))
    weights = gathered_weights(engine, world)
    engine.close()
    ghost = weakref.ref(model)
    del engine, model
    if stage < 3:
        gc.collect()
    loss, nll, norm = (list(column) for column in zip(*rows, strict=True))
    # DeepSpeed keeps the models of stage 3 in global lists.
    return Result(loss, nll, norm, stage < 3 and ghost() is not None), weights


def train_plain(variant: Variant) -> tuple[Result, dict[str, Tensor]]:
    """Trains the whole batch with plain PyTorch; bf16 with master weights in fp32."""
    config = training_config(variant, PLAIN)
    model = build(variant, config)
    if config.precision == "bf16":
        model.bfloat16()
    masters = build(variant, config)
    pairs = list(zip(masters.parameters(), model.parameters(), strict=True))
    optimizer = build_optimizer(masters, config)

    @torch.no_grad()
    def copy(source: int) -> None:
        for pair in pairs:
            pair[1 - source].copy_(pair[source])

    # The masters begin as what the model was rounded to.
    copy(1)
    rows = []
    for step in range(len(STEPS)):
        set_learning_rate(optimizer.param_groups, rate_of(step, config))
        total = np.zeros(2)
        for batch, seed in zip(micro_batches(step, variant), seeds(step, variant), strict=True):
            torch.manual_seed(seed)
            loss, nll = model(batch, config.label_smoothing)
            (loss / target_tokens(step)).backward()
            total += loss.item(), nll.item()
        for master, parameter in pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(
            masters.parameters(), config.clip_norm or float("inf")
        )
        optimizer.step()
        copy(0)
        rows.append((*total.tolist(), float(norm)))
    loss, nll, norm = (list(column) for column in zip(*rows, strict=True))
    return Result(loss, nll, norm, False), {n: p.detach() for n, p in masters.named_parameters()}


def run_ranks(
    module: str, arguments: Sequence[str], world_size: int, timeout_s: float = 600
) -> str:
    """Runs a module as so many ranks.

    Returns:
        What they wrote to stderr.

    Raises:
        AssertionError: A rank failed or did not end in time; all are ended.
    """
    shared = os.environ | {
        "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    folder = Path(arguments[0])
    logs = [folder / f"rank-{rank}.log" for rank in range(world_size)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd=Path(__file__).resolve().parents[2],
                    env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=file,
                    stderr=file,
                )
            )
    deadline = time.monotonic() + timeout_s
    try:
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
            if any(rank.poll() for rank in ranks):
                break
            time.sleep(0.05)
        codes = [rank.poll() for rank in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    text = "\n".join(f"rank {rank}: {log.read_text()}" for rank, log in enumerate(logs))
    assert codes == [0] * world_size, f"exit codes {codes}\n{text[-6000:]}"
    return text


def _keep_nothing_whole(original: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Lets stage 3 shard tensors as small as ours; by default it leaves those whole."""

    def settings(config: TrainingConfig, world_size: int) -> dict[str, Any]:
        tree = original(config, world_size)
        tree["zero_optimization"]["stage3_param_persistence_threshold"] = 30
        return tree

    return settings


def main(folder: Path) -> None:
    """Trains all cases."""
    engine_module.deepspeed_config = _keep_nothing_whole(engine_module.deepspeed_config)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with start_world(training_config(VARIANTS["none"], 0)) as world:
        gc.freeze()
        for name, stage in json.loads((folder / "cases.json").read_text()):
            variant = VARIANTS[name]
            started = time.perf_counter()
            if stage == PLAIN:
                result, weights = train_plain(variant)
            else:
                result, weights = train_engine(variant, stage, world)
            results[f"{name}@{stage}"] = result._asdict() | {"s": time.perf_counter() - started}
            if world.is_main:
                save_file(
                    {key: weight.contiguous() for key, weight in weights.items()},
                    folder / f"{name}@{stage}.safetensors",
                )
        if world.is_main:
            (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
