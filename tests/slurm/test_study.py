"""A study as an array of jobs, of which several may share a node, with a script for training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster.jobs import failed, look, retry
from hyperadapter.cli import cli
from hyperadapter.study import status
from tests.planned_study import write_study
from tests.slurm.machine import Machine, wait_for
from tests.slurm.test_submit import log, wait_for_state

pytestmark = pytest.mark.slurm

Site = Callable[..., Path]
NAMES = ("p0", "p1", "p2", "p3")

TRAINING = """
    config=${!#}
    run_dir=${config%/submit/*}
    [ "$3" = evaluate ] && { echo "evaluates $run_dir"; exit 0; }
    echo "trains $run_dir on GPU $CUDA_VISIBLE_DEVICES of $SLURMD_NODENAME"
    : >"$run_dir/running"
    ls -d "${run_dir%/*}"/*/running | wc -l >>"${run_dir%/*}/most"
    step=$((10#$(basename "$run_dir"/checkpoints/step-* | sed 's/[^0-9]//g; s/^$/0/')))
    save() {
        rm -f "$run_dir/running"
        folder=$run_dir/checkpoints/step-$(printf %08d $((step + 1)))
        mkdir -p "$folder" && echo '{}' >"$folder/manifest.json"
        exit 75
    }
    trap save USR1 TERM
    i=0
    while [ -e "$run_dir/wait" ] && ((step == 0 && i++ < 600)); do sleep 0.05; done
    sleep 0.5
    rm -f "$run_dir/running"
    [ -e "$run_dir/fail" ] && { echo "an error to be seen"; exit 5; }
    exit 0
"""
"""Fails, or goes on until it is asked to save, where a file in the run folder says so."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_study(tmp_path / "study", NAMES)
    for name in NAMES:
        (tmp_path / "study" / "runs" / name).mkdir(parents=True)
    return tmp_path / "study"


@pytest.fixture
def submit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Submits the study as if its data were there; returns the jobs."""
    monkeypatch.setattr("data_pipeline.provenance.require_current", lambda data: "here")

    def call(site: Path, *words: str) -> list[str]:
        command = ["study", "submit", str(folder), "--cluster", str(site), *words]
        done = CliRunner().invoke(cli, command)
        assert done.exit_code == 0, done.output
        return [line.split("\t")[0] for line in done.stdout.splitlines()]

    return call


def wait_for_end(machine: Machine, job: str) -> None:
    wait_for(
        lambda: not machine.run("squeue", "--noheader", "--jobs", job.partition("_")[0]),
        lambda: machine.run("squeue"),
    )


def states(folder: Path) -> dict[str, tuple[str, int | None]]:
    return {Path(job.run_dir).name: (job.state, job.code) for job in look([folder])}


def test_a_study_is_one_throttled_array_without_what_is_done(
    site: Site, machine: Machine, folder: Path, submit: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(status, "is_trained", lambda config: config.name == "p1")
    monkeypatch.setattr(status, "is_evaluated", lambda config: config.name == "p1")
    first, *others = submit(site(TRAINING), "--array", "2")
    assert [first, *others] == [f"{first[:-2]}_{index}" for index in range(3)]
    assert submit(site(TRAINING)) == []  # all have a job
    wait_for_end(machine, first)
    assert max(map(int, (folder / "runs" / "most").read_text().split())) == 2
    assert states(folder) == dict.fromkeys(("p0", "p2", "p3"), ("COMPLETED", 0))
    for name in ("p0", "p2", "p3"):
        run_dir = folder / "runs" / name
        assert f"trains {run_dir} on" in log(run_dir)
        assert f"evaluates {run_dir}" in log(run_dir)
    assert log(folder / "runs" / "p1") == ""


def test_packed_runs_share_a_node_and_only_the_one_that_failed_is_retried(
    site: Site, machine: Machine, folder: Path, submit: Callable[..., list[str]]
) -> None:
    run_dirs = [folder / "runs" / name for name in NAMES]
    (run_dirs[2] / "fail").touch()
    found = submit(site(TRAINING, gpus_per_node=2, tasks_per_node=2), "--pack", "2")
    array = found[0].partition("_")[0]
    assert found == [f"{array}_0", f"{array}_0", f"{array}_1", f"{array}_1"]
    wait_for_end(machine, array)
    done = ("COMPLETED", 0)
    assert states(folder) == {"p0": done, "p1": done, "p2": ("FAILED", 5), "p3": done}
    # Two and two on a node, each with a GPU of its own.
    trained = [re.findall(r"on GPU (\d) of (n\d)", log(run_dir)) for run_dir in run_dirs]
    assert [gpu for [(gpu, _)] in trained] == ["0", "1", "0", "1"]
    [first], [second], [third], [fourth] = trained
    assert first[1] == second[1]
    assert third[1] == fourth[1]
    assert "evaluates" in log(run_dirs[3])
    assert "evaluates" not in log(run_dirs[2])
    [job] = failed(look([folder]))
    assert job.why == "an error to be seen"

    (run_dirs[2] / "fail").unlink()
    assert retry([folder], only_failed=True).keys() == {str(run_dirs[2])}
    [again] = [job.job for job in look([run_dirs[2]])]
    assert again.endswith("_1")
    wait_for_end(machine, again)
    assert states(folder) == dict.fromkeys(NAMES, done)
    assert [log(run_dir).count("trains ") for run_dir in run_dirs] == [1, 1, 2, 1]


def test_a_packed_task_saves_at_the_signal_and_goes_on_with_what_was_interrupted(
    site: Site, machine: Machine, folder: Path, submit: Callable[..., list[str]]
) -> None:
    run_dirs = [folder / "runs" / name for name in NAMES[:3]]
    (run_dirs[0] / "wait").touch()
    (run_dirs[1] / "fail").touch()
    file = site(TRAINING, tasks_per_node=4, cpus_per_task=1)
    [job, *_] = submit(file, "--pack", "4", "--points", "p[012]")
    wait_for(lambda: states(folder)["p2"] == ("COMPLETED", 0), lambda: log(run_dirs[2]))
    wait_for(lambda: states(folder)["p1"] == ("FAILED", 5), lambda: log(run_dirs[1]))
    assert states(folder)["p0"] == ("RUNNING", None)
    machine.run("scancel", "--batch", "--signal=USR1", job)  # as Slurm does before the time limit
    wait_for_state(machine, job, "FAILED")
    assert states(folder) == {
        "p0": ("COMPLETED", 0), "p1": ("FAILED", 5), "p2": ("COMPLETED", 0)
    }  # fmt: skip
    assert [log(run_dir).count("trains ") for run_dir in run_dirs] == [2, 1, 1]
    assert "start 1: begin at step 1 on n" in log(run_dirs[0])
    [first] = look([run_dirs[0]])
    assert first.restarts == 1
