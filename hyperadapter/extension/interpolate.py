"""Of which known languages a language is a mixture, and how well the mixture translates it.

An unseen language brings sentence pairs. A language of the run is left out: its text is translated
with a mixture of the others' rows in place of its own, which are the ceiling. `mixture.py` says
what is learnt, `interpolate_report.py` what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipeline.progress import track
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.analysis.distances import read_distances
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.schema import load_config
from hyperadapter.evaluation.score import Metric, Scores
from hyperadapter.evaluation.translate import Translator, tokenizer_folder
from hyperadapter.extension.interpolate_report import write_report
from hyperadapter.extension.mixture import (
    Mixture,
    distance_weights,
    effective_number,
    learn_weights,
)
from hyperadapter.extension.rows import Rows
from hyperadapter.extension.subjects import (
    Subject,
    Text,
    Unseen,
    batches_by_direction,
    left_out_subjects,
    read_text,
    unseen_subject,
)
from hyperadapter.extension.text import Pairs, measure_coverage, score_pairs
from hyperadapter.model.batch import Batch

__all__ = ["InterpolateOptions", "analyse_interpolate"]

log = logging.getLogger(__name__)

_SCORES: tuple[Metric, ...] = ("bleu", "chrfpp")


class InterpolateOptions(NamedTuple):
    """What is mixed, and on how much text.

    Attributes:
        unseen: None: languages of the run are left out, one at a time.
        languages: Which are left out; empty: all that have text.
        sentences: To learn from, at most.
        distances_file: Distances that give weights without learning, see `read_distances`.
        bleu: Whether to translate as well.
        checkpoint: Which weights, see `layout.choose_weights`.
        seed: Of the choice of sentences and of the order of batches.
    """

    unseen: Unseen | None = None
    languages: tuple[str, ...] = ()
    sentences: int = 100
    distances_file: Path | None = None
    bleu: bool = False
    checkpoint: str = "newest"
    seed: int = 1


def analyse_interpolate(run_dir: Path, options: InterpolateOptions) -> dict[str, Any]:
    """Learns mixtures, measures them, and writes report, figure and metrics.

    Args:
        run_dir: The run folder.
        options: What to mix.

    Returns:
        What `report.json` holds.

    Raises:
        CheckpointError: There is no such checkpoint, or the tokenizer is not its own.
        ConfigError: The run's adapters do not belong to languages.
        DataError: There is no text, or too little.
        LanguageError: The language is known though it should not be, or the other way round.
    """
    unseen = options.unseen
    subjects = (
        left_out_subjects(run_dir, options.languages, options.checkpoint)
        if unseen is None
        else [unseen_subject(run_dir, unseen, options.checkpoint)]
    )
    config = load_config(RunConfig, run_dir / "config.yaml")
    config = config.model_copy(update={"run_dir": str(run_dir)})
    tokenizer = Tokenizer.load(tokenizer_folder(run_dir, config))
    Translator(subjects[0].loaded, tokenizer, subjects[0].config)  # or it is not the model's
    found: dict[str, Any] = {}
    for subject in track(subjects, len(subjects), "mixing languages"):
        try:
            text = read_text(subject, unseen, options.sentences, options.seed)
        except DataError as error:
            if unseen is not None or options.languages:
                raise
            log.warning("%s is not left out: %s", subject.new.code, error)
            continue
        found[subject.new.code] = _measure(subject, text, tokenizer, options)
    if not found:
        raise DataError(
            f"no language of this run has enough validation and test text in {config.data.folder}"
            "/clean; raise the fractions of data.split and build the data anew"
        )
    info = subjects[0].loaded.info
    report: dict[str, Any] = {
        "run": config.name,
        "step": info.step,
        "fingerprint": info.fingerprint,
        "adapter_kind": config.model.adapter.kind,
        "mixed": "leave_one_out" if unseen is None else unseen.code,
        "pivot": subjects[0].new.pivot,
        "sentences": options.sentences,
        "seed": options.seed,
        "distances_file": None if options.distances_file is None else str(options.distances_file),
        "languages": found,
    }
    write_report(config, report, subjects[0].loaded.model)
    return report


def _measure(
    subject: Subject, text: Text, tokenizer: Tokenizer, options: InterpolateOptions
) -> dict[str, Any]:
    """Learns the mixture of one language, and measures it beside others."""
    others = subject.others
    mixture = Mixture(subject.loaded.model, subject.new.code, others)
    device = mixture.model.embedding.weight.device
    learn, stop, test = (batches_by_direction(subject, tokenizer, pairs) for pairs in text[:3])
    alone = torch.eye(len(others))
    seen = _all(learn) + _all(stop)
    losses = [mixture.mean_loss(seen, mixture.mix(weights)) for weights in alone.to(device)]
    best = int(np.argmin(losses))
    learnt = learn_weights(mixture, _all(learn), _all(stop), options.seed)
    weights = {
        "best": alone[best],
        "uniform": torch.full_like(alone[0], 1 / len(others)),
        "learnt": learnt.weights,
    }
    if (by_distance := _distance_weights(subject, options.distances_file)) is not None:
        weights["distances"] = by_distance
    rows = {name: mixture.mix(found.to(device)) for name, found in weights.items()}
    if subject.is_known:
        rows["own"] = mixture.rows()
    report: dict[str, Any] = {
        "directions": list(map(str, subject.directions)),
        "pairs": {
            "learn": len(text.learn.pivot),
            "stop": len(text.stop.pivot),
            "test": len(text.test.pivot),
        },
        "tested_on": text.test_name,
        "best_relative": others[best],
        "weights": {
            name: dict(zip(others, found.tolist(), strict=True))
            for name, found in weights.items()
            if name not in ("best", "uniform")
        },
        "effective_number": effective_number(learnt.weights),
        "loss_alone": dict(zip(others, losses, strict=True)),
        "passes": [item._asdict() for item in learnt.passes],
        "loss_nats_per_token": {
            name: _losses(mixture, test, found) for name, found in rows.items()
        },
    }
    if not subject.is_known:
        report["coverage"] = measure_coverage(tokenizer, text.learn)._asdict()
    if options.bleu:
        scores = {}
        for name, found in rows.items():
            with mixture.replaced(found):
                scores[name] = _score(subject, tokenizer, text.test)
        report |= _scores_report(scores)
    return report


def _all(batches: Mapping[str, Sequence[Batch]]) -> list[Batch]:
    return [batch for found in batches.values() for batch in found]


def _distance_weights(subject: Subject, path: Path | None) -> Tensor | None:
    """Returns weights from given distances; None where there are none of a known language."""
    if path is None:
        return None
    code = subject.new.code
    given = read_distances(path, (code, *subject.others))
    if code in given.languages:
        return distance_weights(given, code, subject.others)
    if subject.is_known:
        return None
    raise DataError(
        f"--distances {path} has no {code}, whose distances to the run's languages are needed; add "
        "its row and its column"
    )


def _losses(
    mixture: Mixture, batches: Mapping[str, Sequence[Batch]], rows: Rows
) -> dict[str, float]:
    """Returns the loss of each direction, and that of all their tokens."""
    losses = {direction: mixture.mean_loss(found, rows) for direction, found in batches.items()}
    tokens = [sum(batch.target_K.numel() for batch in found) for found in batches.values()]
    all_of_them = np.average(list(losses.values()), weights=tokens)
    return {**losses, "all": float(all_of_them)}


def _score(subject: Subject, tokenizer: Tokenizer, pairs: Pairs) -> dict[str, Scores]:
    # A translator keeps the adapters of directions, so every mixture needs its own.
    translator = Translator(subject.loaded, tokenizer, subject.config)
    return {
        str(direction): score_pairs(translator, pairs, subject.new, direction)
        for direction in subject.directions
    }


def _scores_report(scores: Mapping[str, Mapping[str, Scores]]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for metric in _SCORES:
        report[metric] = {
            name: {direction: item.value(metric) for direction, item in found.items()}
            for name, found in scores.items()
        }
        signatures = {
            s.score(metric).signature for found in scores.values() for s in found.values()
        }
        report[f"{metric}_signatures"] = sorted(signatures)
    return report
