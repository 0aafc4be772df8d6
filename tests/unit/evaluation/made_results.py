"""Results of directions with known scores and rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hyperadapter.config import EvaluationConfig
from hyperadapter.evaluation.groups import group_averages, macro_averages
from hyperadapter.evaluation.quality import Quality, Rate
from hyperadapter.evaluation.results import DecodingSpeed, DirectionResult, EvaluationResult
from hyperadapter.evaluation.score import Score, Scores


def made_scores(value: float, tokenizer: str = "13a") -> Scores:
    """BLEU of `value`, chrF one more, chrF++ two more."""
    signatures = {"bleu": f"tok:{tokenizer}", "chrf": "nw:0", "chrfpp": "nw:2"}
    return Scores(
        **{
            name: Score(metric=name, value=value + index, signature=signatures[name])  # type: ignore[arg-type]
            for index, name in enumerate(signatures)
        }
    )


def made_quality(off_target: tuple[int, int] | None, other: tuple[int, int]) -> Quality:
    """Rates as (count, of); `other` holds for all but the first."""
    count, of = other
    rate = Rate(count=count, of=of)
    return Quality(
        off_target=None if off_target is None else Rate(count=off_target[0], of=off_target[1]),
        too_short=1,
        copied=rate,
        empty=rate,
        overlong=rate,
        placeholders_kept=rate,
    )


def made_direction(
    direction: str, value: float, fresh: float | None = None, tokenizer: str = "13a", **more: Any
) -> DirectionResult:
    """Half of the 10 sentences are near-duplicates, or all, where there is no `fresh` score."""
    fields = {
        "direction": direction,
        "sentences": 10,
        "near_duplicates": 5 if fresh is not None else 10,
        "decoding_s": 1.0,
        "model": made_scores(value, tokenizer),
        "copy_source": made_scores(value / 2, tokenizer),
        "model_no_near_duplicates": None if fresh is None else made_scores(fresh, tokenizer),
        "copy_source_no_near_duplicates": (
            None if fresh is None else made_scores(fresh / 2, tokenizer)
        ),
    }
    return DirectionResult(**(fields | more))


def made_result(directions: Sequence[DirectionResult], **more: Any) -> EvaluationResult:
    """An evaluation of the test split, with the averages that belong to it."""
    settings = EvaluationConfig()
    speed = DecodingSpeed(
        sentences=4, seconds=2.0, sentences_per_s=2.0, batch_sentences=2, beam_size=1,
        device="cpu", threads=1,
    )  # fmt: skip
    fields = {
        "split": "test",
        "step": 300,
        "fingerprint": "0",
        "weights_sha256": "0",
        "pivot": "en",
        "settings": settings,
        "directions": tuple(directions),
        "macro": macro_averages(directions, "en"),
        "groups": group_averages(directions, "en", settings.groups),
        "speed": speed,
    }
    return EvaluationResult(**(fields | more))


RESULTS = (
    made_direction("en-de", 10.0, 8.0),
    made_direction("en-zh-Hans", 20.0, None, "zh"),
    made_direction("de-en", 30.0, 28.0),
    made_direction("zh-Hans-en", 50.0, 44.0),
    made_direction("de-zh-Hans", 2.0, 1.0, "zh"),
)
