"""The MLflow run below which the runs of a study are shown."""

from __future__ import annotations

from pathlib import Path

from hyperadapter.study.plan import Plan
from hyperadapter.tracking import TrackedRun, Tracker, resolve_uri

__all__ = ["open_parent", "study_uri"]


def open_parent(folder: Path, plan: Plan, owns_status: bool = False) -> Tracker:
    """Starts, or continues, the tracking of a study.

    Its runs look for it in MLflow whenever they connect, so it may come later than they do.

    Args:
        folder: The study folder.
        plan: Its list.
        owns_status: Whether the study ends when the tracker does.
    """
    tags = {"hyperadapter.points": str(len(plan.points)), "mlflow.note.content": plan.description}
    run = TrackedRun(
        name=plan.study,
        experiment=plan.experiment,
        uri=study_uri(folder, plan),
        enabled=plan.tracked,
        tags=tags,
        key=plan.key,
    )
    return Tracker(folder / "parent", run, folder / "study.yaml", owns_status=owns_status)


def study_uri(folder: Path, plan: Plan) -> str:
    """Returns the tracking URI of a study's runs, absolute.

    Raises:
        ConfigError: See `tracking.resolve_uri`.
    """
    return resolve_uri(folder / "runs" / "any", plan.uri)
