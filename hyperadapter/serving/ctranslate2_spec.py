"""A folded direction as CTranslate2's own description of a Transformer.

CTranslate2 (Klein et al. 2020, "The OpenNMT Neural Machine Translation Toolkit") reads the sizes of
every layer from its tensors. So feed-forward blocks keep their own widths. A layer that was a
sequential adapter must have attentions all the same (without, 4.8.5 fails at its first step); they
add zero, with heads of one or a few numbers instead of D / A.

Shapes: V rows of the vocabulary, D model, A heads of H numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hyperadapter.model.transformer import sinusoidal_positions
from hyperadapter.serving.ctranslate2 import import_ctranslate2
from hyperadapter.serving.fold import Folded, Layer

__all__ = ["TAG_BIAS", "build_spec"]

TAG_BIAS = -6e4
"""Output bias of tags: their probability is 0 in every type of number, as ours have no score."""
_EPSILON = 1e-5  # torch's
_WHOLE_UNITS = 8  # GPUs multiply 8-bit numbers in multiples of 4, and halves best in those of 8

Floats = NDArray[np.float32]


def build_spec(
    folded: Folded, rows: Tensor, tokens: Sequence[str], *, num_pieces: int, num_heads: int,
    num_positions: int,
) -> Any:  # fmt: skip
    """Describes the model, ready to be validated, optimized and saved.

    Args:
        folded: The model.
        rows: Its embeddings of the pieces, then of the tags in use [V, D].
        tokens: The rows' names.
        num_pieces: How many of the rows are pieces; the tags behind them are never produced.
        num_heads: Of every attention.
        num_positions: Longest source or target.

    Returns:
        A `ctranslate2.specs.TransformerSpec`.
    """
    specs = import_ctranslate2().specs
    spec = specs.TransformerSpec.from_config((len(folded.encoder), len(folded.decoder)), num_heads)
    spec.register_source_vocabulary(list(tokens))
    spec.register_target_vocabulary(list(tokens))
    spec.config.layer_norm_epsilon = _EPSILON
    embedding = _numpy(rows)
    positions = _numpy(sinusoidal_positions(num_positions, rows.size(1)))
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = embedding
    for side in (spec.encoder, spec.decoder):
        side.position_encodings.encodings = positions
    spec.decoder.projection.weight = embedding
    if len(tokens) > num_pieces:
        bias = np.zeros(len(tokens), np.float32)
        bias[num_pieces:] = TAG_BIAS
        spec.decoder.projection.bias = bias
    for name, layers in (("encoder", folded.encoder), ("decoder", folded.decoder)):
        side = getattr(spec, name)
        _set_norm(side.layer_norm, folded.others, f"{name}.norm")
        side.layer = [_layer_spec(name, layer, num_heads) for layer in layers]
    return spec


def _layer_spec(side: str, layer: Layer, num_heads: int) -> Any:
    kinds = import_ctranslate2().specs.transformer_spec
    is_adapter = "self_attention_norm.weight" not in layer
    head_dim = _WHOLE_UNITS // math.gcd(_WHOLE_UNITS, num_heads) if is_adapter else None
    spec = getattr(kinds, f"Transformer{side.capitalize()}LayerSpec")(head_dim=head_dim)
    _set_norm(spec.ffn.layer_norm, layer, "feed_forward.norm")
    _set_linear(spec.ffn.linear_0, layer, "feed_forward.up")
    _set_linear(spec.ffn.linear_1, layer, "feed_forward.down")
    attentions: list[tuple[Any, str, tuple[str, ...]]] = [
        (spec.self_attention, "self_attention", ("qkv", "out"))
    ]
    if side == "decoder":
        attentions.append((spec.attention, "cross_attention", ("q", "kv", "out")))
    for attention, name, parts in attentions:
        if head_dim is not None:
            # A H outputs for each letter: of queries, keys, values.
            sizes = [len(part) * num_heads * head_dim for part in parts[:-1]]
            _set_zeros(attention, len(layer["feed_forward.norm.bias"]), sizes)
            continue
        _set_norm(attention.layer_norm, layer, f"{name}_norm")
        for linear, part in zip(attention.linear, parts, strict=True):
            _set_linear(linear, layer, f"{name}.{part}")
    return spec


def _set_zeros(attention: Any, d_model: int, sizes: Sequence[int]) -> None:
    """Makes an attention that adds zero.

    Args:
        attention: Its description.
        d_model: D.
        sizes: Outputs of the projections to queries, keys and values: 3 A H, or A H and 2 A H.
    """
    attention.layer_norm.gamma = np.ones(d_model, np.float32)
    attention.layer_norm.beta = np.zeros(d_model, np.float32)
    inner = sum(sizes) // 3
    shapes = [*((size, d_model) for size in sizes), (d_model, inner)]
    for linear, shape in zip(attention.linear, shapes, strict=True):
        linear.weight, linear.bias = np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)


def _set_norm(spec: Any, tensors: Layer, name: str) -> None:
    spec.gamma, spec.beta = _numpy(tensors[f"{name}.weight"]), _numpy(tensors[f"{name}.bias"])


def _set_linear(spec: Any, tensors: Layer, name: str) -> None:
    spec.weight, spec.bias = _numpy(tensors[f"{name}.weight"]), _numpy(tensors[f"{name}.bias"])


def _numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().float().contiguous().numpy()
    return array
