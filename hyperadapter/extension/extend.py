"""A run that knows one language more: its rows fitted to a few pairs, all else as it was.

    OUT/config.yaml             the trained run's, with the language
        tokenizer/              the trained run's
        checkpoints/step-*/     weights, without the optimizer's state
        extension.json          relatives, coverage, losses and scores before and after
        extension.png           held-out loss after each pass, beside the relatives'

The result translates, is evaluated and exported as any run. It cannot be resumed, because nothing
but the weights exists; another run may start from it (`training.start_from`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from data_pipeline.tokenizer import Tokenizer
from hyperadapter.analysis.distances import read_distances
from hyperadapter.checkpoint import layout
from hyperadapter.checkpoint.weights import LoadedModel, load_weights, save_weights
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError, DataError, LanguageError, nearest
from hyperadapter.core.files import atomic_directory, require_space, write_json, write_text
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config, to_yaml
from hyperadapter.evaluation.translate import Translator, choose_device, tokenizer_folder
from hyperadapter.extension.fitting import FitOptions, FitReport, fit, require_something
from hyperadapter.extension.mixture import Mixture, learn_weights
from hyperadapter.extension.model import ExtendedModel, NewLanguage, extend_config
from hyperadapter.extension.plots import plot_extension
from hyperadapter.extension.relatives import rank_by_loss
from hyperadapter.extension.rows import Rows
from hyperadapter.extension.text import (
    EncodedText,
    Pairs,
    encode,
    make_batches,
    measure_coverage,
    read_new_text,
    sample_pairs,
    score_pairs,
    split_pairs,
    without,
)
from hyperadapter.model.batch import Batch
from hyperadapter.training.preflight import experiment_fingerprint
from hyperadapter.training.trainer import open_tracker

__all__ = ["ExtendOptions", "PairFiles", "extend", "extension_tables"]

log = logging.getLogger(__name__)

REPORT_FILE = "extension.json"
_PICTURE = "extension.png"
_INITS = ("loss", "mixture", "mean", "distances", "random")


@dataclass(frozen=True, slots=True)
class PairFiles:
    """Where the pairs are.

    Attributes:
        train: One file of pairs, or two aligned ones.
        columns: Their languages, such as `en-nb`.
        valid: Held-out pairs in the same form; none: some of `train` are held out.
        valid_fraction: Of the pivot's distinct sentences, without `valid`.
        max_valid: Most of those.
    """

    train: Sequence[Path]
    columns: Direction
    valid: Sequence[Path] = ()
    valid_fraction: float = 0.1
    max_valid: int = 200


@dataclass(frozen=True, slots=True)
class ExtendOptions:
    """How to extend.

    Attributes:
        checkpoint: Which weights of the trained run.
        init: `loss` (the relative with the least loss), `mixture` (a mean of all that is learnt
            first), `mean` of all, `distances` (the nearest in a file), `random`, or the code of a
            language.
        distances_file: For `distances`: a square CSV matrix such as URIEL's.
        init_sentences: Pairs that relatives are ranked on.
        device: Where to work.
        fit: How to fit.
    """

    checkpoint: str = "newest"
    init: str = "loss"
    distances_file: Path | None = None
    init_sentences: int = 100
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fit: FitOptions = field(default_factory=FitOptions)


@dataclass(frozen=True, slots=True)
class _Held:
    """Held-out pairs as text and as batches, by direction."""

    pairs: Pairs
    batches: Mapping[Direction, list[Batch]]

    @property
    def all(self) -> list[Batch]:
        return [batch for batches in self.batches.values() for batch in batches]


def extend(
    run_dir: Path, out: Path, code: str, files: PairFiles, options: ExtendOptions
) -> dict[str, Any]:
    """Adds a language to a trained run.

    Args:
        run_dir: The trained run.
        out: The new run folder.
        code: The language.
        files: Its pairs.
        options: How.

    Returns:
        What `extension.json` holds.

    Raises:
        CheckpointError: There is no such checkpoint.
        ConfigError: `out` exists, or an option names nothing.
        DataError: The pairs cannot be used.
        LanguageError: The language is there already, or its pairs are with an unknown one.
        TrainingError: The fit diverged.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder")
    started = time.perf_counter()
    before = load_config(RunConfig, run_dir / "config.yaml")
    weights = layout.choose_weights(run_dir, options.checkpoint, before.training.checkpoint)
    pivot = files.columns.src if files.columns.tgt == code else files.columns.tgt
    new = NewLanguage(code, pivot)
    config = extend_config(before, new, out)
    tree = config.training.model_copy(update={"start_from": str(weights.resolve())})
    config = config.model_copy(update={"training": tree})
    tokenizer = Tokenizer.load(tokenizer_folder(run_dir, before))
    train, valid = _read(files, new)
    coverage = measure_coverage(tokenizer, train)
    extended = ExtendedModel(weights, config, new, choose_device(options.device))
    _check_before_anything(extended, tokenizer, out, options)
    limit = config.data.shards.max_sentence_tokens
    text, held_text = (encode(tokenizer, pairs, limit) for pairs in (train, valid))

    def batches(encoded: EncodedText, *directions: Direction) -> list[Batch]:
        return make_batches(encoded, new, extended.model, config, directions)

    held = _Held(valid.select(held_text.rows), {d: batches(held_text, d) for d in new.directions})
    train_batches = batches(text, *new.directions)
    sample = encode(tokenizer, sample_pairs(train, options.init_sentences), limit)
    relatives = rank_by_loss(extended, batches(sample, *new.directions))
    nearest_code = relatives[0].code
    extended.set_rows(_first_rows(extended, nearest_code, train_batches, held.all, options))
    at_first = _measure(extended, tokenizer, held)
    fitted = fit(extended, train_batches, held.all, options.fit)
    at_last = _measure(extended, tokenizer, held)
    report = {
        "run": before.name,
        "weights": str(weights),
        "step": extended.info.step,
        "language": code,
        "pivot": pivot,
        "adapter_kind": config.model.adapter.kind,
        "pairs": {
            "train": len(text.rows),
            "valid": len(held_text.rows),
            "too_long": text.too_long + held_text.too_long,
        },
        "coverage": coverage._asdict(),
        "relatives": [relative._asdict() for relative in relatives],
        "init": options.init,
        "fit": asdict(options.fit),
        "parameters": fitted.num_parameters,
        "others_unchanged": _others_unchanged(extended, weights),
        "passes": [item._asdict() for item in fitted.passes],
        "kept_pass": fitted.best.number,
        "before": at_first,
        "after": at_last,
        "seconds": time.perf_counter() - started,
    }
    _write_run(extended, out, tokenizer_folder(run_dir, before), report, fitted)
    return report


def _read(files: PairFiles, new: NewLanguage) -> tuple[Pairs, Pairs]:
    """Reads pairs to learn from and held-out ones, of which no sentence of the pivot is learnt."""
    pairs = read_new_text(files.train, files.columns, new, "--pairs")
    if not files.valid:
        return split_pairs(pairs, files.valid_fraction, files.max_valid)
    valid = read_new_text(files.valid, files.columns, new, "--valid")
    train = without(pairs, valid)
    if not train:
        raise DataError("all of --pairs are in --valid too; hold out other pairs")
    if len(train.pivot) < len(pairs.pivot):
        log.warning(
            "%d of %d pairs are left out, because their %s side is in --valid",
            *(len(pairs.pivot) - len(train.pivot), len(pairs.pivot), new.pivot),
        )
    return train, valid


def _check_before_anything(
    extended: ExtendedModel, tokenizer: Tokenizer, out: Path, options: ExtendOptions
) -> None:
    """Fails now and not after the fit.

    Raises:
        CheckpointError: The tokenizer is not the model's.
        ConfigError: There is nothing to fit, or an option names nothing.
        DataError: The file of distances cannot be used.
        DiskFullError: There is no room for the new run.
    """
    Translator(LoadedModel(extended.model, extended.info), tokenizer, extended.config)
    require_something(extended, options.fit)
    size = sum(x.numel() * x.element_size() for x in extended.model.state_dict().values())
    require_space(out, size, "the new run")
    if (options.init == "distances") != (options.distances_file is not None):
        raise ConfigError("--init distances and --distances FILE belong together; give both")
    if options.init == "mixture" and extended.config.model.adapter.kind == "direction":
        raise ConfigError(
            "--init mixture mixes what belongs to languages, but this run has adapters of "
            "directions; write --init loss"
        )
    if options.distances_file is not None:
        _nearest_by_distance(options.distances_file, extended)
    elif options.init not in (*_INITS, *extended.candidates):
        raise LanguageError(
            f"--init {options.init}: no language of that name stands on both sides of "
            f"{extended.new.pivot}{nearest(options.init, extended.candidates)}; write "
            f"{', '.join(_INITS)}, or one of {', '.join(extended.candidates)}"
        )


def _first_rows(
    extended: ExtendedModel,
    nearest_code: str,
    train: Sequence[Batch],
    valid: Sequence[Batch],
    options: ExtendOptions,
) -> Rows:
    """Returns what the new rows begin with."""
    init, candidates = options.init, extended.candidates
    if init == "random":
        return extended.rows()
    if init == "mean":
        known = [extended.rows_of(code) for code in candidates]
        return {name: torch.stack([rows[name] for rows in known]).mean(dim=0) for name in known[0]}
    if init == "mixture":
        mixture = Mixture(extended.model, extended.new.code, candidates)
        weights = learn_weights(mixture, train, valid, options.fit.seed).weights
        return mixture.mix(weights.to(extended.model.embedding.weight.device))
    code = init
    if init == "loss":
        code = nearest_code
    elif options.distances_file is not None:
        code = _nearest_by_distance(options.distances_file, extended)
    log.info("%s begins as %s", extended.new.code, code)
    return extended.rows_of(code)


def _nearest_by_distance(path: Path, extended: ExtendedModel) -> str:
    given = read_distances(path, (*extended.candidates, extended.new.code))
    if extended.new.code not in given.languages:
        raise ConfigError(
            f"--distances {path} does not know {extended.new.code!r}, the language to be added; "
            "add its row and column, or begin with --init loss"
        )
    row = given.matrix[given.languages.index(extended.new.code)]
    others = [
        (distance, code)
        for distance, code in zip(row, given.languages, strict=True)
        if code != extended.new.code
    ]
    return min(others)[1]


def _measure(
    extended: ExtendedModel, tokenizer: Tokenizer, held: _Held
) -> dict[str, dict[str, Any]]:
    """Measures loss and scores of the held-out pairs, by direction."""
    found: dict[str, dict[str, Any]] = {}
    # It keeps the adapters of directions, so new rows need a new one.
    loaded = LoadedModel(extended.model, extended.info)
    translator = Translator(loaded, tokenizer, extended.config)
    for direction, batches in held.batches.items():
        found_scores = score_pairs(translator, held.pairs, extended.new, direction)
        scores = {"bleu": found_scores.bleu, "chrfpp": found_scores.chrfpp}
        row: dict[str, Any] = {"loss": extended.mean_loss(batches)}
        row |= {name: score.value for name, score in scores.items()}
        row["signatures"] = {name: score.signature for name, score in scores.items()}
        found[str(direction)] = row
    return found


def _others_unchanged(extended: ExtendedModel, weights: Path) -> bool:
    """Says whether every number of the trained run is still the same, bit for bit."""
    before, _ = load_weights(weights)
    now = extended.model.state_dict()
    return all(
        torch.equal(now[name][: len(tensor)] if tensor.dim() else now[name], tensor.to(now[name]))
        for name, tensor in before.items()
    )


def _write_run(
    extended: ExtendedModel,
    out: Path,
    tokenizer: Path,
    report: Mapping[str, Any],
    fitted: FitReport,
) -> None:
    """Writes the run folder, whole or not at all, and logs it."""
    config, info = extended.config, extended.info
    fingerprint = experiment_fingerprint(config)
    with atomic_directory(out) as folder:
        write_text(folder / "config.yaml", to_yaml(config))
        Tokenizer.copy(tokenizer, folder / "tokenizer")
        write_json(folder / REPORT_FILE, report)
        plot_extension(report, folder / _PICTURE)
        part = layout.new_part_folder(folder, info.step)
        metadata = info._replace(fingerprint=fingerprint).to_metadata()
        save_weights(part / layout.WEIGHTS_FILE, extended.model.state_dict(), metadata)
        values: dict[str, str | int] = {
            "fingerprint": fingerprint,
            "world_size": 1,
            "zero_stage": config.training.zero_stage,
            "precision": config.training.precision,
            "data": "",
        }
        layout.commit(part, step=info.step, values=values)
    with open_tracker(config, owns_status=True) as tracker:
        for item in fitted.passes:
            losses = {"valid": item.valid_loss, "train": item.train_loss}
            tracker.log_metrics(
                {f"extension/{k}/loss": v for k, v in losses.items() if v is not None}, item.number
            )
        tracker.log_metrics(
            {
                f"extension/{when}/{direction}/{name}": value
                for when in ("before", "after")
                for direction, row in report[when].items()
                for name, value in row.items()
                if name != "signatures"
            },
            fitted.best.number,
        )
        for path in (out / REPORT_FILE, out / _PICTURE):
            tracker.log_artifact(path, "extension")


def extension_tables(
    report: Mapping[str, Any],
) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Returns tables to print: what was gained, and the nearest relatives."""
    rows = [
        (
            direction,
            *(
                f"{report[when][direction][name]:{form}}"
                for name, form in (("loss", ".3f"), ("bleu", ".1f"), ("chrfpp", ".1f"))
                for when in ("before", "after")
            ),
        )
        for direction in report["before"]
    ]
    columns = ("direction", "loss", "after", "BLEU", "after", "chrF++", "after")
    relatives = [(item["code"], f"{item['loss']:.3f}") for item in report["relatives"][:10]]
    unchanged = "unchanged" if report["others_unchanged"] else "changed"
    fitted = f"{report['parameters']:,} numbers fitted to {report['pairs']['train']:,} pairs"
    return [
        (f"{report['language']}: {fitted}, the others' are {unchanged}", columns, rows),
        ("as which language the new one is understood best", ("language", "loss"), relatives),
    ]
