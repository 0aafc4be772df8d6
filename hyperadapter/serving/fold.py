"""One direction of a model with adapters, rewritten without them: the same function, exactly.

Gain and bias of the adapter's own LayerNorm are in D and b_D already, so that `n(x)` is LayerNorm
without them (see `hyperadapter.model.adapters`).

Parallel. With `y` the feed-forward block's LayerNorm output, the layer adds

    W_2 relu(W_1 y + b_1) + b_2  +  U relu(D y + b_D) + b_U
        = [W_2 U] relu([W_1; D] y + [b_1; b_D]) + (b_2 + b_U)

so the adapter is R more units of the block (He et al. 2022, "Towards a Unified View of
Parameter-Efficient Transfer Learning", section 3).

Sequential. Behind layer i the adapter computes

    x = x + U relu(D n(x) + b_D) + b_U

which is a feed-forward sublayer of R units with its LayerNorm (gain 1, bias 0) and its residual
connection. So it becomes a layer of its own behind layer i, with a feed-forward block and without
attention. L layers become L and one more for each adapter, and the last LayerNorm stays last.

A format whose layers must all be alike (`as_ordinary`) gives such a layer attentions that add

    0 softmax(0) (0 y + 0) + 0  =  0

and every block units of zeros up to the width of the widest. Both are exact, and cost what they
compute.

Shapes: D model, F feed-forward, R bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperadapter.config import AdapterConfig, ModelConfig
from hyperadapter.model.adapters import AdapterWeights, LayerAdapter

__all__ = ["Folded", "as_ordinary", "fold_adapters", "main_network_config"]

Layer = dict[str, Tensor]
"""Tensors of a layer, by the names of `EncoderLayer` and `DecoderLayer`."""


class Folded(NamedTuple):
    """A model without adapters, its layers as small as they can be.

    Attributes:
        encoder: Layers of the encoder; one that was an adapter has a feed-forward block only.
        decoder: Layers of the decoder, likewise.
        others: All other tensors, by the names of `Seq2Seq`.
    """

    encoder: list[Layer]
    decoder: list[Layer]
    others: dict[str, Tensor]


def main_network_config(config: ModelConfig) -> ModelConfig:
    """Returns the configuration of a model's main network, which is given its adapters."""
    adapter = config.adapter
    main = AdapterConfig(
        kind="none",
        bottleneck_dim=adapter.bottleneck_dim,
        placement=adapter.placement,
        encoder_layers=adapter.encoder_layers,
        decoder_layers=adapter.decoder_layers,
    )
    return config.model_copy(update={"adapter": main})


def fold_adapters(
    tensors: Mapping[str, Tensor], config: ModelConfig, adapters: AdapterWeights | None
) -> Folded:
    """Rewrites the adapters of one direction.

    Args:
        tensors: The main network, by the names of `Seq2Seq`.
        config: Of the model that has the adapters.
        adapters: Folded weights of the direction, P = 1; None for a dense model.

    Returns:
        A model that computes the same.
    """
    assert adapters is None or adapters.raw.gain_PLD is None, "gain and bias must be folded"
    fold = _widen if config.adapter.placement == "parallel" else _lengthen
    layers: list[Layer] = []
    ends = []
    number = 0
    for side in ("encoder", "decoder"):
        for place in range(getattr(config, f"num_{side}_layers")):
            layer = _take(tensors, f"{side}.layers.{place}.")
            adapter = None if adapters is None else adapters.layer(number)
            layers += [layer] if adapter is None else fold(layer, adapter)
            number += 1
        ends.append(len(layers))
    others = {name: x for name, x in tensors.items() if ".layers." not in name}
    return Folded(layers[: ends[0]], layers[ends[0] :], others)


def _take(tensors: Mapping[str, Tensor], prefix: str) -> Layer:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _parts(adapter: LayerAdapter) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns down [R, D], its bias [R], up [D, R] and its bias [D]."""
    return (
        adapter.down_PRD.squeeze(0),
        adapter.down_bias_PR.squeeze(0),
        adapter.up_PDR.squeeze(0),
        adapter.up_bias_PD.squeeze(0),
    )


def _widen(layer: Layer, adapter: LayerAdapter) -> Iterator[Layer]:
    """Adds a parallel adapter's units to the layer's block."""
    down, down_bias, up, up_bias = _parts(adapter)
    into, out = "feed_forward.up", "feed_forward.down"
    yield layer | {
        f"{into}.weight": torch.cat([layer[f"{into}.weight"], down]),
        f"{into}.bias": torch.cat([layer[f"{into}.bias"], down_bias]),
        f"{out}.weight": torch.cat([layer[f"{out}.weight"], up], dim=1),
        f"{out}.bias": layer[f"{out}.bias"] + up_bias,
    }


def _lengthen(layer: Layer, adapter: LayerAdapter) -> Iterator[Layer]:
    """Puts a sequential adapter behind its layer."""
    down, down_bias, up, up_bias = _parts(adapter)
    yield layer
    yield {
        "feed_forward.norm.weight": torch.ones_like(up_bias),
        "feed_forward.norm.bias": torch.zeros_like(up_bias),
        "feed_forward.up.weight": down,
        "feed_forward.up.bias": down_bias,
        "feed_forward.down.weight": up,
        "feed_forward.down.bias": up_bias,
    }


def as_ordinary(folded: Folded, config: ModelConfig) -> tuple[dict[str, Tensor], ModelConfig]:
    """Makes all layers alike: zeros for attentions that are missing and up to the widest block.

    Args:
        folded: From `fold_adapters`.
        config: Of the model that had the adapters.

    Returns:
        Tensors by the names of `Seq2Seq`, and the configuration of that dense model.
    """
    sides = {"encoder": folded.encoder, "decoder": folded.decoder}
    width = max(len(layer["feed_forward.up.bias"]) for side in sides.values() for layer in side)
    tensors = dict(folded.others)
    for side, layers in sides.items():
        whole = layers[0]  # the first layer is never an adapter
        for place, layer in enumerate(layers):
            alike = _without_attention(whole) | _pad(layer, width)
            tensors |= {f"{side}.layers.{place}.{name}": x for name, x in alike.items()}
    sizes = {
        "ffn_dim": width,
        "num_encoder_layers": len(folded.encoder),
        "num_decoder_layers": len(folded.decoder),
        "adapter": AdapterConfig(kind="none"),
    }
    return tensors, config.model_copy(update=sizes)


def _without_attention(whole: Layer) -> Layer:
    """Returns attentions that add nothing, of the shapes of a layer that has them."""
    return {
        name: torch.ones_like(x) if name.endswith("norm.weight") else torch.zeros_like(x)
        for name, x in whole.items()
        if "attention" in name
    }


def _pad(layer: Layer, width: int) -> Layer:
    """Adds units of zeros to the layer's block."""
    into, out = "feed_forward.up", "feed_forward.down"
    more = width - len(layer[f"{into}.bias"])
    return layer | {
        f"{into}.weight": F.pad(layer[f"{into}.weight"], (0, 0, 0, more)),
        f"{into}.bias": F.pad(layer[f"{into}.bias"], (0, more)),
        f"{out}.weight": F.pad(layer[f"{out}.weight"], (0, more)),
    }
