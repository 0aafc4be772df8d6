"""What mixtures of languages were found, as files, metrics and tables.

RUN_DIR/analysis/interpolate/<language>/report.json    weights, losses, scores
                                        weights.csv    a line for each known language
                                        weights.png
                             leave_one_out/...         the same of the run's own languages
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hyperadapter.analysis.distances import linkage
from hyperadapter.analysis.plots import plot_weights
from hyperadapter.analysis.relatedness import measure_distances
from hyperadapter.config import RunConfig
from hyperadapter.core.files import write_json
from hyperadapter.core.languages import family_of
from hyperadapter.evaluation.tables import write_csv
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.training.trainer import open_tracker

__all__ = ["interpolate_tables", "write_report"]

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]

_WAYS = ("best", "uniform", "distances", "learnt", "own")
_SHOWN_WEIGHTS = 4


def write_report(config: RunConfig, report: Mapping[str, Any], model: Seq2Seq) -> None:
    """Writes everything into the run folder, and logs it to the run.

    Args:
        config: Of the run.
        report: From `analyse_interpolate`.
        model: Whose adapters say which languages stand side by side in the picture.
    """
    name = f"analysis/interpolate/{report['mixed']}"
    folder = Path(config.run_dir) / name
    paths = [folder / "report.json", folder / "weights.csv", folder / "weights.png"]
    write_csv(paths[1], _csv_rows(report))
    order = _tree_order(report, model)
    mixed: Mapping[str, Any] = report["languages"]
    # Relatives side by side; those that are part of no other come last.
    rows = list(dict.fromkeys(code for code in (*order, *mixed) if code in mixed))
    found = [mixed[code]["weights"]["learnt"] for code in rows]
    # A language is no part of itself.
    weights = np.array([[item.get(code, np.nan) for code in order] for item in found])
    title = f"{report['run']}, step {report['step']}: weights of known languages (%)"
    plot_weights(weights, rows, order, title, paths[2])
    write_json(paths[0], report)
    metrics = {}
    for code, item in mixed.items():
        metrics[f"{code}/effective_number"] = item["effective_number"]
        metrics |= {
            f"{code}/{way}_loss": x["all"] for way, x in item["loss_nats_per_token"].items()
        }
        for metric in ("bleu", "chrfpp"):
            for way, scores in item.get(metric, {}).items():
                metrics |= {f"{code}/{way}_{metric}/{where}": x for where, x in scores.items()}
    with open_tracker(config, owns_status=False) as tracker:
        tracker.log_metrics(
            {f"analysis/interpolate/{key}": value for key, value in metrics.items()}, report["step"]
        )
        for path in paths:
            tracker.log_artifact(path, name)


def _csv_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "language": code,
            "part": part,
            "family": family_of(code),
            "family_of_part": family_of(part),
            **{f"weight_{way}": weights[part] for way, weights in item["weights"].items()},
            "loss_alone": loss,
        }
        for code, item in report["languages"].items()
        for part, loss in item["loss_alone"].items()
    ]


def _tree_order(report: Mapping[str, Any], model: Seq2Seq) -> list[str]:
    """Returns all languages that are part of one; relatives stand together, as in a dendrogram."""
    found: dict[str, None] = {}
    for item in report["languages"].values():
        found |= dict.fromkeys(item["loss_alone"])
    codes = [code for code in model.vocabulary.languages if code in found]
    for table in reversed(measure_distances(model, report["pivot"])):
        if set(codes) <= set(table.languages) and len(codes) > 1:
            return [codes[leaf] for leaf in linkage(table.select(codes))[1]]
    return codes


def interpolate_tables(report: Mapping[str, Any]) -> list[Table]:
    """Returns tables to print: losses, of what each language is made, and scores."""
    languages: Mapping[str, Any] = report["languages"]
    used = [w for w in _WAYS if any(w in x["loss_nats_per_token"] for x in languages.values())]
    title = f"{report['run']}, step {report['step']}: "
    tested = ", ".join(dict.fromkeys(item["tested_on"] for item in languages.values()))
    losses: list[tuple[str, ...]] = [
        (f"{code} {where}", *(_cell(found.get(way, {}).get(where), 3) for way in used))
        for code, item in languages.items()
        for found in [item["loss_nats_per_token"]]
        for where in (*item["directions"], "all")
    ]
    parts: list[tuple[str, ...]] = [
        (
            code,
            item["best_relative"],
            f"{item['effective_number']:.1f}",
            _largest(item["weights"]["learnt"]),
        )
        for code, item in languages.items()
    ]
    tables: list[Table] = [
        (f"{title}nats per token of {tested}", ("language", *used), losses),
        (f"{title}made of", ("language", "best", "effective", "learnt weights"), parts),
    ]
    if any("bleu" in item for item in languages.values()):
        tables.append(_scores_table(title, languages, used))
    return tables


def _scores_table(title: str, languages: Mapping[str, Any], used: Sequence[str]) -> Table:
    rows: list[tuple[str, ...]] = [
        (f"{code} {where}", *(_both_scores(item, way, where) for way in used))
        for code, item in languages.items()
        for where in item["directions"]
    ]
    signatures = dict.fromkeys(
        text
        for metric in ("bleu", "chrfpp")
        for item in languages.values()
        for text in item[f"{metric}_signatures"]
    )
    return f"{title}BLEU / chrF++ [{'; '.join(signatures)}]", ("language", *used), rows


def _both_scores(item: Mapping[str, Any], way: str, where: str) -> str:
    values: Iterator[float | None] = (
        item[metric].get(way, {}).get(where) for metric in ("bleu", "chrfpp")
    )
    return " / ".join(_cell(value, 1) for value in values)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _largest(weights: Mapping[str, float]) -> str:
    found = sorted(weights.items(), key=lambda pair: -pair[1])[:_SHOWN_WEIGHTS]
    return ", ".join(f"{code} {value:.2f}" for code, value in found)
