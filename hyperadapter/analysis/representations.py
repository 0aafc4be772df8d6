"""What stands for a language in a model: its embeddings and its adapters.

A language has two sides. As a source its adapters are those of the encoder's layers in the
direction to the pivot; as a target those of the decoder's layers in the direction from the pivot.
So whatever differs between two languages' adapters, the other language of the direction is the
same. The pivot has no such directions and is left out there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperadapter.config import ModelConfig
from hyperadapter.core.errors import ConfigError, LanguageError, nearest
from hyperadapter.core.languages import Direction
from hyperadapter.model.adapters import RawAdapters
from hyperadapter.model.hypernetwork import HyperNetwork
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary

__all__ = [
    "LayerMatrices",
    "Side",
    "adapted_layers",
    "check_languages",
    "direction_keys",
    "direction_of",
    "embedding_tables",
    "languages_of",
    "layer_matrices",
    "require_language_adapters",
]

Array = NDArray[np.float64]
Side = Literal["src", "tgt"]
_KINDS = ("hyper", "language", "family")


class LayerMatrices(NamedTuple):
    """The adapters of n languages in one layer.

    Attributes:
        weights: All weights in a row, gain and bias folded into the down projection [n, size].
        products: (U D)^T, which maps the model's dimensions as the adapter does while all its units
            are open [n, d_model, d_model]. The order of the units does not show in it, nor does a
            factor that goes from a unit's row of D to its column of U.
    """

    weights: Array
    products: Array


def require_language_adapters(config: ModelConfig) -> None:
    """Checks that adapters belong to languages.

    Raises:
        ConfigError: The model has none, or they belong to directions.
    """
    kind = config.adapter.kind
    if kind not in _KINDS:
        has = "has no adapters" if kind == "none" else "has adapters of directions, not languages"
        raise ConfigError(
            f"model.adapter.kind is {kind!r}: this run {has}, so its languages cannot be compared; "
            f"analyse a run whose model.adapter.kind is {', '.join(_KINDS[:-1])} or {_KINDS[-1]}"
        )


def direction_of(code: str, side: Side, pivot: str) -> Direction:
    """Returns the direction between a language, standing on that side, and the pivot."""
    return Direction(code, pivot) if side == "src" else Direction(pivot, code)


def languages_of(vocabulary: Vocabulary, side: Side, pivot: str) -> tuple[str, ...]:
    """Returns the languages whose direction with the pivot was trained, the pivot left out."""
    trained = set(vocabulary.directions)
    return tuple(
        code for code in vocabulary.languages if direction_of(code, side, pivot) in trained
    )


def check_languages(codes: Sequence[str], known: Sequence[str], side: Side, pivot: str) -> None:
    """Checks languages that a user has named.

    Raises:
        LanguageError: One is named twice, or was not trained with the pivot; all are listed.
    """
    for index, code in enumerate(codes):
        if code not in known:
            raise LanguageError(
                f"this run was not trained on {direction_of(code, side, pivot)}, so {code!r} has no"
                f" adapters to compare{nearest(code, known)}; choose from {', '.join(known)}"
            )
        if code in codes[:index]:
            raise LanguageError(f"language {code!r} is named twice; name each once")


def embedding_tables(model: Seq2Seq) -> dict[str, Array]:
    """Returns the language embeddings of the hyper-network [languages, size], none without it.

    They are `embedding`, or `embedding_src` and `embedding_tgt` where they are not tied.
    """
    if not isinstance(model.adapters, HyperNetwork):
        return {}
    src, tgt = model.adapters.src_embedding, model.adapters.tgt_embedding
    if tgt is None:
        return {"embedding": _to_numpy(src.weight)}
    return {"embedding_src": _to_numpy(src.weight), "embedding_tgt": _to_numpy(tgt.weight)}


def adapted_layers(config: ModelConfig, side: Side) -> dict[str, int]:
    """Returns the place among the adapted layers of every layer of a side, such as `encoder.0`."""
    first = config.num_encoder_layers
    if side == "src":
        return {f"encoder.{n}": i for i, n in enumerate(config.adapted_layers) if n < first}
    layers = enumerate(config.adapted_layers)
    return {f"decoder.{n - first}": i for i, n in layers if n >= first}


def direction_keys(model: Seq2Seq, directions: Sequence[Direction]) -> tuple[Tensor, ...]:
    """Returns what asks for the adapters of P directions: three tensors [P].

    The directions' own numbers are 0: no kind of adapter that belongs to languages reads them.
    """
    languages = model.vocabulary.languages
    numbers = [[languages.index(code) for code in direction] for direction in directions]
    keys = torch.tensor(numbers, device=model.embedding.weight.device)
    return keys[:, 0], keys[:, 1], torch.zeros_like(keys[:, 0])


@torch.inference_mode()
def layer_matrices(
    model: Seq2Seq, languages: Sequence[str], side: Side, pivot: str, place: int
) -> LayerMatrices:
    """Generates, or looks up, the adapters of languages in one layer.

    Args:
        model: With adapters of languages.
        languages: n codes, from `languages_of`.
        side: On which the languages stand.
        pivot: The language on the other side.
        place: Of the layer among the adapted ones, from `adapted_layers`.
    """
    assert model.adapters is not None
    keys = direction_keys(model, [direction_of(code, side, pivot) for code in languages])
    layer = slice(place, place + 1)
    context = model.adapters.context(*keys)[:, layer]
    raw: RawAdapters = model.adapters.generate(context, layer).fold()
    parts = (raw.down_PLRD, raw.down_bias_PLR, raw.up_PLDR, raw.up_bias_PLD)
    weights = np.concatenate([_to_numpy(part).reshape(len(languages), -1) for part in parts], 1)
    up, down = (_to_numpy(part[:, 0]) for part in (raw.up_PLDR, raw.down_PLRD))
    return LayerMatrices(weights, np.swapaxes(up @ down, 1, 2))


def _to_numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().double().cpu().numpy()
    return array
