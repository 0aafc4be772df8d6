"""Averages over directions: into and out of the pivot, by resources, zero-shot, and over all.

An average is taken over directions of one metric only, never over metrics, and every direction
counts the same. Rates are different: they are counts over the sentences of the group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from data_pipeline.shards.manifest import ShardManifest, read_manifest
from data_pipeline.stream.streams import shards_folder
from hyperadapter.config import Metric, ResourceGroupsConfig, RunConfig
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.evaluation.quality import RATES, Rate, RateName, add_rates
from hyperadapter.evaluation.results import DirectionResult, GroupAverage
from hyperadapter.evaluation.score import METRICS, Score, Scores

__all__ = ["TrainPairs", "group_averages", "macro_averages", "pivot_groups", "resource_group"]

Groups: TypeAlias = dict[str, list[DirectionResult]]
_RESOURCES = ("high", "medium", "low", "very_low")


class TrainPairs:
    """How many sentence pairs each direction of a run was trained on, by its shards' manifest.

    Args:
        config: Of the run; its shards may have been removed since.

    Raises:
        CorruptShardError: The manifest is damaged.
    """

    def __init__(self, config: RunConfig) -> None:
        folder = shards_folder(config.data) / "train"
        self._trained = frozenset(config.data.resolved_directions())
        self._manifest: ShardManifest | None = None
        if (folder / "manifest.json").is_file():
            self._manifest = read_manifest(folder)

    def is_zero_shot(self, direction: Direction) -> bool:
        """Says whether a direction is none of the configuration, whatever its languages are."""
        return direction not in self._trained

    def count(self, direction: Direction) -> int | None:
        """Returns the pairs of a direction; None if nobody knows."""
        if self.is_zero_shot(direction):
            return 0
        if self._manifest is None:
            return None
        found = self._manifest.find(*direction)
        return 0 if found is None else self._manifest.pairs[found[0]].sentences


def resource_group(result: DirectionResult, config: ResourceGroupsConfig) -> str | None:
    """Returns `high`, `medium`, `low` or `very_low`; None where pairs are unknown, or zero-shot."""
    if result.train_pairs is None or result.zero_shot:
        return None
    bounds = (config.high, config.medium, config.low, 0)
    return next(
        name for name, least in zip(_RESOURCES, bounds, strict=True) if result.train_pairs >= least
    )


def pivot_groups(results: Sequence[DirectionResult], pivot: str) -> Groups:
    """Sorts directions into those into the pivot, out of it, and the rest; no group is empty."""
    groups: Groups = {}
    for result in results:
        direction = parse_direction(result.direction)
        kind = (
            "into" if direction.tgt == pivot else "out_of" if direction.src == pivot else "without"
        )
        groups.setdefault(f"{kind}_{pivot}", []).append(result)
    return groups


def group_averages(
    results: Sequence[DirectionResult], pivot: str, config: ResourceGroupsConfig
) -> dict[str, GroupAverage]:
    """Averages over the groups that have members; a direction is in several of them.

    Keys, in this order: `all`, `into_en`, `out_of_en`, `without_en`, `high`, `medium`, `low`,
    `very_low`, `zero_shot`.
    """
    pivoted = pivot_groups(results, pivot)
    groups: Groups = {"all": list(results)}
    for kind in ("into", "out_of", "without"):
        groups[f"{kind}_{pivot}"] = pivoted.get(f"{kind}_{pivot}", [])
    for name in _RESOURCES:
        groups[name] = [item for item in results if resource_group(item, config) == name]
    groups["zero_shot"] = [item for item in results if item.zero_shot]
    return {name: _average(members) for name, members in groups.items() if members}


def _average(members: Sequence[DirectionResult]) -> GroupAverage:
    scores: dict[Metric, float] = {}
    mixed: list[Metric] = []
    for metric in METRICS:
        found = _of_metric((item.model for item in members), metric)
        if len(found) == len(members):
            scores[metric] = _mean([score.value for score in found])
            if len({score.signature for score in found}) > 1:
                mixed.append(metric)
    qualities = [item.quality for item in members if item.quality is not None]
    rates: dict[RateName, Rate] = {}
    for name in RATES:
        rate = add_rates(quality.rate(name) for quality in qualities)
        if rate is not None:
            rates[name] = rate
    return GroupAverage(
        directions=tuple(item.direction for item in members),
        sentences=sum(item.sentences for item in members),
        scores=scores,
        mixed=tuple(mixed),
        rates=rates,
    )


def _of_metric(scores: Iterable[Scores], metric: Metric) -> list[Score]:
    return [found for item in scores for found in item.all() if found.metric == metric]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def macro_averages(results: Sequence[DirectionResult], pivot: str) -> dict[str, float]:
    """Averages scores over directions, each direction counting the same.

    Keys are `macro_<metric>_<group>[_copy][_no_near_duplicates]`, where the metric is `bleu`,
    `chrf` (sacreBLEU's chrF2), `chrfpp` or one that was asked for, the group `into_en`,
    `out_of_en` or, for directions that do not touch the pivot, `without_en`, and `_copy` means
    copying the source. An average of BLEU mixes tokenizers when the target languages do
    (`GroupAverage.mixed`). A direction with nothing but near-duplicates does not count in
    `_no_near_duplicates`.
    """
    macro: dict[str, float] = {}
    for group, members in pivot_groups(results, pivot).items():
        for suffix, scores in (
            ("", [r.model for r in members]),
            ("_copy", [r.copy_source for r in members]),
            ("_no_near_duplicates", [r.model_no_near_duplicates for r in members]),
            ("_copy_no_near_duplicates", [r.copy_source_no_near_duplicates for r in members]),
        ):
            present = [score for score in scores if score is not None]
            for metric in METRICS:
                found = _of_metric(present, metric)
                if found:
                    key = f"macro_{metric}_{group}{suffix}"
                    macro[key] = _mean([score.value for score in found])
    return macro
