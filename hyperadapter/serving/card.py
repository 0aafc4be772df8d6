"""The card of a bundle: what it is, how good it is, and how to use it, for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hyperadapter.core.errors import DataError
from hyperadapter.core.files import sha256_file
from hyperadapter.core.languages import language_name, parse_direction
from hyperadapter.serving.bundle import BundleConfig

if TYPE_CHECKING:
    from hyperadapter.evaluation.results import EvaluationResult

__all__ = ["write_card"]

log = logging.getLogger(__name__)


def write_card(
    config: BundleConfig, run_dir: Path, weights: Path, checksums: Mapping[str, str]
) -> str:
    """Returns the text of README.md.

    Args:
        config: Of the bundle.
        run_dir: The run; its scores of the test split are shown if they are of these weights.
        weights: The exported checkpoint's weights file.
        checksums: SHA-256 of the bundle's weights, by file.
    """
    first = parse_direction(config.directions[0])
    languages = ", ".join(f"{language_name(code)} (`{code}`)" for code in config.used_languages())
    return "\n".join(
        [
            f"# {config.name}",
            "",
            f"Translates {', '.join(config.directions)}. A pre-LayerNorm Transformer with "
            f"materialised adapters, step {config.step} of the run {config.name} "
            f"({config.fingerprint}), stored as {config.dtype}.",
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
            f"Texts are single sentences of up to {config.max_sentence_tokens} tokens. Search: "
            f"beam {config.decoding.beam_size}, length penalty {config.decoding.length_penalty}.",
            "",
            "## Scores",
            "",
            *_scores(config, run_dir, weights),
            "",
            "## Checksums",
            "",
            "`manifest.json` has all of them; loading compares them.",
            "",
            *(f"    {digest}  {name}" for name, digest in checksums.items()),
            "",
        ]
    )


def _scores(config: BundleConfig, run_dir: Path, weights: Path) -> list[str]:
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
    rows = [row for row in result.directions if row.direction in config.directions]
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
    lines += ["", f"Test split, beam {searched.beam_size}. sacreBLEU's signatures:", ""]
    if config.dtype != "fp32":
        lines[-2] += f" The scores are of the fp32 weights, not of {config.dtype}."
    return [*lines, *signatures]


def _result(run_dir: Path) -> EvaluationResult | None:
    # It brings sacreBLEU, which only exporting needs.
    from hyperadapter.evaluation.results import load_result

    try:
        return load_result(run_dir)
    except DataError as error:
        log.info("the card has no scores: %s", error)
        return None
