"""Decodes and scores a split of a run, or a test set brought along, direction by direction.

    RUN_DIR/evaluation/test/en-de.src.txt     the sources, one a line
                            en-de.ref.txt     the references
                            en-de.hyp.txt     the translations
                            en-de.json        what was decoded, from which weights; comes last
                            scores.json       all scores with their signatures; comes last of all
                            scores.some.json  the newest scores of some of the directions only

Every score stands beside the score of copying the source, the floor that names, numbers and
untranslated words give for nothing; and everything is scored again without the sentences much of
which stands in the training text (near-duplicates). What scores do not show stands in rates
(`quality.py`), beside those of the references.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from data_pipeline.bitext import pair_of, read_split
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import load_info
from hyperadapter.config import EvaluationConfig, RunConfig
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import read_json, sha256_file, write_json, write_text
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.core.schema import StrictModel, flat_params, load_config, parse_config
from hyperadapter.evaluation.groups import TrainPairs, group_averages, macro_averages
from hyperadapter.evaluation.quality import LanguageJudge, judge_translations
from hyperadapter.evaluation.results import (
    SCORES_FILE,
    DecodingSpeed,
    DirectionResult,
    EvaluationResult,
    HeldOutSplit,
    evaluation_folder,
    load_result,
    read_lines,
)
from hyperadapter.evaluation.score import Scores, require_models, score_corpus
from hyperadapter.evaluation.test_sets import TestSet
from hyperadapter.evaluation.translate import Translator, tokenizer_folder

__all__ = ["SUBSET_FILE", "covers_all", "evaluate", "evaluate_test_set", "load_result"]

log = logging.getLogger(__name__)

SUBSET_FILE = "scores.some.json"
# What translations depend on; new metrics do not ask for new translations.
_SEARCH_FIELDS = {
    "beam_size",
    "length_penalty",
    "max_length_ratio",
    "max_length_extra",
    "batch_sentences",
    "max_sentences",
}


# Where a model is the same although these differ.
_NO_DIFFERENCE = {"dropout", "adapter.generation", "adapter.hyper_network.dropout"}


class _Decoded(StrictModel):
    """What `<direction>.json` holds: the manifest of the three text files."""

    fingerprint: str
    sentences: int
    decoding_s: float
    hyp_sha256: str


class _HeldOut(NamedTuple):
    """The sentences of one direction that are translated.

    Attributes:
        direction: From `src` to `ref`.
        src: Sources.
        ref: References.
        fresh: Which are no near-duplicates of training text; None if nobody knows.
    """

    direction: Direction
    src: list[str]
    ref: list[str]
    fresh: list[int] | None


def evaluate(
    run_dir: Path,
    config: RunConfig,
    split: HeldOutSplit = "test",
    directions: Sequence[str] = (),
    device: torch.device | str = "cpu",
    checkpoint: str = "newest",
) -> EvaluationResult:
    """Translates and scores a split with a checkpoint of a run.

    A direction that was decoded with the same weights and settings is not decoded again, so an
    interrupted evaluation goes on where it stopped. Where directions of the configuration are left
    out, `scores.json` stays as it is, and the scores go to `scores.some.json`.

    Args:
        run_dir: The run folder.
        config: The run's configuration, perhaps with another evaluation group.
        split: `test` or `valid`.
        directions: Which; empty means all of the configuration. A direction that was not trained
            needs held-out text of its language pair.
        device: Where the model goes.
        checkpoint: Which weights, see `layout.choose_weights`.

    Raises:
        CheckpointError: There is no complete checkpoint, or it does not fit the configuration.
        ConfigError: A direction's language is not among data.languages, or a metric's model is
            missing.
        DataError: A direction has no held-out file, or all of them are empty.
    """
    evaluation = _Evaluation(run_dir, config, split, device, checkpoint)
    chosen = tuple(map(parse_direction, dict.fromkeys(directions)))
    everything = config.data.resolved_directions()
    results = [
        evaluation.direction(held_out)
        for held_out in _read_held_out(config, split, chosen or everything)
    ]
    if not results:
        raise DataError(
            f"the {split} split in {config.data.folder}/clean is empty for every direction asked "
            f"for; raise data.split.{split}_fraction and build the data anew"
        )
    return evaluation.write(results, SCORES_FILE if covers_all(config, directions) else SUBSET_FILE)


def covers_all(config: RunConfig, directions: Sequence[str]) -> bool:
    """Says whether no direction of the configuration is left out; none named are all of them."""
    return not directions or {str(d) for d in config.data.resolved_directions()} <= set(directions)


def evaluate_test_set(
    run_dir: Path,
    config: RunConfig,
    test_set: TestSet,
    device: torch.device | str = "cpu",
    checkpoint: str = "newest",
) -> EvaluationResult:
    """Translates and scores a test set that was brought along, all of its sentences.

    Its scores are added to those that other directions have under its name, as far as they are of
    the same weights and settings.

    Args:
        run_dir: The run folder.
        config: The run's configuration, perhaps with another evaluation group.
        test_set: What to translate.
        device: Where the model goes.
        checkpoint: Which weights, see `layout.choose_weights`.

    Raises:
        CheckpointError: There is no complete checkpoint, or it does not fit the configuration.
        ConfigError: A language is not among data.languages, or a metric's model is missing.
    """
    _require_languages(test_set.direction, config)
    evaluation = _Evaluation(run_dir, config, test_set.name, device, checkpoint)
    others = evaluation.earlier(test_set)
    new = evaluation.direction(_HeldOut(test_set.direction, test_set.src, test_set.ref, None))
    return evaluation.write([*others, new], SCORES_FILE)


def _require_same(run_dir: Path, config: RunConfig) -> None:
    """Checks that a configuration describes the model of a run folder.

    Raises:
        ConfigError: A value that decides what the model does differs; the message names it.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        return  # weights that were brought along
    trained = load_config(RunConfig, path)
    parts = {
        "model": (trained.model, config.model),
        "data.tags": (trained.data.tags, config.data.tags),
    }
    for group, (there, given) in parts.items():
        before, now = flat_params(there), flat_params(given)
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key) and key not in _NO_DIFFERENCE:
                raise ConfigError(
                    f"{group}.{key} is {now.get(key)!r}, but {run_dir} was trained with "
                    f"{before.get(key)!r}; evaluate with --config {path}"
                )


def _read_held_out(
    config: RunConfig, split: HeldOutSplit, directions: Sequence[Direction]
) -> list[_HeldOut]:
    clean = Path(config.data.folder) / "clean"
    found = []
    for direction in directions:
        _require_languages(direction, config)
        pair = pair_of(direction, config.data)
        text = read_split(clean, split, pair)
        if len(text) == 0:
            log.warning("%s has no %s sentences and is left out of the averages", direction, split)
            continue
        rows = _sample(text.a, config.evaluation.max_sentences)
        sides = (text.a, text.b) if direction.src == pair[0] else (text.b, text.a)
        src, ref = ([side[row] for row in rows] for side in sides)
        fresh = [index for index, row in enumerate(rows) if not text.near_duplicate[row]]
        found.append(_HeldOut(direction, src, ref, fresh))
    return found


def _require_languages(direction: Direction, config: RunConfig) -> None:
    for code in direction:
        if code not in config.data.languages:
            raise ConfigError(
                f"{direction} cannot be evaluated: {code!r} is not among data.languages "
                f"({', '.join(config.data.languages)})"
            )


def _sample(texts: Sequence[str], limit: int) -> list[int]:
    """Chooses up to `limit` rows by a hash of their text, so that pairs with the same pivot text
    are tested on the same sentences."""
    if len(texts) <= limit:
        return list(range(len(texts)))
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return sorted(sorted(range(len(texts)), key=lambda row: (digests[row], row))[:limit])


class _Evaluation:
    """One checkpoint of a run, and the folder that its translations and scores go to.

    Args:
        run_dir: The run folder.
        config: The run's configuration.
        name: Of the split or the test set.
        device: Where the model goes, once there is something to translate.
        checkpoint: Which weights.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        name: str,
        device: torch.device | str,
        checkpoint: str,
    ) -> None:
        require_models(config.evaluation.metrics)
        _require_same(run_dir, config)
        self._path = choose_weights(run_dir, checkpoint, config.training.checkpoint)
        self._info, self._weights = load_info(self._path), sha256_file(self._path)
        self._run_dir, self._config, self._name = run_dir, config, name
        self._settings = config.evaluation
        self._device = torch.device(device)
        self._folder = evaluation_folder(run_dir, name)
        self._judge = LanguageJudge(config.data.languages, config.evaluation.quality)
        self._train_pairs = TrainPairs(config)

    @cached_property
    def _translator(self) -> Translator:
        return Translator.from_weights(self._path, self._run_dir, self._config, self._device)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(tokenizer_folder(self._run_dir, self._config))

    def direction(self, held_out: _HeldOut) -> DirectionResult:
        """Translates and scores one direction."""
        direction, src, ref, fresh = held_out
        decoded = self._decode(held_out)
        hyp = read_lines(self._folder / f"{direction}.hyp.txt")
        model, model_fresh = self._scores(hyp, held_out)
        copy, copy_fresh = self._scores(src, held_out)
        quality, quality_references = (
            judge_translations(
                src, texts, direction.tgt, self._judge, self._tokenizer, self._config
            )
            for texts in (hyp, ref)
        )
        return DirectionResult(
            direction=str(direction),
            sentences=len(hyp),
            near_duplicates=None if fresh is None else len(hyp) - len(fresh),
            decoding_s=decoded.decoding_s,
            model=model,
            copy_source=copy,
            model_no_near_duplicates=model_fresh,
            copy_source_no_near_duplicates=copy_fresh,
            quality=quality,
            quality_references=quality_references,
            train_pairs=self._train_pairs.count(direction),
            zero_shot=self._train_pairs.is_zero_shot(direction),
            hyp_sha256=decoded.hyp_sha256,
        )

    def earlier(self, test_set: TestSet) -> list[DirectionResult]:
        """Returns the results of other directions of a test set.

        Those of other weights, settings or devices are put aside.

        Raises:
            DataError: The name is that of another test set.
        """
        src = self._folder / f"{test_set.direction}.src.txt"
        if src.exists() and read_lines(src) != test_set.src:
            raise DataError(
                f"{src} holds other sources: {test_set.name} is the name of another test set of "
                f"{test_set.direction}; give this one its own with --name, or delete {self._folder}"
            )
        if not (self._folder / SCORES_FILE).is_file():
            return []
        result = load_result(self._run_dir, self._name)
        same = result.weights_sha256 == self._weights and result.settings == self._settings
        if not same or result.speed.device != self._device.type:
            kept = self._folder / f"scores.{sha256_file(self._folder / SCORES_FILE)[:8]}.json"
            (self._folder / SCORES_FILE).replace(kept)
            log.warning(
                "the scores of %s in %s are of other weights, settings or devices (step %d): they "
                "are in %s now",
                ", ".join(item.direction for item in result.directions),
                *(self._folder, result.step, kept.name),
            )
            return []
        return [d for d in result.directions if d.direction != str(test_set.direction)]

    def write(self, results: Sequence[DirectionResult], file: str) -> EvaluationResult:
        """Writes the scores with their averages."""
        pivot = self._config.data.pivot
        result = EvaluationResult(
            split=self._name,
            step=self._info.step,
            fingerprint=self._info.fingerprint,
            weights_sha256=self._weights,
            pivot=pivot,
            settings=self._settings,
            directions=tuple(results),
            macro=macro_averages(results, pivot),
            groups=group_averages(results, pivot, self._settings.groups),
            unknown_languages=self._judge.unknown,
            speed=_speed(results, self._settings, self._device),
        )
        write_json(self._folder / file, result.model_dump(mode="json"))
        return result

    def _decode(self, held_out: _HeldOut) -> _Decoded:
        """Makes the files of one direction, unless they are there already."""
        name, folder = str(held_out.direction), self._folder
        search = self._settings.model_dump(mode="json", include=_SEARCH_FIELDS)
        identity = [self._weights, search, self._device.type, name, held_out.src]
        fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        manifest, hyp = folder / f"{name}.json", folder / f"{name}.hyp.txt"
        if manifest.is_file() and hyp.is_file():
            try:
                decoded = parse_config(_Decoded, read_json(manifest), str(manifest))
            except (ConfigError, DataError) as error:
                log.warning("%s is decoded again: %s", name, error)
            else:
                if decoded.fingerprint == fingerprint and decoded.hyp_sha256 == sha256_file(hyp):
                    log.info("%s was decoded before with the same weights and settings", name)
                    # Sources may have been lost, references changed without them.
                    _write_lines(folder / f"{name}.src.txt", held_out.src)
                    _write_lines(folder / f"{name}.ref.txt", held_out.ref)
                    return decoded
        started = time.perf_counter()
        translations = self._translator.translate(held_out.src, *held_out.direction)
        decoding_s = time.perf_counter() - started
        _write_lines(folder / f"{name}.src.txt", held_out.src)
        _write_lines(folder / f"{name}.ref.txt", held_out.ref)
        _write_lines(hyp, translations)
        decoded = _Decoded(
            fingerprint=fingerprint,
            sentences=len(translations),
            decoding_s=decoding_s,
            hyp_sha256=sha256_file(hyp),
        )
        write_json(manifest, decoded.model_dump())
        log.info("%s: %d sentences decoded in %.1f s", name, len(translations), decoding_s)
        return decoded

    def _scores(self, lines: Sequence[str], held_out: _HeldOut) -> tuple[Scores, Scores | None]:
        """Scores all lines, and those that are no near-duplicates."""
        tgt, fresh, metrics = held_out.direction.tgt, held_out.fresh, self._settings.metrics
        whole = score_corpus(lines, held_out.ref, tgt, metrics)
        if not fresh:
            return whole, None
        if len(fresh) == len(lines):
            return whole, whole
        few = [lines[i] for i in fresh], [held_out.ref[i] for i in fresh]
        return whole, score_corpus(*few, tgt, metrics)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


def _speed(
    results: Sequence[DirectionResult], settings: EvaluationConfig, device: torch.device
) -> DecodingSpeed:
    sentences = sum(result.sentences for result in results)
    seconds = sum(result.decoding_s for result in results)
    return DecodingSpeed(
        sentences=sentences,
        seconds=seconds,
        sentences_per_s=sentences / max(seconds, 1e-9),
        batch_sentences=settings.batch_sentences,
        beam_size=settings.beam_size,
        device=device.type,
        threads=torch.get_num_threads(),
    )
