"""Bytes that a forward pass keeps for the backward pass, counted from the configuration alone.

Counted is what automatic differentiation saves, each storage once, by layer (times N or M tokens,
e bytes a number, m bytes of a dropout mask: 1 on a GPU, e on a CPU, 0 without dropout):

    encoder layer            e (8 D + F) + 2 m D    input, LayerNorm, qkv, attention; input,
                                                    LayerNorm, hidden units
    decoder layer            e (12 D + F) + 3 m D   and of cross-attention: input, LayerNorm,
                             and 2 e D a source     queries, attention; keys and values
    adapter, sequential      e (2 D + R)            input, normalised, bottleneck; with a gain and
                                                    bias for each token (GPU) another 2 e D
    adapter, parallel        e R                    the same without input and normalised
    attention                4 heads                log-sum-exp of each query
    loss                     e D; e E D             gradients of hidden states and embedding

Attention is one fused kernel everywhere, which keeps no scores. What lives for a moment only counts
where memory is fullest, which is in the loss (logits of a chunk of targets and the embedding's
gradient in fp32), in the backward pass of the last layer, or at its end (gradients of generated
weights of all layers, and both of the embedding).

Shape legend: N source tokens, M target tokens, D model, F feed-forward, R bottleneck, V pieces, E
embedding rows (pieces and tags), P distinct directions, L adapted layers, H hyper-network width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from hyperadapter.config import ModelConfig
from hyperadapter.model.accounting import generated_bytes
from hyperadapter.model.loss import chunk_rows
from hyperadapter.model.vocabulary import Vocabulary

__all__ = ["ActivationBytes", "MicroBatchSize", "count_activations"]

_FP32 = 4
_ID = 8


class MicroBatchSize(NamedTuple):
    """How large a micro-batch is.

    Attributes:
        src_tokens: N, padding included.
        tgt_tokens: M, padding included.
        num_directions: P, distinct directions.
    """

    src_tokens: int
    tgt_tokens: int
    num_directions: int


class ActivationBytes(NamedTuple):
    """Bytes at the moment when memory is fullest.

    Attributes:
        kept: What the backward pass still needs.
        workspace: What lives for this moment only.
        generated: Adapter weights, and their gradients where these are what fills the memory.
    """

    kept: int
    workspace: int
    generated: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def count_activations(
    config: ModelConfig,
    vocabulary: Vocabulary,
    batch: MicroBatchSize,
    *,
    element_size: int,
    on_gpu: bool,
    recompute: bool,
) -> ActivationBytes:
    """Counts the activations of one micro-batch of training; see the head of this file.

    Args:
        config: The model.
        vocabulary: Pieces and languages.
        batch: Tokens and directions.
        element_size: Bytes of a number: 4 in fp32, 2 in bf16.
        on_gpu: Dropout masks, adapters and the loss's chunks are others on a GPU.
        recompute: Layers keep their input only (`activation_checkpointing`).
    """
    count = _Count(config, vocabulary, batch, element_size, on_gpu)
    encoder, decoder = count.encoder_layer(), count.decoder_layer()
    item, width = element_size, config.d_model
    if recompute:
        again = max(encoder, decoder)
        encoder, decoder = item * batch.src_tokens * width, item * batch.tgt_tokens * width
        again -= encoder if count.encoder_layer() > count.decoder_layer() else decoder
    else:
        again = 0
    layers = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    kept = layers + count.ends() + count.hyper_network()
    made = generated_bytes(config, batch.num_directions, item)
    embedding = item * count.embedding_rows * width
    by_layer = config.adapter.generation == "layer_by_layer"
    return max(
        ActivationBytes(kept, count.loss_workspace(), 0 if by_layer else made),
        ActivationBytes(
            kept,
            again + embedding + count.layer_workspace(),
            2 * made if by_layer else made,
        ),
        # Gradients of weights stand beside each other by layer, and are put together by a copy.
        ActivationBytes(0, 2 * embedding, made),
        ActivationBytes(0, embedding, made if by_layer else made * 3 // 2),
        key=lambda moment: moment.total,
    )


@dataclass(frozen=True)
class _Count:
    config: ModelConfig
    vocabulary: Vocabulary
    batch: MicroBatchSize
    item: int
    on_gpu: bool

    @property
    def embedding_rows(self) -> int:
        return self.vocabulary.num_pieces + len(self.vocabulary.languages)

    @property
    def mask(self) -> int:
        """Bytes of one number's place in a dropout mask; a CPU keeps the factors themselves."""
        return 0 if self.config.dropout == 0 else 1 if self.on_gpu else self.item

    def encoder_layer(self) -> int:
        return self._layer(self.batch.src_tokens)

    def decoder_layer(self) -> int:
        width, heads = self.config.d_model, self.config.num_heads
        queries = self.item * 4 * width + self.mask * width + _FP32 * (heads + 2)
        keys_and_values = self.item * 2 * width
        tgt = self.batch.tgt_tokens
        return self._layer(tgt) + queries * tgt + keys_and_values * self.batch.src_tokens

    def _layer(self, tokens: int) -> int:
        """Self-attention, feed-forward block and an adapter, if layers carry any."""
        width, heads = self.config.d_model, self.config.num_heads
        numbers = 8 * width + self.config.ffn_dim
        statistics = _FP32 * (heads + 2 + 2)
        share = len(self.config.adapted_layers) / self.config.num_layers
        adapter = self._adapter() * share if self.config.adapter.kind != "none" else 0
        each = self.item * numbers + 2 * self.mask * width + statistics
        return tokens * each + int(tokens * adapter)

    def _adapter(self) -> int:
        width, adapter = self.config.d_model, self.config.adapter
        sequential = adapter.placement == "sequential"
        if adapter.generation == "layer_by_layer":  # run twice: its input only
            return self.item * (2 * width if sequential else 0) + _FP32 * 2 * sequential
        numbers = adapter.bottleneck_dim + (2 * width if sequential else 0)
        one = self.batch.num_directions == 1
        # Gain and bias for each token, which a CPU applies group by group.
        numbers += 2 * width if self.on_gpu and not one else width if one else 0
        return self.item * numbers + _FP32 * 2 * sequential

    def ends(self) -> int:
        """What stands before the first and behind the last layers."""
        src, tgt, _ = self.batch
        width = self.config.d_model
        embedded = (src + tgt) * (_ID + self.mask * width)
        norms = self.item * width * (2 * src + tgt) + _FP32 * 2 * (src + tgt)
        return embedded + norms + self.item * tgt * width

    def hyper_network(self) -> int:
        hyper = self.config.adapter.hyper_network
        if self.config.adapter.kind != "hyper" or hyper is None:
            return 0
        inputs = 2 * hyper.language_dim + hyper.layer_dim
        hidden = 1 + 3 * hyper.num_blocks
        # Each head divides its input.
        heads = (6 if self.config.adapter.generated_layer_norm else 4) * (hyper.rescale == "sqrt")
        numbers = inputs + (hidden + heads) * hyper.hyper_dim + 2 * (hyper.head_rank or 0)
        return self.item * self.batch.num_directions * len(self.config.adapted_layers) * numbers

    def loss_workspace(self) -> int:
        """Hidden states, logits of a chunk, and the embedding's gradient in fp32."""
        pieces, width = self.vocabulary.num_pieces, self.config.d_model
        device = torch.device("cuda" if self.on_gpu else "cpu")
        rows = min(chunk_rows(pieces, device), self.batch.tgt_tokens)
        # In bf16 logits are copied to fp32 and their gradient back; its product is added apart.
        logits = rows * pieces * (_FP32 if self.item == _FP32 else _FP32 + 2 * self.item)
        product = 0 if self.item == _FP32 else self.item * pieces * width
        gradient = _FP32 * self.embedding_rows * width
        return gradient + logits + product + self.item * self.batch.tgt_tokens * width

    def layer_workspace(self) -> int:
        """Gradients inside a feed-forward block; behind it there is room for attention's."""
        width, adapter = self.config.d_model, self.config.adapter
        space = self.item * (self.config.ffn_dim + 2 * width) * self.batch.tgt_tokens
        hyper = adapter.hyper_network
        if adapter.generation == "layer_by_layer" and hyper is not None:
            # Gradients of the heads, which are added up layer by layer.
            inputs = hyper.hyper_dim if hyper.head_rank is None else hyper.head_rank
            space += self.item * width * adapter.bottleneck_dim * inputs
        return space
