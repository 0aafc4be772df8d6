"""Saving in the background: what was asked for is saved, and failures are told."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.config import Direction
from hyperadapter.checkpoint import layout
from hyperadapter.checkpoint.pieces import Piece, PieceReader
from hyperadapter.checkpoint.weights import WeightsInfo, load_weights
from hyperadapter.config import CheckpointConfig
from hyperadapter.core.errors import CheckpointError, DiskFullError
from hyperadapter.core.schema import parse_config
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training import saving
from hyperadapter.training.meters import Progress
from hyperadapter.training.saving import Saver
from hyperadapter.training.world import World

VALUES = {"fingerprint": "f", "world_size": 1, "zero_stage": 0, "precision": "fp32", "data": "d"}
WORLD = World(0, 1, torch.device("cpu"), None)


class State:
    """One parameter, as `ZeroState` shows it."""

    def __init__(self, value: float) -> None:
        self.weight = torch.full((6,), value)
        self.moment = torch.full((6,), -value)
        self.steps = int(value)

    def pieces(self) -> Iterator[Piece]:
        moments = {"exp_avg": self.moment, "exp_avg_sq": self.moment}
        yield Piece("w", (2, 3), 0, self.weight, moments, replicated=True)


def start(saver: Saver, state: State, step: int) -> None:
    vocabulary = Vocabulary(8, ("en", "de"), (Direction("en", "de"),))
    info = WeightsInfo(step, "f", vocabulary, "t")
    saver.start(step, state, info, Progress(), VALUES)  # type: ignore[arg-type]


def make(run_dir: Path, **keys: Any) -> Saver:
    config = parse_config(CheckpointConfig, {"every_steps": 1, **keys}, "test")
    return Saver(WORLD, run_dir, config)


def test_a_checkpoint_is_of_the_moment_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is slow; training goes on and changes the weights."""
    go_on = threading.Event()
    write = saving.write_pieces

    def slowly(*arguments: Any) -> None:
        assert go_on.wait(10)
        write(*arguments)

    monkeypatch.setattr(saving, "write_pieces", slowly)
    saver, state = make(tmp_path), State(3)
    start(saver, state, 5)
    state.weight.fill_(9)
    state.moment.fill_(9)
    for _ in range(3):
        saver.advance()
    assert layout.complete_checkpoints(tmp_path) == []
    assert saver.saved_step == 0
    go_on.set()
    saver.finish()
    assert saver.saved_step == 5
    folder = layout.newest_checkpoint(tmp_path)
    layout.verify(folder)
    assert load_weights(folder / "weights.safetensors")[0]["w"].equal(torch.full((2, 3), 3.0))
    moment = torch.zeros(6)
    with PieceReader(folder) as reader:
        reader.fill(Piece("w", (2, 3), 0, torch.zeros(6), {"exp_avg": moment}, False))
        assert reader.steps == 3
    assert moment.equal(torch.full((6,), -3.0))


def test_the_next_one_waits_for_the_one_before(tmp_path: Path) -> None:
    saver = make(tmp_path, keep=9)
    for step in (1, 2, 3):
        start(saver, State(step), step)
    saver.finish()
    assert [step for step, _ in layout.complete_checkpoints(tmp_path)] == [1, 2, 3]
    for step, folder in layout.complete_checkpoints(tmp_path):
        weight = load_weights(folder / "weights.safetensors")[0]["w"]
        assert weight.equal(torch.full((2, 3), float(step)))


def test_it_completes_between_steps_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining, go_on = threading.Event(), threading.Event()
    join = saving.join_weights

    def slowly(*arguments: Any) -> Any:
        joining.set()
        assert go_on.wait(10)
        return join(*arguments)

    monkeypatch.setattr(saving, "join_weights", slowly)
    saver = make(tmp_path)
    start(saver, State(1), 1)
    for _ in range(2000):
        saver.advance()
        if joining.wait(0.005):
            break
    saver.advance()  # would wait for the disk for ever
    assert saver.saved_step == 0
    go_on.set()
    for _ in range(2000):
        if saver.saved_step:
            break
        saver.advance()
        threading.Event().wait(0.005)
    assert saver.saved_step == 1


def test_in_the_foreground_it_is_there_at_once(tmp_path: Path) -> None:
    saver = make(tmp_path, background=False)
    start(saver, State(1), 1)
    assert saver.saved_step == 1


@pytest.mark.parametrize("phase", ["write_pieces", "join_weights", "save_weights"])
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "full"), DiskFullError, "no space left on the disk while writing"),
        (PermissionError(13, "no"), CheckpointError, "cannot be written: PermissionError"),
    ],
)
def test_a_failure_ends_the_run_and_leaves_nothing_half_written(
    phase: str, error: OSError, kind: type[Exception], message: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    saver = make(tmp_path)
    start(saver, State(1), 1)
    saver.finish()

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(saving, phase, fail)
    start(saver, State(2), 2)
    with pytest.raises(kind, match=message):
        saver.finish()
    assert [step for step, _ in layout.complete_checkpoints(tmp_path)] == [1]
    assert not list((tmp_path / "checkpoints").glob("*.part"))
    assert saver.saved_step == 1
    saver.finish()  # nothing is under way any more
