"""Runs that nobody disturbs, and how a disturbed one is compared with them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from hyperadapter.checkpoint.layout import newest_checkpoint
from hyperadapter.core.events import read_metric
from hyperadapter.core.files import read_json, write_json
from tests.faults.command import ALONE_VARIABLE
from tests.faults.forks import Forks
from tests.faults.running import Training

__all__ = ["Layout", "References", "differences", "settings"]

_TOLERANCE = 2e-5  # relative; other sums round otherwise


class Layout(NamedTuple):
    """How a run is spread.

    Attributes:
        stage: Of ZeRO.
        world_size: Number of ranks.
    """

    stage: int
    world_size: int

    def __str__(self) -> str:
        return f"stage {self.stage}, {self.world_size} ranks"

    def settings(self) -> dict[str, Any]:
        """Returns the layout as configuration."""
        return {"training.zero_stage": self.stage, "training.num_processes": self.world_size}


def settings(config: Path, folder: Path, max_steps: int, own_shards: bool) -> dict[str, Any]:
    """Returns the settings of a run in `folder / "run"`.

    Args:
        config: What they change.
        folder: The run's, and its shards'.
        max_steps: Length of the run.
        own_shards: Copy the shards, so that they may be damaged.
    """
    values: dict[str, Any] = {
        "run_dir": folder / "run",
        "training.max_steps": max_steps,
        # Shards are read again and again, and nothing may be left out.
        "data.stream.memory_bytes": 1,
        "data.stream.max_lost_fraction": 0.0,
    }
    if own_shards:
        from hyperadapter.config import RunConfig
        from hyperadapter.core.schema import load_config

        shards = Path(load_config(RunConfig, config).data.folder) / "shards"
        values["data.shards_folder"] = shutil.copytree(shards, folder / "shards")
    return values


class References:
    """Undisturbed runs, each made when it is first asked for.

    Args:
        config: Of the runs.
        folder: Where they go.
        max_steps: Their length.
        forks: Starts them.
    """

    def __init__(self, config: Path, folder: Path, max_steps: int, forks: Forks) -> None:
        self._config, self._folder, self._max_steps = config, folder, max_steps
        self._forks = forks
        self._lock = threading.Lock()
        self._runs: dict[tuple[Layout, tuple[int, ...]], Path] = {}

    def __call__(self, layout: Layout, skipped: tuple[int, ...]) -> Path:
        """Returns the run folder of a layout whose run leaves some steps out."""
        with self._lock:
            key = (layout, skipped)
            if key not in self._runs:
                self._runs[key] = self._make(layout, skipped)
            return self._runs[key]

    def _make(self, layout: Layout, skipped: tuple[int, ...]) -> Path:
        folder = self._folder / f"reference-{len(self._runs)}"
        run_dir = folder / "run"
        run_dir.mkdir(parents=True)
        values = (
            settings(self._config, folder, self._max_steps, False)
            | layout.settings()
            | {
                "training.checkpoint.every_steps": 50,
                "training.recovery.max_rollbacks": 1000,
            }
        )
        changes = [f"{key}={value}" for key, value in values.items()]
        if skipped:
            from hyperadapter.config import RunConfig
            from hyperadapter.core.schema import load_config
            from hyperadapter.training.preflight import experiment_fingerprint

            experiment = experiment_fingerprint(load_config(RunConfig, self._config, changes))
            events = [{"step": step, "what": "it is left out", "then": "skip"} for step in skipped]
            tree = {"experiment": experiment, "events": events}
            write_json(run_dir / "recovery.json", tree)
        sets = [part for change in changes for part in ("--set", change)]
        arguments = ["--config", str(self._config), *sets]
        alone = {ALONE_VARIABLE: "1"} if layout.world_size == 1 else {}
        training = Training(arguments, folder, folder / "log", alone, self._forks)
        training.wait(lambda: training.code is not None, 300.0, 0.1)
        if training.code != 0:
            raise RuntimeError(f"the reference run failed: {training.text()[-2000:]}")
        return run_dir


def differences(reference: Path, run_dir: Path, exact: bool) -> list[str]:
    """Says what differs between an undisturbed run and another one at their ends.

    Args:
        reference: Run folder of the undisturbed one.
        run_dir: Run folder of the other.
        exact: To the last bit; else losses may differ by rounding.
    """
    losses = [dict(read_metric(folder, "train/loss")) for folder in (reference, run_dir)]
    found = list(_different_losses(losses[0], losses[1], 0.0 if exact else _TOLERANCE))
    one, other = newest_checkpoint(reference), newest_checkpoint(run_dir)
    if one.name != other.name:
        found.append(f"{other.name} is the newest checkpoint, not {one.name}")
    progress = [read_json(folder / "progress.json") for folder in (one, other)]
    for key in ("target_tokens", "widths"):
        if progress[0][key] != progress[1][key]:
            found.append(f"progress.json: {key} {progress[1][key]} instead of {progress[0][key]}")
    if exact:
        for pattern in ("weights.safetensors", "optimizer/*.safetensors"):
            whole, tried = (_tensors(folder, pattern) for folder in (one, other))
            if whole.keys() != tried.keys():
                found.append(f"{pattern}: the tensors are others")
            else:
                wrong = [name for name, value in whole.items() if not value.equal(tried[name])]
                found += [f"{len(wrong)} tensors differ, {wrong[0]} first"] if wrong else []
    return found


def _tensors(checkpoint: Path, pattern: str) -> dict[str, Tensor]:
    return {
        f"{path.name}: {name}": tensor
        for path in sorted(checkpoint.glob(pattern))
        for name, tensor in load_file(path).items()
    }


def _different_losses(
    reference: Mapping[int, float], losses: Mapping[int, float], tolerance: float
) -> list[str]:
    if reference.keys() != losses.keys():
        return [f"losses of steps {sorted(reference.keys() ^ losses.keys())[:5]} are not in both"]
    close: Callable[[int], bool] = lambda step: (  # noqa: E731
        abs(losses[step] - reference[step]) <= tolerance * abs(reference[step])
    )
    wrong = [step for step in sorted(losses) if not close(step)]
    if not wrong:
        return []
    step = wrong[0]
    worst = max(abs(losses[s] / reference[s] - 1) for s in wrong)
    return [
        f"{len(wrong)} losses differ from step {step} on ({losses[step]!r} instead of "
        f"{reference[step]!r}), by {worst:.1e} at most"
    ]
