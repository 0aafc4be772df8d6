"""A run or a bundle that will be loaded, perhaps in several processes: what is known before."""

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
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config
from hyperadapter.evaluation.translate import TextTranslator, Translator
from hyperadapter.serving.bundle import MANIFEST_FILE, read_bundle
from hyperadapter.serving.loader import BundleTranslator

__all__ = ["ModelSource", "find_model"]


class ModelSource(NamedTuple):
    """What translates, before it is loaded.

    Attributes:
        kind: `run` or `bundle`.
        load: Loads it to a device; can be pickled.
        evaluation: How it searches.
        languages: That it knows.
        directions: That it has; None if it can translate any.
        weights: The file whose checksum identifies it.
    """

    kind: str
    load: Callable[[torch.device], TextTranslator]
    evaluation: EvaluationConfig
    languages: tuple[str, ...]
    directions: tuple[str, ...] | None
    weights: Path

    def identity(self) -> str:
        """Returns the checksum of its weights; a bundle's manifest has those of all its files."""
        return sha256_file(self.weights)

    def check(self, direction: Direction) -> None:
        """Says before anything is loaded that a direction cannot be translated.

        Raises:
            LanguageError: It cannot.
        """
        for code in direction:
            if code not in self.languages:
                raise LanguageError(
                    f"this {self.kind} has no language {code!r}{nearest(code, self.languages)}; "
                    f"its languages are {', '.join(self.languages)}"
                )
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
    """Finds the weights of a run folder or a bundle.

    Args:
        folder: Of the run or the bundle.
        checkpoint: Which of a run's weights, see `layout.choose_weights`; a bundle has one.

    Raises:
        CheckpointError: There are none, or they are damaged.
        ConfigError: The run's config.yaml is missing or not valid.
    """
    if folder.is_dir() and not (folder / "config.yaml").exists():
        bundle = read_bundle(folder)
        return ModelSource(
            kind="bundle",
            load=partial(BundleTranslator, folder, bundle),
            evaluation=bundle.decoding.evaluation,
            languages=bundle.used_languages(),
            directions=bundle.directions,
            weights=folder / MANIFEST_FILE,
        )
    config = load_config(RunConfig, folder / "config.yaml")
    weights = choose_weights(folder, checkpoint, config.training.checkpoint)
    vocabulary = load_info(weights).vocabulary
    fixed = config.model.adapter.kind == "direction"
    return ModelSource(
        kind="run",
        load=partial(Translator.from_weights, weights, folder, config),
        evaluation=config.evaluation,
        languages=vocabulary.languages,
        directions=tuple(map(str, vocabulary.directions)) if fixed else None,
        weights=weights,
    )
