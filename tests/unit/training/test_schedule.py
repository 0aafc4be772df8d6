from __future__ import annotations

import itertools
import math

import pytest

from hyperadapter.config import ScheduleConfig
from hyperadapter.training.schedule import learning_rate


def rates(config: ScheduleConfig, max_steps: int = 100) -> list[float]:
    return [learning_rate(config, 2.0, step, max_steps) for step in range(1, max_steps + 1)]


@pytest.mark.parametrize("kind", ["inverse_sqrt", "cosine", "wsd"])
def test_rises_linearly_to_the_peak(kind: str) -> None:
    found = rates(ScheduleConfig(kind=kind, warmup_steps=10))
    assert found[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert max(found) == pytest.approx(2.0)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(found[9:]))


def test_inverse_sqrt_is_the_papers_formula() -> None:
    found = rates(ScheduleConfig(kind="inverse_sqrt", warmup_steps=25))
    assert found[99] == pytest.approx(2.0 * math.sqrt(25 / 100))


def test_cosine_passes_half_and_ends_at_its_final_fraction() -> None:
    found = rates(ScheduleConfig(kind="cosine", warmup_steps=0, final_fraction=0.1))
    assert found[49] == pytest.approx((2.0 + 0.2) / 2)
    assert found[99] == pytest.approx(0.2)


def test_wsd_is_flat_and_then_falls_linearly() -> None:
    found = rates(ScheduleConfig(kind="wsd", warmup_steps=5, decay_steps=40, final_fraction=0.5))
    assert set(found[4:60]) == {2.0}
    assert found[79] == pytest.approx(1.5)
    assert found[99] == pytest.approx(1.0)


def test_wsd_without_decay_stays_at_the_peak() -> None:
    assert rates(ScheduleConfig(kind="wsd", warmup_steps=5))[99] == pytest.approx(2.0)


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert rates(ScheduleConfig(kind="inverse_sqrt", warmup_steps=0))[0] == pytest.approx(2.0)
