"""How far the runs of a study are, by their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from hyperadapter.checkpoint.layout import complete_checkpoints
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.events import EVENTS_FILE, newest_event, newest_metric
from hyperadapter.evaluation.evaluate import load_result
from hyperadapter.study.plan import Plan, Point, point_config
from hyperadapter.tracking import DEAD_AFTER_S, run_status

__all__ = ["PointState", "State", "is_evaluated", "is_trained", "point_states"]

_SUSPICIOUS_S = 90.0  # a run shows life twice a minute

State = Literal["DONE", "RUNNING", "FAILED", "STOPPED", "WAITING"]


class PointState(NamedTuple):
    """How far a run is.

    Attributes:
        name: Of the point.
        state: STOPPED goes on at its next start; FAILED is tried again then.
        step: Newest step that was logged; None before the first.
        steps: All of them.
        loss: Newest value of the report's loss.
        score: Newest value of the report's score.
        why: Why it failed or stopped.
    """

    name: str
    state: State
    step: int | None
    steps: int
    loss: float | None
    score: float | None
    why: str


def point_states(folder: Path, plan: Plan) -> list[PointState]:
    """Looks at the folders of all runs; asks neither MLflow nor Slurm.

    Raises:
        ConfigError: The configuration of a point is missing or damaged.
    """
    return [_state(point, point_config(folder, point), plan) for point in plan.points]


def is_trained(config: RunConfig) -> bool:
    """Says whether a run has the checkpoint of its last step."""
    found = complete_checkpoints(Path(config.run_dir))
    return bool(found) and found[-1][0] >= config.training.max_steps


def is_evaluated(config: RunConfig) -> bool:
    """Says whether the test split was scored with the weights of a run's last step."""
    try:
        result = load_result(Path(config.run_dir), "test")
    except DataError:
        return False
    return result.step >= config.training.max_steps and result.settings == config.evaluation


def _state(point: Point, config: RunConfig, plan: Plan) -> PointState:
    run_dir = Path(config.run_dir)
    done = is_trained(config) and (not plan.evaluate or is_evaluated(config))
    if not (run_dir / EVENTS_FILE).exists():
        return PointState(
            point.name, "DONE" if done else "WAITING", None, point.steps, None, None, ""
        )
    said = run_status(run_dir)
    state, why = _judge(done, said.status, said.silent_s)
    loss, score = (newest_metric(run_dir, m) for m in (plan.report.loss, plan.report.score))
    return PointState(
        name=point.name,
        state=state,
        step=newest_event(run_dir, "step").get("step"),
        steps=point.steps,
        loss=None if loss is None else loss[1],
        score=None if score is None else score[1],
        why=why or ("" if state in ("DONE", "RUNNING") else said.reason),
    )


def _judge(done: bool, status: str, silent_s: float) -> tuple[State, str]:
    """Returns the state, and why where the run itself could not say so.

    The run's lock is left alone: to look at it means to hold it, and a start would fail just then.
    """
    if done:
        return "DONE", ""
    if status == "RUNNING":
        silence = f"no sign of life for {silent_s:.0f} s"
        if silent_s >= DEAD_AFTER_S:
            return "FAILED", silence
        return "RUNNING", silence if silent_s > _SUSPICIOUS_S else ""
    if status == "FAILED":
        return "FAILED", ""
    return "STOPPED", "trained, not evaluated" if status == "FINISHED" else ""
