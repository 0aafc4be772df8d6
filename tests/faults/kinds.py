"""The kinds of faults, and what is right after each of them."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hyperadapter.checkpoint.layout import complete_checkpoints

if TYPE_CHECKING:
    from tests.faults.campaign import Campaign

__all__ = ["KINDS", "Kind"]

Strike = Callable[["Campaign", int], None]


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        point: Where a rank does something to itself (command.py), if it does.
        action: What it does there.
        strike: What is done to the run from outside, if something is; called with a rank.
        ends: The command ends by it. None: it may or may not.
        codes: Its exit codes that are right.
        status: What the events must say of the run then; empty: nobody could say it.
        steps: See `Order`.
        most_skip: Passes of the point that may be left alone first.
        main_only: Only rank 0 comes to that point.
        dumps: Stacks must be in the log.
        saves: A checkpoint of the very last step must be there.
        damages: The newest checkpoint is lost.
        needs: What the campaign must have: `disk`, `shards`, `server` or `down` (no process yet).
    """

    point: str = ""
    action: str = ""
    strike: Strike | None = None
    ends: bool | None = True
    codes: tuple[int, ...] = (1,)
    status: str = "FAILED"
    steps: int = 0
    most_skip: int = 0
    main_only: bool = False
    dumps: bool = False
    saves: bool = False
    damages: bool = False
    needs: str = ""


def _signal_rank(number: int) -> Strike:
    def strike(campaign: Campaign, rank: int) -> None:
        campaign.training.send(number, campaign.training.rank(rank))

    return strike


def _signal_launcher(number: int) -> Strike:
    def strike(campaign: Campaign, _: int) -> None:
        campaign.training.send(number, campaign.training.pid)

    return strike


def _kill_all(campaign: Campaign, _: int) -> None:
    campaign.training.kill_all()


def _victim(campaign: Campaign) -> Path:
    """Ends everything, and chooses a file of the newest checkpoint."""
    campaign.training.kill_all()
    campaign.training.wait_for_end(10.0)
    _, folder = complete_checkpoints(campaign.run_dir)[-1]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return files[campaign.random.integers(len(files))]


def _flip(campaign: Campaign, _: int) -> None:
    victim = _victim(campaign)
    data = bytearray(victim.read_bytes())
    data[campaign.random.integers(len(data))] ^= 1 << int(campaign.random.integers(8))
    victim.write_bytes(data)


def _truncate(campaign: Campaign, _: int) -> None:
    victim = _victim(campaign)
    data = victim.read_bytes()
    victim.write_bytes(data[: campaign.random.integers(len(data))])


def _delete(campaign: Campaign, _: int) -> None:
    _victim(campaign).unlink()


def _move_shard(campaign: Campaign, _: int) -> None:
    shards = sorted(campaign.shards.glob("train/*.tar"))
    shard = shards[campaign.random.integers(len(shards))]
    away = shard.with_suffix(".away")
    shard.rename(away)
    campaign.repairs.append(lambda: shutil.move(away, shard))


def _fill_disk(campaign: Campaign, _: int) -> None:
    ballast = campaign.run_dir / "ballast"
    campaign.repairs.append(lambda: ballast.unlink(missing_ok=True))
    try:
        with open(ballast, "wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 12))
    except OSError:
        pass


def _server_hangs(campaign: Campaign, _: int) -> None:
    campaign.server.send(signal.SIGSTOP)
    time.sleep(3.0)
    campaign.server.send(signal.SIGCONT)


def _server_restarts(campaign: Campaign, _: int) -> None:
    campaign.server.kill()
    time.sleep(1.0)
    campaign.server.start()


def _server_goes(campaign: Campaign, _: int) -> None:
    campaign.server.kill()


def _stop_early(campaign: Campaign, rank: int) -> None:
    time.sleep(campaign.random.uniform(0.0, 8.0))
    training = campaign.training
    training.wait(lambda: training.rank(rank) is not None, 30.0, 0.1)
    training.send(signal.SIGTERM, training.rank(rank))


KINDS = {
    "kill-step": Kind("step", "kill"),
    "kill-pieces": Kind("pieces", "kill", most_skip=1),
    "kill-join": Kind("join", "kill", main_only=True),
    "kill-manifest": Kind("manifest", "kill", main_only=True),
    "kill-remove": Kind("remove", "kill", main_only=True),
    "kill-validation": Kind("validation", "kill", most_skip=1),
    "kill-load": Kind("load", "kill", most_skip=20, needs="down"),
    "hang-python": Kind("step", "sleep", dumps=True),
    "hang-c": Kind("step", "lock", dumps=True),
    "hang-validation": Kind("validation", "lock", dumps=True, most_skip=1),
    "hang-save": Kind("pieces", "sleep", dumps=True),
    "hang-load": Kind("load", "sleep", dumps=True, needs="down"),
    "slow": Kind("step", "slow", ends=False, steps=5),
    "nan": Kind("gradient", "nan", ends=False),
    "inf": Kind("gradient", "inf", ends=False),
    "nan-always": Kind("gradient", "nan", ends=False, steps=-1),
    "write-error": Kind("pieces", "full", most_skip=1),
    "disk-full": Kind("", "full", _fill_disk, status="", needs="disk"),
    "sigkill-rank": Kind(strike=_signal_rank(signal.SIGKILL)),
    "sigkill-launcher": Kind(
        strike=_signal_launcher(signal.SIGKILL), codes=(-9,), status="KILLED", saves=True
    ),
    "sigkill-all": Kind(strike=_kill_all, codes=(-9,), status=""),
    "sigterm-rank": Kind(
        strike=_signal_rank(signal.SIGTERM), codes=(75,), status="KILLED", saves=True
    ),
    "sigusr1-rank": Kind(
        strike=_signal_rank(signal.SIGUSR1), codes=(75,), status="KILLED", saves=True
    ),
    "sigterm-launcher": Kind(
        strike=_signal_launcher(signal.SIGTERM), codes=(75,), status="KILLED", saves=True
    ),
    "sigusr1-launcher": Kind(
        strike=_signal_launcher(signal.SIGUSR1), codes=(75,), status="KILLED", saves=True
    ),
    "sigterm-early": Kind(strike=_stop_early, codes=(1, 75), status="", needs="down"),
    "sigstop-rank": Kind(strike=_signal_rank(signal.SIGSTOP), dumps=True),
    "damage-flip": Kind(strike=_flip, codes=(-9,), status="", damages=True),
    "damage-truncate": Kind(strike=_truncate, codes=(-9,), status="", damages=True),
    "damage-delete": Kind(strike=_delete, codes=(-9,), status="", damages=True),
    "shard-gone": Kind(strike=_move_shard, ends=None, needs="shards"),
    "mlflow-hangs": Kind(strike=_server_hangs, ends=False, needs="server"),
    "mlflow-restarts": Kind(strike=_server_restarts, ends=False, needs="server"),
    "mlflow-gone": Kind(strike=_server_goes, ends=False, needs="server"),
}
"""All kinds by name. With one process there is no launcher that could tell what happened."""
