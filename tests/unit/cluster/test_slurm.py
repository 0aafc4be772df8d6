"""Slurm's door, with stand-ins for its commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import slurm
from cluster.slurm import JobState, SlurmError

StandIn = Callable[[str, str], None]

RUNNING = (
    "JobId={job} {array}JobName=x UserId=me(1000) JobState={state} Reason={reason} Restarts=2 "
    "ExitCode={code} ReqNodeList=(null) ExcNodeList=n9 NodeList={nodes} NumNodes=2 "
    "Command=/a b JobState=FAKE/job.sbatch"
)


def record(job: str, state: str, array: str = "", reason: str = "None", code: str = "0:0",
           nodes: str = "(null)") -> str:  # fmt: skip
    return RUNNING.format(job=job, array=array, state=state, reason=reason, code=code, nodes=nodes)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Writes a command of Slurm; those that are not written do not exist."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    for name in ("sbatch", "scontrol", "sacct", "scancel"):
        write(name, f"echo '{name}: not to be called' >&2; exit 1")
    return write


def prints(text: str) -> str:
    return f"cat <<'END'\n{text}\nEND"


def test_submit_returns_the_number_and_no_variable_changes_the_script(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    stand_in("sbatch", f'echo "$@" >{tmp_path}/words; env >{tmp_path}/env; echo "12;cluster"')
    for name in ("SBATCH_PARTITION", "SLURM_JOB_ID", "SLURM_CONF", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "x")
    assert slurm.submit(Path("/a b/job.sbatch"), tasks="1,5%2") == "12"
    assert (tmp_path / "words").read_text() == "--parsable --array=1,5%2 /a b/job.sbatch\n"
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert {"SLURM_CONF", "MLFLOW_TRACKING_URI"} <= names
    assert not names & {"SBATCH_PARTITION", "SLURM_JOB_ID"}
    assert "SBATCH_PARTITION would replace lines of the script" in caplog.text


def test_a_job_that_others_wait_for_must_be_known(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("sbatch", f'echo "$@" >{tmp_path}/words; echo 13')
    stand_in("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    with pytest.raises(SlurmError, match="Slurm knows no job 12 that another could wait for"):
        slurm.submit(Path("job"), after="12")
    stand_in("scontrol", prints(record("12", "PENDING")))
    assert slurm.submit(Path("job"), after="12") == "13"
    words = (tmp_path / "words").read_text()
    assert words == "--parsable --dependency=afterok:12 --kill-on-invalid-dep=yes job\n"


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Invalid partition name specified", "`sinfo -o %P` lists the partitions"),
        ("Invalid account or account/partition combination specified", "set account in the"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "lower time_limit"),
        ("Invalid generic resource (gres) specification", "shows GPUs; set gpus_per_node"),
    ],
)
def test_refusals_are_slurms_words_and_a_remedy(said: str, remedy: str, stand_in: StandIn) -> None:
    stand_in("sbatch", f"echo 'sbatch: error: Batch job submission failed: {said}' >&2; exit 1")
    with pytest.raises(SlurmError) as error:
        slurm.submit(Path("job"))
    message, _, last = str(error.value).partition("\n")
    assert message == f"sbatch says: sbatch: error: Batch job submission failed: {said}"
    assert remedy in last


def test_without_slurm_the_error_says_where_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="no command sbatch here; submit from a login node"):
        slurm.submit(Path("job"))


def test_states_come_from_the_controller(stand_in: StandIn) -> None:
    lines = [
        record("12", "RUNNING", nodes="n[1-2]"),
        record("20", "PENDING", "ArrayJobId=20 ArrayTaskId=3,5-6%2 ", reason="Resources"),
        record("21", "FAILED", "ArrayJobId=20 ArrayTaskId=1 ", "NonZeroExitCode", "5:0", "n1"),
        record("22", "CANCELLED", "ArrayJobId=20 ArrayTaskId=2 ", code="0:9"),
    ]
    stand_in("scontrol", prints("\n".join(lines)))
    found = slurm.states(["12", "20_1", "20_2", "20_5"])
    assert found == {
        "12": JobState("12", "RUNNING", "", None, "n[1-2]", 2),
        "20_1": JobState("20_1", "FAILED", "NonZeroExitCode", 5, "n1", 2),
        "20_2": JobState("20_2", "CANCELLED", "", 137, "", 2),
        "20_5": JobState("20_5", "PENDING", "Resources", None, "", 2),
    }


def test_what_the_controller_forgot_comes_from_accounting_if_there_is_any(
    stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in("scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    stand_in("sacct", prints("12|CANCELLED by 1000|0:15|n1\n13|COMPLETED|0:0|None assigned"))
    assert slurm.states(["12", "13", "14"]) == {
        "12": JobState("12", "CANCELLED", "", 143, "n1"),
        "13": JobState("13", "COMPLETED", "", 0, ""),
        "14": JobState("14"),
    }
    stand_in("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.states(["12"]) == {"12": JobState("12")}
    assert not caplog.text
    stand_in("sacct", "echo 'sacct: error: no slurmdbd' >&2; exit 1")
    assert slurm.states(["12"]) == {"12": JobState("12")}
    assert "accounting cannot be asked: sacct says: sacct: error: no slurmdbd" in caplog.text


def test_a_controller_that_is_away_is_an_error(stand_in: StandIn) -> None:
    stand_in("scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SlurmError, match="scontrol says: Unable to contact slurm controller"):
        slurm.states(["12"])


def test_cancel_takes_all_at_once_and_ended_jobs_are_no_error(
    stand_in: StandIn, tmp_path: Path
) -> None:
    slurm.cancel([])
    stand_in("scancel", f'echo "$@" >{tmp_path}/words')
    slurm.cancel(["12", "20_1"])
    assert (tmp_path / "words").read_text() == "12 20_1\n"
    stand_in(
        "scancel", "echo 'scancel: error: Job/step already completing or completed' >&2; exit 1"
    )
    slurm.cancel(["12"])


def test_the_environment_of_a_job_is_ours_without_slurms() -> None:
    given = {"PATH": "p", "SLURM_CONF": "c", "SLURM_NTASKS": "2", "SRUN_DEBUG": "1"}
    assert slurm.job_environment(given) == {"PATH": "p", "SLURM_CONF": "c"}
    assert slurm.job_environment()["PATH"] == os.environ["PATH"]
