"""Real training on several nodes over gloo, disturbed, ends as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from cluster.jobs import Run, Shape
from cluster.jobs import submit as submit_runs
from hyperadapter.checkpoint.layout import complete_checkpoints
from hyperadapter.config import RunConfig
from hyperadapter.core.events import read_metric
from hyperadapter.core.schema import load_config, to_yaml
from hyperadapter.evaluation.evaluate import load_result
from tests.slurm.machine import Machine, wait_for
from tests.slurm.test_submit import jobs, log, status, wait_for_state
from tests.tiny_corpus import run_hyperadapter

pytestmark = pytest.mark.slurm

STEPS = 120


def losses(run_dir: Path) -> dict[int, float]:
    events = run_dir / "events.jsonl"
    return dict(read_metric(run_dir, "train/loss")) if events.exists() else {}


@pytest.fixture
def submit(corpus: Path, site: Callable[..., Path], tmp_path: Path) -> Callable[..., str]:
    """Submits the tiny corpus into `tmp_path / name`, and returns the job."""

    def call(name: str, *options: str) -> str:
        file = site(nodes=2, environment={"OMP_NUM_THREADS": "1"})
        changes = (
            f"run_dir={tmp_path / name}",
            f"training.max_steps={STEPS}",
            "training.zero_stage=2",
            "training.checkpoint.every_steps=25",
        )
        sets = [part for change in changes for part in ("--set", change)]
        config = str(corpus / "run.yaml")
        command = ["submit", "--config", config, "--cluster", str(file), *sets, *options]
        done = run_hyperadapter(*command)
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\t")[0]

    return call


def wait_for_step(run_dir: Path, step: int) -> None:
    wait_for(lambda: max(losses(run_dir), default=0) >= step, lambda: log(run_dir)[-3000:], 120)


def test_signal_lost_node_and_fewer_nodes_change_no_loss(
    submit: Callable[..., str], machine: Machine, tmp_path: Path
) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    job = submit("whole")
    wait_for_state(machine, job, "COMPLETED", "FAILED", seconds=180)
    expected = losses(whole)
    assert expected.keys() == set(range(1, STEPS + 1)), log(whole)[-3000:]

    job = submit("run")
    wait_for_step(run_dir, 10)
    machine.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    wait_for(lambda: "resumed from" in log(run_dir), lambda: log(run_dir)[-3000:], 120)
    wait_for_step(run_dir, 40)
    machine.crash_node("n2")
    try:
        wait_for(lambda: "on n[1,3]" in log(run_dir), lambda: log(run_dir)[-3000:], 120)
        resumed = log(run_dir).count("resumed from")
        wait_for(lambda: log(run_dir).count("resumed from") > resumed, lambda: log(run_dir), 120)
        jobs("cancel", run_dir)
        wait_for_state(machine, job, "CANCELLED")
        wait_for(lambda: "after TERM" in log(run_dir), lambda: log(run_dir)[-3000:])
    finally:
        machine.revive("n2")
    saved = complete_checkpoints(run_dir)[-1][0]
    assert 10 <= saved < STEPS
    last = submit("run", "--nodes", "1", "--evaluate")
    wait_for_state(machine, last, "COMPLETED", "FAILED", seconds=120)
    found = losses(run_dir)
    on_two = [step for step in expected if step <= saved]
    assert [found[step] for step in on_two] == [expected[step] for step in on_two]
    assert found == pytest.approx(expected, rel=1e-4)  # one process adds up in another order
    assert load_result(run_dir).step == STEPS
    [row] = status(run_dir)
    assert (row["state"], row["run_status"], row["job"]) == ("COMPLETED", "FINISHED", last)


def test_packed_runs_train_and_are_scored(
    corpus: Path, site: Callable[..., Path], machine: Machine, tmp_path: Path
) -> None:
    """The real commands side by side in one step: each finds its own port, and no launcher."""
    place = load_config(ClusterConfig, site(tasks_per_node=2, environment={"OMP_NUM_THREADS": "1"}))
    runs = []
    for name in ("a", "b"):
        sets = [f"run_dir={tmp_path / name}", "training.max_steps=5", "tracking.enabled=false"]
        config = load_config(RunConfig, corpus / "run.yaml", sets)
        runs.append(Run(name, tmp_path / name, to_yaml(config)))
    plan = submit_runs(place, runs, Shape(1, throttle=1, evaluate=True, pack=2))
    assert len(set(plan.jobs)) == 1
    wait_for_state(machine, plan.jobs[0], "COMPLETED", "FAILED", seconds=180)
    found = [load_result(tmp_path / name) for name in ("a", "b")]
    assert [result.step for result in found] == [5, 5], log(tmp_path / "a")[-3000:]
    assert found[0].macro == found[1].macro
