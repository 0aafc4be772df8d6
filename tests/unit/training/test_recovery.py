"""Which numbers are wrong, and what is done about them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hyperadapter.config import RecoveryConfig
from hyperadapter.core.errors import ConfigError, TrainingError
from hyperadapter.core.schema import parse_config
from hyperadapter.training.meters import Reading
from hyperadapter.training.recovery import GoBack, Recovery
from hyperadapter.training.world import World

WORLD = World(0, 1, torch.device("cpu"), None)


def make(run_dir: Path, **keys: Any) -> Recovery:
    return Recovery(run_dir, parse_config(RecoveryConfig, keys, "test"), "f", WORLD)


def reading(first: int, *losses: float, norm: float = 1.0) -> Reading:
    steps = tuple((first + n, loss, norm) for n, loss in enumerate(losses))
    return Reading(0.0, 0.0, 0.0, 0.0, 0.0, steps)


def test_what_is_finite_is_in_order(tmp_path: Path) -> None:
    recovery = make(tmp_path)
    recovery.examine(reading(1, 5.0, 4.0, 4000.0))
    assert not list(tmp_path.iterdir())
    assert recovery.metrics(3) == {"train/rollbacks": 0.0, "train/skipped_steps": 0.0}


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "norm"])
def test_a_step_is_repeated_once_and_then_left_out(
    wrong: float, where: str, tmp_path: Path
) -> None:
    bad = reading(7, 5.0, wrong) if where == "loss" else reading(8, 5.0, norm=wrong)
    recovery = make(tmp_path)
    with pytest.raises(GoBack):
        recovery.examine(bad)
    assert recovery.watches(8)
    assert not recovery.leaves_out(8)
    # A resumed run knows.
    recovery = make(tmp_path)
    assert recovery.watches(8)
    with pytest.raises(GoBack):
        recovery.examine(bad)
    assert recovery.leaves_out(8)
    assert not recovery.leaves_out(7)
    recovery = make(tmp_path)
    assert recovery.leaves_out(8)
    assert recovery.metrics(7) == {"train/rollbacks": 2.0, "train/skipped_steps": 0.0}
    assert recovery.metrics(8) == {"train/rollbacks": 2.0, "train/skipped_steps": 1.0}


def test_it_gives_up_after_so_many_and_names_the_gradient(tmp_path: Path) -> None:
    recovery = make(tmp_path, max_rollbacks=1)
    with pytest.raises(GoBack):
        recovery.examine(reading(3, math.nan))
    recovery.note_bad_gradients(3, ("embedding.weight", "encoder.x"))
    with pytest.raises(TrainingError) as caught:
        recovery.examine(reading(3, math.nan))
    text = str(caught.value)
    assert text.startswith("step 3: loss nan, gradient norm 1.0; the first gradient that is not")
    assert "that of embedding.weight and 1 more" in text
    assert "gone back 1 times" in text
    with pytest.raises(TrainingError, match="gone back 0 times"):
        make(tmp_path / "none", max_rollbacks=0).examine(reading(3, math.inf))


def test_a_spike_is_left_out_at_once(tmp_path: Path) -> None:
    recovery = make(tmp_path, spike_factor=2.0)
    recovery.examine(reading(1, *[100.0] * 19))  # too few to know
    recovery.examine(reading(20, 300.0, *[4.0] * 30))
    recovery.examine(reading(60, 7.9))
    with pytest.raises(GoBack):
        recovery.examine(reading(61, 8.1, 4.0))
    assert recovery.leaves_out(61)


def test_what_happened_to_another_experiment_means_nothing(tmp_path: Path) -> None:
    with pytest.raises(GoBack):
        make(tmp_path).examine(reading(3, math.nan))
    assert make(tmp_path).watches(3)
    other = Recovery(tmp_path, parse_config(RecoveryConfig, {}, "test"), "g", WORLD)
    assert not other.watches(3)


def test_many_left_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recovery = make(tmp_path, max_rollbacks=9)
    for step in (2, 2, 5, 5):
        with pytest.raises(GoBack):
            recovery.examine(reading(step, math.nan))
    recovery.metrics(1000)
    assert "were left out" not in caplog.text
    recovery.metrics(100)
    assert "2 of 100 steps were left out because they went wrong, more than 1 %" in caplog.text


def test_a_factor_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"spike_factor 0\.5 must be above 1"):
        parse_config(RecoveryConfig, {"spike_factor": 0.5}, "test")
