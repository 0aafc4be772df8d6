"""Training is the same in every ZeRO stage, by every number of processes, and without DeepSpeed.

Every case trains a few steps whose micro-batches differ from rank to rank in their directions and
numbers of tokens (`parity_worker.STEPS`). One process in stage 0 is the measure of all others, and
a loop of plain PyTorch is its measure.

Losses and gradient norms are compared step by step, relatively, and the final weights by the
largest difference, as a share of the sum of the learning rates: about the way that Adam can take a
weight. The limits are about five times what was measured.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.parity_worker import (
    KINDS,
    PLAIN,
    STEPS,
    VARIANTS,
    build,
    rate_of,
    run_ranks,
    training_config,
)

pytestmark = pytest.mark.distributed

FP32 = {"loss": 1e-6, "norm": 1e-6, "weights": 2e-3}
"""Sums of the same numbers in another order (2e-7 each), and what Adam makes of the difference.

Measured: loss 1.8e-7, norm 1.7e-7, weights 4.2e-4. One process in bf16 meets them too.
"""

BF16_RANKS = {"loss": 2.5e-3, "norm": 4e-2}
"""DeepSpeed adds gradients up and averages them over ranks in bf16: each sum is rounded by 2^-9.

Measured: loss 4.8e-4, norm 7.4e-3. Where the gradient is nearly 0, rounding decides on its sign and
Adam makes a step of it, so single weights cannot be compared.
"""

OPTIONS = [name for name, variant in VARIANTS.items() if name not in KINDS and "bf16" not in name]
IN_BF16 = [name for name in VARIANTS if "bf16" in name]


def _cases(world_size: int) -> list[tuple[str, int]]:
    """Returns which (variant, stage) a world trains: of the kinds all, of options each stage once.

    Stage 3 takes four times as long as the others.
    """
    kinds = [(kind, stage) for kind in KINDS for stage in (0, 1, 2, 3)]
    stages = {1: (PLAIN, 0), 2: (2, 3), 4: (1,)}[world_size]
    options = [
        (name, stage)
        for name in OPTIONS
        if VARIANTS[name].micro_batches >= world_size
        for stage in stages
    ]
    bf16 = [(name, stage) for name in IN_BF16 for stage in (1, 2, 3) if world_size < 4]
    if world_size == 1:
        kinds += [(kind, PLAIN) for kind in KINDS]
        bf16 += [(name, PLAIN) for name in IN_BF16]
    return [*kinds, *options, *bf16]


ALL = [(name, stage, size) for size in (1, 2, 4) for name, stage in _cases(size)]
MEASURED = [
    case for case in ALL if case[1] != PLAIN and case[1:] != (0, 1) and case[0] not in IN_BF16
]

Results = Callable[[str, int, int], dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Returns what (variant, stage, world size) gave; the first question to a world trains all."""

    @functools.cache
    def of_world(size: int) -> tuple[Path, Mapping[str, dict[str, Any]]]:
        folder = tmp_path_factory.mktemp(f"world-{size}")
        (folder / "cases.json").write_text(json.dumps(_cases(size)))
        run_ranks("tests.distributed.parity_worker", [str(folder)], size)
        return folder, json.loads((folder / "results.json").read_text())

    def result(name: str, stage: int, size: int) -> dict[str, Any]:
        folder, found = of_world(size)
        case = f"{name}@{stage}"
        return found[case] | {"weights": load_file(folder / f"{case}.safetensors")}

    return result


def _distances(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, float]:
    """Returns how far two trainings are from each other."""
    config = training_config(VARIANTS[name], PLAIN)
    way = sum(rate_of(step, config) for step in range(len(STEPS)))
    relative = {
        key: max(abs(a - b) / b for a, b in zip(one[key], other[key], strict=True))
        for key in ("loss", "nll", "norm")
    }
    assert one["weights"].keys() == other["weights"].keys()
    weights = max(
        float((weight - other["weights"][key]).abs().max()) / way
        for key, weight in one["weights"].items()
    )
    return {
        "loss": max(relative["loss"], relative["nll"]),
        "norm": relative["norm"],
        "weights": weights,
    }


def _assert_near(
    one: Mapping[str, Any], other: Mapping[str, Any], name: str, limits: Mapping[str, float]
) -> None:
    found = _distances(one, other, name)
    assert all(found[key] <= limit for key, limit in limits.items()), f"{found}, limits {limits}"


@pytest.mark.parametrize("name", [*KINDS, *OPTIONS])
def test_one_process_in_stage_0_trains_as_plain_pytorch(name: str, results: Results) -> None:
    _assert_near(results(name, 0, 1), results(name, PLAIN, 1), name, FP32)


@pytest.mark.parametrize(("name", "stage", "size"), MEASURED)
def test_stage_and_number_of_processes_change_nothing(
    name: str, stage: int, size: int, results: Results
) -> None:
    _assert_near(results(name, stage, size), results(name, 0, 1), name, FP32)


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_batch_in_fewer_micro_batches_changes_nothing(
    count: int, results: Results
) -> None:
    name = f"hyper-batches-{count}"
    _assert_near(results(name, 0, 1), results("hyper-batches-4", 0, 1), name, FP32)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", IN_BF16)
def test_bf16_trains_as_plain_pytorch_with_master_weights(
    name: str, stage: int, size: int, results: Results
) -> None:
    limits = FP32 if size == 1 else BF16_RANKS
    _assert_near(results(name, stage, size), results(name, PLAIN, 1), name, limits)


def test_bf16_in_stages_2_and_3_is_the_same(results: Results) -> None:
    """Stage 1 averages over ranks after it has added up the micro-batches, these before."""
    for name in IN_BF16:
        _assert_near(results(name, 3, 2), results(name, 2, 2), name, FP32)


def test_options_do_what_they_say(results: Results) -> None:
    """Otherwise the comparisons above would compare the same thing again and again."""
    for name in ("hyper", "language"):
        base = results(name, 0, 1)
        for option in ("clipped", "unclipped", "frozen", "rates", "decay", "packed"):
            found = _distances(results(f"{name}-{option}", 0, 1), base, name)
            assert found["weights"] > 10 * FP32["weights"], (option, found)
        same = ["recomputed", "layers"] if name == "hyper" else ["recomputed"]
        for option in same:
            _assert_near(results(f"{name}-{option}", 0, 1), base, name, FP32)
        assert min(base["norm"]) > VARIANTS[f"{name}-clipped"].training["clip_norm"]
        frozen = results(f"{name}-frozen", 3, 2)["weights"]
        start = build(VARIANTS[name], training_config(VARIANTS[name], 0)).state_dict()
        still = [key for key in frozen if key.startswith(("embedding.", "encoder."))]
        assert all(torch.equal(frozen[key], start[key]) for key in still)
        assert len(still) > 10


@pytest.mark.parametrize("size", [1, 2, 4])
def test_engines_that_are_closed_leave_nothing(size: int, results: Results) -> None:
    assert [case for case in ALL if case[2] == size and results(*case)["leaked"]] == []
