"""`hyperadapter study submit`, with a Slurm that takes everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster import jobs, slurm
from cluster.slurm import JobState
from cluster.snapshot import task_runs
from hyperadapter.cli import cli
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.events import EventWriter, SendState
from hyperadapter.core.files import write_json
from hyperadapter.study import status
from tests.planned_study import write_study


@pytest.fixture
def study(tmp_path: Path) -> Path:
    write_study(tmp_path / "study", [f"p{number}" for number in range(5)])
    return tmp_path / "study"


@pytest.fixture
def submit(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command; the site has two processes a node, and all jobs are pending for ever."""
    monkeypatch.setattr(slurm, "submit", lambda script, **_: "100")
    monkeypatch.setattr(
        slurm, "states", lambda names: {name: JobState(name, "PENDING") for name in names}
    )
    monkeypatch.setattr(jobs, "copy_code", lambda folder: folder.mkdir())
    site = tmp_path / "site.yaml"
    write_json(site, {"partition": "main", "time_limit": "01:00:00", "tasks_per_node": 2})

    def call(*words: str) -> Result:
        command = ["study", "submit", str(study), "--cluster", str(site), *words]
        return CliRunner().invoke(cli, command)

    return call


@pytest.fixture
def with_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.provenance.require_current", lambda data: "here")


def test_a_dry_run_prints_one_array_that_evaluates_and_writes_nothing(
    submit: Callable[..., Result], study: Path
) -> None:
    before = sorted(study.rglob("*"))
    done = submit("--dry-run")
    assert done.exit_code == 0, done.output
    assert "\n#SBATCH --job-name=widths\n" in done.stdout
    assert "\n#SBATCH --array=0-4%8\n" in done.stdout
    assert "-m hyperadapter evaluate" in done.stdout
    assert "of 5 runs 0 are done, 0 wait or run, 5 are left" in done.stderr
    assert "an array of 5, of which 5 run at a time" in done.stderr
    assert sorted(study.rglob("*")) == before
    packed = submit("--dry-run", "--pack", "2", "--array", "1").stdout
    assert "\n#SBATCH --array=0-2%1\n" in packed
    assert "-m cluster.packed --slots 2" in packed


@pytest.mark.usefixtures("with_data")
def test_what_is_done_or_has_a_job_or_runs_elsewhere_is_left_out(
    submit: Callable[..., Result], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "is_trained", lambda config: config.name == "p0")
    monkeypatch.setattr(status, "is_evaluated", lambda config: True)
    first = submit("--points", "p3")
    assert first.output.startswith("study widths: of 1 runs 0 are done, 0 wait or run, 1 are left")
    assert first.stdout == f"100_0\t{study}/runs/p3/submit/1\n"
    SendState("key", "p1", "e", "").save(study / "runs" / "p1")
    writer = EventWriter(study / "runs" / "p1")
    writer.write(status="RUNNING", reason="")
    writer.close()
    done = submit()
    assert "of 5 runs 1 are done, 2 wait or run, 2 are left" in done.stderr
    assert [line.split("/")[-3] for line in done.stdout.splitlines()] == ["p2", "p4"]
    config = (study / "runs/p2/submit/1/config.yaml").read_text()
    assert "num_processes: 2\n" in config
    again = submit()
    assert again.exit_code == 0
    assert again.stdout == ""
    assert "4 wait or run, 0 are left" in again.stderr


@pytest.mark.usefixtures("with_data")
def test_packed_runs_have_their_share_of_the_processes(
    submit: Callable[..., Result], study: Path
) -> None:
    done = submit("--pack", "2")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "100_0", "100_0", "100_1", "100_1", "100_2"
    ]  # fmt: skip
    assert "an array of 3, of which 3 run at a time" in done.stderr
    last = study / "runs/p4/submit/1"
    assert task_runs(last / "task") == [last]
    assert "num_processes: 1\n" in (last / "config.yaml").read_text()


def test_what_cannot_be_packed_is_refused(submit: Callable[..., Result]) -> None:
    odd = submit("--pack", "4", "--dry-run")
    assert isinstance(odd.exception, ConfigError)
    assert "4 runs cannot share processes of a node (tasks_per_node) 2" in str(odd.exception)
    several = submit("--pack", "2", "--nodes", "2")
    assert several.exit_code == 2
    assert "--pack shares one node among runs" in several.output


def test_data_that_is_not_there_is_said_with_the_commands_that_make_it(
    submit: Callable[..., Result], study: Path
) -> None:
    done = submit()
    assert isinstance(done.exception, DataError)
    said = str(done.exception)
    assert said.startswith("the data of p0 is not there: ")
    path = study / "points" / "p0.yaml"
    commands = [f"  hyperadapter data {step} --config {path}" for step in
                ("fetch", "clean", "tokenizer", "shard")]  # fmt: skip
    assert said.splitlines()[-4:] == commands
    assert not list(study.glob("runs/*/submit"))
