"""A model whose ranks use different parameters: refused on all ranks, before it trains wrongly.

    python -m tests.distributed.test_participation FOLDER

is one rank of the test.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperadapter.core.errors import TrainingError
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.training.engine import Engine
from hyperadapter.training.optimizer import build_optimizer
from hyperadapter.training.participation import check_participation
from hyperadapter.training.world import World, start_world
from tests.distributed.gathering import gathered_weights
from tests.distributed.parity_worker import (
    STEPS,
    VARIANTS,
    ModulePerDirection,
    build,
    micro_batches,
    run_ranks,
    seeds,
    target_tokens,
    training_config,
)

pytestmark = pytest.mark.distributed

APART = STEPS.index("apart")
VARIANT = VARIANTS["direction"]
STAGES = (1, 2, 3)
SILENT = (1, 2)
"""Stage 3 compares the ranks' modules when it has traced a pass: an error in the second one."""


@pytest.fixture(scope="module")
def of_rank(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks has to say."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks("tests.distributed.test_participation", [str(folder)], 2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_all_ranks_refuse_with_the_same_message(of_rank: list[dict[str, Any]]) -> None:
    first, second = (found["error"] for found in of_rank)
    assert first == second
    # Rank 0 tries direction 0 and rank 1 direction 1, each without the other's module.
    assert "adapters.stack.1.down_KLRD, adapters.stack.1.down_bias_KLR" in first
    assert "and 27 more on rank 0; adapters.stack.0.down_KLRD" in first
    assert "and 27 more on rank 1 have none" in first


@pytest.mark.parametrize("stage", STAGES)
def test_the_stacked_form_of_the_same_model_passes_and_trains_right(
    stage: int, of_rank: list[dict[str, Any]]
) -> None:
    assert of_rank[0]["stacked"][str(stage)] < 1e-3


@pytest.mark.parametrize("stage", SILENT)
def test_without_the_check_it_would_train_wrongly(
    stage: int, of_rank: list[dict[str, Any]]
) -> None:
    """If DeepSpeed learns to do it right, this fails, and the check may be too strict."""
    assert of_rank[0]["modules"][str(stage)] > 0.1


def _model(modules: bool) -> Seq2Seq:
    model = build(VARIANT, training_config(VARIANT, 0))
    if modules:
        model.adapters = ModulePerDirection(model)
    return model


def _right(modules: bool) -> dict[str, Tensor]:
    """Returns the weights after one step of plain PyTorch."""
    config = training_config(VARIANT, 0)
    model = _model(modules)
    optimizer = build_optimizer(model, config)
    for batch, seed in zip(micro_batches(APART, VARIANT), seeds(APART, VARIANT), strict=True):
        torch.manual_seed(seed)
        (model(batch, config.label_smoothing).loss / target_tokens(APART)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def _error(modules: bool, stage: int, world: World) -> float:
    """Returns how far one step goes astray, as a share of the learning rate."""
    config = training_config(VARIANT, stage)
    engine = Engine(_model(modules), config, world)
    share = slice(world.rank * engine.micro_batches, (world.rank + 1) * engine.micro_batches)
    engine.train_step(
        micro_batches(APART, VARIANT)[share],
        seeds(APART, VARIANT)[share],
        target_tokens(APART),
        config.learning_rate,
    )
    weights = gathered_weights(engine, world)
    engine.close()
    right = _right(modules)
    worst = (float((weight - right[name]).abs().max()) for name, weight in weights.items())
    return max(worst, default=0.0) / config.learning_rate


def main(folder: Path) -> None:
    """Runs one rank."""
    with start_world(training_config(VARIANT, 0)) as world:
        found: dict[str, Any] = {"error": "none", "stacked": {}, "modules": {}}
        check_participation(_model(modules=False), world)
        try:
            check_participation(_model(modules=True), world)
        except TrainingError as error:
            found["error"] = str(error)
        for stage in STAGES:
            found["stacked"][stage] = _error(False, stage, world)
        for stage in SILENT:
            found["modules"][stage] = _error(True, stage, world)
        (folder / f"{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
