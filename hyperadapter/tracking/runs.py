"""What MLflow knows of many runs: all of an experiment, read in bulk."""

from __future__ import annotations

from typing import Any, NamedTuple

from hyperadapter.core.errors import TrackingError
from hyperadapter.tracking.store import import_mlflow
from hyperadapter.tracking.uri import brief, redact

__all__ = ["RunRecord", "read_runs"]

_RUNS_PER_REQUEST = 1000


class RunRecord(NamedTuple):
    """One run.

    Attributes:
        params: Its parameters.
        metrics: The last value of each metric.
        tags: Its tags; `mlflow.runName` is its name.
    """

    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def read_runs(uri: str, experiment: str, finished_only: bool = True) -> list[RunRecord]:
    """Reads the runs of an experiment, the oldest first; deleted ones are left out.

    Args:
        uri: A resolved tracking URI.
        experiment: The experiment's name.
        finished_only: Leaves out runs that go on, failed or were killed.

    Raises:
        TrackingError: MLflow cannot be reached, or has no such experiment.
    """
    mlflow = import_mlflow()
    records: list[RunRecord] = []
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = ", ".join(sorted(e.name for e in client.search_experiments(max_results=50)))
            raise TrackingError(
                f"MLflow at {redact(uri)} has no experiment {experiment!r}; it has {known}"
            )
        wanted = "attributes.status = 'FINISHED'" if finished_only else ""
        token = None
        while True:
            page: Any = client.search_runs(
                [found.experiment_id],
                wanted,
                max_results=_RUNS_PER_REQUEST,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            for run in page:
                data = run.data
                records.append(RunRecord(dict(data.params), dict(data.metrics), dict(data.tags)))
            token = page.token
            if not token:
                return records
    except TrackingError:
        raise
    except Exception as error:  # MLflow lets through what its database and network raise
        raise TrackingError(
            f"MLflow at {redact(uri)} cannot be read ({brief(error)}); check --uri, or "
            "MLFLOW_TRACKING_URI, and that the server runs"
        ) from error
