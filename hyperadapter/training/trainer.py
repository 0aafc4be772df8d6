"""The training loop.

Data and dropout are functions of the step, so the state of a run is its weights, its optimizer and
the number of its last step: a run that is stopped and resumed goes on as if it had not been.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import numpy as np

from data_pipeline.provenance import require_current
from data_pipeline.stream.batching import MicroBatch, PackedBatch
from data_pipeline.stream.streams import StepBatches, TrainStream, ValidStream, shards_folder
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.checkpoint import layout
from hyperadapter.checkpoint.weights import WeightsInfo
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import CheckpointError, Interrupted, TrainingError
from hyperadapter.core.events import read_metric
from hyperadapter.core.schema import flat_params
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import part_of, stack_keys
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.tracking import NullTracker, TrackedRun, Tracker
from hyperadapter.tracking.system import SystemSampler
from hyperadapter.training import preflight
from hyperadapter.training.engine import Engine, StepResult
from hyperadapter.training.feed import Feed, Mixture
from hyperadapter.training.health import Health
from hyperadapter.training.meters import Meter, Progress
from hyperadapter.training.optimizer import freeze
from hyperadapter.training.participation import check_participation
from hyperadapter.training.recovery import GoBack, Recovery
from hyperadapter.training.reports import Reports, validate
from hyperadapter.training.saving import Saver
from hyperadapter.training.schedule import learning_rate
from hyperadapter.training.signals import StopRequest
from hyperadapter.training.start import take_over
from hyperadapter.training.watchdog import Watchdog
from hyperadapter.training.world import World, start_world

__all__ = ["Trainer", "open_tracker", "train"]

log = logging.getLogger(__name__)


def train(config: RunConfig) -> None:
    """Trains this rank's share of a run until its last step, resuming where it stopped.

    Raises:
        ConfigError, DataError, CheckpointError, DiskFullError: Before the first step, if it cannot
            end well.
        Interrupted: SIGTERM, SIGUSR1 or Ctrl-C reached any rank; a checkpoint was saved.
        TrainingError: A loss or gradient went wrong too often.
    """
    with ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        # Before the ranks meet: one that never comes keeps the others waiting too.
        watchdog = stack.enter_context(Watchdog(config.training.recovery.hang_s))
        world = stack.enter_context(start_world(config.training))
        preflight.check_world(config, world.size)
        if world.is_main:
            stack.enter_context(preflight.lock_run(Path(config.run_dir)))
        trainer = Trainer(config, world, stop, watchdog, stack)
        if world.is_main:
            # Not earlier: checkpoints of other data keep the tokenizer that they were trained with.
            Tokenizer.copy(
                Path(config.data.folder) / "tokenizer", Path(config.run_dir) / "tokenizer"
            )
        try:
            trainer.fit()
        finally:
            watchdog.stop()  # the tracker's end has a limit of its own


def open_tracker(config: RunConfig, owns_status: bool = True) -> Tracker:
    """Starts, or continues, the tracking of a run; an evaluation does not own its status."""
    run_dir = Path(config.run_dir)
    run = TrackedRun(
        name=config.name,
        experiment=config.tracking.experiment,
        uri=config.tracking.uri,
        enabled=config.tracking.enabled,
        params=flat_params(config),
        tags={"fingerprint": preflight.experiment_fingerprint(config)},
        parent=config.tracking.parent,
    )
    return Tracker(run_dir, run, config_file=run_dir / "config.yaml", owns_status=owns_status)


class Trainer:
    """One rank's share of a run.

    Args:
        config: The run.
        world: All ranks.
        stop: Whether a signal asked to stop.
        watchdog: Is told of progress.
        stack: Closes what must be closed at the end.

    Attributes:
        step: Optimizer steps done.
    """

    def __init__(
        self,
        config: RunConfig,
        world: World,
        stop: StopRequest,
        watchdog: Watchdog,
        stack: ExitStack,
    ) -> None:
        """Checks the run, opens its data, and makes the model as the run goes on with it."""
        self.config, self.world = config, world
        self.stop, self.watchdog = stop, watchdog
        self.run_dir = Path(config.run_dir)
        world.from_main(lambda: preflight.freeze_config(config))
        self.data = require_current(config.data)
        self.tokenizer = Tokenizer.load(Path(config.data.folder) / "tokenizer")
        self.vocabulary = Vocabulary(
            self.tokenizer.vocab_size, config.data.languages, config.data.resolved_directions()
        )
        self.stream, self.valid = _open_streams(config, world)
        model = self._build_model()
        counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
        num_parameters = sum(count for count, _ in counts)
        num_trained = sum(count for count, trained in counts if trained)
        world.from_main(lambda: layout.remove_leftovers(self.run_dir))
        world.from_main(lambda: preflight.check_disk(config, num_parameters, num_trained))
        self.tracker = stack.enter_context(open_tracker(config) if world.is_main else NullTracker())
        log.info(
            "%s parameters, %s of them trained, %d processes on %s", f"{num_parameters:,}",
            f"{num_trained:,}", world.size, world.device,
        )  # fmt: skip
        self.tracker.log_metrics(_sizes(model), 0)
        pairs = self.stream.sentence_pairs
        self.tracker.log_metrics({f"data/train_pairs/{d}": n for d, n in pairs.items()}, 0)
        self.saver = Saver(world, self.run_dir, config.training.checkpoint)
        experiment = preflight.experiment_fingerprint(config)
        self.recovery = Recovery(self.run_dir, config.training.recovery, experiment, world)
        self.step = world.from_main(lambda: _newest_whole_step(self.run_dir))
        if not self.step:
            self._take_over(model)
        self.engine = self._start_engine(model)
        self.health = Health(self.engine, config, self.vocabulary)
        self._restore()

    def _build_model(self) -> Seq2Seq:
        model = build_model(self.config.model, self.vocabulary, self.config.training.seed)
        freeze(model, self.config.training)
        return model

    def _take_over(self, model: Seq2Seq) -> None:
        """Copies what `training.start_from` has into a model that was just drawn."""
        if not self.config.training.start_from:
            return
        path = Path(self.config.training.start_from)
        start = take_over(path, model, self.tokenizer.fingerprint)
        if self.world.is_main:
            start.log_summary()
            self.tracker.log_artifact(start.save(self.run_dir))

    def _go_back(self) -> None:
        """Returns to the newest checkpoint, or to the beginning where there is none."""
        self.step = self.world.from_main(lambda: _newest_whole_step(self.run_dir))
        if not self.step:
            model = self._build_model()
            self._take_over(model)
            self.engine.reset(model)
        self._restore()

    def _restore(self) -> None:
        """Brings model, optimizer and counts to where this step's checkpoint left them."""
        self.progress = Progress()
        self.mixture = Mixture(self.stream, [str(name) for name in self.vocabulary.directions])
        self.saver.saved_step = self.step
        if not self.step:
            return
        folder = layout.checkpoint_folder(self.run_dir, self.step)
        if layout.read_manifest(folder).data != self.data:
            raise CheckpointError(
                f"{folder} was trained on other data than {self.config.data.folder} holds now; "
                "restore the sources and build the data anew, or start in another run_dir"
            )
        self.engine.load(folder)
        self.progress = Progress.load(folder)
        self.mixture.restore(self.progress.widths)
        total = self.config.training.max_steps
        log.info("resumed from %s at step %d of %d", folder, self.step, total)

    def _start_engine(self, model: Seq2Seq) -> Engine:
        training = self.config.training
        model.activation_checkpointing = training.activation_checkpointing
        check_participation(model.to(self.world.device), self.world)
        if training.compile:
            model.compile_layers()
        return Engine(model, training, self.world)

    def fit(self) -> None:
        """Trains to the last step, going back to a checkpoint where numbers went wrong."""
        while True:
            try:
                return self._fit()
            except (GoBack, TrainingError) as error:
                self.saver.finish()
                if isinstance(error, TrainingError):
                    raise
                self.progress.update(self.world)
                spent = self.progress
                self._go_back()
                self.progress.wall_s, self.progress.peak_rss_bytes = (
                    spent.wall_s, spent.peak_rss_bytes,
                )  # fmt: skip

    def _fit(self) -> None:
        """Trains on from where the run stands; saves, validates and logs on the way."""
        training = self.config.training
        reports = Reports(
            training, self.tracker, self.stream, self.world, self.step, SystemSampler(self.run_dir)
        )
        if self._lacks_validation():
            self._validate(reports)
        meter = Meter(self.world)
        stop = self.stop
        with Feed(self.stream, self.world, self.run_dir, self.data, lambda: stop.is_set) as feed:
            while self.step < training.max_steps:
                self.watchdog.touch()
                batches = feed.get(self.step)
                if batches is None:
                    if not meter.is_empty:
                        self.recovery.examine(meter.read())
                    self._stop_here()
                rate = learning_rate(
                    training.schedule, training.learning_rate, self.step + 1, training.max_steps
                )
                result = self._train_step(batches, rate, meter)
                last = self.step == training.max_steps
                stopping = self.world.any(stop.is_set) and not last
                saving = last or stopping or self.step % training.checkpoint.every_steps == 0
                if saving or self.step % training.log_every_steps == 0:
                    if not meter.is_empty:
                        reading = meter.read()
                        # What is saved has been seen to be in order.
                        self.recovery.examine(reading)
                        reports.reading(reading, self.step, rate, self._costs())
                    reports.data(feed, self.mixture, self.step, per_direction=saving)
                paused = time.monotonic()
                # Saving comes first: who sent the signal may not wait for a validation.
                if stopping:
                    self._stop_here()
                self.saver.advance()
                if saving:
                    self._save()
                self._report_health(batches, result, per_language=saving)
                if last or self.step % training.validation.every_steps == 0:
                    self._validate(reports)
                meter.skip_time(time.monotonic() - paused)
        self.saver.finish()

    def _lacks_validation(self) -> bool:
        """Whether this step is due for a validation that a stop left out, or begins with one."""
        training = self.config.training
        if not self.step:
            return bool(training.start_from)
        due = self.step % training.validation.every_steps == 0
        return self.world.from_main(
            lambda: due and self.step not in dict(read_metric(self.run_dir, "valid/macro/nll"))
        )

    def _train_step(self, batches: StepBatches, rate: float, meter: Meter) -> StepResult | None:
        """Trains one step; nothing comes of one that is left out or has lost all its sentences."""
        step = self.step + 1
        result = None
        if self.recovery.leaves_out(step):
            log.warning("step %d is left out because it went wrong before", step)
        elif not batches.target_tokens:
            log.warning("step %d has no sentence left and changes nothing", step)
        else:
            watched = self.recovery.watches(step)
            result = self.engine.train_step(
                [self._batch(item) for item in batches.micro_batches],
                self._dropout_seeds(),
                batches.target_tokens,
                rate,
                measure_parts=watched or self.health.is_due(step),
            )
            if watched:
                self.recovery.note_bad_gradients(step, result.bad_gradients)
            meter.add(step, result, batches.target_tokens)
            self.mixture.add(batches)
            self.progress.target_tokens += batches.target_tokens
        self.step = step
        return result

    def _batch(self, micro_batch: MicroBatch | PackedBatch) -> Batch:
        return Batch.from_micro_batch(micro_batch, self.world.device)

    def _dropout_seeds(self) -> list[int]:
        """Seeds that belong to the micro-batches of the coming step, whichever rank has them."""
        total = self.config.training.micro_batches_per_step
        count = total // self.world.size
        first = self.step * total + self.world.rank * count
        seed = self.config.training.seed
        return [
            int(np.random.SeedSequence([seed, first + i]).generate_state(1, np.uint64)[0] >> 1)
            for i in range(count)
        ]

    def _stop_here(self) -> NoReturn:
        """Saves, unless the newest checkpoint is of this step, and ends the run."""
        self.saver.finish()
        if self.step != self.saver.saved_step:
            self._save()
            self.saver.finish()
        raise Interrupted(
            f"stopped by a signal at step {self.step} of {self.config.training.max_steps}; the "
            "same command resumes"
        )

    def _costs(self) -> dict[str, float]:
        """Returns what went wrong so far, and how long saving held training up."""
        blocked, self.saver.blocked_s = self.saver.blocked_s, 0.0
        return self.recovery.metrics(self.step) | {"perf/save_wait_s": blocked}

    def _report_health(
        self, batches: StepBatches, result: StepResult | None, per_language: bool
    ) -> None:
        """Logs what `health` finds, where it is due; languages with checkpoints only."""
        metrics: dict[str, float] = {}
        if self.health.is_due(self.step) and result is not None:
            metrics |= self.health.of_step(result, self._batch(batches.micro_batches[0]))
        if self.health.is_due(self.step) or (per_language and self.health.is_on):
            metrics |= self.health.of_adapters(per_language)
        if metrics:
            self.tracker.log_metrics(metrics, self.step)

    def _validate(self, reports: Reports) -> None:
        result = validate(self.engine, self.valid, self.vocabulary, self.world, self.watchdog)
        reports.validation(result, self.step)
        checkpoint = self.config.training.checkpoint
        if not checkpoint.keep_best or not self.world.is_main:
            return
        value = result.metrics().get(checkpoint.best_metric)
        if value is None:
            log.warning(
                "step %d  validation has no %s, so this checkpoint cannot be among the best; it "
                "has %s", self.step, checkpoint.best_metric, ", ".join(result.metrics()),
            )  # fmt: skip
        else:
            layout.note_value(self.run_dir, checkpoint.best_metric, self.step, value)

    def _save(self) -> None:
        """Begins a checkpoint of this step."""
        self.progress.widths = self.mixture.widths()
        self.progress.update(self.world)
        fingerprint = preflight.experiment_fingerprint(self.config)
        info = WeightsInfo(
            self.step,
            fingerprint,
            self.vocabulary,
            self.tokenizer.fingerprint,
            stack_keys(self.config.model.adapter, self.vocabulary),
        )
        values: dict[str, str | int] = {
            "fingerprint": fingerprint,
            "world_size": self.world.size,
            "zero_stage": self.config.training.zero_stage,
            "precision": self.config.training.precision,
            "data": self.data,
        }
        self.saver.start(self.step, self.engine.state, info, self.progress, values)
        self.tracker.log_metrics(self.progress.metrics(), self.step)


def _sizes(model: Seq2Seq) -> dict[str, float]:
    """Returns parameters of the model, of its main network and of its hyper-network."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        part = part_of(name)
        counts["num_parameters"] += parameter.numel()
        if part.startswith("hyper"):
            counts["num_hyper_parameters"] += parameter.numel()
        elif part != "adapters":
            counts["num_main_parameters"] += parameter.numel()
    return {f"model/{name}": float(count) for name, count in counts.items()}


def _newest_whole_step(run_dir: Path) -> int:
    """Returns the step of the newest checkpoint that is as its manifest says, 0 without one.

    Damaged ones are set aside: training repeats the steps behind the checkpoint before them.

    Raises:
        CheckpointError: All checkpoints are damaged.
    """
    found = layout.complete_checkpoints(run_dir)
    for step, folder in reversed(found):
        try:
            layout.verify(folder)
        except layout.OtherFormatError:
            raise
        except CheckpointError as error:
            aside = layout.set_aside(folder)
            log.error("%s; it is now %s, and the checkpoint before it is used", error, aside)
        else:
            return step
    if found:
        raise CheckpointError(
            f"all {len(found)} checkpoints of {run_dir} are damaged and were renamed to *.damaged; "
            "restore one of them, or start the same command again to train from the beginning"
        )
    return 0


def _open_streams(config: RunConfig, world: World) -> tuple[TrainStream, ValidStream]:
    training, shards = config.training, shards_folder(config.data)
    train_stream = TrainStream(
        shards,
        config.data,
        micro_batch_tokens=training.micro_batch_tokens,
        micro_batches_per_step=training.micro_batches_per_step,
        seed=training.seed,
        rank=world.rank,
        world_size=world.size,
    )
    valid_stream = ValidStream(
        shards,
        config.data,
        micro_batch_tokens=training.micro_batch_tokens,
        max_sentences=training.validation.max_sentences,
        rank=world.rank,
        world_size=world.size,
    )
    return train_stream, valid_stream
