"""What a run does when its numbers go wrong: go back to the last checkpoint, and try again.

A step goes wrong if its loss or its gradient is not finite, or, with `spike_factor`, if its loss is
far above those before it. Data and dropout are functions of the step, so going back repeats the
step exactly. What is not finite may have been the machine: the step is repeated once. If it goes
wrong again, or was a spike, the batch is left out from then on. The run folder remembers both, so
that a resumed run does the same.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

from hyperadapter.config import RecoveryConfig
from hyperadapter.core.errors import TrainingError
from hyperadapter.core.files import read_json, write_json
from hyperadapter.training.meters import Reading
from hyperadapter.training.world import World

__all__ = ["RECOVERY_FILE", "GoBack", "Recovery"]

log = logging.getLogger(__name__)

RECOVERY_FILE = "recovery.json"
_MEMORY = 200  # losses that the median of a spike is taken over
_LEAST_MEMORY = 20
_ALARM_FRACTION = 0.01


class GoBack(Exception):  # noqa: N818 (a turn of the loop, not an error)
    """A step went wrong; the run is to go on from its last checkpoint. Raised on all ranks."""


class Recovery:
    """Looks at every step's numbers and decides what to do about those that are wrong.

    Args:
        run_dir: Where decisions are kept; every rank must make its object.
        config: How often to go back, and what a spike is.
        experiment: Fingerprint; what happened to another experiment means nothing.
        world: All ranks.
    """

    def __init__(
        self, run_dir: Path, config: RecoveryConfig, experiment: str, world: World
    ) -> None:
        self._path = run_dir / RECOVERY_FILE
        self._config = config
        self._experiment = experiment
        self._world = world
        self._events: list[dict[str, Any]] = world.from_main(self._load)
        self._losses: deque[float] = deque(maxlen=_MEMORY)
        self._bad_gradients: dict[int, tuple[str, ...]] = {}
        if self._events and world.is_main:
            log.warning("this run went back %d times before, see %s", len(self._events), self._path)

    def _load(self) -> list[dict[str, Any]]:
        tree: dict[str, Any] = read_json(self._path) if self._path.exists() else {}
        if tree.get("experiment") != self._experiment:
            return []
        events: list[dict[str, Any]] = tree["events"]
        return events

    def leaves_out(self, step: int) -> bool:
        """Whether the batch of a step, counted from 1, is not trained on."""
        return any(event["step"] == step and event["then"] == "skip" for event in self._events)

    def watches(self, step: int) -> bool:
        """Whether a step went wrong before, so that its gradients are to be looked at."""
        return any(event["step"] == step for event in self._events)

    def note_bad_gradients(self, step: int, names: tuple[str, ...]) -> None:
        """Remembers which gradients of a watched step are not finite."""
        self._bad_gradients[step] = names

    def metrics(self, step: int) -> dict[str, float]:
        """Returns how often the run went back and what it left out, up to a step."""
        skipped = {e["step"] for e in self._events if e["then"] == "skip" and e["step"] <= step}
        if len(skipped) > max(1.0, _ALARM_FRACTION * step) and self._world.is_main:
            log.error(
                "%d of %d steps were left out because they went wrong, more than %.0f %%: the "
                "model or its data are at fault, see %s",
                len(skipped), step, 100 * _ALARM_FRACTION, self._path,
            )  # fmt: skip
        return {
            "train/rollbacks": float(len(self._events)),
            "train/skipped_steps": float(len(skipped)),
        }

    def examine(self, reading: Reading) -> None:
        """Looks at the steps since the reading before, which is the same on all ranks.

        Raises:
            GoBack: A step went wrong.
            TrainingError: The same, after more than `max_rollbacks`.
        """
        for step, loss, grad_norm in reading.steps:
            finite = math.isfinite(loss) and math.isfinite(grad_norm)
            if not finite:
                self._go_back(step, f"loss {loss}, gradient norm {grad_norm}", spike=False)
            limit = self._limit()
            if loss > limit:
                self._go_back(step, f"loss {loss:.4g} is above {limit:.4g}", spike=True)
            self._losses.append(loss)

    def _limit(self) -> float:
        """Returns the loss above which a step is a spike."""
        if not self._config.spike_factor or len(self._losses) < _LEAST_MEMORY:
            return math.inf
        return self._config.spike_factor * statistics.median(self._losses)

    def _go_back(self, step: int, what: str, spike: bool) -> None:
        """Decides, remembers and raises."""
        names = self._bad_gradients.get(step, ())
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            what += f"; the first gradient that is not finite is that of {names[0]}{more}"
        if len(self._events) >= self._config.max_rollbacks:
            raise TrainingError(
                f"step {step}: {what}. The run has gone back {len(self._events)} times, as often "
                "as training.recovery.max_rollbacks allows. Nothing wrong was saved: allow more, "
                "or start in another run_dir with a lower training.learning_rate or clip_norm"
            )
        then = "skip" if spike or self.watches(step) else "repeat"
        self._events.append({"step": step, "what": what, "then": then})
        if self._world.is_main:
            write_json(self._path, {"experiment": self._experiment, "events": self._events})
            log.warning(
                "step %d: %s; going back to the last checkpoint, %s", step, what,
                "leaving its batch out" if then == "skip" else "to repeat it",
            )  # fmt: skip
        raise GoBack
