"""What `hyperadapter submit` hands to a real Slurm, with a script in the place of training."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.machine import Machine, wait_for
from tests.tiny_corpus import run_hyperadapter

pytestmark = pytest.mark.slurm

Site = Callable[..., Path]
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "runs" / "quickstart.yaml"


def submit(site: Path, run_dir: Path, *more: str, code: int = 0) -> str:
    """Submits the quickstart into a run folder and returns what the command says."""
    done = run_hyperadapter(
        "submit", "--config", str(CONFIG), "--cluster", str(site),
        "--set", f"run_dir={json.dumps(str(run_dir))}", *more,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def jobs(verb: str, *arguments: str | Path) -> str:
    done = run_hyperadapter("jobs", verb, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(*run_dirs: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(jobs("status", "--json", *run_dirs))
    return found


def wait_for_state(machine: Machine, job: str, *wanted: str, seconds: float = 60) -> None:
    def show() -> str:
        return machine.run("scontrol", "--oneliner", "show", "job", job)

    wait_for(lambda: any(f"JobState={word}" in show() for word in wanted), show, seconds)


def log(run_dir: Path, number: int = 1) -> str:
    path = run_dir / "submit" / str(number) / "job.log"
    return path.read_text() if path.exists() else ""


def test_what_is_printed_is_what_runs_and_hostile_names_do_no_harm(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    run_dir = tmp_path / """a b'c"d$(touch harm)`touch harm`%j;#"""
    hostile = "$(touch harm) 'x' \"y\"\n#SBATCH --hold\n`touch harm`"
    stub = 'echo "$@" "$PWD"; echo "$VALUE"; echo "$PYTHONPATH"; touch harmless'
    file = site(stub, environment={"VALUE": hostile}, gpus_per_node=2, cpus_per_task=2)
    name = "--set", f"name={json.dumps(hostile)}"
    script = submit(file, run_dir, "--dry-run", *name)
    assert not run_dir.exists()

    said = submit(file, run_dir, *name).split("\t")
    job, folder = said[0], Path(said[1].rstrip("\n"))
    assert folder == run_dir / "submit" / "1"
    assert (folder / "job.sbatch").read_text() == script
    assert machine.run("scontrol", "write", "batch_script", job, "-") == script.strip()
    wait_for_state(machine, job, "COMPLETED")
    assert f"-m hyperadapter train --config {folder}/config.yaml" in log(run_dir)
    assert hostile in log(run_dir)
    assert f"{folder}/code" in log(run_dir)
    assert Path("harmless").exists()
    Path("harmless").unlink()
    assert not list(Path.cwd().glob("harm*"))
    assert not list(run_dir.rglob("harm*"))
    [row] = status(run_dir)
    assert (row["state"], row["code"], row["job"], row["why"]) == ("COMPLETED", 0, job, "")


def test_later_edits_do_not_change_a_queued_job(site: Site, tmp_path: Path) -> None:
    submit(site("true"), tmp_path / "run", "--set", "training.seed=7")
    folder = tmp_path / "run" / "submit" / "1"
    assert "seed: 7" in (folder / "config.yaml").read_text()
    assert "num_processes: 1" in (folder / "config.yaml").read_text()
    root = Path(__file__).resolve().parents[2]
    for package in ("hyperadapter", "data_pipeline", "cluster"):
        copied = {p.relative_to(folder / "code") for p in (folder / "code" / package).rglob("*.py")}
        assert copied == {p.relative_to(root) for p in (root / package).rglob("*.py")}
    assert list((folder / "code" / "hyperadapter" / "core").glob("*.yaml"))


@pytest.mark.parametrize(
    ("values", "slurm", "remedy"),
    [
        ({"partition": "nope"}, "invalid partition specified: nope", "`sinfo -o %P` lists"),
        ({"time_limit": "05:00:00"}, "Requested time limit is invalid", "lower time_limit"),
        ({"nodes": 9}, "Node count specification invalid", "use a smaller --nodes"),
        ({"gpus_per_node": 3}, "Requested node configuration is not available", "lower gpus_per"),
    ],
)
def test_slurms_refusal_is_shown_with_a_remedy(
    values: dict[str, object], slurm: str, remedy: str, site: Site, tmp_path: Path
) -> None:
    more = {"tasks_per_node": 1} | values
    batch = f"training.global_batch_tokens={700 * 9}"
    said = submit(site("true", **more), tmp_path / "run", "--set", batch, code=1)
    assert "error: sbatch says: sbatch: error: " in said
    assert slurm in said
    assert remedy in said
    assert not list(tmp_path.glob("run/submit/*"))


def test_a_job_waits_for_another_that_must_be_known(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    first = submit(site("sleep 3; exit 4"), tmp_path / "first").split()[0]
    second = submit(site("true"), tmp_path / "second", "--after", first).split()[0]
    wait_for_state(machine, first, "FAILED")
    wait_for_state(machine, second, "CANCELLED")
    said = submit(site("true"), tmp_path / "third", "--after", "987654", code=1)
    assert "Slurm knows no job 987654" in said


def test_a_second_job_in_a_run_folder_is_refused_and_cancel_ends_the_first(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    job = submit(site("echo here; sleep 100"), tmp_path / "run").split()[0]
    wait_for(lambda: "here" in log(tmp_path / "run"), lambda: log(tmp_path / "run"))
    said = submit(site("true"), tmp_path / "run", code=1)
    assert f"has the job {job}, which is RUNNING" in said
    started = time.monotonic()
    assert jobs("cancel", tmp_path / "run").split("\t")[0] == job
    assert time.monotonic() - started < 10
    wait_for_state(machine, job, "CANCELLED")
    [row] = status(tmp_path / "run")
    assert row["state"] == "CANCELLED"
    assert row["restarts"] == 0


def test_an_array_is_throttled_and_only_its_failed_task_is_retried(
    site: Site, machine: Machine, tmp_path: Path
) -> None:
    script = """
        config=${!#}
        run_dir=${config%/submit/*}
        running=("$STARTED"/*.running)
        : >"$STARTED/$$.running"
        ls "$STARTED" | grep -c running >>"$STARTED/most"
        echo "training in $run_dir"
        sleep 1.5
        rm "$STARTED/$$.running"
        [ -e "$run_dir/fail" ] && { echo "an error to be seen"; exit 5; }
        exit 0
    """
    started = tmp_path / "started"
    started.mkdir()
    file = site(script, environment={"STARTED": str(started)})
    names = [f"run{i}" for i in range(4)]
    configs: list[str] = []
    for name in names:
        (tmp_path / name).mkdir()
        path = tmp_path / f"{name}.yaml"
        tree = {"extends": os.path.relpath(CONFIG, tmp_path), "run_dir": str(tmp_path / name)}
        path.write_text(json.dumps(tree))
        configs += ["--config", str(path)]
    (tmp_path / "run2" / "fail").touch()
    done = run_hyperadapter("submit", *configs, "--cluster", str(file), "--array", "2")
    assert done.returncode == 0, done.stderr
    array = done.stdout.split("_")[0]
    run_dirs = [tmp_path / name for name in names]

    def ended() -> bool:
        return not machine.run("squeue", "--noheader", "--jobs", array)

    wait_for(ended, lambda: machine.run("squeue"), 60)
    assert max(map(int, (started / "most").read_text().split())) == 2
    for run_dir in run_dirs:
        assert f"training in {run_dir}\n" in log(run_dir)
    rows = status(*run_dirs)
    assert [row["state"] for row in rows] == ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"]
    assert (rows[2]["code"], rows[2]["why"]) == (
        5,
        "n1: task 0: Exited with exit code 5; an error to be seen",
    )
    text = jobs("status", *run_dirs)
    assert f"{tmp_path / 'run2'}, on n" in text
    assert "  an error to be seen" in text

    (tmp_path / "run2" / "fail").unlink()
    [line] = jobs("retry", "--failed", *run_dirs).splitlines()
    job, run_dir = line.split("\t")
    assert run_dir == str(tmp_path / "run2")
    assert job.endswith("_2")
    wait_for_state(machine, job, "COMPLETED")
    assert [row["state"] for row in status(*run_dirs)] == ["COMPLETED"] * 4
    assert jobs("retry", "--failed", *run_dirs) == ""
