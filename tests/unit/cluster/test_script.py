"""The batch script: quoted whatever is in it, and run under bash with stand-ins for Slurm."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import ClusterConfig
from cluster.script import JobScript, job_name, render
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.schema import parse_config

HOSTILE = "a b'c\"d$(touch harm)`touch harm`;&|#*?~!%j"


def site(**values: object) -> ClusterConfig:
    least = {"partition": "main", "time_limit": "01:00:00"}
    return parse_config(ClusterConfig, least | values, "site.yaml")


def job(
    folder: Path, *names: str, throttle: int | None = None, python: str = "python",
    evaluate: bool = False, pack: int = 1,
) -> JobScript:  # fmt: skip
    submissions = [folder / name / "submit" / "1" for name in names]
    for submission in submissions:
        submission.mkdir(parents=True, exist_ok=True)
    code = submissions[0] / "code"
    return JobScript(
        "run", folder, submissions, code, python, nodes=2 if pack == 1 else 1, throttle=throttle,
        evaluate=evaluate, pack=pack,
    )  # fmt: skip


@pytest.fixture
def stand_ins(tmp_path: Path) -> Callable[[str, str], None]:
    """Writes a command that is found before Slurm's."""
    (tmp_path / "bin").mkdir()

    def write(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        checked = '[[ "$*" == *cluster.node_check* ]] && exit "${CHECK:-0}"'
        path.write_text(f"#!/bin/bash\n{checked}\n{script}\n")
        path.chmod(0o755)

    write("module", 'printf "module <%s>\\n" "$@"')
    write("squeue", 'case "$*" in *%T*) echo RUNNING ;; *) echo "(null)" ;; esac')
    write("scontrol", 'case $1 in show) printf "n1\\nn2\\n" ;; *) echo "scontrol $*" ;; esac')
    write("sleep", "true")
    return write


def start(text: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    (folder / "job.sbatch").write_text(text)
    variables = {
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        **environment,
    }
    # As Slurm does, the output goes into the log that the script also looks at.
    (submission,) = [path for path in folder.glob("*/submit/1") if path.is_dir()][:1]
    with open(submission / "job.log", "a") as log:
        return subprocess.Popen(
            ["bash", str(folder / "job.sbatch")], env=variables, cwd=folder, text=True,
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def run(text: str, folder: Path, **environment: str) -> tuple[int, str]:
    process = start(text, folder, **environment)
    code = process.wait(30)
    return code, log(folder)


def log(folder: Path) -> str:
    (path,) = [*folder.glob("*/submit/1/job.log")][:1]
    return path.read_text()


def test_values_reach_the_command_as_they_are(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", 'printf "<%s>\\n" "$@"; printf "<%s>\\n" "$VALUE" "$PYTHONPATH" "$TMPDIR"')
    value = f"{HOSTILE}\n#SBATCH --hold\n"
    config = site(
        environment={"VALUE": value}, modules=[HOSTILE], container=["run it", HOSTILE],
        scratch=f"/scratch/{HOSTILE}",
    )  # fmt: skip
    script = job(tmp_path, HOSTILE, python=HOSTILE)
    code, text = run(render(config, script), tmp_path)
    assert code == 0
    folder = script.submissions[0]
    command = ["run it", HOSTILE, HOSTILE, "-m", "hyperadapter", "train", "--config"]
    assert "\n".join(f"<{word}>" for word in [*command, f"{folder}/config.yaml"]) in text
    assert f"<{value}>" in text
    assert f"<{folder}/code>" in text
    assert f"module <load>\nmodule <{HOSTILE}>" in text
    assert not list(tmp_path.rglob("harm"))


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_no_value_adds_a_directive(value: str) -> None:
    folder = Path("/runs/r/submit/1")
    script = JobScript(value, Path("/"), [folder], folder / "code", "python", nodes=1)
    text = render(site(environment={"A": value}), script)
    lines = text.split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    assert len(lines) == 13
    assert job_name(value)


def test_output_of_a_hostile_folder_is_quoted_for_sbatch(tmp_path: Path) -> None:
    script = job(tmp_path, HOSTILE)
    text = render(site(), script)
    written = str(script.submissions[0]).replace('"', '\\"').replace("%", "%%")
    assert f'\n#SBATCH --output="{written}/job.log"\n' in text


@pytest.mark.parametrize("name", ["a\\b", "a\nb"])
def test_paths_that_slurm_cannot_write_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a backslash or a control character"):
        render(site(), job(tmp_path, name))


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    tool = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
    if not Path(tool).exists():
        pytest.skip("shellcheck is not installed")
    config = site(
        modules=["a b"], environment={"A": "b c"}, scratch="/scratch", account="a", qos="q",
        memory="4G", gpus_per_node=2, options=["--exclusive"], container=["run it"],
    )  # fmt: skip
    for throttle, evaluate, pack in [
        (None, False, 1), (2, False, 1), (None, True, 1), (2, True, 1), (2, False, 2), (2, True, 2)
    ]:  # fmt: skip
        script = tmp_path / "job.sh"
        made = job(tmp_path, HOSTILE, "b", throttle=throttle, evaluate=evaluate, pack=pack)
        script.write_text(render(config, made))
        done = subprocess.run([tool, script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_a_task_of_an_array_runs_its_own_submission(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", 'echo "srun ${!#}"')
    script = job(tmp_path, "a", "b", throttle=1)
    text = render(site(), script)
    assert "\n#SBATCH --array=0-1%1\n" in text
    (tmp_path / "a" / "submit" / "1" / "job.log").touch()
    array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1"}
    (tmp_path / "b" / "submit" / "1" / "job.log").touch()
    assert run(text, tmp_path, **array)[0] == 0
    notes = (script.submissions[1] / "starts.tsv").read_text().splitlines()
    assert [line.split("\t")[1:] for line in notes] == [
        ["12_1", "0", "begin at step 0 on n[1-2]"],
        ["12_1", "0", "end 0"],
    ]


@pytest.mark.parametrize(
    ("srun", "code", "requeued"),
    [
        ("exit 0", 0, False),
        ("exit 3", 3, False),
        ("exit 75", 75, True),
        ('[[ "$*" == *--overlap* ]] || exit 7', 7, False),  # a failure, and both nodes answer
        ('[[ "$*" == *--mem=0*--nodelist=n1* ]] || exit 7', 7, True),  # n2 does not answer
        ("exit 7", 7, False),  # none answers: nothing is known about a node
    ],
)
def test_what_is_put_back_into_the_queue(
    srun: str, code: int, requeued: bool, tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", srun)
    got, text = run(render(site(), job(tmp_path, "a")), tmp_path)
    assert got == code
    assert ("scontrol requeue 12" in text) == requeued
    assert ("scontrol update JobId=12 ExcNodeList=n2" in text) == ("n1" in srun)


def test_a_bad_node_is_left_out_of_the_next_start_besides_those_of_before(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    script = job(tmp_path, "a")
    bad = script.submissions[0] / "bad_nodes"
    stand_ins("srun", "echo trained")
    check = f'[[ "$*" == *cluster.node_check* ]] && {{ cat {tmp_path}/found >{bad}; exit 1; }}'
    (tmp_path / "bin" / "srun").write_text(f"#!/bin/bash\n{check}\necho trained\n")
    stand_ins("squeue", 'case "$*" in *%T*) echo RUNNING ;; *) echo "n[5-6]" ;; esac')
    (tmp_path / "found").write_text("n2\n")
    code, text = run(render(site(), script), tmp_path)
    assert code == 1
    assert "requeue: bad nodes n2" in text
    assert "scontrol update JobId=12 ExcNodeList=n[5-6],n2" in text
    (tmp_path / "found").write_text("n2\nn1\n")
    code, text = run(render(site(), script), tmp_path)
    assert code == 1
    assert "stopped: every node failed its check: n2 n1" in text
    assert text.count("scontrol requeue") == 1
    assert "trained" not in text


def test_a_refused_requeue_is_tried_again_and_then_said(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", "exit 75")
    stand_ins("scontrol", "case $1 in show) echo n1 ;; *) echo refused; exit 1 ;; esac")
    code, text = run(render(site(), job(tmp_path, "a")), tmp_path)
    assert code == 75
    assert text.count("refused") == 3
    assert "stopped: Slurm does not requeue the job" in text


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (("n1: task 1: Exited with exit code 7", "n[1-2]: tasks 0,2: Killed"), 7),
        (("n[1-2]: tasks 0-1: Exited with exit code 9", "n1: task 2: Killed"), 9),
        (("n1: task 1: Killed", "n2: task 0: Exited with exit code 1"), 137),
        ((), 137),
    ],
)
def test_what_ended_the_first_rank_counts(
    said: tuple[str, ...], code: int, tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    lines = "; ".join(f"echo 'srun: error: {line}'" for line in said) or "true"
    stand_ins("srun", f'[[ "$*" == *--overlap* ]] && exit 0; {lines}; exit 137')
    assert run(render(site(), job(tmp_path, "a")), tmp_path)[0] == code


def test_starts_without_a_new_checkpoint_are_counted_whoever_requeued(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", "exit 75")
    text = render(site(max_fruitless_starts=3), job(tmp_path, "a"))
    checkpoints = tmp_path / "a" / "checkpoints"

    def begin(restart: int) -> bool:
        code, _ = run(text, tmp_path, SLURM_RESTART_COUNT=str(restart))
        assert code == 75
        last = (tmp_path / "a" / "submit" / "1" / "starts.tsv").read_text().split(" begin")[-1]
        return "stopped" not in last

    assert [begin(0), begin(1)] == [True, True]
    for name in ("step-00000009", "step-00000010", "step-00000099.part", "step-00000050.damaged"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "manifest.json").touch()
    assert [begin(n) for n in range(2, 5)] == [True, True, False]
    notes = (tmp_path / "a" / "submit" / "1" / "starts.tsv").read_text()
    assert "begin at step 10 on" in notes
    assert "stopped: training was interrupted and has saved, and no new checkpoint in 3" in notes
    assert begin(5) is False
    assert "stopped: no new checkpoint in 3 starts" in log(tmp_path)


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_usr1_goes_on_to_srun_and_term_does_not(
    number: signal.Signals, requeued: bool, tmp_path: Path,
    stand_ins: Callable[[str, str], None],
) -> None:  # fmt: skip
    traps = "trap 'echo got USR1; exit 75' USR1; trap 'echo got TERM; exit 99' TERM"
    loop = "for i in {1..15}; do /bin/sleep 0.05; done"
    stand_ins("srun", f"{traps}; echo ready; {loop}; exit 75")
    process = start(render(site(), job(tmp_path, "a")), tmp_path)
    deadline = time.monotonic() + 10
    while "ready" not in log(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) == 75
    assert ("scontrol requeue" in log(tmp_path)) == requeued
    assert ("got USR1" in log(tmp_path)) == requeued
    assert "got TERM" not in log(tmp_path)


def test_a_signal_during_the_check_requeues_without_training(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", "echo trained")
    (tmp_path / "bin" / "srun").write_text(
        '#!/bin/bash\n[[ "$*" == *cluster.node_check* ]] || { echo trained; exit 0; }\n'
        "trap 'exit 0' USR1; kill -USR1 $PPID\nfor i in {1..100}; do /bin/sleep 0.05; done\n"
    )
    code, text = run(render(site(), job(tmp_path, "a")), tmp_path)
    assert code == 75
    assert "scontrol requeue 12" in text
    assert "trained" not in text


def test_evaluation_follows_training_that_ended_well_as_one_process(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", 'echo "srun $*"; exit "${CODE:-0}"')
    text = render(site(), job(tmp_path, "a", evaluate=True))
    code, said = run(text, tmp_path)
    config = tmp_path / "a" / "submit" / "1" / "config.yaml"
    assert code == 0
    train, evaluate = [line for line in said.splitlines() if line.startswith("srun ")]
    assert train.endswith(f"-m hyperadapter train --config {config}")
    assert evaluate.endswith(f"-m hyperadapter evaluate --config {config}")
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1 python" in evaluate
    assert "--ntasks=1" not in train
    code, said = run(text, tmp_path, CODE="9")
    assert code == 9
    assert said.count("hyperadapter evaluate") == 1  # that of before
    assert "hyperadapter evaluate" not in render(site(), job(tmp_path, "a"))


@pytest.mark.parametrize(("ends", "code", "requeued"), [(7, 7, False), (143, 75, True)])
def test_a_failed_evaluation_fails_the_job_and_one_that_was_preempted_is_begun_again(
    ends: int, code: int, requeued: bool, tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", f'[[ "$*" == *" evaluate "* ]] && exit {ends}; exit 0')
    got, said = run(render(site(), job(tmp_path, "a", evaluate=True)), tmp_path)
    assert got == code
    assert ("scontrol requeue 12" in said) == requeued


def test_directions_that_were_translated_are_progress(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    scores = tmp_path / "a" / "evaluation" / "test"
    scores.mkdir(parents=True)
    stand_ins(
        "srun",
        '[[ "$*" == *" train "* ]] && exit 0\n'
        f'[ -n "$NEW" ] && touch {scores}/"$NEW".json {scores}/scores.json\n'
        'kill -USR1 "$PPID"; exit 138',
    )
    text = render(site(max_fruitless_starts=2), job(tmp_path, "a", evaluate=True))

    def begin(restart: int, new: str) -> bool:
        run(text, tmp_path, SLURM_RESTART_COUNT=str(restart), NEW=new)
        return "stopped" not in log(tmp_path)

    assert begin(0, "")
    assert begin(1, "en-de")
    assert begin(2, "en-fr")
    assert begin(3, "")
    assert not begin(4, "")
    assert "requeue: the time limit is near, and the work ended with 138" in log(tmp_path)


def packed(tmp_path: Path) -> tuple[str, list[Path]]:
    """Returns the script of three runs on two nodes, and the folders of its tasks."""
    script = job(tmp_path, "a", "b", "c", throttle=1, pack=2, evaluate=True)
    tasks = [script.submissions[0] / "tasks" / str(index) for index in range(2)]
    for task, runs in zip(tasks, (script.submissions[:2], script.submissions[2:]), strict=True):
        task.mkdir(parents=True)
        (task / "runs").write_text("".join(f"{run}\n" for run in runs))
        (task / "job.log").touch()
    config = site(gpus_per_node=2, cpus_per_task=4, min_all_reduce_gb_per_s=1.0)
    return render(config, script), tasks


def test_a_task_of_packed_runs_is_one_process_with_all_cores_of_the_node(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", 'printf "<%s>" "$@"; echo; echo "threads: $OMP_NUM_THREADS"')
    text, tasks = packed(tmp_path)
    assert "\n#SBATCH --array=0-1%1\n" in text
    assert f'\n#SBATCH --output="{tasks[0].parent}/%a/job.log"\n' in text
    for index, names in enumerate(("ab", "c")):
        array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": str(index)}
        assert run(text, tmp_path, SLURM_JOB_NUM_NODES="1", **array)[0] == 0
        runs = "".join(f"<{tmp_path}/{name}/submit/1>" for name in names)
        words = f"<--job><12_{index}><--restart><0><--evaluate><-->{runs}\n"
        assert words in log(tmp_path)
        noted = (tasks[index] / "starts.tsv").read_text()
        assert f"\tbegin {len(names)} runs on n[1-2]\n" in noted
        assert noted.endswith("\tend 0\n")
    assert "\n#SBATCH --ntasks-per-node=1\n#SBATCH --cpus-per-task=8\n" in text
    assert "<python><-m><cluster.packed><--slots><2><--gpus><2>" in log(tmp_path)
    assert "\nthreads: 4\n" in log(tmp_path)
    assert "--all-reduce" not in text  # one node has no network to be measured


def test_a_checkpoint_of_any_packed_run_is_progress(
    tmp_path: Path, stand_ins: Callable[[str, str], None]
) -> None:
    stand_ins("srun", "exit 75")
    text, tasks = packed(tmp_path)
    text = text.replace("MAX_FRUITLESS=3", "MAX_FRUITLESS=2")

    def begin(restart: int) -> bool:
        array = {"SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}
        assert run(text, tmp_path, SLURM_RESTART_COUNT=str(restart), **array)[0] == 75
        return "stopped" not in (tasks[0] / "starts.tsv").read_text().split("\tbegin")[-1]

    def save(name: str, step: int) -> None:
        folder = tmp_path / name / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()

    save("a", 100)
    assert begin(0)
    save("b", 5)
    assert begin(1)
    save("c", 5)  # of another task
    assert not begin(2)
