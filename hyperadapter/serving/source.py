"""What translates, before it is loaded, perhaps in several processes: what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import load_info
from hyperadapter.config import EvaluationConfig, RunConfig
from hyperadapter.core.errors import LanguageError, nearest
from hyperadapter.core.files import sha256_file
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.core.schema import load_config
from hyperadapter.evaluation.search import check_options
from hyperadapter.evaluation.translate import TextTranslator, Translator, require_languages
from hyperadapter.serving.bundle import MANIFEST_FILE, read_bundle
from hyperadapter.serving.ctranslate2 import (
    ABOUT_FILE,
    CTranslate2Translator,
    check_search,
    is_ctranslate2,
    read_about,
)
from hyperadapter.serving.loader import BundleTranslator, check_weights

__all__ = ["ModelSource", "find_model"]


class ModelSource(NamedTuple):
    """What translates, before it is loaded.

    Attributes:
        kind: `run`, `bundle` or `CTranslate2 folder`.
        load: Loads it to a device; can be pickled.
        evaluation: How it searches.
        languages: That it knows.
        directions: That it has; None if it can translate any.
        weights: The file whose checksum identifies it.
        check_search: Given how to search, how many translations are wanted of a sentence and
            whether there are prefixes: refuses what it cannot do.
    """

    kind: str
    load: Callable[[torch.device], TextTranslator]
    evaluation: EvaluationConfig
    languages: tuple[str, ...]
    directions: tuple[str, ...] | None
    weights: Path
    check_search: Callable[[EvaluationConfig, int, bool], None]

    def identity(self) -> str:
        """Returns the checksum of its weights, or of what has the checksums of all its files."""
        return sha256_file(self.weights)

    def check(self, direction: Direction) -> None:
        """Says before anything is loaded that a direction cannot be translated.

        Raises:
            LanguageError: It cannot.
        """
        require_languages(direction, self.languages, self.kind)
        if direction.src == direction.tgt:
            raise LanguageError(
                f"source and target are both {direction.src!r}; choose two languages"
            )
        if self.directions is not None and str(direction) not in self.directions:
            raise LanguageError(
                f"this {self.kind} does not translate {direction}"
                f"{nearest(str(direction), self.directions)}; its directions are "
                f"{', '.join(self.directions)}"
            )


def find_model(folder: Path, checkpoint: str = "newest") -> ModelSource:
    """Finds the weights of a run folder or of what `hyperadapter export` wrote.

    Args:
        folder: Of the run, the bundle or the CTranslate2 model.
        checkpoint: Which of a run's weights, see `layout.choose_weights`; the others have one.

    Raises:
        CheckpointError: There are none, or they are damaged.
        ConfigError: The run's config.yaml is missing or not valid.
    """
    if not folder.is_dir() or (folder / "config.yaml").exists():
        return _find_run(folder, checkpoint)
    if is_ctranslate2(folder):
        return _find_ctranslate2(folder)
    bundle = read_bundle(folder)
    return ModelSource(
        kind="bundle",
        load=partial(BundleTranslator, folder, bundle),
        evaluation=bundle.decoding.evaluation,
        languages=bundle.used_languages(),
        directions=bundle.directions,
        weights=folder / MANIFEST_FILE,
        check_search=_check_our_search,
    )


def _find_ctranslate2(folder: Path) -> ModelSource:
    about = read_about(folder)
    return ModelSource(
        kind="CTranslate2 folder",
        load=partial(_load_ctranslate2, folder),
        evaluation=about.decoding.evaluation,
        languages=parse_direction(about.direction),
        directions=(about.direction,),
        weights=folder / ABOUT_FILE,
        check_search=check_search,
    )


def _load_ctranslate2(folder: Path, device: torch.device) -> CTranslate2Translator:
    return CTranslate2Translator(folder, str(device))


def _check_our_search(evaluation: EvaluationConfig, n_best: int, with_prefixes: bool) -> None:
    check_options(evaluation, n_best)  # prefixes go with everything


def _find_run(folder: Path, checkpoint: str) -> ModelSource:
    config = load_config(RunConfig, folder / "config.yaml")
    weights = choose_weights(folder, checkpoint, config.training.checkpoint)
    check_weights(weights, folder)
    vocabulary = load_info(weights).vocabulary
    fixed = config.model.adapter.kind == "direction"
    return ModelSource(
        kind="run",
        load=partial(Translator.from_weights, weights, folder, config),
        evaluation=config.evaluation,
        languages=vocabulary.languages,
        directions=tuple(map(str, vocabulary.directions)) if fixed else None,
        weights=weights,
        check_search=_check_our_search,
    )
