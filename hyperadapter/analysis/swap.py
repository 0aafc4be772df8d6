"""What it costs to translate one language with the adapters of another.

    RUN_DIR/analysis/swap/<side>.json       losses, costs, correlations
                          <side>.csv        a line for each pair
                          <side>_loss.png   heat map; with --bleu <side>_chrf.png too

Row a, column b of a matrix is the direction between a and the pivot, with the adapters of the
direction between b and the pivot; the diagonal is what the model was trained for. Only the adapters
are b's: text and language tags stay those of a. For a hyper-network this is another language
embedding, as input of all layers' adapters.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data_pipeline.bitext import pair_of, read_split
from data_pipeline.progress import track
from data_pipeline.ragged import Ragged
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.stream.batching import BatchLayout, build_prompts
from data_pipeline.stream.streams import ValidStream, shards_folder
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.analysis.distances import (
    DistanceTable,
    family_distances,
    family_gap,
    linkage,
    mantel,
    nearest_relatives,
)
from hyperadapter.analysis.plots import plot_matrix
from hyperadapter.analysis.relatedness import Options, load_run, measure_distances
from hyperadapter.analysis.representations import (
    Side,
    check_languages,
    direction_keys,
    direction_of,
    languages_of,
)
from hyperadapter.checkpoint.weights import LoadedModel
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.files import write_json
from hyperadapter.core.languages import family_of
from hyperadapter.evaluation.score import Score, score_corpus
from hyperadapter.evaluation.search import beam_search
from hyperadapter.evaluation.tables import write_csv
from hyperadapter.evaluation.translate import tokenizer_folder
from hyperadapter.model.adapters import AdapterWeights
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.training.trainer import open_tracker

__all__ = ["SwapOptions", "analyse_swap", "mean_nll", "swap_losses", "swap_tables"]

log = logging.getLogger(__name__)

Array = NDArray[np.float64]


class SwapOptions(NamedTuple):
    """What is swapped, and on how much text it is measured.

    Attributes:
        side: On which the languages stand, the pivot being on the other.
        languages: Which; empty: all that were trained with the pivot and have validation shards.
        max_sentences: Of the validation split, per direction.
        bleu: Whether to translate as well.
    """

    side: Side = "tgt"
    languages: tuple[str, ...] = ()
    max_sentences: int = 50
    bleu: bool = False


class _Text(NamedTuple):
    """Sentences of one direction, as prompts of the search, with their references."""

    prompts: list[Batch]
    references: list[str]


def analyse_swap(run_dir: Path, swap: SwapOptions, options: Options) -> dict[str, Any]:
    """Swaps adapters between languages of a run, and writes report, figures and metrics.

    Args:
        run_dir: The run folder.
        swap: What to swap.
        options: Checkpoint and permutations.

    Returns:
        What `<side>.json` holds.

    Raises:
        CheckpointError: There is no such checkpoint.
        ConfigError: The run's adapters do not belong to languages.
        DataError: There is no validation text, or it is of another tokenizer.
        LanguageError: A language was not trained with the pivot.
    """
    config, loaded = load_run(run_dir, options.checkpoint)
    pivot, side, model = config.data.pivot, swap.side, loaded.model
    known = languages_of(model.vocabulary, side, pivot)
    check_languages(swap.languages, known, side, pivot)
    batches = _read_batches(config, loaded, _with_shards(config, known, swap), swap)
    languages = tuple(batches)
    losses = swap_losses(model, batches, side, pivot)
    tables = [table for table in measure_distances(model, pivot) if _is_of_side(table, side)]
    report: dict[str, Any] = {
        "run": config.name,
        "step": loaded.info.step,
        "fingerprint": loaded.info.fingerprint,
        "adapter_kind": config.model.adapter.kind,
        "pivot": pivot,
        "side": side,
        "max_sentences": swap.max_sentences,
        "permutations": options.permutations,
        "seed": options.seed,
        "languages": list(languages),
        "loss_nats_per_token": losses.tolist(),
        **_describe(losses, languages, tables, options),
    }
    matrices = {"loss": losses}
    if swap.bleu:
        scores = _swap_scores(config, loaded, run_dir, languages, swap)
        for name in ("bleu", "chrf"):
            found = [[score[name] for score in row] for row in scores]
            matrices[name] = np.array([[score.value for score in row] for row in found])
            report[name] = matrices[name].tolist()
            report[f"{name}_signatures"] = sorted({s.signature for row in found for s in row})
    _write(config, report, matrices, tables)
    return report


def _with_shards(config: RunConfig, known: Sequence[str], swap: SwapOptions) -> list[str]:
    """Returns the languages to swap. The data may never have had one that the run knows, such as
    one that `hyperadapter extend` added.

    Raises:
        DataError: One of those was named, or there is none with text.
    """
    folder, pivot = shards_folder(config.data) / "valid", config.data.pivot
    manifest = read_manifest(folder)
    wanted = swap.languages or known
    found = [code for code in wanted if manifest.find(code, pivot) is not None]
    without = ", ".join(code for code in wanted if code not in found)
    if not found or (without and swap.languages):
        there = ", ".join(code for code in known if manifest.find(code, pivot) is not None)
        raise DataError(
            f"{folder} has no text of {without} with {pivot}, so it cannot be swapped; leave it "
            f"out of --languages (there is text of {there or 'none'}), or set data.folder in "
            f"{config.run_dir}/config.yaml to data with validation shards of it"
        )
    if without:
        log.warning("%s has no text of %s, which is left out", folder, without)
    return found


def _read_batches(
    config: RunConfig, loaded: LoadedModel, languages: Sequence[str], swap: SwapOptions
) -> dict[str, list[Batch]]:
    """Reads the validation batches of every language's direction with the pivot."""
    directions = [direction_of(code, swap.side, config.data.pivot) for code in languages]
    data = config.data.model_copy(update={"directions": tuple(map(str, directions))})
    folder = shards_folder(config.data)
    stream = ValidStream(
        folder,
        data,
        micro_batch_tokens=config.training.micro_batch_tokens,
        max_sentences=swap.max_sentences,
    )
    tokenizer = read_manifest(folder / "valid").tokenizer
    if tokenizer != loaded.info.tokenizer:
        raise DataError(
            f"{folder} is of the tokenizer {tokenizer}, but the weights were trained with "
            f"{loaded.info.tokenizer}; set data.folder in {config.run_dir}/config.yaml to the data "
            "that the run was trained on"
        )
    found: dict[str, list[Batch]] = {code: [] for code in languages}
    device = loaded.model.embedding.weight.device
    for item in stream:
        if item.counts:
            code = languages[int(item.micro_batch.direction_P[0])]
            found[code].append(Batch.from_micro_batch(item.micro_batch, device))
    found = {code: batches for code, batches in found.items() if batches}
    if len(found) < 2:
        raise DataError(
            f"validation text is there for {', '.join(found) or 'none'} of the languages "
            f"{', '.join(languages)}, and a swap needs two; name more with --languages, or raise "
            "data.split.valid_fraction and build the data anew"
        )
    return found


def _adapters(model: Seq2Seq, code: str, side: Side, pivot: str) -> AdapterWeights:
    adapters = model.adapter_weights(*direction_keys(model, [direction_of(code, side, pivot)]))
    assert adapters is not None
    return adapters


@torch.inference_mode()
def swap_losses(
    model: Seq2Seq, batches: Mapping[str, Sequence[Batch]], side: Side, pivot: str
) -> Array:
    """Measures the loss of every language's text with every language's adapters.

    Args:
        model: In evaluation mode.
        batches: By language, each of its direction with the pivot.
        side: On which the languages stand.
        pivot: The other language of all directions.

    Returns:
        Nats per target token [text, adapters].
    """
    columns = [
        [mean_nll(model, text, adapters) for text in batches.values()]
        for adapters in track(
            (_adapters(model, code, side, pivot) for code in batches),
            len(batches),
            "swapping adapters",
        )
    ]
    return np.array(columns).T


def mean_nll(model: Seq2Seq, batches: Sequence[Batch], adapters: AdapterWeights) -> float:
    """Returns the negative log-likelihood of batches of one direction, in nats per target token."""
    nll = torch.zeros((), dtype=torch.float64, device=model.embedding.weight.device)
    for batch in batches:
        memory = model.encode(batch.src_N, batch.src, adapters)
        hidden = model.decode(batch.tgt_in_M, batch.tgt, memory, batch.src, adapters)
        if batch.target_index_K is not None:
            hidden = hidden.index_select(0, batch.target_index_K)
        nll += F.cross_entropy(model.logits(hidden).float(), batch.target_K, reduction="sum")
    return float(nll) / sum(batch.target_K.numel() for batch in batches)


@torch.inference_mode()
def _swap_scores(
    config: RunConfig,
    loaded: LoadedModel,
    run_dir: Path,
    languages: Sequence[str],
    swap: SwapOptions,
) -> list[list[dict[str, Score]]]:
    """Translates and scores every language's text with every language's adapters."""
    model, pivot = loaded.model, config.data.pivot
    tokenizer = Tokenizer.load(tokenizer_folder(run_dir, config))
    texts = {code: _read_text(config, loaded, tokenizer, code, swap) for code in languages}
    scores: list[list[dict[str, Score]]] = [[] for _ in languages]
    for adapters_of in track(languages, len(languages), "translating with swapped adapters"):
        adapters = _adapters(model, adapters_of, swap.side, pivot)
        for row, (code, text) in zip(scores, texts.items(), strict=True):
            found = [
                hypothesis.ids
                for batch in text.prompts
                for hypothesis in beam_search(model, batch, adapters, config.evaluation)
            ]
            # Byte pieces can spell line breaks.
            lines = [" ".join(line.split()) for line in tokenizer.decode(found)]
            tgt = direction_of(code, swap.side, pivot).tgt
            scored = score_corpus(lines, text.references, tgt)
            row.append({"bleu": scored.bleu, "chrf": scored.chrf})
    return scores


def _read_text(
    config: RunConfig, loaded: LoadedModel, tokenizer: Tokenizer, code: str, swap: SwapOptions
) -> _Text:
    direction = direction_of(code, swap.side, config.data.pivot)
    pair = pair_of(direction, config.data)
    split = read_split(Path(config.data.folder) / "clean", "valid", pair)
    sides = (split.a, split.b) if direction.src == pair[0] else (split.b, split.a)
    src, references = (list(side[: swap.max_sentences]) for side in sides)
    only = config.data.model_copy(update={"directions": (str(direction),)})
    layout = BatchLayout.from_config(only, loaded.info.vocabulary.num_pieces)
    pieces, size = tokenizer.encode(src), config.evaluation.batch_sentences
    device = loaded.model.embedding.weight.device
    prompts = []
    for start in range(0, len(pieces), size):
        rows = Ragged.from_sequences(pieces[start : start + size])
        prompt, _ = build_prompts(layout, np.zeros(len(rows), np.int64), rows)
        prompts.append(Batch.from_micro_batch(prompt, device))
    return _Text(prompts, references)


def _is_of_side(table: DistanceTable, side: Side) -> bool:
    views = ("embedding", f"embedding_{side}", "encoder" if side == "src" else "decoder")
    return table.view in views


def _describe(
    losses: Array, languages: Sequence[str], tables: Sequence[DistanceTable], options: Options
) -> dict[str, Any]:
    """Says which swaps are cheap, and what costs correlate with; both ways of a pair are averaged.

    Every correlation starts from the same seed.
    """
    costs = losses - losses.diagonal()[:, None]
    both = (costs + costs.T) / 2
    families = [family_of(code) for code in languages]
    cheapest = nearest_relatives(costs, languages, len(languages) - 1)

    def correlate(distances: Array) -> dict[str, float | None]:
        generator = np.random.default_rng(options.seed)
        return mantel(both, distances, options.permutations, generator)._asdict()

    by_distance: dict[str, Any] = {}
    for table in tables:
        distances = table.select(languages)
        near = nearest_relatives(distances, languages, 1)
        agreeing = [near[code][0][0] == cheapest[code][0][0] for code in languages]
        share = sum(agreeing) / len(agreeing)
        by_distance[table.name] = {**correlate(distances), "cheapest_is_nearest": share}
    return {
        "cost_nats_per_token": costs.tolist(),
        "cheapest": cheapest,
        "mean_cost": float(costs[~np.eye(len(costs), dtype=bool)].mean()),
        "family": {"gap": family_gap(both, families), **correlate(family_distances(families))},
        "distances": by_distance,
    }


def _write(
    config: RunConfig,
    report: Mapping[str, Any],
    matrices: Mapping[str, Array],
    tables: Sequence[DistanceTable],
) -> None:
    """Writes everything into the run folder, and logs it to the run."""
    folder, side = Path(config.run_dir) / "analysis" / "swap", str(report["side"])
    languages: list[str] = report["languages"]
    paths = [folder / f"{side}.json", folder / f"{side}.csv"]
    for old in folder.glob(f"{side}_*.png"):
        old.unlink()  # of other languages, perhaps
    write_csv(paths[1], _csv_rows(report, matrices))
    # Relatives stand together, as in the picture of the adapters' distances.
    order = linkage(tables[-1].select(languages))[1] if tables else list(range(len(languages)))
    names = ("text of", "adapters of")
    for name, values in matrices.items():
        if name == "bleu":
            continue  # in the report; the picture is of chrF, which is steadier on few sentences
        own = values.diagonal()[:, None]
        costs, unit = (values - own, "nats per token") if name == "loss" else (own - values, "chrF")
        title = f"{report['run']}, step {report['step']}, {side}: {unit}"
        title = f"{title}\ncolour: worse than with its own"
        path = folder / f"{side}_{name}.png"
        grid = np.ix_(order, order)
        shown = [languages[index] for index in order]
        paths.append(plot_matrix(costs[grid], values[grid], shown, title, names, path))
    write_json(paths[0], report)
    metrics = {"mean_cost": report["mean_cost"]}
    metrics |= {f"family_{key}": value for key, value in report["family"].items()}
    for name, found in report["distances"].items():
        metrics |= {f"{name}/{key}": value for key, value in found.items()}
    with open_tracker(config, owns_status=False) as tracker:
        tracker.log_metrics(
            {f"analysis/swap/{side}/{k}": v for k, v in metrics.items() if v is not None},
            report["step"],
        )
        for path in paths:
            tracker.log_artifact(path, "analysis/swap")


def _csv_rows(report: Mapping[str, Any], matrices: Mapping[str, Array]) -> list[dict[str, Any]]:
    languages, side, pivot = report["languages"], report["side"], report["pivot"]
    return [
        {
            "direction": str(direction_of(text, side, pivot)),
            "adapters_of": adapters,
            "family": family_of(text),
            "family_of_adapters": family_of(adapters),
            **{name: float(values[row, column]) for name, values in matrices.items()},
            "cost": report["cost_nats_per_token"][row][column],
        }
        for row, text in enumerate(languages)
        for column, adapters in enumerate(languages)
    ]


def swap_tables(
    report: Mapping[str, Any],
) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Returns tables to print: cheapest and dearest swaps, and what costs correlate with."""
    rows = []
    for row, code in enumerate(report["languages"]):
        own = report["loss_nats_per_token"][row][row]
        (best, low), (worst, high) = report["cheapest"][code][0], report["cheapest"][code][-1]
        rows.append((code, f"{own:.3f}", best, f"{low:+.3f}", worst, f"{high:+.3f}"))
    title = f"{report['run']}, step {report['step']}, {report['side']}: "
    columns = ("language", "own loss", "cheapest", "cost", "dearest", "cost")
    found = {"families": report["family"]} | report["distances"]
    correlations = [
        (name, *("-" if item[key] is None else f"{item[key]:.4f}" for key in ("r", "p")))
        for name, item in found.items()
    ]
    return [
        (f"{title}others' adapters, nats per token", columns, rows),
        (f"{title}costs correlate with distances", ("distance", "r", "p"), correlations),
    ]
