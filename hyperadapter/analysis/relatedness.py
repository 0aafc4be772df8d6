"""How near a run's languages are to each other in its embeddings and adapters.

    RUN_DIR/analysis/relatedness/relatedness.json      nearest relatives, maps, correlations
                                 distances.csv         every distance, per layer and mean
                                 <view>_<measure>_tree.png   dendrogram and heat map
                                 <view>_<measure>_map.png    classical scaling to a plane

A view is what is compared: `embedding`, `encoder` (a language's adapters as a source) or `decoder`
(as a target). A measure is `cosine`, of embeddings or of all weights of an adapter in a row, or
`cka`, of what an adapter makes of each of the model's dimensions, see `representations.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperadapter.analysis.distances import (
    LEAST_LANGUAGES,
    Correlation,
    DistanceTable,
    GivenDistances,
    cka_distances,
    classical_mds,
    cosine_distances,
    family_distances,
    family_gap,
    linkage,
    mantel,
    nearest_relatives,
    read_distances,
)
from hyperadapter.analysis.plots import plot_relatedness
from hyperadapter.analysis.representations import (
    Side,
    adapted_layers,
    embedding_tables,
    languages_of,
    layer_matrices,
    require_language_adapters,
)
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import LoadedModel, load_model
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.files import write_json
from hyperadapter.core.languages import family_of
from hyperadapter.core.schema import load_config
from hyperadapter.evaluation.tables import write_csv
from hyperadapter.evaluation.translate import choose_device
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.training.trainer import open_tracker

__all__ = ["Options", "analyse_relatedness", "load_run", "measure_distances", "relatedness_tables"]

Array = NDArray[np.float64]
_SHOWN_RELATIVES = 3


class Options(NamedTuple):
    """What does not come from the run.

    Attributes:
        checkpoint: Which weights, see `layout.choose_weights`.
        permutations: Of each Mantel test.
        seed: Of the permutations.
    """

    checkpoint: str = "newest"
    permutations: int = 9999
    seed: int = 1


def load_run(run_dir: Path, checkpoint: str) -> tuple[RunConfig, LoadedModel]:
    """Loads a run folder's configuration and a model with adapters of languages.

    The configuration's run_dir becomes where the folder is now.

    Raises:
        CheckpointError: There is no such checkpoint, or it does not fit the configuration.
        ConfigError: config.yaml is missing or not valid, or the run's adapters are not languages'.
    """
    config = load_config(RunConfig, run_dir / "config.yaml")
    require_language_adapters(config.model)
    weights = choose_weights(run_dir, checkpoint, config.training.checkpoint)
    device = choose_device(config.training.device)
    loaded = load_model(weights, config, device)
    return config.model_copy(update={"run_dir": str(run_dir)}), loaded


def measure_distances(model: Seq2Seq, pivot: str) -> list[DistanceTable]:
    """Measures the distances of all languages, by all measures.

    Args:
        model: With adapters of languages.
        pivot: The language on the other side, see `representations.py`.

    Returns:
        The tables; none of views that have too few languages to compare.
    """
    tables = [
        DistanceTable(
            view, "cosine", model.vocabulary.languages, (), cosine_distances(vectors)[None]
        )
        for view, vectors in embedding_tables(model).items()
    ]
    sides: tuple[tuple[str, Side], ...] = (("encoder", "src"), ("decoder", "tgt"))
    for view, side in sides:
        languages = languages_of(model.vocabulary, side, pivot)
        layers = adapted_layers(model.config, side)
        if not layers or len(languages) < LEAST_LANGUAGES:
            continue
        by_layer: dict[str, list[Array]] = {"cosine": [], "cka": []}
        for place in layers.values():
            found = layer_matrices(model, languages, side, pivot, place)
            by_layer["cosine"].append(cosine_distances(found.weights))
            by_layer["cka"].append(cka_distances(found.products))
        tables += [
            DistanceTable(view, measure, languages, tuple(layers), np.stack(matrices))
            for measure, matrices in by_layer.items()
        ]
    return [table for table in tables if len(table.languages) >= LEAST_LANGUAGES]


def analyse_relatedness(
    run_dir: Path, options: Options, distances_file: Path | None = None
) -> dict[str, Any]:
    """Compares the languages of a run, and writes the report, its figures and its metrics.

    Args:
        run_dir: The run folder.
        options: Checkpoint and permutations.
        distances_file: Distances to correlate with, see `read_distances`.

    Returns:
        What `relatedness.json` holds.

    Raises:
        CheckpointError: There is no such checkpoint.
        ConfigError: The run's adapters do not belong to languages, or its languages are too few.
        DataError: `distances_file` cannot be used.
    """
    config, loaded = load_run(run_dir, options.checkpoint)
    given = (
        read_distances(distances_file, config.data.languages)
        if distances_file is not None
        else None
    )
    tables = measure_distances(loaded.model, config.data.pivot)
    if not tables:
        raise ConfigError(
            f"data.languages {', '.join(config.data.languages)} are too few to compare: "
            f"{LEAST_LANGUAGES} languages that were trained with the pivot {config.data.pivot} are "
            "needed; analyse a run with more languages"
        )
    report: dict[str, Any] = {
        "run": config.name,
        "step": loaded.info.step,
        "fingerprint": loaded.info.fingerprint,
        "adapter_kind": config.model.adapter.kind,
        "pivot": config.data.pivot,
        "permutations": options.permutations,
        "seed": options.seed,
        "distances_file": None if distances_file is None else str(distances_file),
        "families": {code: family_of(code) for code in config.data.languages},
        "tables": {table.name: _describe(table, given, options) for table in tables},
    }
    folder = run_dir / "analysis" / "relatedness"
    for old in folder.glob("*.png"):
        old.unlink()  # of another model, perhaps
    write_csv(folder / "distances.csv", _csv_rows(tables))
    paths = [path for table in tables for path in plot_relatedness(table, folder)]
    write_json(folder / "relatedness.json", report)
    with open_tracker(config, owns_status=False) as tracker:
        tracker.log_metrics(_metrics(report), loaded.info.step)
        for path in (folder / "relatedness.json", folder / "distances.csv", *paths):
            tracker.log_artifact(path, "analysis/relatedness")
    return report


def _describe(
    table: DistanceTable, given: GivenDistances | None, options: Options
) -> dict[str, Any]:
    """Says everything about one table; each starts from the same seed, so order does not matter."""
    languages, mean = table.languages, table.mean
    families = [family_of(code) for code in languages]
    generator = np.random.default_rng(options.seed)
    points, share = classical_mds(mean)
    tree = family_distances(families)
    found = mantel(mean, tree, options.permutations, generator)
    report = {
        "languages": list(languages),
        "tree_order": [languages[leaf] for leaf in linkage(mean)[1]],
        "nearest": nearest_relatives(mean, languages, _SHOWN_RELATIVES),
        "map": {code: point.tolist() for code, point in zip(languages, points, strict=True)},
        "map_share": share,
        "family": {"gap": family_gap(mean, families), **found._asdict()},
        "layers": {
            name: {
                "family_gap": family_gap(layer, families),
                "family_r": mantel(layer, tree, 0, generator).r,
            }
            for name, layer in zip(table.layers, table.by_layer, strict=False)
        },
    }
    if given is not None:
        report["given"] = _given(table, given, options.permutations, generator)
    return report


def _given(
    table: DistanceTable, given: GivenDistances, permutations: int, generator: np.random.Generator
) -> dict[str, Any]:
    codes = [code for code in table.languages if code in given.languages]
    found = Correlation(None, None)
    if len(codes) >= LEAST_LANGUAGES:
        rows = [given.languages.index(code) for code in codes]
        matrix = given.matrix[np.ix_(rows, rows)]
        found = mantel(table.select(codes), matrix, permutations, generator)
    return {"languages": codes, **found._asdict()}


def _csv_rows(tables: Sequence[DistanceTable]) -> list[dict[str, Any]]:
    rows = []
    for table in tables:
        layers = dict(zip(table.layers, table.by_layer, strict=False)) | {"mean": table.mean}
        for name, distances in layers.items():
            for a, b in zip(*np.triu_indices(len(table.languages), 1), strict=True):
                first, second = table.languages[a], table.languages[b]
                rows.append(
                    {
                        "view": table.view,
                        "measure": table.measure,
                        "layer": name,
                        "language_a": first,
                        "language_b": second,
                        "family_a": family_of(first),
                        "family_b": family_of(second),
                        "distance": float(distances[a, b]),
                    }
                )
    return rows


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    metrics: dict[str, float | None] = {}
    for name, table in report["tables"].items():
        prefix = f"analysis/relatedness/{name}"
        metrics |= {f"{prefix}/family_{key}": value for key, value in table["family"].items()}
        given = table.get("given", {})
        metrics |= {f"{prefix}/given_{key}": given.get(key) for key in ("r", "p")}
    return {name: value for name, value in metrics.items() if value is not None}


def relatedness_tables(
    report: Mapping[str, Any],
) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Returns tables to print: correlations by view and measure, and nearest relatives."""
    tables = report["tables"]
    rows = []
    for name, table in tables.items():
        family, given = table["family"], table.get("given", {})
        cells = (*(family[key] for key in ("gap", "r", "p")), given.get("r"), given.get("p"))
        rows.append((name, *("-" if cell is None else f"{cell:.4f}" for cell in cells)))
    columns = ("distance", "family gap", "family r", "p", "given r", "p")
    relatives = [
        (code, family, *(_nearest(table, code) for table in tables.values()))
        for code, family in report["families"].items()
    ]
    title = f"{report['run']}, step {report['step']}: "
    return [
        (f"{title}distances and what they correlate with", columns, rows),
        (f"{title}nearest relative", ("language", "family", *tables), relatives),
    ]


def _nearest(table: Mapping[str, Any], code: str) -> str:
    found = table["nearest"].get(code)
    return "-" if not found else str(found[0][0])
