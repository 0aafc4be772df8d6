"""The command `hyperadapter` whose ranks do to themselves what orders.py brings them.

Points of a rank's life, in the order in which it comes to them:

    load          while it reads a checkpoint
    step          before a step
    gradient      while gradients are computed; actions `nan` and `inf` only
    validation    before each batch of a validation
    pieces        before each of the two files that it writes of a checkpoint
    join          before the main rank joins the weights
    manifest      between the manifest and the name of a checkpoint (main rank)
    remove        before the main rank removes an old checkpoint's folder

Actions: `kill` (SIGKILL), `sleep` (for ever, in Python), `lock` (for ever, in C, with the
interpreter's lock held), `full` (ENOSPC), `slow` (half a second), `nan`, `inf`.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster.local import _end_with_parent
from tests.faults.orders import FOLDER_VARIABLE, Inbox

ALONE_VARIABLE = "HYPERADAPTER_FAULTS_ALONE"
PACE_VARIABLE = "HYPERADAPTER_FAULTS_PACE_S"
SLOW_S = 0.5
_MODULE = "tests.faults.command"
_BAD = {"nan": math.nan, "inf": math.inf}

log = logging.getLogger(__name__)


class Rank:
    """What is put into one rank's process."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._inbox = Inbox(folder, rank)
        self._step = 0
        self._bad: float | None = None
        self._pace_s = float(os.environ.get(PACE_VARIABLE, "0"))

    def at(self, point: str) -> None:
        """Carries out what is due at a point of the current step."""
        order = self._inbox.due(point, self._step)
        if order is None:
            return
        log.warning("fault: %s at %s of step %d", order.action, point, self._step)
        if order.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif order.action == "sleep":
            time.sleep(1e6)
        elif order.action == "lock":
            _deadlock()
        elif order.action == "slow":
            time.sleep(SLOW_S)
        elif order.action == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            self._bad = _BAD[order.action]

    def install(self) -> None:
        """Puts the points where they belong."""
        from hyperadapter.checkpoint import layout, pieces
        from hyperadapter.training import saving
        from hyperadapter.training.engine import Engine
        from hyperadapter.training.trainer import Trainer

        self._before(pieces.PieceReader, "fill", "load")
        self._before(Engine, "evaluate", "validation")
        self._before(pieces, "save_tensors", "pieces")
        self._before(saving, "join_weights", "join")
        # What layout.py itself imports, and nobody else's.
        names = vars(layout)
        write_json, rmtree = names["write_json"], names["shutil"].rmtree

        def write_and_stop(path: Path, value: Any) -> None:
            write_json(path, value)
            if path.name == "manifest.json":
                self.at("manifest")

        def stop_and_remove(path: Path, ignore_errors: bool = False) -> None:
            if path.exists():
                self.at("remove")
            rmtree(path, ignore_errors=ignore_errors)

        names["write_json"] = write_and_stop
        names["shutil"] = SimpleNamespace(rmtree=stop_and_remove)
        self._watch_steps(Trainer)
        self._spoil_gradients(Engine)

    def _before(self, place: Any, name: str, point: str) -> None:
        whole = getattr(place, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.at(point)
            return whole(*args, **kwargs)

        setattr(place, name, wrapper)

    def _watch_steps(self, trainer: Any) -> None:
        restore, train_step = trainer._restore, trainer._train_step

        def restore_at_step(own: Any, *args: Any) -> None:
            # Orders for `load` are given while nothing runs; they are for whatever step it is.
            self._step = 1_000_000_000
            restore(own, *args)
            self._step = own.step

        def watched(own: Any, *args: Any) -> Any:
            self._step = own.step + 1
            self._bad = None
            time.sleep(self._pace_s)
            self.at("step")
            self.at("gradient")
            return train_step(own, *args)

        trainer._restore, trainer._train_step = restore_at_step, watched

    def _spoil_gradients(self, engine: Any) -> None:
        init = engine.__init__

        def spoil(grad: Any) -> Any:
            if self._bad is None:
                return None
            bad = grad.clone()
            bad.view(-1)[0] = self._bad
            return bad

        def init_with_hook(own: Any, model: Any, *args: Any) -> None:
            trained = [p for p in model.parameters() if p.requires_grad]
            trained[len(trained) // 2].register_hook(spoil)
            init(own, model, *args)

        engine.__init__ = init_with_hook


def _deadlock() -> None:
    """Locks a mutex twice: no signal wakes it, and PyDLL does not let the interpreter go."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def _through_this_module(run_ranks: Callable[..., int]) -> Callable[..., int]:
    def wrapper(command: list[str], num_processes: int) -> int:
        place = command.index("hyperadapter")
        return run_ranks([*command[:place], _MODULE, *command[place + 1 :]], num_processes)

    return wrapper


def note_process() -> None:
    """Tells the harness that this process is there: a copy keeps its parent's `/proc/*/environ`."""
    folder, pid = Path(os.environ[FOLDER_VARIABLE]), os.getpid()
    alone = "0" if ALONE_VARIABLE in os.environ else ""
    (folder / f"process-{pid}").write_text(os.environ.get("RANK", alone))


def main() -> None:
    """Runs the command; ranks get their faults first."""
    from hyperadapter import cli, pipeline

    if "RANK" in os.environ or ALONE_VARIABLE in os.environ:
        folder = Path(os.environ[FOLDER_VARIABLE])
        Rank(folder, int(os.environ.get("RANK", "0"))).install()
    else:
        pipeline.run_ranks = _through_this_module(pipeline.run_ranks)  # type: ignore[attr-defined]
    cli.main()


if __name__ == "__main__":
    if "RANK" not in os.environ:
        _end_with_parent(os.getppid())  # the harness; ranks end with the launcher
    note_process()
    main()
