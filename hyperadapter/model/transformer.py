"""Pre-LayerNorm Transformer layers (Vaswani et al. 2017; Xiong et al. 2020) with room for adapters.

Adapter placement (`x` the residual stream, `A` an adapter, `n` a LayerNorm before gain and bias):

    sequential   x = layer(x);  x = x + A(n(x))                        Bapna and Firat 2019
    parallel     x = x + FFN(LN(x)) + A(LN(x))                          He et al. 2022

A parallel adapter reads the feed-forward block's own LayerNorm and is exactly R more hidden units
of that block.

Shape legend: B sentences, S source, T target, X and Y any positions, D model, N heads, H head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperadapter.config import ModelConfig
from hyperadapter.model.adapters import AdapterWeights, LayerAdapter

__all__ = ["Decoder", "DecoderCache", "DecoderLayer", "Encoder", "EncoderLayer", "LayerCache"]


def split_heads(x_BXD: Tensor, num_heads: int) -> Tensor:
    """[B, X, D] to [B, N, X, H]."""
    return x_BXD.view(*x_BXD.shape[:-1], num_heads, -1).transpose(1, 2)


def merge_heads(x_BNXH: Tensor) -> Tensor:
    """[B, N, X, H] to [B, X, D]."""
    return x_BNXH.transpose(1, 2).flatten(-2)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(
        self,
        x_BXD: Tensor,
        attend_mask: Tensor | None,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Attends.

        Args:
            x_BXD: Input; with a cache only the positions that are new.
            attend_mask: True where looking is allowed, broadcastable to [B, N, X, Y].
            causal: Each position sees itself and earlier ones; for whole sequences.
            cache: Keys and values of earlier positions, extended here.
        """
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x_BXD).chunk(3, dim=-1))
        if cache is not None:
            k, v = cache.extend(k, v)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend_mask, is_causal=causal)
        projected: Tensor = self.out(merge_heads(out))
        return projected


class CrossAttention(nn.Module):
    """Multi-head attention of the target to the encoder's output."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(d_model, d_model)
        self.kv = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def keys_values(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Projects the encoder's output to keys and values [B, N, S, H]."""
        k, v = (split_heads(part, self.num_heads) for part in self.kv(memory_BSD).chunk(2, dim=-1))
        return k, v

    def forward(
        self, x_BTD: Tensor, keys_values: tuple[Tensor, Tensor], attend_mask: Tensor | None
    ) -> Tensor:
        """Attends from [B, T, D] to the encoder's keys and values."""
        q_BNTH = split_heads(self.q(x_BTD), self.num_heads)
        out = F.scaled_dot_product_attention(q_BNTH, *keys_values, attn_mask=attend_mask)
        projected: Tensor = self.out(merge_heads(out))
        return projected


class FeedForward(nn.Module):
    """x to W_2 relu(W_1 x), with the LayerNorm before it and perhaps a parallel adapter."""

    def __init__(self, d_model: int, ffn_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.up = nn.Linear(d_model, ffn_dim)
        self.down = nn.Linear(ffn_dim, d_model)

    def forward(
        self, x_BXD: Tensor, parallel: LayerAdapter | None, sentences: Sequence[int]
    ) -> Tensor:
        """Maps [B, X, D] to what is added to the residual stream."""
        y_BXD = self.norm(x_BXD)
        out: Tensor = self.down(F.relu(self.up(y_BXD)))
        return out if parallel is None else out + parallel.residual(y_BXD, sentences)


class LayerCache:
    """Keys and values of one decoder layer [B, N, T, H], and of the encoder [B, N, S, H]."""

    def __init__(self, cross: tuple[Tensor, Tensor]) -> None:
        self.cross = cross
        self.self_keys: Tensor | None = None
        self.self_values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends new positions and returns all of them."""
        if self.self_keys is not None and self.self_values is not None:
            keys = torch.cat([self.self_keys, keys], dim=2)
            values = torch.cat([self.self_values, values], dim=2)
        self.self_keys, self.self_values = keys, values
        return keys, values


class DecoderCache:
    """What the decoder remembers between steps of a search.

    Attributes:
        layers: One cache per decoder layer.
        length: Cached target positions.
    """

    def __init__(self, layers: list[LayerCache]) -> None:
        self.layers = layers
        self.length = 0

    def reorder(self, index_B: Tensor, cross: bool = True) -> None:
        """Keeps the rows `index_B`, which may repeat and may be fewer than before.

        Args:
            index_B: Rows to keep, in their new order.
            cross: Also select the encoder's keys and values; not needed while each row's sentence
                stays in its place, as when beams of one sentence change places.
        """
        for layer in self.layers:
            if layer.self_keys is not None and layer.self_values is not None:
                layer.self_keys = layer.self_keys.index_select(0, index_B)
                layer.self_values = layer.self_values.index_select(0, index_B)
            if cross:
                keys, values = layer.cross
                layer.cross = keys.index_select(0, index_B), values.index_select(0, index_B)


class _Layer(nn.Module):
    """What encoder and decoder layers share: the feed-forward block and the adapter."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attention_norm = nn.LayerNorm(config.d_model)
        self.self_attention = SelfAttention(config.d_model, config.num_heads)
        self.feed_forward = FeedForward(config.d_model, config.ffn_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.parallel = config.adapter.placement == "parallel"

    def _feed_forward_and_adapter(
        self, x_BXD: Tensor, adapter: LayerAdapter | None, sentences: Sequence[int]
    ) -> Tensor:
        beside = adapter if self.parallel else None
        x_BXD = x_BXD + self.dropout(self.feed_forward(x_BXD, beside, sentences))
        if adapter is not None and not self.parallel:
            x_BXD = x_BXD + adapter.residual(F.layer_norm(x_BXD, x_BXD.shape[-1:]), sentences)
        return x_BXD


class EncoderLayer(_Layer):
    """Self-attention, feed-forward, adapter."""

    def forward(
        self,
        x_BSD: Tensor,
        attend_mask: Tensor,
        adapter: LayerAdapter | None,
        sentences_P: Sequence[int],
    ) -> Tensor:
        """Maps [B, S, D] to [B, S, D]."""
        y_BSD = self.self_attention(self.self_attention_norm(x_BSD), attend_mask)
        return self._feed_forward_and_adapter(x_BSD + self.dropout(y_BSD), adapter, sentences_P)


class DecoderLayer(_Layer):
    """Causal self-attention, cross-attention, feed-forward, adapter."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.cross_attention_norm = nn.LayerNorm(config.d_model)
        self.cross_attention = CrossAttention(config.d_model, config.num_heads)

    def forward(
        self,
        x_BTD: Tensor,
        memory: Tensor | LayerCache,
        cross_mask: Tensor,
        adapter: LayerAdapter | None,
        sentences_P: Sequence[int],
    ) -> Tensor:
        """Maps [B, T, D] to [B, T, D].

        Args:
            x_BTD: Input; with a cache only the positions that are new (one of them).
            memory: The encoder's output [B, S, D] or this layer's cache.
            cross_mask: True where the source may be looked at [B, 1, 1, S].
            adapter: This layer's adapters.
            sentences_P: Rows of each direction.
        """
        cache = memory if isinstance(memory, LayerCache) else None
        y_BTD = self.self_attention_norm(x_BTD)
        y_BTD = self.self_attention(y_BTD, None, causal=cache is None, cache=cache)
        x_BTD = x_BTD + self.dropout(y_BTD)
        keys_values = (
            memory.cross
            if isinstance(memory, LayerCache)
            else self.cross_attention.keys_values(memory)
        )
        y_BTD = self.cross_attention(self.cross_attention_norm(x_BTD), keys_values, cross_mask)
        return self._feed_forward_and_adapter(x_BTD + self.dropout(y_BTD), adapter, sentences_P)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Returns position encodings [length, D], sines then cosines (Vaswani et al. 2017)."""
    half = d_model // 2
    frequency = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / half))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1).float()


class Encoder(nn.Module):
    """A stack of encoder layers and a last LayerNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        x_BSD: Tensor,
        attend_mask: Tensor,
        adapters: AdapterWeights | None,
        sentences_P: Sequence[int],
    ) -> Tensor:
        """Maps embedded sources [B, S, D] to the memory [B, S, D]."""
        for index, layer in enumerate(self.layers):
            adapter = adapters.layer(index) if adapters is not None else None
            x_BSD = layer(x_BSD, attend_mask, adapter, sentences_P)
        memory: Tensor = self.norm(x_BSD)
        return memory


class Decoder(nn.Module):
    """A stack of decoder layers and a last LayerNorm; its adapters follow the encoder's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.first_adapter = config.num_encoder_layers

    def new_cache(self, memory_BSD: Tensor) -> DecoderCache:
        """Projects the memory for all layers once."""
        caches = [
            LayerCache(layer.cross_attention.keys_values(memory_BSD))  # type: ignore[operator, union-attr]
            for layer in self.layers
        ]
        return DecoderCache(caches)

    def forward(
        self,
        x_BTD: Tensor,
        memory: Tensor | DecoderCache,
        cross_mask: Tensor,
        adapters: AdapterWeights | None,
        sentences_P: Sequence[int],
    ) -> Tensor:
        """Maps embedded targets [B, T, D] to hidden states [B, T, D]."""
        for index, layer in enumerate(self.layers):
            adapter = adapters.layer(self.first_adapter + index) if adapters is not None else None
            source = memory.layers[index] if isinstance(memory, DecoderCache) else memory
            x_BTD = layer(x_BTD, source, cross_mask, adapter, sentences_P)
        if isinstance(memory, DecoderCache):
            memory.length += x_BTD.size(1)
        hidden: Tensor = self.norm(x_BTD)
        return hidden
