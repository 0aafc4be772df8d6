"""Checkpoints outlive a change of world size and ZeRO stage, and damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hyperadapter.checkpoint.layout import complete_checkpoints, newest_checkpoint
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.core.files import read_json
from tests.distributed.runs import Train, assert_ok, losses

pytestmark = pytest.mark.distributed

SETTINGS = (
    "training.max_steps=12",
    "training.checkpoint.every_steps=6",
    "training.checkpoint.keep=9",
    # A parameter count that no world size divides, and groups of their own.
    "model.adapter.hyper_network.hyper_dim=13",
    "training.learning_rate_scale={hyper_heads: 0.5}",
    "training.weight_decay=0.01",
)


def layout_of(stage: int, world_size: int) -> tuple[str, str]:
    return f"training.zero_stage={stage}", f"training.num_processes={world_size}"


@pytest.fixture(scope="module")
def reference(corpus: Path, hyperadapter: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process at stage 0, never interrupted."""
    run_dir = tmp_path_factory.mktemp("reference")
    sets = [f"run_dir={run_dir}", *SETTINGS, *layout_of(0, 1)]
    done = hyperadapter(
        "train", "--config", str(corpus / "run.yaml"), *(p for s in sets for p in ("--set", s))
    )
    assert_ok(done)
    return run_dir


@pytest.mark.parametrize(
    ("before", "after", "offload"),
    [
        ((3, 2), (1, 1), False),
        ((1, 1), (3, 4), False),
        ((2, 4), (0, 2), False),
        ((0, 2), (2, 2), True),
    ],
)
def test_another_layout_goes_on_as_if_nothing_had_happened(
    before: tuple[int, int],
    after: tuple[int, int],
    offload: bool,
    train: Train,
    tmp_path: Path,
    reference: Path,
) -> None:
    first = train("run", *SETTINGS, *layout_of(*before), "training.recovery.hang_s=100")
    assert_ok(first)
    run_dir = tmp_path / "run"
    wanted = load_weights(newest_checkpoint(run_dir) / "weights.safetensors")[0]
    shutil.rmtree(newest_checkpoint(run_dir))
    (run_dir / "events.jsonl").unlink()
    offloading = f"training.offload_optimizer={str(offload).lower()}"
    assert_ok(train("run", *SETTINGS, *layout_of(*after), offloading))
    whole, found = losses(reference), losses(run_dir)
    assert list(found) == list(range(7, 13))
    assert found == pytest.approx({step: whole[step] for step in found}, rel=2e-5)
    # Weights differ by rounding that Adam makes larger where gradients are near 0.
    weights = load_weights(newest_checkpoint(run_dir) / "weights.safetensors")[0]
    assert weights.keys() == wanted.keys()
    for name, weight in weights.items():
        assert (weight - wanted[name]).abs().max() < 2e-4, name


def test_a_checkpoint_holds_twelve_bytes_a_parameter(reference: Path) -> None:
    folder = newest_checkpoint(reference)
    weights = load_weights(folder / "weights.safetensors")[0]
    numbers = sum(weight.numel() for weight in weights.values())
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "manifest.json",
        "optimizer/rank-00000.safetensors",
        "progress.json",
        "weights.safetensors",
    }
    size = sum((folder / name).stat().st_size for name in names)
    assert 12 * numbers < size < 12 * numbers + 40_000


def test_a_damaged_checkpoint_is_set_aside(train: Train, tmp_path: Path, reference: Path) -> None:
    run_dir = Path(shutil.copytree(reference, tmp_path / "run"))
    config = (run_dir / "config.yaml").read_text().replace(str(reference), str(run_dir))
    (run_dir / "config.yaml").write_text(config)
    victim = newest_checkpoint(run_dir) / "optimizer" / "rank-00000.safetensors"
    data = bytearray(victim.read_bytes())
    data[-5] ^= 1
    victim.write_bytes(data)
    (run_dir / "events.jsonl").unlink()
    done = train("run", *SETTINGS, *layout_of(0, 1))
    assert_ok(done)
    assert "rank-00000.safetensors has a wrong checksum" in done.stderr
    assert (run_dir / "checkpoints" / "step-00000012.damaged").is_dir()
    whole = losses(reference)
    assert losses(run_dir) == {step: whole[step] for step in range(7, 13)}


def test_the_best_are_kept_and_the_last_averaged(
    train: Train, hyperadapter: Train, tmp_path: Path
) -> None:
    done = train(
        "run", "training.max_steps=12", "training.checkpoint.every_steps=2",
        "training.checkpoint.keep=1", "training.checkpoint.keep_best=2",
        "training.checkpoint.keep_every_steps=4", "training.validation.every_steps=2",
        "training.checkpoint.best_is=highest", "training.checkpoint.background=false",
    )  # fmt: skip
    assert_ok(done)
    # The loss falls, so the highest are the first two.
    values = read_json(tmp_path / "run" / "checkpoints" / "validation.json")["values"]
    ranked = sorted(values, key=values.__getitem__, reverse=True)
    assert ranked[:2] == ["2", "4"]
    steps = [step for step, _ in complete_checkpoints(tmp_path / "run")]
    assert steps == [2, 4, 8, 12]

    run_dir, mean = str(tmp_path / "run"), tmp_path / "mean.safetensors"
    listed = hyperadapter("checkpoint", "list", run_dir, "--json")
    assert_ok(listed)
    rows = json.loads(listed.stdout)
    assert [(row["step"], row["rank by valid/macro/nll"]) for row in rows] == [
        (2, 1), (4, 2), (8, 3), (12, 4)
    ]  # fmt: skip
    assert_ok(hyperadapter("checkpoint", "average", run_dir, "--last", "2", "--out", str(mean)))
    two = [
        load_weights(path / "weights.safetensors")[0]["embedding.weight"]
        for _, path in complete_checkpoints(tmp_path / "run")[-2:]
    ]
    found = load_weights(mean)[0]["embedding.weight"]
    assert (found - (two[0] + two[1]) / 2).abs().max() < 1e-6
    for which in ("best", str(mean)):
        words = ("--run", run_dir, "--src", "en", "--tgt", "de", "--checkpoint", which)
        done = hyperadapter("translate", *words, stdin="the house\n")
        assert_ok(done)
        assert done.stdout.count("\n") == 1
