"""Parameters and floating-point operations, counted from the configuration alone.

Parameters are exact: `count_parameters` equals the built model part by part. Operations count
matrix products only, a multiply-add as two operations; the backward pass costs twice the forward.

Shape legend: D model, F feed-forward, R bottleneck, V pieces, L layers, H hyper-network width,
P distinct directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperadapter.config import AdapterConfig, HyperNetworkConfig, ModelConfig
from hyperadapter.model.vocabulary import Vocabulary, language_groups

__all__ = ["FlopCount", "adapter_size", "count_flops", "count_parameters"]


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def adapter_size(d_model: int, bottleneck_dim: int) -> int:
    """Returns the parameters of one adapter: D, b_D, U, b_U, gain and bias (2 D R + R + 3 D)."""
    return 2 * d_model * bottleneck_dim + bottleneck_dim + 3 * d_model


def _hyper_network(config: ModelConfig, num_languages: int) -> dict[str, int]:
    adapter, hyper = config.adapter, config.adapter.hyper_network
    assert hyper is not None
    width, d_model = hyper.hyper_dim, config.d_model
    tables = 1 if hyper.tied_language_embeddings else 2
    block = 2 * width + 2 * _linear(width, width)
    outputs = adapter_size(d_model, adapter.bottleneck_dim)
    if not adapter.generated_layer_norm:
        outputs -= 2 * d_model
    parts = {
        "hyper-network embeddings": tables * num_languages * hyper.language_dim
        + config.num_layers * hyper.layer_dim,
        "hyper-network body": _linear(_hyper_input_dim(hyper), width) + hyper.num_blocks * block,
        "hyper-network heads": _linear(width, outputs),
    }
    if not adapter.generated_layer_norm:
        parts["adapter layer norms"] = config.num_layers * 2 * d_model
    return parts


def _hyper_input_dim(hyper: HyperNetworkConfig) -> int:
    return 2 * hyper.language_dim + hyper.layer_dim


def _stacked_adapters(config: ModelConfig, vocabulary: Vocabulary) -> int:
    kind = config.adapter.kind
    if kind == "direction":
        keys = len(vocabulary.directions)
    else:
        _, keys = language_groups(kind, vocabulary.languages)
    return keys * config.num_layers * adapter_size(config.d_model, config.adapter.bottleneck_dim)


def count_parameters(config: ModelConfig, vocabulary: Vocabulary) -> dict[str, int]:
    """Counts the parameters of each part; their sum is the built model's."""
    d_model, ffn_dim = config.d_model, config.ffn_dim
    norm = 2 * d_model
    attention = _linear(d_model, 3 * d_model) + _linear(d_model, d_model)
    feed_forward = _linear(d_model, ffn_dim) + _linear(ffn_dim, d_model)
    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    parts = {
        "embedding": (vocabulary.num_pieces + len(vocabulary.languages)) * d_model,
        "encoder": config.num_encoder_layers * encoder_layer + norm,
        "decoder": config.num_decoder_layers * decoder_layer + norm,
    }
    kind = config.adapter.kind
    if kind == "hyper":
        parts |= _hyper_network(config, len(vocabulary.languages))
    elif kind != "none":
        parts[f"{kind} adapters"] = _stacked_adapters(config, vocabulary)
    return parts


@dataclass(frozen=True)
class FlopCount:
    """Forward floating-point operations of one micro-batch.

    Attributes:
        parts: Operations by part of the model.
        tgt_tokens: Target tokens of the micro-batch.
    """

    parts: Mapping[str, float]
    tgt_tokens: int

    @property
    def forward(self) -> float:
        """Operations of the forward pass of the micro-batch."""
        return sum(self.parts.values())

    @property
    def train_per_tgt_token(self) -> float:
        """Operations of forward and backward, per target token."""
        return 3 * self.forward / self.tgt_tokens


def count_flops(
    config: ModelConfig, num_pieces: int, *, sentences: int, length: int, num_directions: int
) -> FlopCount:
    """Counts the operations of one forward pass.

    Args:
        config: The model.
        num_pieces: Size of the output vocabulary.
        sentences: Sentences B in the micro-batch.
        length: Tokens a sentence, source and target alike, without padding.
        num_directions: Distinct directions P in the micro-batch.

    Returns:
        Operations by part.
    """
    d_model, ffn_dim, tokens = config.d_model, config.ffn_dim, sentences * length
    projections = 8 * tokens * d_model**2
    scores = 4 * tokens * length * d_model
    feed_forward = 4 * tokens * d_model * ffn_dim
    attention = projections + scores
    parts: dict[str, float] = {
        "encoder": config.num_encoder_layers * (attention + feed_forward),
        "decoder": config.num_decoder_layers * (2 * attention + feed_forward),
        "output projection": 2 * tokens * d_model * num_pieces,
    }
    adapter = config.adapter
    if adapter.kind != "none":
        parts["adapters"] = config.num_layers * 4 * tokens * d_model * adapter.bottleneck_dim
        generated = num_directions * config.num_layers
        # Folding LayerNorm's bias into the down projection's.
        parts["adapters"] += 2 * generated * d_model * adapter.bottleneck_dim
        if adapter.hyper_network is not None and adapter.kind == "hyper":
            parts["hyper-network"] = generated * _hyper_network_flops(
                adapter, adapter.hyper_network, d_model
            )
    return FlopCount(parts, tokens)


def _hyper_network_flops(adapter: AdapterConfig, hyper: HyperNetworkConfig, d_model: int) -> int:
    """Operations to generate one adapter."""
    outputs = adapter_size(d_model, adapter.bottleneck_dim)
    if not adapter.generated_layer_norm:
        outputs -= 2 * d_model
    width = hyper.hyper_dim
    weights = _hyper_input_dim(hyper) * width + hyper.num_blocks * 2 * width**2 + width * outputs
    return 2 * weights
