"""Deals faults to campaigns, runs them, and sums up."""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.campaign import Campaign, Plan, Record
from tests.faults.forks import Forks
from tests.faults.kinds import KINDS
from tests.faults.reference import Layout, References

__all__ = ["Harness", "can_mount", "table"]

log = logging.getLogger(__name__)

_LAYOUTS = (
    Layout(2, 2), Layout(3, 2), Layout(1, 2), Layout(2, 2), Layout(0, 2), Layout(3, 4), Layout(2, 1)
)  # fmt: skip
_NEEDS_A_LAUNCHER = (
    "sigkill-launcher", "sigterm-launcher", "sigusr1-launcher", "sigstop-rank", "sigterm-early",
    "sigkill-rank",
)  # fmt: skip
_PER_CAMPAIGN = 9
_OWN_CAMPAIGN = ("server",)


def can_mount() -> bool:
    """Says whether this process may mount a small disk."""
    if os.geteuid():
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


class Harness:
    """Campaigns and their results.

    Args:
        config: Of a run whose data are prepared.
        folder: For all runs.
        forks: Starts most of them.
        stage: Of ZeRO; None: changes from campaign to campaign.
        processes: Ranks; None: changes from campaign to campaign.
        max_steps: Length of the runs.
        fresh_every: Each so many campaigns start new interpreters; 0: none.

    Attributes:
        records: Of all faults.
        problems: All that was not as it should be.
    """

    def __init__(
        self,
        config: Path,
        folder: Path,
        forks: Forks,
        stage: int | None = None,
        processes: int | None = None,
        max_steps: int = 100,
        fresh_every: int = 8,
    ) -> None:
        self._config, self._folder, self._max_steps = config, folder, max_steps
        self._references = References(config, folder, max_steps, forks)
        self._layouts = [
            Layout(layout.stage if stage is None else stage, processes or layout.world_size)
            for layout in _LAYOUTS
        ]
        self._forks, self._fresh_every = forks, fresh_every
        self._campaigns = 0
        self._started = time.monotonic()
        self.records: list[Record] = []
        self.problems: list[str] = []
        self._unequal: set[int] = set()

    @staticmethod
    def possible() -> list[str]:
        """Returns the kinds that this machine allows."""
        mounting = can_mount()
        return [name for name, kind in KINDS.items() if kind.needs != "disk" or mounting]

    def run(self, seed: int, count: int, names: Sequence[str], parallel: int = 1) -> None:
        """Injects at least `count` faults of the given kinds, each about as often."""
        if all(layout.world_size == 1 for layout in self._layouts):
            names = [name for name in names if name not in _NEEDS_A_LAUNCHER]
        if not names:
            raise ValueError("one process has no launcher that could get these faults")
        random = np.random.default_rng(seed)
        pool: deque[str] = deque()
        while len(pool) < count:
            pool += [names[i] for i in random.permutation(len(names))][: count - len(pool)]
        target = len(self.records) + count
        with ThreadPoolExecutor(parallel) as executor:
            running: set[Future[Campaign]] = set()
            while pool or running:
                while pool and len(running) < parallel and len(self.records) < target:
                    plan = self._plan(seed, pool)
                    running.add(executor.submit(self._campaign, plan))
                if not running:
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    self._sum_up(future.result(), pool)

    def _plan(self, seed: int, pool: deque[str]) -> Plan:
        number = self._campaigns
        self._campaigns += 1
        layout = self._layouts[number % len(self._layouts)]
        layouts: tuple[Layout, ...] = (layout,)
        if number % 5 == 4:  # other layouts at every start
            layouts = tuple(dict.fromkeys([layout, *self._layouts[1:4], self._layouts[5]]))
        own = KINDS[pool[0]].needs in _OWN_CAMPAIGN
        chosen: list[str] = []
        for name in list(pool):
            if len(chosen) == _PER_CAMPAIGN:
                break
            alone = any(layout.world_size == 1 for layout in layouts)
            if (KINDS[name].needs in _OWN_CAMPAIGN) != own:
                continue
            if (alone and name in _NEEDS_A_LAUNCHER) or ("gone" in name and name in chosen):
                continue
            pool.remove(name)
            chosen.append(name)
        if not chosen:  # only kinds that this layout cannot have
            return self._plan(seed, pool)
        if not any(KINDS[name].ends and KINDS[name].needs != "down" for name in chosen):
            # What happens at a start needs something that ends the run before.
            chosen += ["sigkill-all"] * any(KINDS[name].needs == "down" for name in chosen)
        # After the server has gone for good nothing more can happen to it.
        chosen.sort(key="mlflow-gone".__eq__)
        return Plan(number, seed, layouts, tuple(chosen), self._max_steps)

    def _campaign(self, plan: Plan) -> Campaign:
        folder = self._folder / f"campaign-{plan.number:03d}"
        folder.mkdir(parents=True)
        log.info("campaign %d (%s): %s", plan.number, plan.layouts[0], " ".join(plan.kinds))
        fresh = self._fresh_every and plan.number % self._fresh_every == self._fresh_every - 1
        forks = None if fresh else self._forks
        campaign = Campaign(plan, self._config, folder, self._references, forks)
        campaign.run()
        return campaign

    def _sum_up(self, campaign: Campaign, pool: deque[str]) -> None:
        self.records += campaign.records
        pool += campaign.left
        number = campaign.plan.number
        found = [f"campaign {number}: {problem}" for problem in campaign.problems]
        if found:
            self._unequal.add(number)
        for record in campaign.records:
            log.info(
                "campaign %d  %-17s step %3d rank %d  code %s  %.1f s  %d lost  %s", number,
                record.kind, record.step, record.rank, record.code, record.seconds, record.lost,
                "; ".join(record.problems),
            )  # fmt: skip
            found += [f"campaign {number}: {record.kind}: {text}" for text in record.problems]
        for text in found:
            log.error("%s", text)
        self.problems += found

    def is_equal(self, record: Record) -> bool:
        """Whether the run of a fault ended as the undisturbed one."""
        return record.campaign not in self._unequal

    @property
    def campaigns(self) -> int:
        """Number of runs that were disturbed."""
        return self._campaigns

    @property
    def seconds(self) -> float:
        """Time since the harness was made."""
        return time.monotonic() - self._started

    def result(self) -> dict[str, Any]:
        """Returns everything for JSON."""
        return {
            "injections": len(self.records),
            "campaigns": self._campaigns,
            "seconds": round(self.seconds),
            "problems": self.problems,
            "records": [record.as_dict() for record in self.records],
        }


def table(harness: Harness) -> str:
    """Sums the faults up by kind."""
    by_kind: dict[str, list[Record]] = defaultdict(list)
    for record in harness.records:
        by_kind[record.kind].append(record)
    columns = ("kind", "faults", "went on", "restarts", "most lost", "slowest end, s", "equal")
    rows: list[Iterable[Any]] = [columns]
    for kind, records in sorted(by_kind.items()):
        rows.append(_row(kind, records, harness))
    rows.append(_row("all", harness.records, harness))
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = (str(cell) for cell in row)
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    lines.append(
        f"{harness.campaigns} runs in {harness.seconds / 60:.0f} minutes; "
        f"{len(harness.problems)} problems"
    )
    return "\n".join([*lines, *harness.problems])


def _row(kind: str, records: Sequence[Record], harness: Harness) -> Sequence[Any]:
    on = sum(record.code is None for record in records)
    equal = sum(harness.is_equal(record) for record in records)
    return (
        kind,
        len(records),
        on,
        len(records) - on,
        max((record.lost for record in records), default=0),
        max((record.seconds for record in records), default=0.0),
        "all" if equal == len(records) else f"{equal} of {len(records)}",
    )
