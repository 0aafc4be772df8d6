"""The runs of a study on this machine, several at a time."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cluster import jobs
from cluster.local import EXIT_INTERRUPTED, Program, run_programs
from cluster.slurm import SlurmError
from hyperadapter import pipeline
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError, DataError, Interrupted
from hyperadapter.core.files import locked
from hyperadapter.study.parent import open_parent
from hyperadapter.study.plan import Plan, Point, point_config
from hyperadapter.study.status import ENDED, LOG_FILE, is_done

__all__ = ["run_points"]

log = logging.getLogger(__name__)


def run_points(folder: Path, plan: Plan, workers: int, points: Sequence[Point] = ()) -> list[str]:
    """Builds the data, and runs what is not done of a study.

    Args:
        folder: The study folder.
        plan: Its list.
        workers: Runs at a time, which share the cores and the GPUs.
        points: Those of the list to run; empty: all.

    Returns:
        Names of the runs that failed; the others are done.

    Raises:
        ConfigError: The GPUs do not suffice for so many workers, or the data cannot be built.
        DataError: Another `study run` works on the study.
        Interrupted: A signal stopped it; the same command goes on.
    """
    with locked(folder) as free:
        if not free:
            raise DataError(f"another `study run` works on {folder}; wait for it, or stop it")
        configs = {p.name: point_config(folder, p) for p in points or plan.points}
        todo = {name: c for name, c in configs.items() if not is_done(c, plan)}
        log.info(
            "study %s: %d of %d runs are done", plan.study, len(configs) - len(todo), len(configs)
        )
        _leave_to_slurm(todo)
        if not todo:
            return []
        environments = _environments(list(todo.values()), workers)
        _build_data(list(todo.values()))
        with open_parent(folder, plan, owns_status=True) as tracker:
            failed = _run(folder, plan, todo, environments)
            if failed:
                tracker.finish("FAILED", reason=f"{len(failed)} of {len(todo)} runs failed")
            return failed


def _leave_to_slurm(todo: dict[str, RunConfig]) -> None:
    """Takes runs out that wait or run as jobs of Slurm."""
    folders = {name: Path(config.run_dir).resolve() for name, config in todo.items()}
    try:
        busy = {job.run_dir for job in jobs.active_jobs(list(folders.values()))}
    except SlurmError as error:
        count = len(jobs.submitted_runs(list(folders.values())))
        log.warning("%d runs were submitted to Slurm, which cannot be asked: %s", count, error)
        return
    for name, path in folders.items():
        if str(path) in busy:
            log.warning("%s waits or runs as a job of Slurm and is left to it", name)
            del todo[name]


def _run(
    folder: Path,
    plan: Plan,
    todo: Mapping[str, RunConfig],
    environments: Sequence[Mapping[str, str]],
) -> list[str]:
    verbs = ("train", "evaluate") if plan.evaluate else ("train",)
    programs = [
        Program(
            name=name,
            commands=[
                [sys.executable, "-m", "hyperadapter", verb, "--config",
                 str(folder / "points" / f"{name}.yaml")]
                for verb in verbs
            ],
            log=Path(config.run_dir) / LOG_FILE,
        )
        for name, config in todo.items()
    ]  # fmt: skip
    codes = run_programs(programs, environments, _Progress(plan, todo))
    if EXIT_INTERRUPTED in codes.values() or len(codes) < len(todo):
        done = sum(code == 0 for code in codes.values())
        raise Interrupted(
            f"the study in {folder} was stopped, with {done} of {len(todo)} runs done; the same "
            "command goes on"
        )
    return [name for name, code in codes.items() if code]


class _Progress:
    """Logs which run starts and ends, and how long the rest may take."""

    def __init__(self, plan: Plan, todo: Mapping[str, RunConfig]) -> None:
        self.todo = todo
        self.flops = {point.name: point.flops for point in plan.points}
        self.ended: list[str] = []
        self.started_at = time.monotonic()

    def __call__(self, name: str, code: int | None) -> None:
        """Is told of a start (None) or an end."""
        if code is None:
            log.info("%s: started, log in %s", name, Path(self.todo[name].run_dir) / LOG_FILE)
            return
        self.ended.append(name)
        if code not in (0, EXIT_INTERRUPTED):
            with (Path(self.todo[name].run_dir) / LOG_FILE).open("a", encoding="utf-8") as stream:
                stream.write(f"{ENDED}{code}\n")
        words = {0: "done", EXIT_INTERRUPTED: "stopped"}.get(code, f"FAILED with code {code}")
        log.info("%s: %s; %d of %d%s", name, words, len(self.ended), len(self.todo), self._left())

    def _left(self) -> str:
        took = time.monotonic() - self.started_at
        spent = sum(self.flops[name] for name in self.ended)
        left = sum(self.flops[name] for name in self.todo) - spent
        return f", about {took * left / spent / 60:.0f} min left" if left and spent else ""


def _environments(configs: Sequence[RunConfig], workers: int) -> list[dict[str, str]]:
    """Shares cores and GPUs out among the workers.

    Raises:
        ConfigError: There are too few GPUs.
    """
    processes = max(config.training.num_processes for config in configs)
    cores = len(os.sched_getaffinity(0))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // (workers * processes))))
    shared = {"OMP_NUM_THREADS": threads}
    gpus = [] if all(c.training.device == "cpu" for c in configs) else _gpus()
    if not gpus:
        return [dict(shared) for _ in range(workers)]
    if workers * processes > len(gpus):
        raise ConfigError(
            f"{workers} runs of {processes} processes at a time need {workers * processes} GPUs, "
            f"and there are {len(gpus)}; use a smaller --local, or fewer training.num_processes"
        )
    size = len(gpus) // workers
    shares = [gpus[size * n : size * (n + 1)] for n in range(workers)]
    return [{**shared, "CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def _gpus() -> list[str]:
    """Returns what CUDA_VISIBLE_DEVICES calls the GPUs of this machine."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _build_data(configs: Sequence[RunConfig]) -> None:
    """Makes what the runs share, once for each way of making it; what is there is kept."""
    seen: dict[str, RunConfig] = {}
    for config in configs:
        made = config.data.model_dump_json(exclude={"stream", "tags", "num_workers"})
        seen.setdefault(made, config)
    for config in seen.values():
        if config.data.sources and not config.data.shards_folder:
            pipeline.fetch(config)
            pipeline.clean(config)
        pipeline.tokenizer(config)
        if not config.data.shards_folder:
            pipeline.shard(config)
