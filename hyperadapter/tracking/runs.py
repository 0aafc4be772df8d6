"""What MLflow knows of many runs: all of an experiment, or all below one run, read in bulk.

    database    its tables, by SQL: MLflow's own reading makes an object of every number and takes
                some fifteen times as long
    server      pages of runs, several at a time; histories by the request of MLflow's own pages,
                of many runs at once
    else        run by run, as MLflow's documentation says: slow, and works everywhere

The tables are those of MLflow 2 and 3. Where a quick way fails, the slow one is taken.
"""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from hyperadapter.core.errors import TrackingError
from hyperadapter.tracking.store import database_of, open_client, request_json
from hyperadapter.tracking.uri import brief, redact

if TYPE_CHECKING:
    from sqlalchemy import Engine

__all__ = ["Curve", "RunReader", "RunRecord", "StoredRun", "read_runs"]

log = logging.getLogger(__name__)

_PARENT_PARAM = "tracking.parent"
_RUNS_PER_PAGE = 50  # a server needs about 10 ms for a run of 100 metrics, and times out after 20 s
_REQUESTS_AT_ONCE = 8
_RUNS_PER_QUERY = 500  # below the least number of values that a database takes in one statement

# MLflow's limits for a history of many runs.
_BULK_PATH = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_THINNED_PATH = "/api/2.0/mlflow/metrics/get-history-bulk-interval"
_RUNS_PER_HISTORY = 100
_SAMPLES_PER_HISTORY = 25_000

_INFINITY = 1.79e308  # MLflow keeps infinity as the largest number there is, 1.797e308

MlflowClient: TypeAlias = Any  # MLflow is behind the door of store.py
Run: TypeAlias = Any
Item = TypeVar("Item")
Result = TypeVar("Result")


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


class StoredRun(NamedTuple):
    """One run, and where it is.

    Attributes:
        run_id: MLflow's name of it.
        experiment_id: MLflow's name of its experiment.
        name: Its name, as it was at last.
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        start_ms: Since 1970.
        end_ms: Since 1970; None while it goes on.
        params: Its parameters.
        metrics: The last value of each metric.
        steps: The step of it.
        tags: Its tags.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    start_ms: int
    end_ms: int | None
    params: dict[str, str]
    metrics: dict[str, float]
    steps: dict[str, int]
    tags: dict[str, str]


class Curve(NamedTuple):
    """The values of a metric: the newest of each step.

    Attributes:
        steps: Ascending.
        values: One of each step; NaN and infinity are kept.
        logged: How many steps there were before thinning.
    """

    steps: list[int]
    values: list[float]
    logged: int


class RunReader:
    """Reads runs and histories at one place.

    Args:
        uri: A resolved tracking URI, with its password.

    Raises:
        TrackingError: There is no such database.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        database = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not database.is_file():
            raise self._unreadable("there is no such file")  # MLflow would make one
        self._client: MlflowClient = self._ask(lambda: open_client(uri))
        self._engine: Engine | None = database_of(self._client)

    def runs(
        self, experiment: str, parent: str = "", prefixes: Sequence[str] = ()
    ) -> list[StoredRun]:
        """Reads the runs of an experiment, the oldest first; deleted ones are left out.

        Args:
            experiment: The experiment's name.
            parent: Key of the run that they must be below; empty: all.
            prefixes: Only metrics whose names begin with one of these; empty: all.

        Raises:
            TrackingError: MLflow cannot be reached, or has no such experiment.
        """
        found = self._ask(lambda: self._client.get_experiment_by_name(experiment))
        if found is None:
            known = self._ask(lambda: self._client.search_experiments(max_results=50))
            raise TrackingError(
                f"MLflow at {redact(self._uri)} has no experiment {experiment!r}; it has "
                f"{', '.join(sorted(e.name for e in known))}"
            )
        number = str(found.experiment_id)
        if self._engine is not None:
            try:
                return _runs_of_tables(self._engine, number, parent, prefixes)
            except Exception as error:  # another version's tables
                log.warning("reading runs the slow way (%s)", brief(error))
        wanted = f"params.`{_PARENT_PARAM}` = '{parent}'" if parent else ""
        return [
            _stored(run, prefixes)
            for run in self._ask(lambda: _search(self._client, number, wanted))
        ]

    def curves(self, run_ids: Sequence[str], key: str, most: int) -> dict[str, Curve]:
        """Reads the history of one metric of many runs.

        Args:
            run_ids: MLflow's names of the runs; those without the metric are left out.
            key: Name of the metric.
            most: Values of a run that are kept, evenly spread, the first and last among them.

        Raises:
            TrackingError: MLflow cannot be reached.
        """
        rows: Iterable[_Sample]
        try:
            if self._engine is not None:
                rows = _history_of_table(self._engine, run_ids, key)
            else:
                rows = _history_of_server(self._client, run_ids, key, most)
            return _curves(rows, most)
        except Exception as error:  # another version, or another kind of server
            log.warning("reading the history of %s the slow way (%s)", key, brief(error))
        return self._ask(lambda: _curves(_history_by_run(self._client, run_ids, key), most))

    def _ask(self, question: Callable[[], Result]) -> Result:
        try:
            return question()
        except Exception as error:  # MLflow lets through what its database and network raise
            raise self._unreadable(brief(error)) from error

    def _unreadable(self, reason: str) -> TrackingError:
        return TrackingError(
            f"MLflow at {redact(self._uri)} cannot be read ({reason}); check --uri, or "
            "MLFLOW_TRACKING_URI, and that the server runs"
        )


def read_runs(uri: str, experiment: str, finished_only: bool = True) -> list[RunRecord]:
    """Reads the runs of an experiment, the oldest first; deleted ones are left out.

    Args:
        uri: A resolved tracking URI.
        experiment: The experiment's name.
        finished_only: Leaves out runs that go on, failed or were killed.

    Raises:
        TrackingError: MLflow cannot be reached, or has no such experiment.
    """
    return [
        RunRecord(run.params, run.metrics, run.tags)
        for run in RunReader(uri).runs(experiment)
        if run.status == "FINISHED" or not finished_only
    ]


# The tables of a database.


class _Sample(NamedTuple):
    run_id: str
    step: int
    time_ms: int
    value: float


def _value(value: float, is_nan: bool = False) -> float:
    if is_nan:
        return math.nan
    return math.copysign(math.inf, value) if abs(value) > _INFINITY else float(value)


def _runs_of_tables(
    engine: Engine, experiment_id: str, parent: str, prefixes: Sequence[str]
) -> list[StoredRun]:
    from sqlalchemy import or_, select

    run = _table("runs", "run_uuid name status start_time end_time lifecycle_stage experiment_id")
    param, tag = (_table(name, "run_uuid key value") for name in ("params", "tags"))
    metric = _table("latest_metrics", "run_uuid key value step is_nan")
    here = run.c.experiment_id == int(experiment_id)
    chosen = select(run.c.run_uuid).where(here, run.c.lifecycle_stage == "active")
    if parent:
        below = select(param.c.run_uuid).where(
            param.c.key == _PARENT_PARAM, param.c.value == parent
        )
        chosen = chosen.where(run.c.run_uuid.in_(below))
    columns = (run.c.run_uuid, run.c.name, run.c.status, run.c.start_time, run.c.end_time)
    runs = select(*columns).where(run.c.run_uuid.in_(chosen))
    values = select(*(metric.c[n] for n in ("run_uuid", "key", "value", "step", "is_nan")))
    values = values.where(metric.c.run_uuid.in_(chosen))
    if prefixes:
        begins = (metric.c.key.startswith(prefix, autoescape=True) for prefix in prefixes)
        values = values.where(or_(*begins))
    found: dict[str, StoredRun] = {}
    with engine.connect() as connection:
        for run_id, name, status, start, end in connection.execute(
            runs.order_by(run.c.start_time, run.c.run_uuid)
        ):
            found[run_id] = StoredRun(
                run_id, experiment_id, name or "", status, start or 0, end, {}, {}, {}, {}
            )
        for table, place in ((param, "params"), (tag, "tags")):
            texts = select(table.c.run_uuid, table.c.key, table.c.value)
            for run_id, key, text in connection.execute(texts.where(table.c.run_uuid.in_(chosen))):
                if run_id in found:  # not one that came between two questions
                    getattr(found[run_id], place)[key] = text or ""
        for run_id, key, value, step, is_nan in connection.execute(values):
            if run_id in found:
                found[run_id].metrics[key] = _value(value, is_nan)
                found[run_id].steps[key] = step
    return list(found.values())


def _history_of_table(engine: Engine, run_ids: Sequence[str], key: str) -> Iterator[_Sample]:
    from sqlalchemy import select

    names = ("run_uuid", "step", "timestamp", "value", "is_nan")
    metric = _table("metrics", f"key {' '.join(names)}")
    with engine.connect() as connection:
        for some in _parts(run_ids, _RUNS_PER_QUERY):
            wanted = select(*(metric.c[name] for name in names)).where(
                metric.c.run_uuid.in_(some), metric.c.key == key
            )
            for run_id, step, time_ms, value, is_nan in connection.execute(wanted):
                yield _Sample(run_id, step, time_ms, _value(value, is_nan))


def _table(name: str, columns: str) -> Any:
    import sqlalchemy

    return sqlalchemy.table(name, *map(sqlalchemy.column, columns.split()))


# A server.


def _search(client: MlflowClient, experiment_id: str, wanted: str) -> list[Run]:
    """Reads pages one after the other, or several at a time where a page's token is its place."""

    def page(size: int, token: str | None) -> Any:
        return client.search_runs(
            [experiment_id],
            wanted,
            max_results=size,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )

    def place(start: int, size: int) -> list[Run]:
        try:
            return list(page(size, _token(start) if start else None))
        except Exception:
            if size == 1:
                raise
        half = size // 2  # runs of very many metrics: the page took too long
        return [*place(start, half), *place(start + half, size - half)]

    first = place(0, _RUNS_PER_PAGE)
    token = page(1, None).token
    if isinstance(token, bytes):  # as the server's own code has it
        token = token.decode()
    if token != _token(1):
        return first if not token else _one_by_one(lambda t: page(_RUNS_PER_PAGE, t))
    runs, start = first, _RUNS_PER_PAGE
    while len(runs) == start:
        starts = [start + n * _RUNS_PER_PAGE for n in range(_REQUESTS_AT_ONCE)]
        for more in _at_once(lambda begin: place(begin, _RUNS_PER_PAGE), starts):
            runs += more
        start = starts[-1] + _RUNS_PER_PAGE
    return runs


def _token(start: int) -> str:
    """Returns how MLflow's own server writes the place of a page."""
    return base64.b64encode(json.dumps({"offset": start}).encode()).decode()


def _one_by_one(page: Callable[[str | None], Any]) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        found = page(token)
        runs += found
        token = found.token
        if not token:
            return runs


def _stored(run: Run, prefixes: Sequence[str]) -> StoredRun:
    info, data = run.info, run.data
    metrics = {
        metric.key: metric
        for metric in data._metric_objs
        if not prefixes or metric.key.startswith(tuple(prefixes))
    }
    return StoredRun(
        info.run_id,
        str(info.experiment_id),
        info.run_name or "",
        info.status,
        info.start_time or 0,
        info.end_time,
        dict(data.params),
        {key: _value(metric.value) for key, metric in metrics.items()},
        {key: metric.step for key, metric in metrics.items()},
        dict(data.tags),
    )


def _history_of_server(
    client: MlflowClient, run_ids: Sequence[str], key: str, most: int
) -> Iterator[_Sample]:
    def some(run_ids: Sequence[str]) -> list[_Sample]:
        query = {"run_id": run_ids, "metric_key": key, "max_results": _SAMPLES_PER_HISTORY}
        found = request_json(client, _BULK_PATH, query)["metrics"]
        if len(found) >= _SAMPLES_PER_HISTORY:  # all it gives: let the server thin them
            query = {"run_ids": run_ids, "metric_key": key, "max_results": most}
            found = request_json(client, _THINNED_PATH, query).get("metrics", [])
        # The one request writes numbers, the other one texts such as "NaN".
        return [
            _Sample(s["run_id"], int(s["step"]), int(s["timestamp"]), _value(float(s["value"])))
            for s in found
        ]

    for samples in _at_once(some, list(_parts(run_ids, _RUNS_PER_HISTORY))):
        yield from samples


def _history_by_run(client: MlflowClient, run_ids: Sequence[str], key: str) -> Iterator[_Sample]:
    histories = _at_once(lambda run_id: client.get_metric_history(run_id, key), run_ids)
    for run_id, history in zip(run_ids, histories, strict=True):
        for metric in history:
            yield _Sample(run_id, metric.step, metric.timestamp, _value(metric.value))


def _at_once(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        yield from pool.map(work, items)


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


# Curves.


def _curves(samples: Iterable[_Sample], most: int) -> dict[str, Curve]:
    """Keeps the newest value of each step, and of many steps some."""
    newest: dict[str, dict[int, tuple[int, float]]] = {}
    for run_id, step, time_ms, value in samples:
        values = newest.setdefault(run_id, {})
        if step not in values or values[step][0] <= time_ms:
            values[step] = time_ms, value
    curves = {}
    for run_id, values in newest.items():
        steps = sorted(values)
        kept = steps if len(steps) <= most else _spread(steps, most)
        curves[run_id] = Curve(kept, [values[step][1] for step in kept], len(steps))
    return curves


def _spread(items: list[int], most: int) -> list[int]:
    """Returns so many items at even distances, the first and last among them."""
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]
