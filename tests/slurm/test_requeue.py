"""Time limits, preemption and lost nodes, with a script in the place of training.

The script counts its starts and writes checkpoints as training does: on USR1 or TERM it saves, and
ends with 75.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperadapter.core.files import write_json
from tests.slurm.machine import Machine, wait_for
from tests.slurm.test_submit import CONFIG, jobs, log, status, submit, wait_for_state
from tests.tiny_corpus import run_hyperadapter

pytestmark = pytest.mark.slurm

Site = Callable[..., Path]

TRAINING = """
    config=${!#}
    run_dir=${config%/submit/*}
    start=${SLURM_RESTART_COUNT:-0}
    save() {
        [ "$SLURM_PROCID" = 0 ] || exit 75
        folder=$run_dir/checkpoints/step-$(printf %08d $((start + 1)))
        mkdir -p "$folder" && echo '{}' >"$folder/manifest.json"
        exit 75
    }
    trap save USR1 TERM
    echo "rank $SLURM_PROCID of $SLURM_NTASKS at $MASTER_ADDR:$MASTER_PORT start $start"
    [ "$start" -ge "$ENOUGH" ] && exit 0
    for i in {1..1200}; do sleep 0.1; done
"""


def starts(run_dir: Path) -> int:
    return log(run_dir).count("rank 0 of")


def wait_for_start(run_dir: Path, number: int, seconds: float = 90) -> None:
    wait_for(lambda: starts(run_dir) >= number, lambda: log(run_dir), seconds)


def test_the_time_limit_saves_and_requeues_until_it_is_done(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    # Slurm looks at limits twice a minute and signals up to 30 s early: here at its first look,
    # which may even come before training.
    script = TRAINING.replace('"$start" -ge "$ENOUGH"', '-d "$run_dir/checkpoints"')
    assert script != TRAINING
    file = site(script, nodes=2, time_limit="00:01:00", save_lead_s=30)
    run_dir = tmp_path / "run"
    job = submit(file, run_dir).split()[0]
    wait_for_start(run_dir, 1)
    wait_for_state(machine, job, "COMPLETED", seconds=150)
    assert "requeue: training was interrupted and has saved" in log(run_dir)
    assert "rank 1 of 2 at n1:2" in log(run_dir)
    assert re.search(r"begin at step [1-9] on n\[1-2\]", log(run_dir))
    [row] = status(run_dir)
    assert row["restarts"]
    assert row["code"] == 0


@pytest.mark.parametrize("partition", ["main", "graceful"])
def test_preemption_saves_and_requeues(
    partition: str, site: Site, machine: Machine, tmp_path: Path
) -> None:
    run_dir, other = tmp_path / "run", tmp_path / "other"
    file = site(TRAINING, environment={"ENOUGH": "1"}, nodes=3, partition=partition,
                cpus_per_task=4)  # fmt: skip
    three = "--set", "training.global_batch_tokens=4200"
    job = submit(file, run_dir, *three).split()[0]
    wait_for_start(run_dir, 1)
    urgent_site = site("sleep 1", nodes=3, partition="high", cpus_per_task=4)
    urgent = submit(urgent_site, other, *three).split()[0]
    wait_for_state(machine, urgent, "COMPLETED", seconds=60)
    wait_for_state(machine, job, "COMPLETED")
    assert "begin at step 1" in log(run_dir)
    assert starts(run_dir) == 2


def test_it_stops_after_starts_without_progress_and_retry_begins_to_count_anew(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    job = submit(site("echo rank 0 of; exit 75", max_fruitless_starts=2), run_dir).split()[0]
    wait_for_state(machine, job, "FAILED", seconds=90)
    assert starts(run_dir) == 2
    [row] = status(run_dir)
    assert (row["state"], row["code"], row["restarts"]) == ("FAILED", 75, 1)
    assert "no new checkpoint in 2 starts" in str(row["why"])
    again = jobs("retry", "--failed", run_dir).split()[0]
    wait_for_start(run_dir, 4)
    wait_for_state(machine, again, "FAILED")


@pytest.mark.parametrize("code", [3, 7])
def test_exit_codes_are_kept(code: int, site: Site, machine: Machine, tmp_path: Path) -> None:
    file = site(f'[ "$SLURM_PROCID" = 1 ] && exit {code}; sleep 1; exit 1', nodes=2)
    job = submit(file, tmp_path / "run").split()[0]
    wait_for_state(machine, job, "FAILED")
    [row] = status(tmp_path / "run")
    assert row["code"] == code
    assert row["restarts"] == 0


def test_a_lost_node_puts_the_job_back(site: Site, machine: Machine, tmp_path: Path) -> None:
    """Slurm notices late; the ranks notice at once, and the script leaves the node out."""
    script = (
        TRAINING
        + """
        exit 1
    """
    )
    script = script.replace("{1..1200}", "{1..40}")
    file = site(script, environment={"ENOUGH": "1"}, nodes=2)
    run_dir = tmp_path / "run"
    job = submit(file, run_dir).split()[0]
    wait_for_start(run_dir, 1)
    machine.crash_node("n2")
    try:
        wait_for_state(machine, job, "COMPLETED", seconds=180)
    finally:
        machine.revive("n2")
    assert starts(run_dir) == 2
    assert "n[1,3]" in log(run_dir)


def test_a_bad_node_is_named_and_left_out_of_the_next_start(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    file = site("echo rank 0 of", gpus_per_node=2, nodes=2, environment={"LAME": "n2"})
    run_dir = tmp_path / "run"
    job = submit(file, run_dir).split()[0]
    wait_for_state(machine, job, "COMPLETED", seconds=60)
    assert "node check: node n2 has 1 of 2 GPUs" in log(run_dir)
    assert "requeue: bad nodes n2" in log(run_dir)
    assert "begin at step 0 on n[1,3]" in log(run_dir)
    assert starts(run_dir) == 2  # two ranks, in one start only


def test_what_every_node_lacks_ends_the_job(site: Site, machine: Machine, tmp_path: Path) -> None:
    file = site("echo rank 0 of", nodes=2, scratch="/proc/none")
    run_dir = tmp_path / "run"
    job = submit(file, run_dir).split()[0]
    wait_for_state(machine, job, "FAILED", seconds=60)
    [row] = status(run_dir)
    assert "stopped: every node failed its check: n2 n1" in str(row["why"])
    assert "node n1 cannot write in /proc/none (No such file or directory)" in log(run_dir)
    assert starts(run_dir) == 0


@pytest.mark.parametrize(("least", "state"), [(0.0, "COMPLETED"), (1e6, "FAILED")])
def test_all_reduce_is_measured_before_training(
    least: float, state: str, site: Site, machine: Machine, tmp_path: Path
) -> None:
    file = site("echo rank 0 of", nodes=2, min_all_reduce_gb_per_s=least)
    run_dir = tmp_path / "run"
    job = submit(file, run_dir).split()[0]
    wait_for_state(machine, job, state, seconds=90)
    assert "node check: all-reduce over all ranks: " in log(run_dir)
    assert (starts(run_dir) > 0) == (state == "COMPLETED")


def test_a_task_of_an_array_requeues_itself_and_no_other(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    script = """
        echo rank 0 of
        [[ ${!#} == */second/* && -z $SLURM_RESTART_COUNT ]] && exit 75
        exit 0
    """
    configs: list[str] = []
    for name in ("first", "second"):
        tree = {"extends": os.path.relpath(CONFIG, tmp_path), "run_dir": str(tmp_path / name)}
        write_json(tmp_path / f"{name}.yaml", tree)
        configs += ["--config", str(tmp_path / f"{name}.yaml")]
    done = run_hyperadapter("submit", *configs, "--cluster", str(site(script)), "--array", "2")
    assert done.returncode == 0, done.stderr
    array = done.stdout.split("_")[0]
    wait_for(lambda: not machine.run("squeue", "--noheader", "--jobs", array),
             lambda: machine.run("squeue"), 60)  # fmt: skip
    rows = status(tmp_path / "first", tmp_path / "second")
    assert [row["state"] for row in rows] == ["COMPLETED", "COMPLETED"]
    assert [row["restarts"] for row in rows] == [0, 1]
    assert [starts(tmp_path / name) for name in ("first", "second")] == [1, 2]
