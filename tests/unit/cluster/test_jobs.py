"""Runs as jobs, with a Slurm that is a dictionary."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cluster import jobs, slurm
from cluster.config import ClusterConfig
from cluster.jobs import Run, Shape
from cluster.slurm import JobState, SlurmError
from cluster.snapshot import Submission, add_note, task_runs
from hyperadapter.cli import cli
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.events import EventWriter

SITE = ClusterConfig(partition="main", time_limit="01:00:00")


class FakeSlurm:
    """Stands in for cluster.slurm's three verbs."""

    def __init__(self) -> None:
        self.known: dict[str, JobState] = {}
        self.calls: list[tuple[str, str]] = []
        self.cancelled: list[str] = []
        self.refusal = ""

    def submit(self, script: Path, *, after: str = "", tasks: str = "") -> str:
        if self.refusal:
            raise SlurmError(self.refusal)
        assert script.is_file()
        self.calls.append((str(script), tasks))
        return str(99 + len(self.calls))

    def states(self, names: list[str]) -> dict[str, JobState]:
        return {name: self.known.get(name, JobState(name)) for name in names}

    def cancel(self, names: list[str]) -> None:
        self.cancelled += names

    def say(self, job: str, state: str, **more: object) -> None:
        self.known[job] = JobState(job, state, **more)  # type: ignore[arg-type]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    made = FakeSlurm()
    for verb in ("submit", "states", "cancel"):
        monkeypatch.setattr(slurm, verb, getattr(made, verb))
    monkeypatch.setattr(jobs, "copy_code", lambda folder: folder.mkdir())
    return made


def submit(
    *run_dirs: Path, throttle: int | None = None, pack: int = 1, dry_run: bool = False
) -> jobs.Plan:
    runs = [Run(run_dir.name, run_dir, f"name: {run_dir.name}\n") for run_dir in run_dirs]
    return jobs.submit(SITE, runs, Shape(1, throttle, pack=pack), dry_run=dry_run)


def note(run_dir: Path, job: str, *texts: str, restart: int = 0, task: str = "") -> None:
    folder = run_dir / "submit" / "1" / (f"tasks/{task}" if task else "")
    with open(folder / "starts.tsv", "a") as stream:
        stream.writelines(f"2026-01-01T00:00:00Z\t{job}\t{restart}\t{text}\n" for text in texts)


def test_a_dry_run_writes_nothing_and_prints_what_is_submitted(
    fake: FakeSlurm, tmp_path: Path
) -> None:
    dry = submit(tmp_path / "a", dry_run=True)
    assert not list(tmp_path.iterdir())
    plan = submit(tmp_path / "a")
    folder = tmp_path / "a" / "submit" / "1"
    assert plan == dry._replace(jobs=["100"])
    assert fake.calls == [(str(folder / "job.sbatch"), "")]
    assert (folder / "job.sbatch").read_text() == plan.script
    assert Submission.load(folder).jobs == ("100",)


def test_an_array_has_one_script_and_each_run_its_own_log(fake: FakeSlurm, tmp_path: Path) -> None:
    plan = submit(tmp_path / "a", tmp_path / "b", throttle=1)
    assert plan.jobs == ["100_0", "100_1"]
    (tmp_path / "a/submit/1/logs/1.log").write_text("said\n")
    assert (tmp_path / "b/submit/1/job.log").read_text() == "said\n"
    assert (tmp_path / "b/submit/1/config.yaml").read_text() == "name: b\n"
    assert not (tmp_path / "b/submit/1/job.sbatch").exists()
    with pytest.raises(ConfigError, match=r"two runs of the array have the run_dir .*/c;"):
        submit(tmp_path / "c", tmp_path / "c", throttle=1)


def test_what_slurm_refuses_leaves_no_trace(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.refusal = "sbatch says no"
    with pytest.raises(SlurmError, match="sbatch says no"):
        submit(tmp_path / "a", tmp_path / "b", throttle=2)
    assert not list(tmp_path.glob("*/submit/*"))


def test_a_run_has_one_job_at_a_time(fake: FakeSlurm, tmp_path: Path) -> None:
    submit(tmp_path / "a")
    fake.say("100", "PENDING")
    with pytest.raises(SlurmError, match=r"has the job 100, which is PENDING; wait for it, or"):
        submit(tmp_path / "a")
    fake.say("100", "TIMEOUT")
    assert submit(tmp_path / "a").submissions == [tmp_path / "a" / "submit" / "2"]


def test_slurm_the_script_and_the_run_are_joined(fake: FakeSlurm, tmp_path: Path) -> None:
    submit(tmp_path / "a")
    fake.say("100", "FAILED", reason="NonZeroExitCode", code=1, nodes="n[1-2]")
    note(tmp_path / "a", "100", "begin at step 0 on n[1-2]", "end 1", restart=2)
    (tmp_path / "a/submit/1/job.log").write_text(
        "an error of the start before\n"
        "2026-01-01T00:00:00Z hyperadapter: job 100, start 2: begin at step 0 on n[1-2]\n"
        "rank 1 ERROR loss is NaN\nrank 0 error: connection closed by peer\n"
        "srun: error: n2: task 1: Exited with exit code 1\n"
        "srun: error: n1: task 0: Exited with exit code 1\n"
    )
    [job] = jobs.look([tmp_path])
    assert job.why == "n2: task 1: Exited with exit code 1; rank 1 ERROR loss is NaN"
    assert (job.run_dir, job.state, job.code, job.restarts) == (str(tmp_path / "a"), "FAILED", 1, 2)
    writer = EventWriter(tmp_path / "a")
    writer.write_metrics({"train/loss": 1.0}, 7)
    writer.write(status="FAILED", reason="TrainingError: loss is NaN")
    writer.close()
    [job] = jobs.look([tmp_path])
    assert (job.run_status, job.step) == ("FAILED", 7)
    assert job.why == "n2: task 1: Exited with exit code 1; TrainingError: loss is NaN"


@pytest.mark.parametrize(
    ("notes", "state", "code"),
    [
        ((), "LOST", None),
        (("begin at step 0 on n1",), "LOST", None),
        (("begin at step 0 on n1", "end 0"), "COMPLETED", 0),
        (("begin at step 0 on n1", "end 75", "begin at step 9 on n2", "end 7"), "FAILED", 7),
        (("begin at step 0 on n1", "end 0", "begin at step 9 on n2"), "LOST", None),
    ],
)
def test_the_run_folder_remembers_what_slurm_forgot(
    notes: tuple[str, ...], state: str, code: int | None, fake: FakeSlurm, tmp_path: Path
) -> None:
    submit(tmp_path / "a")
    note(tmp_path / "a", "100", *notes)
    note(tmp_path / "a", "55", "begin at step 0 on n9", "end 0")  # of another job
    [job] = jobs.look([tmp_path])
    assert (job.state, job.code) == (state, code)
    assert "n9" not in job.nodes
    assert bool(jobs.failed([job])) == (state != "COMPLETED")


def test_only_what_failed_is_retried_as_tasks_of_its_array(fake: FakeSlurm, tmp_path: Path) -> None:
    states = ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "RUNNING"]
    run_dirs = [tmp_path / f"r{i}" for i in range(5)]
    submit(*run_dirs, throttle=2)
    for index, state in enumerate(states):
        fake.say(f"100_{index}", state)
    (run_dirs[1] / "submit/1/progress").write_text("5 2\n")
    fake.calls.clear()
    assert jobs.retry([tmp_path], only_failed=True, dry_run=True) == {
        str(run_dirs[1]): "100_1",
        str(run_dirs[3]): "100_3",
    }
    assert not fake.calls
    again = jobs.retry([tmp_path], only_failed=True)
    assert fake.calls == [(str(run_dirs[0] / "submit/1/job.sbatch"), "1,3%2")]
    assert again == {str(run_dirs[1]): "100_1", str(run_dirs[3]): "100_3"}
    assert not (run_dirs[1] / "submit/1/progress").exists()
    assert Submission.load(run_dirs[3] / "submit/1").jobs == ("100_3", "100_3")
    fake.calls.clear()
    jobs.retry([tmp_path], only_failed=False)
    assert fake.calls[0][1] == "1,2,3%2"


@pytest.fixture
def packed(fake: FakeSlurm, tmp_path: Path) -> list[Path]:
    """Five runs on nodes of two each: the last has a node of its own."""
    run_dirs = [tmp_path / name for name in "abcde"]
    plan = submit(*run_dirs, throttle=3, pack=2)
    assert plan.jobs == ["100_0", "100_0", "100_1", "100_1", "100_2"]
    return run_dirs


def say(run_dir: Path, job: str, *texts: str) -> None:
    for text in texts:
        add_note(run_dir / "submit" / "1", job, 0, text)


def states(folder: Path) -> dict[str, tuple[str, int | None, str]]:
    return {Path(job.run_dir).name: (job.state, job.code, job.why) for job in jobs.look([folder])}


def test_packed_runs_have_a_state_each(fake: FakeSlurm, packed: list[Path], tmp_path: Path) -> None:
    a, b, c, d, _ = packed
    fake.say("100_0", "RUNNING")
    fake.say("100_1", "PENDING", reason="BeginTime")
    fake.say("100_2", "PENDING", reason="JobArrayTaskLimit")
    say(a, "100_0", "begin at step 0 on n1", "end 0")
    say(b, "100_0", "begin at step 0 on n1")
    say(c, "100_1", "begin at step 0 on n2", "end 75")
    say(d, "100_1", "begin at step 0 on n2")
    with open(d / "submit/1/job.log", "a") as stream:
        stream.write("RuntimeError: no\n")
    say(d, "100_1", "end 7")
    assert states(tmp_path) == {
        "a": ("COMPLETED", 0, ""),
        "b": ("RUNNING", None, ""),
        "c": ("PENDING", None, "BeginTime"),
        "d": ("FAILED", 7, "RuntimeError: no"),
        "e": ("PENDING", None, "JobArrayTaskLimit"),
    }
    # When all is over, the task has the failing run's code, or Slurm has forgotten it.
    fake.say("100_0", "TIMEOUT")
    fake.known.pop("100_1")
    note(a, "100_1", "begin 2 runs on n2", "end 7", task="1")
    fake.say("100_2", "FAILED", reason="NonZeroExitCode", code=1)
    note(a, "100_2", "begin 1 runs on n3", "stopped: every node failed its check: n3", task="2")
    (a / "submit/1/tasks/2/job.log").write_text("error: full\n")
    assert states(tmp_path) == {
        "a": ("COMPLETED", 0, ""),
        "b": ("TIMEOUT", None, ""),
        "c": ("FAILED", 7, ""),
        "d": ("FAILED", 7, "RuntimeError: no"),
        "e": ("FAILED", 1, "stopped: every node failed its check: n3; error: full"),
    }  # fmt: skip
    assert jobs.last_lines(packed[4] / "submit/1", 1) == ["error: full"]


def test_of_packed_runs_only_what_failed_is_retried(
    fake: FakeSlurm, packed: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b, c, _, _ = packed
    tasks = a / "submit/1/tasks"
    assert task_runs(tasks / "1") == [packed[2] / "submit/1", packed[3] / "submit/1"]
    for index, state in enumerate(["FAILED", "RUNNING", "CANCELLED"]):
        fake.say(f"100_{index}", state)
    for run_dir, job, code in [(a, "100_0", 0), (b, "100_0", 5), (c, "100_1", 5)]:
        say(run_dir, job, "begin at step 0 on n1", f"end {code}")
    fake.calls.clear()
    assert jobs.retry([tmp_path], only_failed=True) == {str(b): "100_0"}
    assert "c shares the node of the job 100_1, in which other runs go on" in caplog.text
    assert fake.calls == [(str(a / "submit/1/job.sbatch"), "0%3")]
    assert task_runs(tasks / "0") == [b / "submit/1"]
    assert (tasks / "0" / "newest_job").read_text() == "100_0"
    assert task_runs(tasks / "1") == [packed[2] / "submit/1", packed[3] / "submit/1"]
    assert jobs.retry([tmp_path / "e"], only_failed=False) == {str(packed[4]): "101_2"}


def test_cancelling_a_packed_run_does_not_end_others_unasked(
    fake: FakeSlurm, packed: list[Path], tmp_path: Path
) -> None:
    a, b, c, d, _ = packed
    for index in range(3):
        fake.say(f"100_{index}", "RUNNING")
    say(b, "100_0", "begin at step 0 on n1", "end 0")
    assert [job.job for job in jobs.cancel([a])] == ["100_0"]  # the other one is done
    said = rf"the job 100_1 would end {d} as well, which share its node; name them too"
    for dry_run in (False, True):
        with pytest.raises(SlurmError, match=said):
            jobs.cancel([c], dry_run=dry_run)
    fake.cancelled.clear()
    assert [Path(job.run_dir).name for job in jobs.cancel([c, d], dry_run=True)] == ["c", "d"]
    assert not fake.cancelled
    jobs.cancel([c, d])
    assert fake.cancelled == ["100_1"]


def test_cancel_ends_what_waits_or_runs(fake: FakeSlurm, tmp_path: Path) -> None:
    submit(tmp_path / "a")
    submit(tmp_path / "b")
    fake.say("100", "RUNNING")
    fake.say("101", "COMPLETED")
    assert [job.job for job in jobs.cancel([tmp_path])] == ["100"]
    assert fake.cancelled == ["100"]


def test_the_last_lines_of_a_long_log(tmp_path: Path) -> None:
    assert jobs.last_lines(tmp_path, 3) == []
    (tmp_path / "job.log").write_text("".join(f"line {i}\n" for i in range(20_000)))
    assert jobs.last_lines(tmp_path, 2) == ["line 19998", "line 19999"]


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def test_the_number_of_processes_is_that_of_the_nodes(
    fake: FakeSlurm, repository: Path, tmp_path: Path
) -> None:
    words = (
        "submit", "--config", repository / "configs/runs/quickstart.yaml", "--set",
        f"run_dir={tmp_path / 'run'}", "--cluster", repository / "configs/clusters/local.yaml",
    )  # fmt: skip
    dry = command(*words, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=2\n" in dry.output
    assert not (tmp_path / "run").exists()
    done = command(*words, "--set", "training.num_processes=1")
    assert done.output == f"100\t{tmp_path}/run/submit/1\n"
    assert "num_processes: 2\n" in (tmp_path / "run/submit/1/config.yaml").read_text()
    refused = command(*words, "--nodes", "3", "--dry-run")
    assert "6 processes cannot share the 2 micro-batches" in str(refused.exception)
    several = command(*words, *words[1:3])
    assert several.exit_code == 2
    assert "say with --array how many run at a time" in several.output


def test_dry_runs_of_cancel_and_retry_change_nothing(fake: FakeSlurm, tmp_path: Path) -> None:
    submit(tmp_path / "a")
    fake.say("100", "RUNNING")
    assert command("jobs", "cancel", "--dry-run", tmp_path).output == f"100\t{tmp_path}/a\n"
    assert not fake.cancelled
    fake.say("100", "CANCELLED")
    assert command("jobs", "retry", "--dry-run", "--failed", tmp_path).output == ""
    assert command("jobs", "retry", "--dry-run", tmp_path).output == f"100\t{tmp_path}/a\n"
    assert len(fake.calls) == 1
    assert command("jobs", "retry", tmp_path).output == f"101\t{tmp_path}/a\n"
