"""Decodes and scores the test split of a run, direction by direction.

    RUN_DIR/evaluation/test/en-de.src.txt     the sources, one a line
                            en-de.ref.txt     the references
                            en-de.hyp.txt     the translations
                            en-de.json        what was decoded, from which weights; comes last
                            scores.json       all scores with their signatures; comes last of all

Every score stands beside the score of copying the source, the floor that names, numbers and
untranslated words give for nothing; and everything is scored again without the sentences much of
which stands in the training text (near-duplicates).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from data_pipeline.bitext import SplitText, pair_of, read_split
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import load_info
from hyperadapter.config import EvaluationConfig, RunConfig
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import read_json, sha256_file, write_json, write_text
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.core.schema import StrictModel, parse_config
from hyperadapter.evaluation.score import METRIC_NAMES, METRICS, Scores, score_corpus
from hyperadapter.evaluation.translate import Translator

__all__ = [
    "DecodingSpeed",
    "DirectionResult",
    "EvaluationResult",
    "HeldOutSplit",
    "evaluate",
    "load_result",
    "macro_averages",
    "signature_lines",
    "table_rows",
]

log = logging.getLogger(__name__)

HeldOutSplit: TypeAlias = Literal["valid", "test"]
_SCORES_FILE = "scores.json"


class DirectionResult(StrictModel):
    """Scores of one direction.

    Attributes:
        direction: Such as `en-de`.
        sentences: How many were translated.
        near_duplicates: How many of them are near-duplicates of training text.
        decoding_s: Seconds that translating took.
        model: Scores of the translations.
        copy_source: Scores of the sources, as if they were translations.
        model_no_near_duplicates: The same without near-duplicates; None if nothing else is there.
        copy_source_no_near_duplicates: The same without near-duplicates.
    """

    direction: str
    sentences: int
    near_duplicates: int
    decoding_s: float
    model: Scores
    copy_source: Scores
    model_no_near_duplicates: Scores | None
    copy_source_no_near_duplicates: Scores | None


class DecodingSpeed(StrictModel):
    """How fast the translations were made, and with what.

    Attributes:
        sentences: Sentences translated.
        seconds: Time it took, tokenizer included.
        sentences_per_s: The one over the other.
        batch_sentences: Sentences decoded together.
        beam_size: Hypotheses kept.
        device: `cpu` or `cuda`.
        threads: Of torch.
        world_size: Processes that shared the work: one.
    """

    sentences: int
    seconds: float
    sentences_per_s: float
    batch_sentences: int
    beam_size: int
    device: str
    threads: int
    world_size: Literal[1] = 1


class EvaluationResult(StrictModel):
    """Everything that `scores.json` holds.

    Attributes:
        split: `test` or `valid`.
        step: Optimizer steps of the checkpoint.
        fingerprint: Of the configuration that trained it.
        weights_sha256: Checksum of its weights.
        pivot: Language of the macro averages' names.
        settings: How it was decoded.
        directions: Scores of every direction.
        macro: Averages over directions, see `macro_averages`.
        speed: Of decoding.
    """

    split: HeldOutSplit
    step: int
    fingerprint: str
    weights_sha256: str
    pivot: str
    settings: EvaluationConfig
    directions: tuple[DirectionResult, ...]
    macro: dict[str, float]
    speed: DecodingSpeed


class _Decoded(StrictModel):
    """What `<direction>.json` holds: the manifest of the three text files."""

    fingerprint: str
    sentences: int
    decoding_s: float
    hyp_sha256: str


class _HeldOut:
    """The sentences of one direction that are translated."""

    def __init__(self, direction: Direction, text: SplitText, first: str, limit: int) -> None:
        self.direction = direction
        rows = _sample(text.a, limit)
        forward = direction.src == first
        src, ref = (text.a, text.b) if forward else (text.b, text.a)
        self.src = [src[row] for row in rows]
        self.ref = [ref[row] for row in rows]
        self.fresh = [index for index, row in enumerate(rows) if not text.near_duplicate[row]]


def _sample(texts: Sequence[str], limit: int) -> list[int]:
    """Chooses up to `limit` rows by a hash of their text, so that pairs with the same pivot text
    are tested on the same sentences."""
    if len(texts) <= limit:
        return list(range(len(texts)))
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
    return sorted(sorted(range(len(texts)), key=lambda row: (digests[row], row))[:limit])


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
    interrupted evaluation goes on where it stopped.

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
        ConfigError: A direction's language is not among data.languages.
        DataError: A direction has no held-out file, or all of them are empty.
    """
    path = choose_weights(run_dir, checkpoint, config.training.checkpoint)
    info, weights = load_info(path), sha256_file(path)
    folder = run_dir / "evaluation" / split
    translator: Translator | None = None

    def translate(texts: Sequence[str], direction: Direction) -> list[str]:
        nonlocal translator
        if translator is None:
            translator = Translator.from_weights(path, run_dir, config, device)
        return translator.translate(texts, direction.src, direction.tgt)

    identity = [weights, config.evaluation.model_dump(mode="json"), torch.device(device).type]
    results = []
    for held_out in _read_held_out(config, split, directions):
        decoded = _decode(folder, held_out, identity, translate)
        results.append(_score(folder, held_out, decoded))
    if not results:
        raise DataError(
            f"the {split} split in {config.data.folder}/clean is empty for every direction asked "
            f"for; raise data.split.{split}_fraction and build the data anew"
        )
    result = EvaluationResult(
        split=split,
        step=info.step,
        fingerprint=info.fingerprint,
        weights_sha256=weights,
        pivot=config.data.pivot,
        settings=config.evaluation,
        directions=tuple(results),
        macro=macro_averages(results, config.data.pivot),
        speed=_speed(results, config.evaluation, torch.device(device)),
    )
    write_json(folder / _SCORES_FILE, result.model_dump(mode="json"))
    return result


def load_result(run_dir: Path, split: HeldOutSplit = "test") -> EvaluationResult:
    """Reads what `evaluate` wrote.

    Raises:
        DataError: The run has not been evaluated, or the file is damaged.
    """
    path = run_dir / "evaluation" / split / _SCORES_FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist; run `hyperadapter evaluate` on this run first")
    try:
        return parse_config(EvaluationResult, read_json(path), str(path))
    except ConfigError as error:
        raise DataError(f"{error}; delete the file and evaluate the run again") from error


def _read_held_out(
    config: RunConfig, split: HeldOutSplit, directions: Sequence[str]
) -> list[_HeldOut]:
    data = config.data
    chosen = tuple(map(parse_direction, directions)) or data.resolved_directions()
    clean = Path(data.folder) / "clean"
    found = []
    for direction in chosen:
        for code in direction:
            if code not in data.languages:
                raise ConfigError(
                    f"{direction} cannot be evaluated: {code!r} is not among data.languages "
                    f"({', '.join(data.languages)})"
                )
        pair = pair_of(direction, data)
        text = read_split(clean, split, pair)
        if len(text) == 0:
            log.warning("%s has no %s sentences and is left out of the averages", direction, split)
            continue
        found.append(_HeldOut(direction, text, pair[0], config.evaluation.max_sentences))
    return found


def _decode(
    folder: Path,
    held_out: _HeldOut,
    identity: Sequence[object],
    translate: Callable[[Sequence[str], Direction], list[str]],
) -> _Decoded:
    """Makes the files of one direction, unless they are there already."""
    name = str(held_out.direction)
    inputs = json.dumps([*identity, name, held_out.src], sort_keys=True)
    fingerprint = hashlib.sha256(inputs.encode()).hexdigest()
    manifest, hyp = folder / f"{name}.json", folder / f"{name}.hyp.txt"
    if manifest.is_file() and hyp.is_file():
        try:
            decoded = parse_config(_Decoded, read_json(manifest), str(manifest))
        except (ConfigError, DataError) as error:
            log.warning("%s is decoded again: %s", name, error)
        else:
            if decoded.fingerprint == fingerprint and decoded.hyp_sha256 == sha256_file(hyp):
                log.info("%s was decoded before with the same weights and settings", name)
                # References may have changed without the sources.
                _write_lines(folder / f"{name}.ref.txt", held_out.ref)
                return decoded
    started = time.perf_counter()
    translations = translate(held_out.src, held_out.direction)
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


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))


def _score(folder: Path, held_out: _HeldOut, decoded: _Decoded) -> DirectionResult:
    text = (folder / f"{held_out.direction}.hyp.txt").read_text(encoding="utf-8")
    hyp, fresh, tgt = text.split("\n")[:-1], held_out.fresh, held_out.direction.tgt

    def scores(lines: Sequence[str]) -> tuple[Scores, Scores | None]:
        """Over all lines, and over those that are no near-duplicates."""
        whole = score_corpus(lines, held_out.ref, tgt)
        if len(fresh) == len(lines) or not fresh:
            return whole, whole if fresh else None
        few = [lines[i] for i in fresh], [held_out.ref[i] for i in fresh]
        return whole, score_corpus(*few, tgt)

    model, model_fresh = scores(hyp)
    copy, copy_fresh = scores(held_out.src)
    return DirectionResult(
        direction=str(held_out.direction),
        sentences=len(hyp),
        near_duplicates=len(hyp) - len(fresh),
        decoding_s=decoded.decoding_s,
        model=model,
        copy_source=copy,
        model_no_near_duplicates=model_fresh,
        copy_source_no_near_duplicates=copy_fresh,
    )


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


def _groups(results: Sequence[DirectionResult], pivot: str) -> dict[str, list[DirectionResult]]:
    """Sorts directions into those into the pivot, out of it, and the rest; no group is empty."""
    groups: dict[str, list[DirectionResult]] = {}
    for result in results:
        direction = parse_direction(result.direction)
        kind = (
            "into" if direction.tgt == pivot else "out_of" if direction.src == pivot else "without"
        )
        groups.setdefault(f"{kind}_{pivot}", []).append(result)
    return groups


def macro_averages(results: Sequence[DirectionResult], pivot: str) -> dict[str, float]:
    """Averages scores over directions, each direction counting the same.

    Keys are `macro_<metric>_<group>[_copy][_no_near_duplicates]`, where the metric is `bleu`,
    `chrf` (sacreBLEU's chrF2) or `chrfpp`, the group `into_en`, `out_of_en` or, for directions that
    do not touch the pivot, `without_en`, and `_copy` means copying the source. An average of BLEU
    mixes tokenizers when the target languages do. A direction with nothing but near-duplicates
    does not count in `_no_near_duplicates`.
    """
    macro: dict[str, float] = {}
    for group, members in _groups(results, pivot).items():
        for suffix, scores in (
            ("", [r.model for r in members]),
            ("_copy", [r.copy_source for r in members]),
            ("_no_near_duplicates", [r.model_no_near_duplicates for r in members]),
            ("_copy_no_near_duplicates", [r.copy_source_no_near_duplicates for r in members]),
        ):
            present = [score for score in scores if score is not None]
            for metric in METRICS if present else ():
                values = [score.value(metric) for score in present]
                macro[f"macro_{metric}_{group}{suffix}"] = sum(values) / len(values)
    return macro


def table_rows(result: EvaluationResult) -> list[dict[str, str | int | float | None]]:
    """Writes the result as rows of cells under their headings: directions, then averages.

    `copy` is the score of copying the source, `new` leaves near-duplicates of training text out.
    chrF++ is in the file only, to keep the table as narrow as a terminal. Show `signature_lines`
    beside it.
    """
    rows: list[dict[str, str | int | float | None]] = []
    for item in result.directions:
        new, new_copy = item.model_no_near_duplicates, item.copy_source_no_near_duplicates
        rows.append(
            {
                "direction": item.direction,
                "n": item.sentences,
                "BLEU": item.model.bleu.value,
                "BLEU copy": item.copy_source.bleu.value,
                "chrF": item.model.chrf.value,
                "chrF copy": item.copy_source.chrf.value,
                "new n": item.sentences - item.near_duplicates,
                "new chrF": new.chrf.value if new else None,
                "new copy": new_copy.chrf.value if new_copy else None,
            }
        )
    for group, members in _groups(result.directions, result.pivot).items():
        macro = result.macro
        rows.append(
            {
                "direction": f"mean {group.replace('_', ' ')}",
                "n": sum(item.sentences for item in members),
                "BLEU": macro[f"macro_bleu_{group}"],
                "BLEU copy": macro[f"macro_bleu_{group}_copy"],
                "chrF": macro[f"macro_chrf_{group}"],
                "chrF copy": macro[f"macro_chrf_{group}_copy"],
                "new n": sum(item.sentences - item.near_duplicates for item in members),
                "new chrF": macro.get(f"macro_chrf_{group}_no_near_duplicates"),
                "new copy": macro.get(f"macro_chrf_{group}_copy_no_near_duplicates"),
            }
        )
    return rows


def signature_lines(result: EvaluationResult) -> list[str]:
    """Writes which signature holds for which directions, and how fast decoding was."""
    users: dict[tuple[str, str], list[str]] = {}
    for item in result.directions:
        for score in item.model.all():
            key = METRIC_NAMES[score.metric], score.signature
            users.setdefault(key, []).append(item.direction)
    everyone = len(result.directions)
    lines = [
        f"{name}: {signature}" + ("" if len(who) == everyone else f" for {', '.join(who)}")
        for (name, signature), who in users.items()
    ]
    speed = result.speed
    lines.append(
        f"decoded {speed.sentences_per_s:.1f} sentences/s on {speed.world_size} {speed.device} "
        f"process with {speed.threads} threads, beam {speed.beam_size}, batches of "
        f"{speed.batch_sentences} sentences"
    )
    return lines
