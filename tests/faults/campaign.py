"""A campaign: one training run that gets fault after fault, and is started again until it ends.

After each fault it is checked that the run went on, or ended as it should and within the watchdog's
time, that nothing is left over, and that the next start lost no more than one interval of
checkpoints. At the end losses and checkpoints must be those of a run that was never disturbed.
"""

from __future__ import annotations

import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hyperadapter.checkpoint.layout import complete_checkpoints, verify
from hyperadapter.core.errors import CheckpointError
from hyperadapter.core.files import read_json
from tests.faults.command import ALONE_VARIABLE, PACE_VARIABLE
from tests.faults.forks import Forks
from tests.faults.kinds import KINDS, Kind
from tests.faults.orders import Order, done, give
from tests.faults.reference import Layout, differences, settings
from tests.faults.running import Events, Training, processes_of
from tests.faults.server import Server

__all__ = ["HANG_S", "Campaign", "Plan", "Record"]

HANG_S = 6.0
_PATIENT_S = 45.0  # where imports, or a last word to MLflow, count as well
_END_S = 10.0  # for the watchdog's exit, and for the others to see it
_START_S = 120.0
_SERVER_PACE_S = 0.15


@dataclass(frozen=True)
class Plan:
    """What a campaign is.

    Attributes:
        number: Of the campaign; with the seed it decides all that is random.
        seed: Of the harness.
        layouts: Of the starts, in turn; with more than one, losses are compared with a tolerance.
        kinds: Names of faults, in order.
        max_steps: Length of the run.
    """

    number: int
    seed: int
    layouts: tuple[Layout, ...]
    kinds: tuple[str, ...]
    max_steps: int = 100


@dataclass
class Record:
    """What came of one fault.

    Attributes:
        code: The command's exit code; None if it went on by itself.
        seconds: From the fault until no process was left.
        lost: Steps that were trained again.
        problems: What was not as it should be.
    """

    kind: str
    campaign: int
    layout: Layout
    rank: int
    step: int
    code: int | None = None
    seconds: float = 0.0
    lost: int = 0
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns the record for JSON."""
        return vars(self) | {"layout": str(self.layout)}


class Campaign:
    """One run and its faults.

    Args:
        plan: What is done.
        config: Of the run.
        folder: For the run, its orders and logs.
        reference: Returns the undisturbed run of a layout without some steps.
        forks: Starts processes; None: with new interpreters.

    Attributes:
        records: Of the faults that were injected.
        left: Kinds for which the run was too short.
        problems: What was wrong at the end.
    """

    def __init__(
        self,
        plan: Plan,
        config: Path,
        folder: Path,
        reference: Callable[[Layout, tuple[int, ...]], Path],
        forks: Forks | None,
    ) -> None:
        self.plan, self.folder, self.run_dir = plan, folder, folder / "run"
        self.random = np.random.default_rng([plan.seed, plan.number])
        self.interval = int(self.random.integers(5, 11))
        self.records: list[Record] = []
        self.left: list[str] = []
        self.problems: list[str] = []
        self.repairs: list[Callable[[], Any]] = []
        self.training: Training
        self.server: Server
        self.shards = folder / "shards"
        self._config, self._reference, self._forks = config, reference, forks
        self._starts = 0
        self._skipped: tuple[int, ...] = ()
        self._orders: list[Order] = []
        self._waiting: list[tuple[Record, int, int, bool]] = []
        self._events = Events(self.run_dir)
        needs = {KINDS[name].needs for name in plan.kinds}
        patient = forks is None or "server" in needs
        most_ranks = max(layout.world_size for layout in plan.layouts)
        self.hang_s = _PATIENT_S if patient else HANG_S * max(1.0, most_ranks / 2)
        self._settings = settings(config, folder, plan.max_steps, "shards" in needs) | {
            "training.checkpoint.every_steps": self.interval,
            "training.validation.every_steps": int(self.random.integers(8, 20)),
            "training.recovery": self._recovery(),
        }
        self._on_disk = "disk" in needs
        self._with_server = "server" in needs

    # The course of a campaign.

    def run(self) -> None:
        """Injects all faults and checks what came of them."""
        self.run_dir.mkdir(parents=True)
        try:
            if self._on_disk:
                _mount(self.run_dir)
            if self._with_server:
                self.server = Server(self.folder / "server")
                self.server.start()
                self._settings |= {"tracking.enabled": "true", "tracking.uri": self.server.uri}
            self._inject_all()
            self._check_end()
        except Exception as error:  # the table must come, whatever a campaign ran into
            self.problems.append(f"the harness failed: {type(error).__name__}: {error}")
        finally:
            if hasattr(self, "training"):
                self.training.kill_all()
            if hasattr(self, "server"):
                self.server.kill()
            if self._on_disk:
                subprocess.run(["umount", "--lazy", self.run_dir], check=False)

    def _inject_all(self) -> None:
        waiting = deque(self.plan.kinds)
        self._skipped = self._order_permanent(waiting)
        while True:
            down = [name for name in waiting if KINDS[name].needs == "down"]
            if down and self._events.last > 2 * self.interval:
                waiting.remove(down[0])
                self._inject(down[0])
                continue
            self._start()
            while self.training.code is None:
                running = [name for name in waiting if KINDS[name].needs != "down"]
                self._events.refresh()
                if self._events.last > self.plan.max_steps - 14 or not running:
                    self.training.wait(self._ended, _START_S)
                    break
                waiting.remove(running[0])
                self._inject(running[0])
            if self.training.code in (None, 0):
                break
            if self.training.code == 1 and self._was_slow():
                continue
            if not self.records or self.records[-1].code != self.training.code:
                self.problems.append(f"it ended by itself with {self._complaint()}")
                break
        self.left += waiting

    def _was_slow(self) -> bool:
        """Gives a start more time that a busy machine kept from its first step."""
        self._events.refresh()
        slow = (
            len(self._events.steps) == self._first_of_start and "Timeout (" in self.training.text()
            and self.hang_s < _PATIENT_S
        )  # fmt: skip
        if slow and not self._struck_here:
            self.hang_s *= 2
            self._settings["training.recovery"] = self._recovery()
            return True
        return False

    def _recovery(self) -> str:
        return f"{{hang_s: {self.hang_s}, max_rollbacks: 1000}}"

    def _ended(self) -> bool:
        return self.training.code is not None

    def _layout(self) -> Layout:
        return self.plan.layouts[self._starts % len(self.plan.layouts)]

    def _start(self) -> None:
        """Starts the command."""
        layout = self._layout()
        self._starts += 1
        self._events.refresh()
        self._first_of_start = len(self._events.steps)
        self._struck_here = False
        values = self._settings | layout.settings()
        arguments = ["--config", str(self._config)]
        for key, value in values.items():
            arguments += ["--set", f"{key}={value}"]
        more = {PACE_VARIABLE: str(_SERVER_PACE_S if self._with_server else 0)}
        more |= {ALONE_VARIABLE: "1"} if layout.world_size == 1 else {}
        log = self.folder / f"start-{self._starts:03d}.log"
        self.training = Training(arguments, self.folder, log, more, self._forks)

    def _wait_for_steps(self, count: int) -> bool:
        """Waits until so many steps of this start have been logged."""

        def there() -> bool:
            self._events.refresh()
            return self._ended() or len(self._events.steps) >= self._first_of_start + count

        there_in_time = self.training.wait(there, _START_S)
        self._settle_losses()
        return there_in_time and not self._ended()

    # One fault.

    def _inject(self, name: str) -> None:
        kind, layout = KINDS[name], self._layout()
        if kind.needs != "down":
            layout = self.plan.layouts[(self._starts - 1) % len(self.plan.layouts)]
            if not self._wait_for_steps(1):
                self.left.append(name)
                return
        self._events.refresh()
        step = self._events.last + int(self.random.integers(2, 8))
        if kind.damages:
            step = max(step, 2 * self.interval + 4)
        rank = 0 if kind.main_only else int(self.random.integers(layout.world_size))
        record = Record(name, self.plan.number, layout, rank, step)
        order = self._order(kind, record) if kind.point else None
        if kind.needs == "down":
            self._start()
        struck = self._strike(kind, record, order)
        if struck is None and self.training.code == 0:  # it was done too early
            self.left.append(name)
            return
        if struck is None:
            self.problems.append(f"{name} of step {step} was never struck: {self._complaint()}")
            return
        self.records.append(record)
        self._struck_here = True
        if kind.ends is not False:
            self._watch_end(kind, record, struck)
        else:
            self._watch_going_on(kind, record)
        for repair in self.repairs:
            repair()
        self.repairs.clear()

    def _order(self, kind: Kind, record: Record) -> Order:
        skip = int(self.random.integers(kind.most_skip + 1))
        order = Order(
            f"{len(self.records):03d}", record.rank, kind.point, kind.action, record.step,
            kind.steps, skip,
        )  # fmt: skip
        self._orders.append(order)
        give(self.folder, self._orders)
        return order

    def _order_permanent(self, waiting: deque[str]) -> tuple[int, ...]:
        """Gives the orders that are carried out whenever the run comes to their step."""
        steps = []
        for name in [name for name in waiting if KINDS[name].steps < 0]:
            waiting.remove(name)
            kind, layout = KINDS[name], self._layout()
            step = int(self.random.integers(12, self.plan.max_steps - 20))
            if step in steps:
                self.left.append(name)
                continue
            rank = int(self.random.integers(layout.world_size))
            record = Record(name, self.plan.number, layout, rank, step)
            self._order(kind, record)
            self.records.append(record)
            steps.append(step)
        return tuple(sorted(steps))

    def _strike(self, kind: Kind, record: Record, order: Order | None) -> float | None:
        """Waits for the moment of the fault; returns its time, None if it never came."""
        if order is not None:

            def carried_out() -> bool:
                return done(self.folder, order) is not None or self._ended()

            self.training.wait(carried_out, _START_S)
            fact = done(self.folder, order)
            return None if fact is None else float(fact["time"])
        if kind.needs != "down":

            def reached() -> bool:
                self._events.refresh()
                return self._events.last >= record.step or self._ended()

            if not self.training.wait(reached, _START_S) or self._ended():
                return None
            time.sleep(float(self.random.uniform(0.0, 0.05)))
        assert kind.strike is not None
        kind.strike(self, record.rank)
        return time.time()

    def _watch_end(self, kind: Kind, record: Record, struck: float) -> None:
        """Waits for the end that a fault brings, and looks at what is left."""
        limit_s = self.hang_s + _END_S
        early_s = 60.0 if kind.needs == "down" and not kind.point else limit_s
        if kind.ends is None:
            self._wait_for_steps(len(self._events.steps) - self._first_of_start + 30)
            if not self._ended():
                return
        _, left = self.training.wait_for_end(early_s)
        record.code, record.seconds = self.training.code, round(time.time() - struck, 1)
        if left:
            record.problems.append(f"{left} processes were left after {record.seconds} s")
        codes = (-9,) if record.layout.world_size == 1 and kind.action == "kill" else kind.codes
        if record.code not in codes:
            record.problems.append(f"not {codes} but {self._complaint()}")
        if kind.dumps and "Timeout (0:00" not in self.training.text():
            record.problems.append("no stacks in the log")
        self._events.refresh()
        self._settle_losses()
        told = record.layout.world_size > 1 and kind.status
        if told and self._events.status != kind.status:
            record.problems.append(f"status {self._events.status} instead of {kind.status}")
        self._expect_resume(kind, record)

    def _expect_resume(self, kind: Kind, record: Record) -> None:
        """Notes from where the next start must go on."""
        whole = [step for step, path in complete_checkpoints(self.run_dir) if _is_whole(path)]
        newest = max(whole, default=0)
        last = self._events.last
        # A checkpoint that could not be written leaves nothing behind.
        full = kind.action == "full"
        being_written = full or bool(list((self.run_dir / "checkpoints").glob("*.part")))
        if kind.needs == "down" and self._waiting:  # the fault before has cost the steps
            last = newest
        self._waiting.append((record, last, newest, being_written))
        if kind.saves and record.step <= last and newest < last:
            record.problems.append(f"the last step {last} is not saved, only {newest}")

    def _settle_losses(self) -> None:
        """Compares where the run went on with where it should have."""
        fresh = [step for start, step in self._events.steps[self._first_of_start :]]
        if not fresh:
            return
        for record, last, newest, being_written in self._waiting:
            record.lost = max(0, last - fresh[0] + 1)
            allowed = self.interval * (1 + being_written + KINDS[record.kind].damages)
            first = newest + 1
            while first in self._skipped:  # nothing is logged of it
                first += 1
            if fresh[0] != first:
                record.problems.append(f"went on at step {fresh[0]}, not at {first}")
            if record.lost > allowed:
                record.problems.append(f"{record.lost} steps are lost, not {allowed} at most")
        self._waiting.clear()

    def _watch_going_on(self, kind: Kind, record: Record) -> None:
        """Waits until the run has gone on after a fault."""
        before = len(self._events.steps)
        self._wait_for_steps(before - self._first_of_start + kind.steps + 4)
        steps = [step for _, step in self._events.steps[max(self._first_of_start, before - 1) :]]
        drops = [a - b + 1 for a, b in pairwise(steps) if b <= a]
        record.lost = max(drops, default=0)
        if record.lost > 2 * self.interval:
            record.problems.append(f"{record.lost} steps are lost")
        if self.training.code not in (None, 0):
            record.code = self.training.code
            record.problems.append(f"did not go on but {self._complaint()}")
            self.training.wait_for_end(10.0)
            self._expect_resume(kind, record)

    def _complaint(self) -> str:
        lines = [line for line in self.training.text().splitlines() if line.strip()]
        return f"{self.training.code}, {self.training.log}: {' | '.join(lines[-2:])[-400:]}"

    # The end.

    def _check_end(self) -> None:
        if self.training.code != 0:
            self.problems.append(f"the run did not finish: {self._complaint()}")
            return
        self.training.wait_for_end(10.0)
        self._events.refresh()
        self._settle_losses()
        if self._waiting:
            self.problems.append(f"{len(self._waiting)} faults after which no step was trained")
        if processes_of(self.folder):
            self.problems.append("processes are left")
        if self._events.status != "FINISHED":
            self.problems.append(f"the last status is {self._events.status}")
        parts = sorted(str(path.relative_to(self.run_dir)) for path in self.run_dir.rglob("*.part"))
        if parts:
            self.problems.append(f"left over: {', '.join(parts[:3])}")
        self._check_permanent()
        layouts = self.plan.layouts
        reference = self._reference(layouts[0], self._skipped)
        self.problems += differences(reference, self.run_dir, exact=len(layouts) == 1)
        if self._with_server:
            self.problems += self._check_server()

    def _check_permanent(self) -> None:
        path = self.run_dir / "recovery.json"
        events = read_json(path)["events"] if path.exists() else []
        found = tuple(sorted({event["step"] for event in events if event["then"] == "skip"}))
        if found != self._skipped:
            self.problems.append(f"steps {found} were left out instead of {self._skipped}")

    def _check_server(self) -> list[str]:
        """Brings what is left to MLflow, and compares it with the event file."""
        from mlflow import MlflowClient

        from hyperadapter.core.events import SendState, read_metric
        from hyperadapter.tracking import sync

        self.server.start()
        sync(self.run_dir)
        state = SendState.load(self.run_dir)
        assert state is not None
        client = MlflowClient(self.server.uri)
        status = client.get_run(state.run_id).info.status
        history = client.get_metric_history(state.run_id, "train/loss")
        sent = {metric.step: metric.value for metric in sorted(history, key=lambda m: m.timestamp)}
        problems = [] if status == "FINISHED" else [f"MLflow says {status}"]
        if sent != dict(read_metric(self.run_dir, "train/loss")):
            problems.append("MLflow has other losses than the event file")
        return problems


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def _mount(folder: Path) -> None:
    """Gives a folder a small disk of its own."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", folder], check=True)
