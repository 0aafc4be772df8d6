"""An evaluation as tables, as lines of a CSV file, and as metrics for MLflow."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from hyperadapter.core.files import atomic_open
from hyperadapter.evaluation.groups import pivot_groups, resource_group
from hyperadapter.evaluation.quality import RATES, Quality, Rate
from hyperadapter.evaluation.results import DirectionResult, EvaluationResult, GroupAverage
from hyperadapter.evaluation.score import BASIC_METRICS, METRIC_NAMES, METRICS, Metric

__all__ = [
    "csv_rows",
    "flat_metrics",
    "group_rows",
    "quality_notes",
    "quality_rows",
    "signature_lines",
    "table_rows",
    "write_csv",
]

Cell: TypeAlias = str | int | float | None
Row: TypeAlias = dict[str, Cell]
_OWN_SPLITS = ("test", "valid")


def table_rows(result: EvaluationResult) -> list[Row]:
    """Writes the scores as rows of cells under their headings: directions, then averages.

    `copy` is the score of copying the source, `new` leaves near-duplicates of training text out.
    chrF++ is in the file only, to keep the table as narrow as a terminal. Show `signature_lines`
    beside it.
    """
    rows = [_score_row(item, _extra_metrics(result)) for item in result.directions]
    for group, members in pivot_groups(result.directions, result.pivot).items():
        rows.append(_mean_row(result, group, members))
    if all(item.near_duplicates is None for item in result.directions):
        rows = [{k: v for k, v in row.items() if not k.startswith("new ")} for row in rows]
    return rows


def _extra_metrics(result: EvaluationResult) -> list[Metric]:
    """Returns those of TER and spBLEU that were computed for every direction."""
    found = [{score.metric for score in item.model.all()} for item in result.directions]
    return [m for m in METRICS if m not in BASIC_METRICS and all(m in names for names in found)]


def _score_row(item: DirectionResult, extra: Sequence[Metric]) -> Row:
    new, new_copy = item.model_no_near_duplicates, item.copy_source_no_near_duplicates
    near = item.near_duplicates
    return {
        "direction": item.direction,
        "n": item.sentences,
        "BLEU": item.model.bleu.value,
        "BLEU copy": item.copy_source.bleu.value,
        "chrF": item.model.chrf.value,
        "chrF copy": item.copy_source.chrf.value,
        **{METRIC_NAMES[metric]: item.model.value(metric) for metric in extra},
        "new n": None if near is None else item.sentences - near,
        "new chrF": new.chrf.value if new else None,
        "new copy": new_copy.chrf.value if new_copy else None,
    }


def _mean_row(result: EvaluationResult, group: str, members: Sequence[DirectionResult]) -> Row:
    macro = result.macro
    new = [m.sentences - m.near_duplicates for m in members if m.near_duplicates is not None]
    return {
        "direction": f"mean {group.replace('_', ' ')}",
        "n": sum(item.sentences for item in members),
        "BLEU": macro[f"macro_bleu_{group}"],
        "BLEU copy": macro[f"macro_bleu_{group}_copy"],
        "chrF": macro[f"macro_chrf_{group}"],
        "chrF copy": macro[f"macro_chrf_{group}_copy"],
        **{METRIC_NAMES[m]: macro[f"macro_{m}_{group}"] for m in _extra_metrics(result)},
        "new n": sum(new),
        "new chrF": macro.get(f"macro_chrf_{group}_no_near_duplicates"),
        "new copy": macro.get(f"macro_chrf_{group}_copy_no_near_duplicates"),
    }


def quality_rows(result: EvaluationResult) -> list[Row]:
    """Writes the rates as percentages; empty for a result from before there were any.

    `judged` are the sentences long enough for language identification, `placeh.` those with
    placeholders, and `ref` is the rate of the references by the same yardstick.
    """
    rows: list[Row] = []
    for item in result.directions:
        quality, floor = item.quality, item.quality_references
        if quality is None or floor is None:
            continue
        judged = quality.off_target
        rows.append(
            {
                "direction": item.direction,
                "judged": judged.of if judged else 0,
                "off-target": _percent(judged),
                "off-target ref": _percent(floor.off_target),
                "copied": _percent(quality.copied),
                "copied ref": _percent(floor.copied),
                "empty": _percent(quality.empty),
                "overlong": _percent(quality.overlong),
                "placeh.": quality.placeholders_kept.of,
                "kept": _percent(quality.placeholders_kept),
                "kept ref": _percent(floor.placeholders_kept),
            }
        )
    return rows


def _percent(rate: Rate | None) -> float | None:
    share = None if rate is None else rate.share
    return None if share is None else 100 * share


def quality_notes(result: EvaluationResult) -> list[str]:
    """Writes what the table of rates leaves out."""
    settings = result.settings.quality
    notes = [
        f"off-target: in another language of the run or English, by py3langid, of the judged, "
        f"which have {settings.min_letters} letters or more; ref: the same of the references"
    ]
    if result.unknown_languages:
        notes.append(
            f"not known to language identification, and never found by it: "
            f"{', '.join(result.unknown_languages)}"
        )
    return notes


def group_rows(result: EvaluationResult) -> list[Row]:
    """Writes the averages of the groups; `*` marks a mean over different tokenizers."""
    bounds = result.settings.groups
    pairs = {
        "high": f"HIGH, from {bounds.high:,} pairs",
        "medium": f"MED, from {bounds.medium:,}",
        "low": f"LOW, from {bounds.low:,}",
        "very_low": "VERY LOW",
    }
    rows: list[Row] = []
    for name, group in result.groups.items():
        row: Row = {
            "mean over": pairs.get(name, name.replace("_", " ")),
            "directions": len(group.directions),
            "n": group.sentences,
        }
        row |= {METRIC_NAMES[metric]: _mean_cell(group, metric) for metric in METRICS
                if any(metric in other.scores for other in result.groups.values())}  # fmt: skip
        row["off-target, %"] = _percent(group.rates.get("off_target"))
        rows.append(row)
    return rows


def _mean_cell(group: GroupAverage, metric: Metric) -> Cell:
    value = group.scores.get(metric)
    return f"{value:.1f}*" if value is not None and metric in group.mixed else value


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
    processes = "process" if speed.world_size == 1 else "processes"
    lines.append(
        f"decoded {speed.sentences_per_s:.1f} sentences/s on {speed.world_size} {speed.device} "
        f"{processes} with {speed.threads} threads, beam {speed.beam_size}, batches of "
        f"{speed.batch_sentences} sentences"
    )
    return lines


def csv_rows(result: EvaluationResult) -> list[Row]:
    """Writes everything about every direction, one row each, with signatures and counts."""
    rows: list[Row] = []
    for item in result.directions:
        row: Row = {
            "direction": item.direction,
            "split": result.split,
            "step": result.step,
            "sentences": item.sentences,
            "near_duplicates": item.near_duplicates,
            "train_pairs": item.train_pairs,
            "resources": resource_group(item, result.settings.groups),
            "zero_shot": int(item.zero_shot),
        }
        for score in item.model.all():
            row[score.metric] = score.value
            row[f"{score.metric}_copy"] = item.copy_source.value(score.metric)
            fresh = item.model_no_near_duplicates
            row[f"{score.metric}_new"] = fresh.value(score.metric) if fresh else None
            row[f"{score.metric}_signature"] = score.signature
        row |= _rate_cells("", item.quality) | _rate_cells("reference_", item.quality_references)
        rows.append(row)
    return rows


def _rate_cells(prefix: str, quality: Quality | None) -> Row:
    row: Row = {}
    for name in RATES if quality is not None else ():
        rate = quality.rate(name) if quality is not None else None
        row[f"{prefix}{name}"] = rate.count if rate else None
        row[f"{prefix}{name}_of"] = rate.of if rate else None
    return row


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows under the headings of the first one, atomically."""
    with atomic_open(path) as stream:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(stream, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


def flat_metrics(result: EvaluationResult, whole: bool = True) -> dict[str, float]:
    """Returns everything as metrics for MLflow.

    Args:
        result: An evaluation.
        whole: Averages belong to it; not so with some of the directions only.

    Returns:
        `test/<direction>/<metric>`, `test/<direction>/<rate>` (shares from 0 to 1),
        `test/macro/...` and `test_group/<group>/...`. A test set that was brought along has
        `test_set/<name>/` for `test/`.
    """
    split = result.split if result.split in _OWN_SPLITS else f"test_set/{result.split}"
    # Not below `test/`: who looks for directions there would take a group for one.
    groups = f"{split}_group"
    metrics: dict[str, float] = {}
    values: dict[str, list[float]] = {}
    for item in result.directions:
        for score in item.model.all():
            metrics[f"{split}/{item.direction}/{score.metric}"] = score.value
            values.setdefault(score.metric, []).append(score.value)
        metrics |= {
            f"{split}/{item.direction}/{name}": share for name, share in _shares(item.quality)
        }
    if not whole:
        return metrics
    metrics |= {f"{split}/macro/{name}": value for name, value in result.macro.items()}
    for metric, found in values.items():
        metrics[f"{split}/macro/{metric}"] = sum(found) / len(found)
    for name, group in result.groups.items():
        metrics |= {f"{groups}/{name}/{key}": value for key, value in group.scores.items()}
        for key, rate in group.rates.items():
            if rate.share is not None:
                metrics[f"{groups}/{name}/{key}"] = rate.share
    return metrics


def _shares(quality: Quality | None) -> Iterator[tuple[str, float]]:
    for name in RATES if quality is not None else ():
        rate = quality.rate(name) if quality is not None else None
        if rate is not None and rate.share is not None:
            yield name, rate.share
