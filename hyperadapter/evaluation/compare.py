"""Runs against a baseline, direction by direction: who is better, and is it more than chance?

All runs must have translated the same sentences and are scored against the same references; a
direction's resamples depend on the seed and its name only, so that leaving a direction or a run out
changes nothing for the others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from data_pipeline.workers import parallel_map
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import sha256_file
from hyperadapter.core.languages import parse_direction
from hyperadapter.core.schema import StrictModel
from hyperadapter.evaluation.results import (
    DirectionResult,
    EvaluationResult,
    evaluation_folder,
    load_result,
    read_lines,
)
from hyperadapter.evaluation.score import METRIC_NAMES, sentence_statistics
from hyperadapter.evaluation.significance import (
    Difference,
    bootstrap_scores,
    compare_scores,
    holm,
)

__all__ = [
    "COMPARED_METRICS",
    "LEVEL",
    "ComparedMetric",
    "Comparison",
    "DirectionComparison",
    "compare_runs",
    "comparison_rows",
    "comparison_tables",
]

ComparedMetric: TypeAlias = Literal["bleu", "chrf", "chrfpp"]
log = logging.getLogger(__name__)

COMPARED_METRICS: tuple[ComparedMetric, ...] = get_args(ComparedMetric)
LEVEL = 0.05
_SAMPLES = 1000
_SAMPLES_A_DIRECTION = 40  # the smallest corrected p-value is then half the level
_OVERALL = "mean of directions"
_LEAST_FOR_PROCESSES = 16  # directions; of fewer, starting processes takes longer
Verdict: TypeAlias = Literal["better", "worse", "no difference"]
Table: TypeAlias = tuple[str, Sequence[str], Sequence[Sequence[Any]]]
Array: TypeAlias = NDArray[np.float64]


class DirectionComparison(StrictModel):
    """A run and the baseline in one direction, or over all of them.

    Attributes:
        direction: Such as `en-de`.
        sentences: Of the test set.
        baseline: Score of the baseline.
        score: Score of the run.
        difference: The one less the other.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Two-sided.
        p_holm: Corrected for the number of directions.
        verdict: Of the run, at a level of 5 % after correction.
    """

    direction: str
    sentences: int
    baseline: float
    score: float
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    verdict: Verdict


class Comparison(StrictModel):
    """One run and the baseline.

    Attributes:
        baseline: Run folder of the baseline.
        run: Run folder of the other.
        split: `test`, `valid` or the name of a test set.
        metric: What was compared.
        samples: Resamples.
        seed: Of their choice.
        signatures: Of the scores, and in which directions they hold.
        directions: One entry each.
        overall: Of the mean over directions, resampled within each.
        left_out: Directions that not all runs have.
    """

    baseline: str
    run: str
    split: str
    metric: ComparedMetric
    samples: int
    seed: int
    signatures: dict[str, tuple[str, ...]]
    directions: tuple[DirectionComparison, ...]
    overall: DirectionComparison
    left_out: tuple[str, ...]

    def count(self, verdict: Verdict) -> int:
        """Returns in how many directions the run fares so."""
        return sum(item.verdict == verdict for item in self.directions)


class _Run(NamedTuple):
    """A run folder and what its newest evaluation says of each direction."""

    folder: Path
    results: dict[str, DirectionResult]


class _Scored(NamedTuple):
    """Scores `[runs]`, resampled scores `[runs, samples]`, sentences and signature."""

    scores: Array
    resampled: Array
    sentences: int
    signature: str


def compare_runs(
    run_dirs: Sequence[Path],
    split: str = "test",
    metric: ComparedMetric = "chrf",
    samples: int | None = None,
    seed: int = 12345,
) -> tuple[Comparison, ...]:
    """Compares every run with the first one.

    Args:
        run_dirs: Run folders that have been evaluated; the first is the baseline.
        split: `test`, `valid`, or the name of a test set that was brought along.
        metric: What to compare.
        samples: Resamples of each direction's sentences; by default 1000, or 40 for each direction
            where these are more, because p cannot be smaller than one over their number, and
            Holm's correction multiplies it by the number of directions.
        seed: Of their choice.

    Returns:
        One comparison for every run but the first.

    Raises:
        ConfigError: There are fewer than two runs, or one is given twice.
        DataError: A run is not evaluated, its translations are not those that were scored, runs
            have other sentences or references than the first, or no direction in common.
    """
    if len(run_dirs) < 2:
        raise ConfigError("a comparison needs two run folders or more; the first is the baseline")
    places = [path.resolve() for path in run_dirs]
    twice = [str(path) for path, place in zip(run_dirs, places, strict=True)
             if places.count(place) > 1]  # fmt: skip
    if twice:
        raise ConfigError(f"a run is given twice: {', '.join(twice)}")
    results = [load_result(path, split) for path in run_dirs]
    runs = [
        _Run(path, {item.direction: item for item in result.directions})
        for path, result in zip(run_dirs, results, strict=True)
    ]
    _tell_differences(run_dirs, results)
    everywhere = [name for name in runs[0].results if all(name in run.results for run in runs)]
    known = dict.fromkeys(name for run in runs for name in run.results)
    if not everywhere:
        lists = "; ".join(f"{run.folder} has {', '.join(run.results)}" for run in runs)
        raise DataError(f"the runs have no direction of {split} in common: {lists}")
    samples = _enough_samples(samples, len(everywhere))
    score = partial(_score, runs, split, metric=metric, samples=samples, seed=seed)
    workers = 1 if len(everywhere) < _LEAST_FOR_PROCESSES else 0
    by_name = dict(parallel_map(score, everywhere, "comparing directions", workers))
    scored = {name: by_name[name] for name in everywhere}
    left_out = tuple(name for name in known if name not in scored)
    signatures: dict[str, tuple[str, ...]] = {}
    for name, found in scored.items():
        signatures[found.signature] = (*signatures.get(found.signature, ()), name)
    comparisons = []
    for number in range(1, len(runs)):
        directions, overall = _judge(scored, number)
        comparisons.append(
            Comparison(
                baseline=str(run_dirs[0]),
                run=str(run_dirs[number]),
                split=split,
                metric=metric,
                samples=samples,
                seed=seed,
                signatures=signatures,
                directions=directions,
                overall=overall,
                left_out=left_out,
            )
        )
    return tuple(comparisons)


def _tell_differences(run_dirs: Sequence[Path], results: Sequence[EvaluationResult]) -> None:
    """Warns where not only the models differ, but how they were asked."""
    first = results[0].settings.model_dump(exclude={"metrics", "quality", "groups"})
    for path, result in zip(run_dirs[1:], results[1:], strict=True):
        other = result.settings.model_dump(exclude={"metrics", "quality", "groups"})
        differing = [f"{k} {first[k]} and {other[k]}" for k in first if first[k] != other[k]]
        if differing:
            log.warning(
                "%s and %s were decoded differently: %s", run_dirs[0], path, "; ".join(differing)
            )
        if result.step != results[0].step:
            log.warning(
                "%s is at step %d, %s at step %d", run_dirs[0], results[0].step, path, result.step
            )


def _enough_samples(samples: int | None, directions: int) -> int:
    if samples is None:
        return max(_SAMPLES, _SAMPLES_A_DIRECTION * directions)
    smallest = directions / (samples + 1)
    if smallest > LEVEL:
        log.warning(
            "%d resamples of %d directions cannot show a difference in any single one: after "
            "Holm's correction the smallest p-value is %.2f; use --samples %d or more",
            *(samples, directions, smallest, _SAMPLES_A_DIRECTION * directions),
        )
    return samples


def _score(
    runs: Sequence[_Run], split: str, name: str, metric: ComparedMetric, samples: int, seed: int
) -> _Scored:
    """Scores all runs in one direction, on all sentences and on resamples."""
    tgt = parse_direction(name).tgt
    _require_same_texts(runs, split, name)
    tables, signature = [], ""
    for run in runs:
        folder = evaluation_folder(run.folder, split)
        hyp, ref = (read_lines(folder / f"{name}.{kind}.txt") for kind in ("hyp", "ref"))
        table, signature = sentence_statistics(hyp, ref, tgt, metric)
        tables.append(table)
    generator = np.random.default_rng([seed, *name.encode()])
    scores, resampled = bootstrap_scores(metric, tables, samples, generator)
    return _Scored(scores, resampled, len(tables[0]), signature)


def _require_same_texts(runs: Sequence[_Run], split: str, name: str) -> None:
    first = evaluation_folder(runs[0].folder, split)
    for run in runs:
        folder = evaluation_folder(run.folder, split)
        scored = run.results[name].hyp_sha256
        hyp = folder / f"{name}.hyp.txt"
        if scored and hyp.is_file() and sha256_file(hyp) != scored:
            raise DataError(
                f"{hyp} is not what {folder / 'scores.json'} is about: {name} was translated again "
                "since, perhaps with another checkpoint; evaluate all directions of the run again"
            )
        for kind, what in (("ref", "references"), ("src", "sources")):
            paths = [place / f"{name}.{kind}.txt" for place in (first, folder)]
            for path in paths:
                if not path.is_file():
                    raise DataError(f"{path} does not exist; evaluate the run again")
            hashes = [sha256_file(path) for path in paths]
            if hashes[0] != hashes[1]:
                raise DataError(
                    f"{name} cannot be compared: the {what} of {runs[0].folder} and {run.folder} "
                    f"differ ({paths[0]} has the checksum {hashes[0][:12]}, {paths[1]} "
                    f"{hashes[1][:12]}). Evaluate both runs on the same data with the same "
                    "evaluation.max_sentences, or on a test set of their own (--test-set)"
                )


def _judge(
    scored: Mapping[str, _Scored], number: int
) -> tuple[tuple[DirectionComparison, ...], DirectionComparison]:
    """Compares one run with the first, in every direction and over all of them."""
    found = list(scored.values())
    differences = [
        compare_scores(item.scores[number] - item.scores[0],
                       item.resampled[number] - item.resampled[0])
        for item in found
    ]  # fmt: skip
    corrected = holm([difference.p_value for difference in differences])
    directions = tuple(
        _entry(name, item.sentences, item.scores[[0, number]], difference, p_holm)
        for (name, item), difference, p_holm in zip(
            scored.items(), differences, corrected, strict=True
        )
    )
    scores = np.mean([item.scores[[0, number]] for item in found], axis=0)
    resampled = np.mean([item.resampled[[0, number]] for item in found], axis=0)
    overall = compare_scores(scores[1] - scores[0], resampled[1] - resampled[0])
    sentences = sum(item.sentences for item in found)
    return directions, _entry(_OVERALL, sentences, scores, overall, overall.p_value)


def _entry(
    name: str, sentences: int, scores: Array, difference: Difference, p_holm: float
) -> DirectionComparison:
    verdict: Verdict = "no difference"
    if p_holm <= LEVEL:
        verdict = "better" if difference.value > 0 else "worse"
    return DirectionComparison(
        direction=name,
        sentences=sentences,
        baseline=float(scores[0]),
        score=float(scores[1]),
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p_value=difference.p_value,
        p_holm=p_holm,
        verdict=verdict,
    )


def comparison_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Writes every direction of every run, and the means, as rows of a CSV file."""
    return [
        {"baseline_run": item.baseline, "run": item.run, "metric": item.metric} | entry.model_dump()
        for item in comparisons
        for entry in (*item.directions, item.overall)
    ]


def comparison_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Writes a table of directions for each run, and one of winners and losers."""
    tables = [_direction_table(item) for item in comparisons]
    first = comparisons[0]
    rows = [
        (
            item.run,
            item.count("better"),
            item.count("worse"),
            item.count("no difference"),
            f"{item.overall.difference:+.2f}",
            f"{item.overall.low:+.2f} to {item.overall.high:+.2f}",
            f"{item.overall.p_value:.3f}",
        )
        for item in comparisons
    ]
    title = (
        f"Directions in which a run is better or worse than {first.baseline} in "
        f"{METRIC_NAMES[first.metric]} (p at most {LEVEL:g} after Holm's correction)"
    )
    columns = ("run", "better", "worse", "neither", "mean diff.", "95 % interval", "p")
    return [*tables, (title, columns, rows)]


def _direction_table(item: Comparison) -> Table:
    rows = [
        (
            entry.direction,
            entry.sentences,
            entry.baseline,
            entry.score,
            f"{entry.difference:+.2f}",
            f"{entry.low:+.2f} to {entry.high:+.2f}",
            f"{entry.p_value:.3f}",
            "" if entry is item.overall else f"{entry.p_holm:.3f}",
            entry.verdict,
        )
        for entry in (*item.directions, item.overall)
    ]
    lines = [
        f"{METRIC_NAMES[item.metric]} of {item.run} against {item.baseline}, {item.split}: paired "
        f"bootstrap, {item.samples} resamples, seed {item.seed}"
    ]
    for signature, names in item.signatures.items():
        whose = "" if len(item.signatures) == 1 else f" for {', '.join(names)}"
        lines.append(f"{METRIC_NAMES[item.metric]}: {signature}{whose}")
    if item.left_out:
        lines.append(f"not in all runs, and left out: {', '.join(item.left_out)}")
    columns = ("direction", "n", "baseline", "run", "diff.", "95 % interval", "p", "p (Holm)", "")
    return "\n".join(lines), columns, rows
