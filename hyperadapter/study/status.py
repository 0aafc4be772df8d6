"""How far the runs of a study are, by their folders."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal, NamedTuple

from hyperadapter.checkpoint.layout import complete_checkpoints
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.events import EVENTS_FILE, newest_event, newest_metric
from hyperadapter.evaluation.results import load_result, result_settings
from hyperadapter.study.plan import Plan, Point, point_config
from hyperadapter.tracking import DEAD_AFTER_S, run_status

__all__ = [
    "ENDED",
    "LOG_FILE",
    "PointState",
    "State",
    "is_done",
    "is_evaluated",
    "is_trained",
    "point_states",
]

LOG_FILE = "local.log"
"""What a run of `study run` prints, in its run folder."""
ENDED = "study run: ended with code "
"""The line that follows where a run has failed."""


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
    """Says whether a run has come to its last step, also if its checkpoints were deleted since."""
    run_dir, last = Path(config.run_dir), config.training.max_steps
    found = complete_checkpoints(run_dir)
    if found and found[-1][0] >= last:
        return True
    if not (run_dir / EVENTS_FILE).exists():
        return False
    ended = newest_event(run_dir, "status").get("status") == "FINISHED"
    return ended and newest_event(run_dir, "step").get("step", 0) >= last


def is_done(config: RunConfig, plan: Plan) -> bool:
    """Says whether nothing is left to be done for a run."""
    return is_trained(config) and (not plan.evaluate or is_evaluated(config))


def is_evaluated(config: RunConfig) -> bool:
    """Says whether the test split was scored with the weights of a run's last step."""
    try:
        result = load_result(Path(config.run_dir), "test")
    except DataError:
        return False
    same = result.settings == result_settings(config.evaluation)
    return same and result.step >= config.training.max_steps


def _state(point: Point, config: RunConfig, plan: Plan) -> PointState:
    run_dir = Path(config.run_dir)
    done = is_done(config, plan)
    if not (run_dir / EVENTS_FILE).exists():
        why = "" if done else _ended_early(run_dir)
        state: State = "DONE" if done else "FAILED" if why else "WAITING"
        return PointState(point.name, state, None, point.steps, None, None, why)
    said = run_status(run_dir)
    state, why = _judge(done, said.status, _silent_s(run_dir, said.silent_s))
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


def _ended_early(run_dir: Path) -> str:
    """Returns why `study run` saw a run end before it had said anything; empty if it did not."""
    path = run_dir / LOG_FILE
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    if not lines or not lines[-1].startswith(ENDED):
        return ""
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines)[-1]


def _silent_s(run_dir: Path, silent_s: float) -> float:
    """Returns the seconds without a sign of life, of which translated directions are one."""
    times = [path.stat().st_mtime for path in run_dir.glob("evaluation/test/*")]
    return min([silent_s, *(max(0.0, time.time() - then) for then in times)])


def _judge(done: bool, status: str, silent_s: float) -> tuple[State, str]:
    """Returns the state, and why where the run itself could not say so.

    The run's lock is left alone: to look at it means to hold it, and a start would fail just then.
    """
    if done:
        return "DONE", ""
    silence = f"no sign of life for {silent_s:.0f} s" if silent_s > _SUSPICIOUS_S else ""
    if status == "FINISHED":  # training has said so, and evaluation says nothing until its end
        if silent_s < DEAD_AFTER_S:
            return "RUNNING", f"evaluating; {silence}" if silence else "evaluating"
        return "STOPPED", "trained, not evaluated"
    if status == "RUNNING":
        return ("FAILED" if silent_s >= DEAD_AFTER_S else "RUNNING"), silence
    return ("FAILED" if status == "FAILED" else "STOPPED"), ""
