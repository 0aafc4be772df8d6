"""Lengths of points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.config import RunConfig, TrainingConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.study.config import StudyConfig
from hyperadapter.study.points import study_points

MakeStudy = Callable[..., StudyConfig]


def only(study: StudyConfig) -> RunConfig:
    (point,) = study_points(study).points
    return point.config


@given(st.floats(1, 1e8))
def test_tokens_are_met_within_half_a_step(make_study: MakeStudy, tokens: float) -> None:
    training = only(make_study(budget={"tokens": [tokens], "warmup": 0, "decay": 0})).training
    assert training.max_steps >= 1
    met = training.max_steps * training.global_batch_tokens
    assert abs(met - tokens) <= training.global_batch_tokens / 2 or training.max_steps == 1


def test_other_measures(make_study: MakeStudy) -> None:
    shares = {"warmup": 0.1, "decay": 0.5}
    (by_flops,) = study_points(make_study(budget={"flops": [1e13], **shares})).points
    flops = by_flops.config.training.max_steps * by_flops.counts.step_flops
    assert abs(flops - 1e13) <= by_flops.counts.step_flops / 2
    (each,) = study_points(make_study(budget={"tokens_per_parameter": [2], **shares})).points
    assert abs(each.config.training.max_steps * 1400 - 2 * each.counts.parameters) <= 700
    assert each.name == "tokens_per_parameter-2_seed-1"


@given(
    st.integers(1, 3_000), st.floats(0, 1), st.floats(0, 1), st.integers(1, 40), st.integers(1, 40),
    st.integers(0, 3),
)  # fmt: skip
def test_every_length_is_a_valid_run(
    make_study: MakeStudy, steps: int, warmup: float, rest: float, validations: int,
    checkpoints: int, best: int,
) -> None:  # fmt: skip
    """Also with checkpoints that are kept, which must fit to those that are saved."""
    decay = round(rest * (1 - warmup), 6) if warmup + rest * (1 - warmup) < 1 else 0
    kept = {"every_steps": 100, "keep_every_steps": 300, "keep_best": best}
    study = make_study(
        run={"training": {"checkpoint": kept}},
        budget={
            "tokens": [steps * 1400], "warmup": warmup, "decay": decay,
            "validations": validations, "checkpoints": checkpoints,
        },
    )  # fmt: skip
    training = only(study).training
    assert training.max_steps == steps
    assert abs(training.schedule.warmup_steps - warmup * steps) <= 0.5
    assert abs(training.schedule.decay_steps - decay * steps) <= 1.5
    assert training.checkpoint.keep_every_steps % training.checkpoint.every_steps == 0
    if not best:
        assert _times(training, training.validation.every_steps) <= validations
        assert _times(training, training.checkpoint.every_steps) <= checkpoints


def test_shares_that_are_all_steps_are_never_more(make_study: MakeStudy) -> None:
    schedule = only(make_study(budget={"tokens": [3 * 1400], "warmup": 0.5, "decay": 0.5})).training
    assert (schedule.schedule.warmup_steps, schedule.schedule.decay_steps) == (2, 1)


@pytest.mark.parametrize(
    ("budget", "steps"),
    [({"checkpoints": 2}, (550, 1650)), ({"validations": 4}, (825, 825)), ({}, (550, 1100))],
)
def test_the_best_checkpoints_are_validated(
    make_study: MakeStudy, budget: dict[str, Any], steps: tuple[int, int]
) -> None:
    every = 1100 if not budget else 825
    best = {"checkpoint": {"keep_best": 1, "every_steps": every}}
    training = only(make_study(run={"training": best}, budget=budget)).training
    assert (training.validation.every_steps, training.checkpoint.every_steps) == steps


def _times(training: TrainingConfig, every: int) -> int:
    return -(-training.max_steps // every)


def test_what_is_not_given_stays(make_study: MakeStudy) -> None:
    run = only(make_study()).training
    assert (run.max_steps, run.schedule.warmup_steps, run.validation.every_steps) == (
        3300,
        200,
        550,
    )
    longer = only(make_study(budget={"tokens": [1400e4]})).training
    assert (longer.max_steps, longer.schedule.decay_steps) == (10_000, 2_000)
    assert longer.checkpoint == run.checkpoint
    shares = only(make_study(budget={"warmup": 0.1, "validations": 3})).training
    assert (shares.max_steps, shares.schedule.warmup_steps) == (3300, 330)
    assert shares.validation.every_steps == 1100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"tokens": [1400]}}, "point tokens-1400_seed-1 {tokens: 1400, seed: 1} is not "
         "a valid configuration:\n  training: schedule: warmup_steps 200 + decay_steps 2000 are "
         "more than max_steps 1"),
        ({"budget": {"decay": 0.5}, "run": {"training": {"schedule": {"kind": "cosine",
         "decay_steps": 0}}}}, "decay_steps 1650 is for kind: wsd and would be ignored by"),
        ({"budget": {"tokens": [1e9]}, "points": [{"tokens": "many"}]},
         "tokens must be a number above 0, not 'many'"),
        ({"budget": {"tokens": [1e9]}, "points": [{"tokens": 0}]},
         "tokens must be a number above 0, not 0"),
    ],
)  # fmt: skip
def test_lengths_that_cannot_be(
    make_study: MakeStudy, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        study_points(make_study(**changes))
    assert message in str(error.value)
