"""Parallel adapters of one direction become units of the feed-forward blocks: an exact rewrite.

With `y` the block's LayerNorm output, a layer with a parallel adapter adds

    W_2 relu(W_1 y + b_1) + b_2  +  U relu(D y + b_D) + b_U
        = [W_2 U] relu([W_1; D] y + [b_1; b_D]) + (b_2 + b_U)

where the adapter's own gain and bias are in D and b_D already (see `hyperadapter.model.adapters`).
So one direction of the model is an ordinary Transformer with R more units a block, and no adapters
(He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 3). A
layer without an adapter gets R units of zeros, since every block must have the same width.

A sequential adapter has a LayerNorm and a residual connection of its own behind the block, which
no hidden unit can stand for.

Shapes: D model, F feed-forward, R bottleneck.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hyperadapter.config import AdapterConfig, ModelConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.model.adapters import AdapterWeights

__all__ = ["fold_adapters", "main_network_config"]


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
) -> tuple[dict[str, Tensor], ModelConfig]:
    """Puts the adapters of one direction into the feed-forward blocks.

    Args:
        tensors: The main network, by the names of `Seq2Seq`.
        config: Of the model that has the adapters.
        adapters: Folded weights of the direction, P = 1; None for a dense model.

    Returns:
        Tensors and configuration of a model without adapters that computes the same.

    Raises:
        ConfigError: The adapters are sequential.
    """
    dense = main_network_config(config)
    if adapters is None:
        return dict(tensors), dense
    if config.adapter.placement != "parallel":
        raise ConfigError(
            f"model.adapter.placement is {config.adapter.placement!r}, and only parallel adapters "
            "fold into a feed-forward block: a sequential one has a LayerNorm and a residual "
            "connection of its own behind the block. Export without --fold, or train with "
            "model.adapter.placement parallel"
        )
    folded = dict(tensors)
    for number in range(config.num_layers):
        place = number - config.num_encoder_layers
        layer = f"encoder.layers.{number}" if place < 0 else f"decoder.layers.{place}"
        _widen(folded, f"{layer}.feed_forward", _units(adapters, number))
    width = config.ffn_dim + config.adapter.bottleneck_dim
    return folded, dense.model_copy(update={"ffn_dim": width})


def _units(adapters: AdapterWeights, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns down [R, D], its bias [R], up [D, R] and its bias [D] of a layer, perhaps zeros."""
    assert adapters.raw.gain_PLD is None, "gain and bias must be folded"
    found = adapters.layer(number)
    layer = found or adapters.layer(adapters.layers[0])
    assert layer is not None
    down, down_bias, up, up_bias = (
        part.squeeze(0) if found else torch.zeros_like(part.squeeze(0))
        for part in (layer.down_PRD, layer.down_bias_PR, layer.up_PDR, layer.up_bias_PD)
    )
    return down, down_bias, up, up_bias


def _widen(
    tensors: dict[str, Tensor], block: str, units: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """Adds hidden units to a feed-forward block."""
    down, down_bias, up, up_bias = units
    into, out = f"{block}.up", f"{block}.down"
    tensors[f"{into}.weight"] = torch.cat([tensors[f"{into}.weight"], down])
    tensors[f"{into}.bias"] = torch.cat([tensors[f"{into}.bias"], down_bias])
    tensors[f"{out}.weight"] = torch.cat([tensors[f"{out}.weight"], up], dim=1)
    tensors[f"{out}.bias"] = tensors[f"{out}.bias"] + up_bias
