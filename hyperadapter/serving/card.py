"""The card of an exported model: what it is, how good it is, how to use it. For people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hyperadapter.core.errors import DataError
from hyperadapter.core.files import sha256_file
from hyperadapter.core.languages import language_name, parse_direction
from hyperadapter.serving.bundle import DecodingConfig

if TYPE_CHECKING:
    from hyperadapter.evaluation.results import EvaluationResult

__all__ = ["CardFacts", "write_card"]

log = logging.getLogger(__name__)


class CardFacts(NamedTuple):
    """What a card says about a model.

    Attributes:
        name: Of the run.
        step: Optimizer steps taken.
        fingerprint: Of the configuration that trained it.
        directions: That it translates.
        has_adapters: Whether it is more than a dense model.
        stored: In what form, such as `fp32`.
        exact: Whether it translates as the run does, so that the run's scores hold.
        max_sentence_tokens: Longest training sentence.
        decoding: How it searches.
        checksums_file: Where all checksums are.
    """

    name: str
    step: int
    fingerprint: str
    directions: tuple[str, ...]
    has_adapters: bool
    stored: str
    exact: bool
    max_sentence_tokens: int
    decoding: DecodingConfig
    checksums_file: str


def write_card(facts: CardFacts, run_dir: Path, weights: Path, checksums: Mapping[str, str]) -> str:
    """Returns the text of README.md.

    Args:
        facts: Of the model.
        run_dir: The run; its scores of the test split are shown if they are of these weights.
        weights: The exported checkpoint's weights file.
        checksums: SHA-256 of the exported weights, by file.
    """
    first = parse_direction(facts.directions[0])
    codes = dict.fromkeys(code for text in facts.directions for code in parse_direction(text))
    languages = ", ".join(f"{language_name(code)} (`{code}`)" for code in codes)
    kind = "Transformer with its adapters made" if facts.has_adapters else "dense Transformer"
    return "\n".join(
        [
            f"# {facts.name}",
            "",
            f"Translates {', '.join(facts.directions)}. A pre-LayerNorm {kind}, step {facts.step} "
            f"of the run {facts.name} ({facts.fingerprint}), stored as {facts.stored}.",
            "",
            f"Languages: {languages}.",
            "",
            "Licence: (fill in; mind those of the training data)",
            "",
            "## Use",
            "",
            "```python",
            "import hyperadapter",
            "",
            'model = hyperadapter.load("this folder")',
            f'model.translate(["..."], src="{first.src}", tgt="{first.tgt}")',
            "```",
            "",
            f"Texts are single sentences of up to {facts.max_sentence_tokens} tokens. Search: "
            f"beam {facts.decoding.beam_size}, length penalty {facts.decoding.length_penalty}.",
            "",
            "## Scores",
            "",
            *_scores(facts, run_dir, weights),
            "",
            "## Checksums",
            "",
            f"`{facts.checksums_file}` has all of them; loading compares them.",
            "",
            *(f"    {digest}  {name}" for name, digest in checksums.items()),
            "",
        ]
    )


def _scores(facts: CardFacts, run_dir: Path, weights: Path) -> list[str]:
    """Returns a table of the test scores, each metric with its signatures below it."""
    result = _result(run_dir)
    if result is None:
        return ["The run has not been evaluated."]
    if result.weights_sha256 != sha256_file(weights):
        log.warning(
            "the scores in %s are of step %d with other weights, so the card has none; evaluate "
            "this checkpoint first",
            *(run_dir, result.step),
        )
        return ["This checkpoint has not been evaluated."]
    rows = [row for row in result.directions if row.direction in facts.directions]
    if not rows:
        return ["These directions have not been evaluated."]
    lines = ["| direction | sentences | BLEU | chrF | chrF++ |", "|---|---|---|---|---|"]
    signatures: dict[str, None] = {}
    for row in rows:
        scores = row.model.bleu, row.model.chrf, row.model.chrfpp
        cells = " | ".join(f"{score.value:.1f}" for score in scores)
        lines.append(f"| {row.direction} | {row.sentences} | {cells} |")
        signatures |= {f"- {score.metric}: `{score.signature}`": None for score in scores}
    searched = result.settings
    lines += [
        "",
        f"Test split, up to {searched.max_sentences} sentences of a direction, beam "
        f"{searched.beam_size}, length penalty {searched.length_penalty}. sacreBLEU's signatures:",
        "",
    ]
    if not facts.exact:
        lines[-2] = (
            f"The scores are of the run in fp32, not of {facts.stored}, whose outputs may differ. "
            f"{lines[-2]}"
        )
    return [*lines, *signatures]


def _result(run_dir: Path) -> EvaluationResult | None:
    # It brings sacreBLEU, which only exporting needs.
    from hyperadapter.evaluation.results import load_result

    try:
        return load_result(run_dir)
    except DataError as error:
        log.info("the card has no scores: %s", error)
        return None
