"""What a forecast says of the state of training is what real engines hold, on every rank.

This file is also the program of the ranks: one process group, and one engine after the other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cluster.local import run_ranks
from hyperadapter.config import ModelConfig, TrainingConfig
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import parse_config
from hyperadapter.model.batch import Batch
from hyperadapter.model.rows import PaddedRows
from hyperadapter.model.seq2seq import build_model
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training.engine import Engine
from hyperadapter.training.optimizer import freeze
from hyperadapter.training.sharding import ZERO_DEFAULTS, parameter_sizes, state_bytes
from hyperadapter.training.world import World, start_world

pytestmark = pytest.mark.distributed

DIRECTIONS = (Direction("en", "de"), Direction("de", "en"), Direction("en", "nl"))
VOCABULARY = Vocabulary(4_000, ("en", "de", "nl"), DIRECTIONS)
FROZEN = ("embedding", "encoder", "decoder")


class Case(NamedTuple):
    """One engine. With 4 micro-batches a step two ranks have 2 each, with 2 they have 1."""

    kind: str
    precision: str
    stage: int
    frozen: bool = False
    offload: bool = False
    micro_batches: int = 4

    @property
    def name(self) -> str:
        marks = {"frozen": self.frozen, "offload": self.offload, "one": self.micro_batches == 2}
        words = [self.kind, self.precision, f"stage-{self.stage}"]
        return " ".join([*words, *(word for word, given in marks.items() if given)])

    @property
    def model(self) -> ModelConfig:
        """Matrices above the size that stage 3 keeps whole, and biases below it."""
        adapter: dict[str, Any] = {"kind": self.kind, "bottleneck_dim": 64}
        if self.kind == "hyper":
            adapter["hyper_network"] = {"hyper_dim": 40}
        sizes = {"d_model": 256, "ffn_dim": 1024, "num_heads": 4}
        layers = {"num_encoder_layers": 2, "num_decoder_layers": 1}
        return parse_config(ModelConfig, sizes | layers | {"adapter": adapter}, "test")

    @property
    def training(self) -> TrainingConfig:
        tree = {
            "device": "cpu",
            "precision": self.precision,
            "zero_stage": self.stage,
            "offload_optimizer": self.offload,
            "frozen": list(FROZEN) if self.frozen else [],
            "micro_batch_tokens": 48,
            "global_batch_tokens": 48 * self.micro_batches,
            "max_steps": 2,
            "learning_rate": 0.001,
            "schedule": {"kind": "inverse_sqrt", "warmup_steps": 1},
            "checkpoint": {"every_steps": 1},
            "validation": {"every_steps": 1},
        }
        return parse_config(TrainingConfig, tree, "test")


def all_cases() -> Iterator[Case]:
    for precision, stages in (("fp32", (0, 1, 2, 3)), ("bf16", (1, 2, 3))):
        for stage in stages:
            yield Case("none", precision, stage)
            yield Case("hyper", precision, stage)
            yield Case("hyper", precision, stage, frozen=True)
            if stage:
                yield Case("hyper", precision, stage, offload=True)
    yield Case("hyper", "bf16", 2, micro_batches=2)


CASES = {case.name: case for case in all_cases()}


# ------------------------------------------------------------------------- the program of a rank


def storages(tensors: Iterable[Tensor | None]) -> dict[int, int]:
    """Returns the bytes of distinct storages by address."""
    found = (tensor.untyped_storage() for tensor in tensors if tensor is not None)
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def flatten(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from flatten(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from flatten(item)


class Watch:
    """Looks at an engine's tensors wherever they may be most."""

    def __init__(self, engine: Engine, stage: int) -> None:
        self.engine = engine._engine
        self.stage = stage
        self.module = self.engine.module
        self.zero = self.engine.optimizer
        self.most_gradients = 0
        self.most_parameters = 0
        self.most_copies = 0
        self._wrap(self.engine, "step", self.see_gradients)
        if stage in (1, 2):
            self._wrap(self.zero, "reduce_gradients", self.see_gradients)
            self._wrap(self.zero, "get_flat_partition", self.see_gradients)
        for module in self.module.modules():
            module.register_forward_hook(lambda *_: self.see_parameters())

    @staticmethod
    def _wrap(owner: Any, name: str, look: Callable[[], None]) -> None:
        method = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            look()
            return method(*args, **kwargs)

        setattr(owner, name, watched)

    def _held(self, *names: str) -> dict[int, int]:
        return storages(flatten([getattr(self.zero, name, None) for name in names]))

    def parameters(self) -> dict[int, int]:
        whole = [p.data for p in self.module.parameters()]
        shards = [getattr(p, "ds_tensor", None) for p in self.module.parameters()]
        return storages([*whole, *shards])

    def see_parameters(self) -> None:
        self.most_parameters = max(self.most_parameters, sum(self.parameters().values()))

    def see_gradients(self) -> None:
        grads = storages(p.grad for p in self.module.parameters())
        grads |= self._held(
            "averaged_gradients", "all_grad_tensors", "grads_in_partition",
            "grad_partitions_flat_buffer",
        )  # fmt: skip
        for bucket in getattr(self.zero, "ipg_buckets", {}).values():
            for address in storages(flatten(bucket.buffer)):
                grads.pop(address, None)
        self.most_gradients = max(self.most_gradients, sum(grads.values()))
        copies = self._held(
            "param_buffer_of_bit16_for_cpu_offload_groups", "temp_grad_buffer_for_cpu_offload",
            "accumulated_grads_in_cpu", "grad_partitions_flat_buffer",
        )  # fmt: skip
        self.most_copies = max(self.most_copies, sum(copies.values()))

    def result(self, offload: bool) -> dict[str, int]:
        adam = self.zero.optimizer if self.stage else self.zero
        flat = [p for group in adam.param_groups for p in group["params"]]
        flat += getattr(self.zero, "fp32_partitioned_groups_flat", [])
        states = [adam.state[p][key] for p in flat if p in adam.state for key in
                  ("exp_avg", "exp_avg_sq")]  # fmt: skip
        grads = [p.grad for p in flat] if offload else []
        parameters = self.parameters()
        optimizer = storages([*flat, *states, *grads])
        gradients = self.most_gradients
        if offload and self.stage == 3:  # in host memory
            gradients -= sum(self._held("grad_partitions_flat_buffer").values())
        return {
            "parameters": sum(parameters.values()),
            "gathered": self.most_parameters - sum(parameters.values()),
            "gradients": gradients,
            "optimizer": sum(n for address, n in optimizer.items() if address not in parameters),
            "host_copies": self.most_copies if offload else 0,
        }


def a_batch() -> Batch:
    """Six sentences of eight tokens in three directions."""
    ids = torch.randint(4, 4_000, (48,), generator=torch.Generator().manual_seed(0))
    rows = PaddedRows.from_lengths(np.full(6, 8), 8, np.full(3, 2))
    src, tgt = torch.tensor([0, 1, 0]), torch.tensor([1, 0, 2])
    return Batch(ids, rows, ids, rows, ids, None, torch.arange(3), src, tgt)


def measure(case: Case, world: World) -> dict[str, int]:
    """Trains two steps; stage 3 knows its order of parameters after the first."""
    model = build_model(case.model, VOCABULARY, seed=1)
    freeze(model, case.training)
    engine = Engine(model, case.training, world)
    batches = [a_batch()] * (case.micro_batches // world.size)
    for step in range(2):
        if step:
            watch = Watch(engine, case.stage)
        engine.train_step(batches, [0] * len(batches), 48 * case.micro_batches, 0.001)
    result = watch.result(case.offload)
    engine.close()
    return result


def main(out: Path) -> None:
    """Measures all cases and writes them to a file for this rank."""
    with start_world(next(iter(CASES.values())).training) as world:
        found = {name: measure(case, world) for name, case in CASES.items()}
        (out / f"rank-{world.rank}.json").write_text(json.dumps(found))


# ------------------------------------------------------------------------------------- the tests

Found = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> dict[int, list[Found]]:
    """What every rank held, by world size."""
    found: dict[int, list[Found]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(repository))
        for size in (1, 2):
            out = tmp_path_factory.mktemp(f"world-{size}")
            assert run_ranks([sys.executable, __file__, str(out)], size) == 0
            found[size] = [
                json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(size)
            ]
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_forecast_is_what_engines_hold(
    name: str, world_size: int, measured: dict[int, list[Found]]
) -> None:
    case = CASES[name]
    sizes = parameter_sizes(case.model, VOCABULARY, case.training)
    state = state_bytes(sizes, case.training, world_size, on_gpu=False)
    forecast = {
        "parameters": state.parameters,
        "gathered": state.gathered,
        "gradients": state.gradients,
        "optimizer": state.optimizer + state.host_optimizer,
        "host_copies": state.host_copies,
    }
    ranks = [rank[name] for rank in measured[world_size]]
    fullest = {key: max(rank[key] for rank in ranks) for key in forecast}
    assert fullest == pytest.approx(forecast, rel=0.1), ranks


def test_defaults_are_deepspeeds() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = DeepSpeedZeroConfig()
    found = {key: getattr(config, key.removeprefix("stage3_")) for key in ZERO_DEFAULTS}
    assert found == ZERO_DEFAULTS


if __name__ == "__main__":
    main(Path(sys.argv[1]))
