"""Several runs side by side on one node: `python -m cluster.packed` under srun.

Each run gets its share of the GPUs, a port of its own, and its output into its own job.log. A run
that fails does not end the others. What each did stands in its own starts.tsv; when the job is put
back into the queue, those that are done or have failed in it are left alone.

Exit code: 75 if any run was interrupted, even if another failed: the job must go back into the
queue for the first, and `hyperadapter jobs status` shows the failure of the second at once. When
nothing is left to be started again, the code of the first run that failed, or 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cluster.local import EXIT_INTERRUPTED, Program, run_programs
from cluster.snapshot import CONFIG_FILE, LOG_FILE, add_note, end_code, read_notes

__all__ = ["environments", "exit_code", "main", "newest_step"]

log = logging.getLogger(__name__)


def environments(slots: int, gpus: int, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """Returns what each of the runs that share a node finds in its environment.

    Args:
        slots: How many there are.
        gpus: GPUs of the node, which `slots` divides.
        environment: Ours; Slurm names the GPUs in CUDA_VISIBLE_DEVICES.
    """
    # A run of one process lets the system choose its port, one of several chooses one itself.
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if not gpus:
        return [shared for _ in range(slots)]
    names = environment.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    devices, size = names.split(","), gpus // slots
    shares = [devices[size * slot : size * (slot + 1)] for slot in range(slots)]
    return [{**shared, "CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def newest_step(run_dir: Path) -> int:
    """Returns the step of a run's newest checkpoint that has a manifest; 0 if there is none."""
    manifests = run_dir.glob("checkpoints/step-*/manifest.json")
    names = [path.parent.name.removeprefix("step-") for path in manifests]
    return max((int(name) for name in names if name.isdigit()), default=0)


def exit_code(codes: Sequence[int | None]) -> int:
    """Returns what the task ends with; None stands for a run that was not started."""
    if any(code in (None, EXIT_INTERRUPTED) for code in codes):
        return EXIT_INTERRUPTED
    return next((code for code in codes if code), 0)


def main(words: Sequence[str] | None = None) -> int:
    """Runs what is left of the submissions, and returns the exit code of the task."""
    parser = argparse.ArgumentParser(prog="python -m cluster.packed", description=__doc__)
    parser.add_argument("--slots", type=int, required=True, help="runs that share the node")
    parser.add_argument("--gpus", type=int, required=True, help="GPUs of the node")
    parser.add_argument("--job", required=True, help="Slurm's number of this task")
    parser.add_argument("--restart", type=int, required=True, help="how often it was requeued")
    parser.add_argument("--evaluate", action="store_true", help="score the test split as well")
    parser.add_argument("submissions", nargs="+", type=Path)
    options = parser.parse_args(words)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s packed: %(message)s", datefmt="%H:%M:%S"
    )
    submissions: list[Path] = options.submissions
    ended = {str(path): end_code(read_notes(path, options.job)) for path in submissions}
    verbs = ("train", "evaluate") if options.evaluate else ("train",)
    programs = [
        Program(
            name=str(path),
            commands=[
                [sys.executable, "-m", "hyperadapter", verb, "--config", str(path / CONFIG_FILE)]
                for verb in verbs
            ],
            log=path / LOG_FILE,
        )
        for path in submissions
        if ended[str(path)] in (None, EXIT_INTERRUPTED)
    ]
    left = {program.name: None for program in programs}
    slots = environments(options.slots, options.gpus, os.environ)
    codes = run_programs(programs, slots, partial(_note, options.job, options.restart))
    return exit_code(list((ended | left | codes).values()))


def _note(job: str, restart: int, name: str, code: int | None) -> None:
    """Writes down that a run begins (None) or has ended, where `hyperadapter jobs` looks."""
    folder = Path(name)
    text = f"end {code}"
    if code is None:
        text = f"begin at step {newest_step(folder.parents[1])} on {_node()}"
    log.info("%s: %s", folder.parents[1], text)
    add_note(folder, job, restart, text)


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME", "this node")


if __name__ == "__main__":
    sys.exit(main())
