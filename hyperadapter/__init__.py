"""Multilingual machine translation with hyper-adapters, trained at scale."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hyperadapter.serving.loader import TranslationModel

__all__ = ["load"]
__version__ = "0.1.0"


def load(
    path: str | PathLike[str], device: Literal["auto", "cpu", "cuda"] = "auto"
) -> TranslationModel:
    """Loads a model that translates.

    Args:
        path: A bundle of `hyperadapter export`, or a run folder, whose newest checkpoint is taken.
        device: `auto` is a GPU if there is one.

    Returns:
        The model: `load(path).translate(["Guten Tag."], src="de", tgt="en")`.

    Raises:
        CheckpointError: There is no model, or it is damaged: checksums are compared.
        ConfigError: `device` is cuda, but there is no GPU.
    """
    # Here, so that `import hyperadapter` does not wait for torch.
    from pathlib import Path

    from hyperadapter.serving.loader import load

    return load(Path(path), device)
