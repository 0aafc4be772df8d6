"""Training survives each kind of fault; the same by hand, longer: `python -m tests.faults`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hyperadapter.checkpoint.layout import newest_checkpoint
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.core.events import EVENTS_FILE
from tests.faults.forks import Forks
from tests.faults.harness import Harness, table
from tests.faults.kinds import KINDS
from tests.faults.reference import Layout, References, differences

STEPS = 60


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks() as forks:
        yield forks


def survives(kinds: list[str], layout: Layout, corpus: Path, folder: Path, forks: Forks) -> None:
    harness = Harness(
        corpus / "run.yaml", folder, forks, layout.stage, layout.world_size, STEPS, fresh_every=0
    )
    harness.run(1, len(kinds), kinds, parallel=2)
    assert not harness.problems, table(harness)
    assert sorted(record.kind for record in harness.records) == sorted(kinds), table(harness)


@pytest.mark.distributed
def test_training_survives(corpus: Path, tmp_path: Path, forks: Forks) -> None:
    kinds = [name for name in Harness.possible() if KINDS[name].needs != "server"]
    survives(kinds, Layout(2, 2), corpus, tmp_path, forks)


@pytest.mark.slow
def test_training_survives_mlflow(corpus: Path, tmp_path: Path, forks: Forks) -> None:
    kinds = [name for name, kind in KINDS.items() if kind.needs == "server"]
    survives(kinds, Layout(3, 2), corpus, tmp_path, forks)


@pytest.mark.distributed
def test_every_difference_is_seen(corpus: Path, tmp_path: Path, forks: Forks) -> None:
    run_dir = References(corpus / "run.yaml", tmp_path, 12, forks)(Layout(0, 1), ())
    other = Path(shutil.copytree(run_dir, tmp_path / "other"))
    assert differences(run_dir, other, exact=True) == []

    events = (other / EVENTS_FILE).read_text()
    (line,) = [line for line in events.splitlines() if '"step": 7' in line and "train/loss" in line]
    loss = line.partition('"train/loss": ')[2].partition(",")[0]
    (other / EVENTS_FILE).write_text(events.replace(loss, loss[:-1] + str(9 - int(loss[-1]))))
    (found,) = differences(run_dir, other, exact=True)
    assert found.startswith("1 losses differ from step 7 on")
    assert differences(run_dir, other, exact=False) == []
    (other / EVENTS_FILE).write_text(events.replace(line + "\n", ""))
    assert differences(run_dir, other, exact=False) == ["losses of steps [7] are not in both"]
    (other / EVENTS_FILE).write_text(events)

    path = newest_checkpoint(other) / "weights.safetensors"
    weights, _ = load_weights(path)
    name = max(weights)
    weights[name].view(-1)[0] += torch.finfo(torch.float32).eps
    from safetensors.torch import save_file

    save_file(weights, path)
    (found,) = differences(run_dir, other, exact=True)
    assert found == f"1 tensors differ, weights.safetensors: {name} first"
