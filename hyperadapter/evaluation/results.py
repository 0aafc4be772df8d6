"""What `scores.json` holds: the scores and rates of every direction, and their averages.

Fields that older files lack have defaults, so that those files stay readable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from hyperadapter.config import EvaluationConfig, Metric
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import read_json
from hyperadapter.core.schema import StrictModel, parse_config
from hyperadapter.evaluation.quality import Quality, Rate, RateName
from hyperadapter.evaluation.score import Scores

__all__ = [
    "SCORES_FILE",
    "DecodingSpeed",
    "DirectionResult",
    "EvaluationResult",
    "GroupAverage",
    "HeldOutSplit",
    "evaluation_folder",
    "load_result",
    "read_lines",
    "result_settings",
]

HeldOutSplit: TypeAlias = Literal["valid", "test"]
SCORES_FILE = "scores.json"


class DirectionResult(StrictModel):
    """Scores of one direction.

    Attributes:
        direction: Such as `en-de`.
        sentences: How many were translated.
        near_duplicates: How many of them are near-duplicates of training text; None for a test set
            that was brought along, in which nobody has looked for them.
        decoding_s: Seconds that translating took: those of all processes over their number.
        model: Scores of the translations.
        copy_source: Scores of the sources, as if they were translations.
        model_no_near_duplicates: The same without near-duplicates; None if nothing else is there.
        copy_source_no_near_duplicates: The same without near-duplicates.
        quality: Rates of the translations.
        quality_references: The same of the references, as if they were translations.
        train_pairs: Sentence pairs that the direction was trained on; 0 for a direction that was
            not, None if there is no manifest of the shards.
        zero_shot: The direction was not trained.
        hyp_sha256: Checksum of the file of translations.
    """

    direction: str
    sentences: int
    near_duplicates: int | None
    decoding_s: float
    model: Scores
    copy_source: Scores
    model_no_near_duplicates: Scores | None
    copy_source_no_near_duplicates: Scores | None
    quality: Quality | None = None
    quality_references: Quality | None = None
    train_pairs: int | None = None
    zero_shot: bool = False
    hyp_sha256: str = ""


class GroupAverage(StrictModel):
    """Averages over a group of directions, each direction counting the same.

    Attributes:
        directions: The members.
        sentences: Of all of them.
        scores: Mean of each metric that all members have.
        mixed: Metrics whose tokenizers differ among the members, so that their mean compares with
            that of the same directions only.
        rates: Rates over all sentences of the members.
    """

    directions: tuple[str, ...]
    sentences: int
    scores: dict[Metric, float]
    mixed: tuple[Metric, ...]
    rates: dict[RateName, Rate]


class DecodingSpeed(StrictModel):
    """How fast the translations were made, and with what.

    Attributes:
        sentences: Sentences translated.
        seconds: Time it took, tokenizer included: that of all processes over their number.
        sentences_per_s: The one over the other.
        batch_sentences: Sentences decoded together.
        beam_size: Hypotheses kept.
        device: `cpu` or `cuda`.
        threads: Of torch, in each process.
        world_size: Processes that share the work; what was done before may be of other numbers.
    """

    sentences: int
    seconds: float
    sentences_per_s: float
    batch_sentences: int
    beam_size: int
    device: str
    threads: int
    world_size: int = 1


class EvaluationResult(StrictModel):
    """Everything that `scores.json` holds.

    Attributes:
        split: `test`, `valid`, or the name of a test set that was brought along.
        step: Optimizer steps of the checkpoint.
        fingerprint: Of the configuration that trained it.
        weights_sha256: Checksum of its weights.
        pivot: Language of the macro averages' names.
        settings: How it was decoded and scored, see `result_settings`.
        directions: Scores of every direction.
        macro: Averages over directions, see `groups.macro_averages`.
        groups: Averages over groups of directions, see `groups.group_averages`.
        unknown_languages: Those that language identification does not know.
        speed: Of decoding.
    """

    split: str
    step: int
    fingerprint: str
    weights_sha256: str
    pivot: str
    settings: EvaluationConfig
    directions: tuple[DirectionResult, ...]
    macro: dict[str, float]
    groups: dict[str, GroupAverage] = Field(default_factory=dict)
    unknown_languages: tuple[str, ...] = ()
    speed: DecodingSpeed


def result_settings(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Returns settings as results carry them: without the number of processes, which decides none
    of what they hold."""
    return evaluation.model_copy(update={"num_processes": 1})


def evaluation_folder(run_dir: Path, split: str) -> Path:
    """Returns where the texts and scores of a split, or of a named test set, lie."""
    return run_dir / "evaluation" / split


def load_result(run_dir: Path, split: str = "test") -> EvaluationResult:
    """Reads the scores of all directions of a split, or of a named test set.

    Raises:
        DataError: The run has not been evaluated, or the file is damaged.
    """
    path = evaluation_folder(run_dir, split) / SCORES_FILE
    if not path.is_file():
        known = sorted(found.parent.name for found in path.parent.parent.glob(f"*/{SCORES_FILE}"))
        there = f" (evaluated are {', '.join(known)})" if known else ""
        raise DataError(
            f"{path} does not exist; run `hyperadapter evaluate` on this run first{there}"
        )
    try:
        return parse_config(EvaluationResult, read_json(path), str(path))
    except ConfigError as error:
        raise DataError(f"{error}; delete the file and evaluate the run again") from error


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text of an evaluation, which end at `\\n` only.

    Raises:
        DataError: It is missing.
    """
    try:
        return path.read_bytes().decode("utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; evaluate the run again") from None
