"""Decodes and scores a split of a run, or a test set brought along, direction by direction.

    RUN_DIR/evaluation/test/en-de.src.txt     the sources, one a line
                            en-de.ref.txt     the references
                            en-de.hyp.txt     the translations
                            en-de.json        what was decoded, from which weights, and how it
                                              scored; comes last
                            scores.json       all scores with their signatures; comes last of all
                            scores.some.json  the newest scores of some of the directions only

Every score stands beside the score of copying the source, the floor that names, numbers and
untranslated words give for nothing; and everything is scored again without the sentences much of
which stands in the training text (near-duplicates). What scores do not show stands in rates
(`quality.py`), beside those of the references.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch

from data_pipeline.bitext import cleaned_pairs, pair_of, read_split
from data_pipeline.progress import track
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import load_info
from hyperadapter.config import EvaluationConfig, RunConfig
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import sha256_file, write_json
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.core.schema import flat_params, load_config
from hyperadapter.evaluation.direction_files import Decoded, DirectionFiles, digest
from hyperadapter.evaluation.groups import TrainPairs, group_averages, macro_averages
from hyperadapter.evaluation.pool import (
    Chunk,
    DecodingSpec,
    TranslatedChunk,
    search_identity,
    threads_of,
    translate_all,
)
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
    result_settings,
)
from hyperadapter.evaluation.score import CorpusScorer, Scores, require_models
from hyperadapter.evaluation.test_sets import TestSet
from hyperadapter.evaluation.translate import Translator, tokenizer_folder

__all__ = ["SUBSET_FILE", "covers_all", "evaluate", "evaluate_test_set", "load_result"]

log = logging.getLogger(__name__)

SUBSET_FILE = "scores.some.json"
# Small enough that processes share a direction, large enough for batches of similar length.
_CHUNK_BATCHES = 4
# Where a model is the same although these differ.
_NO_DIFFERENCE = {"dropout", "adapter.generation", "adapter.hyper_network.dropout"}


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
        directions: Which; empty means all of the configuration that its data were made with. A
            direction that was not trained needs held-out text of its language pair.
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
    held_out = _read_held_out(config, split, chosen or _with_text(config))
    if not held_out:
        raise DataError(
            f"the {split} split in {config.data.folder}/clean is empty for every direction asked "
            f"for; raise data.split.{split}_fraction and build the data anew"
        )
    results = evaluation.results(held_out)
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
    held_out = _HeldOut(test_set.direction, test_set.src, test_set.ref, None)
    return evaluation.write([*others, *evaluation.results([held_out])], SCORES_FILE)


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


def _with_text(config: RunConfig) -> tuple[Direction, ...]:
    """Returns the directions of the configuration without those that its data never had, such as
    the ones that `hyperadapter extend` added.

    If the data have none of them, they are of something else, and all are returned: reading fails.
    """
    cleaned = cleaned_pairs(Path(config.data.folder) / "clean")
    directions = config.data.resolved_directions()
    without = dict.fromkeys(
        d for d in directions if "-".join(pair_of(d, config.data)) not in cleaned
    )
    if not without or len(without) == len(directions):
        return directions
    log.warning(
        "%s: the data were made without these directions, so they are left out; evaluate them with "
        "a test set of yours (--test-set)",
        ", ".join(map(str, without)),
    )
    return tuple(direction for direction in directions if direction not in without)


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
        self._settings = result_settings(config.evaluation)
        self._num_processes = config.evaluation.num_processes
        self._device = torch.device(device)
        self._folder = evaluation_folder(run_dir, name)
        self._judge = LanguageJudge(config.data.languages, config.evaluation.quality)
        self._train_pairs = TrainPairs(config)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.load(tokenizer_folder(self._run_dir, self._config))

    def results(self, held_out: Sequence[_HeldOut]) -> list[DirectionResult]:
        """Translates and scores directions; one is scored while processes translate the next."""
        files = [self._files(item) for item in held_out]
        size = self._settings.batch_sentences * _CHUNK_BATCHES
        work = {
            item.direction: _cut(item, size)
            for item, its in zip(held_out, files, strict=True)
            if not its.decoded
        }
        chunks = [chunk for part, _ in work.values() for chunk in part]
        load = partial(Translator.from_weights, self._path, self._run_dir, self._config)
        spec = DecodingSpec(load, self._settings, str(self._device))
        # No more than there is work for, else threads would lie idle.
        self._num_processes = min(self._num_processes, len(chunks)) or self._num_processes
        found = []
        with closing(translate_all(spec, chunks, self._num_processes)) as translated:
            done = track(translated, len(chunks), "translating")
            for item, its in zip(held_out, files, strict=True):
                if its.decoded:
                    its.save_sides(item.src, item.ref)
                else:
                    hyp, seconds = _collect(done, work[item.direction][1])
                    seconds /= self._num_processes
                    its.save(item.src, item.ref, hyp, seconds)
                    log.info(
                        "%s: %d sentences decoded in %.1f s", item.direction, len(hyp), seconds
                    )
                found.append(self._result(item, its))
        return found

    def _files(self, held_out: _HeldOut) -> DirectionFiles:
        search = search_identity(self._settings)
        search["max_sentences"] = self._settings.max_sentences
        name = str(held_out.direction)
        fingerprint = digest(self._weights, search, self._device.type, name, held_out.src)
        return DirectionFiles(self._folder, name, fingerprint)

    def _result(self, held_out: _HeldOut, files: DirectionFiles) -> DirectionResult:
        """Scores a direction, unless it was scored before."""
        direction, settings, data = held_out.direction, self._settings, self._config.data
        basis = [
            held_out.src,
            held_out.ref,
            held_out.fresh,
            settings.model_dump(
                mode="json",
                include={"metrics", "quality", "max_length_ratio", "max_length_extra"},
            ),
            data.languages,
            data.tags.encoder,
            self._info.tokenizer,
        ]
        result = files.result(basis, partial(self._score, held_out, files.translations))
        training = {
            "train_pairs": self._train_pairs.count(direction),
            "zero_shot": self._train_pairs.is_zero_shot(direction),
        }
        return result.model_copy(update=training)

    def _score(
        self, held_out: _HeldOut, translations: Callable[[], list[str]], decoded: Decoded
    ) -> DirectionResult:
        direction, src, ref, fresh = held_out
        hyp = translations()
        scorer = CorpusScorer(ref, direction.tgt, self._settings.metrics)
        model, model_fresh = _scores(scorer, hyp, fresh)
        copy, copy_fresh = _scores(scorer, src, fresh)
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
            speed=_speed(results, self._settings, self._device, self._num_processes),
        )
        write_json(self._folder / file, result.model_dump(mode="json"))
        return result


def _cut(held_out: _HeldOut, size: int) -> tuple[list[Chunk], list[int]]:
    """Cuts a direction into chunks of similar length, the longest first: the last ones are short,
    and processes end at about the same time.

    Returns:
        The chunks, and the numbers of their sentences.
    """
    src, direction = held_out.src, held_out.direction
    order = sorted(range(len(src)), key=lambda row: len(src[row]), reverse=True)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [Chunk(*direction, [src[row] for row in part]) for part in parts], order


def _collect(
    translated: Iterator[TranslatedChunk], order: Sequence[int]
) -> tuple[list[str], float]:
    """Takes as many chunks as a direction has, and puts its translations in order."""
    found: list[str] = [""] * len(order)
    done, seconds = 0, 0.0
    while done < len(order):
        chunk = next(translated)
        for row, hypotheses in zip(order[done:], chunk.translations, strict=False):
            found[row] = hypotheses[0].text
        done += len(chunk.translations)
        seconds += chunk.seconds
    return found, seconds


def _scores(
    scorer: CorpusScorer, lines: Sequence[str], fresh: list[int] | None
) -> tuple[Scores, Scores | None]:
    """Scores all lines, and those that are no near-duplicates."""
    whole, *part = scorer.scores(lines, [fresh] if fresh else [])
    return whole, part[0] if part else None


def _speed(
    results: Sequence[DirectionResult],
    settings: EvaluationConfig,
    device: torch.device,
    num_processes: int,
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
        threads=threads_of(num_processes),
        world_size=num_processes,
    )
