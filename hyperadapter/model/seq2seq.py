"""The whole model: embeddings, Transformer and the provider of its adapters.

Embedding rows are the pieces, then one tag per language. The same matrix embeds source and target
and, without the tags, is the output projection.

Shape legend: B sentences, S source, T target, D model, V pieces, N target tokens, P distinct
directions, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperadapter.config import ModelConfig
from hyperadapter.model.adapters import (
    AdapterStack,
    AdapterWeights,
    RawAdapters,
    StackedAdapters,
)
from hyperadapter.model.batch import Batch
from hyperadapter.model.hypernetwork import HyperNetwork
from hyperadapter.model.loss import label_smoothed_cross_entropy
from hyperadapter.model.transformer import Decoder, DecoderCache, Encoder, sinusoidal_positions
from hyperadapter.model.vocabulary import Vocabulary, language_groups

__all__ = ["LossSums", "Seq2Seq", "build_model"]


class LossSums(NamedTuple):
    """Sums over the target tokens of a micro-batch, in nats."""

    loss: Tensor
    nll: Tensor


class Seq2Seq(nn.Module):
    """A Transformer encoder-decoder with adapters.

    Args:
        config: Sizes and the kind of adapters.
        vocabulary: Pieces, languages and directions.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        rows = vocabulary.num_pieces + len(vocabulary.languages)
        self.embedding = nn.Embedding(rows, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.adapters = _build_adapters(config, vocabulary)
        self._positions = sinusoidal_positions(512, config.d_model)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws all parameters: embeddings N(0, 1/D), projections Xavier-uniform, biases 0.

        The three projections of queries, keys and values are drawn as three matrices although they
        are stored as one.
        """
        d_model = self.config.d_model
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5, generator=generator)
        for part in (self.encoder, self.decoder):
            for name, module in part.named_modules():
                if isinstance(module, nn.Linear):
                    pieces = 3 if name.endswith(".qkv") else 2 if name.endswith(".kv") else 1
                    for matrix in module.weight.chunk(pieces):
                        nn.init.xavier_uniform_(matrix, generator=generator)
                    nn.init.zeros_(module.bias)
                elif isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
        if isinstance(self.adapters, HyperNetwork | StackedAdapters):
            self.adapters.reset_parameters(generator)

    def raw_adapters(
        self, src_language_P: Tensor, tgt_language_P: Tensor, direction_P: Tensor
    ) -> RawAdapters | None:
        """Provides the adapters of P directions, or None for a dense model."""
        if self.adapters is None:
            return None
        raw: RawAdapters = self.adapters(src_language_P, tgt_language_P, direction_P)
        return raw

    def adapter_weights(
        self, src_language_P: Tensor, tgt_language_P: Tensor, direction_P: Tensor
    ) -> AdapterWeights | None:
        """Provides the folded adapters of P directions for all layers, once for all of them."""
        raw = self.raw_adapters(src_language_P, tgt_language_P, direction_P)
        return None if raw is None else raw.fold()

    def _embed(self, ids_BX: Tensor, offset: int = 0) -> Tensor:
        end = offset + ids_BX.size(1)
        if end > self._positions.size(0):
            self._positions = sinusoidal_positions(2 * end, self.config.d_model)
        x_BXD = self.embedding(ids_BX) * math.sqrt(self.config.d_model)
        if self._positions.device != x_BXD.device or self._positions.dtype != x_BXD.dtype:
            self._positions = self._positions.to(x_BXD)
        embedded: Tensor = self.dropout(x_BXD + self._positions[offset:end])
        return embedded

    def encode(
        self,
        src_BS: Tensor,
        src_padding_mask_BS: Tensor,
        adapters: AdapterWeights | None,
        sentences_P: Sequence[int],
    ) -> Tensor:
        """Encodes sources.

        Returns:
            The memory [B, S, D].
        """
        attend_mask = ~src_padding_mask_BS[:, None, None, :]
        memory: Tensor = self.encoder(self._embed(src_BS), attend_mask, adapters, sentences_P)
        return memory

    def decode(
        self,
        tgt_in_BT: Tensor,
        memory: Tensor | DecoderCache,
        src_padding_mask_BS: Tensor,
        adapters: AdapterWeights | None,
        sentences_P: Sequence[int],
    ) -> Tensor:
        """Decodes whole targets, or with a cache (`new_cache`) the one new position of each row.

        Returns:
            Hidden states [B, T, D].
        """
        offset = memory.length if isinstance(memory, DecoderCache) else 0
        cross_mask = ~src_padding_mask_BS[:, None, None, :]
        hidden: Tensor = self.decoder(
            self._embed(tgt_in_BT, offset), memory, cross_mask, adapters, sentences_P
        )
        return hidden

    def new_cache(self, memory_BSD: Tensor) -> DecoderCache:
        """Starts a search: projects the memory to keys and values once."""
        return self.decoder.new_cache(memory_BSD)

    def logits(self, hidden: Tensor) -> Tensor:
        """Projects hidden states [..., D] to scores of the pieces [..., V]; tags have none."""
        return F.linear(hidden, self.embedding.weight[: self.vocabulary.num_pieces])

    def forward(self, batch: Batch, label_smoothing: float = 0.0) -> LossSums:
        """Computes the loss of a micro-batch; padding positions are left out of the projection."""
        adapters = self.adapter_weights(
            batch.src_language_P, batch.tgt_language_P, batch.direction_P
        )
        memory = self.encode(batch.src_BS, batch.src_padding_mask_BS, adapters, batch.sentences_P)
        hidden_BTD = self.decode(
            batch.tgt_in_BT, memory, batch.src_padding_mask_BS, adapters, batch.sentences_P
        )
        keep = ~batch.tgt_padding_mask_BT
        loss, nll = label_smoothed_cross_entropy(
            hidden_BTD[keep],
            self.embedding.weight[: self.vocabulary.num_pieces],
            batch.tgt_out_BT[keep],
            label_smoothing,
        )
        return LossSums(loss, nll)


def _build_adapters(
    config: ModelConfig, vocabulary: Vocabulary
) -> HyperNetwork | StackedAdapters | None:
    kind = config.adapter.kind
    if kind == "none":
        return None
    if kind == "hyper":
        return HyperNetwork(config, len(vocabulary.languages))
    group, count = (
        (None, len(vocabulary.directions))
        if kind == "direction"
        else language_groups(kind, vocabulary.languages)
    )
    size = config.d_model, config.adapter.bottleneck_dim
    return StackedAdapters(
        group,
        AdapterStack(count, config.num_encoder_layers, *size),
        AdapterStack(count, config.num_decoder_layers, *size),
    )


def build_model(config: ModelConfig, vocabulary: Vocabulary, seed: int) -> Seq2Seq:
    """Builds and initialises a model; the same seed gives the same weights on every rank."""
    model = Seq2Seq(config, vocabulary)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model
