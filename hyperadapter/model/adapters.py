"""Adapters as activations: every kind of adapter is a provider of `AdapterWeights`.

An adapter (Bapna and Firat 2019, "Simple, Scalable Adaptation for Neural Machine Translation",
equation 1) is

    A(z) = z + U relu(D LN(z) + b_D) + b_U        with  LN(z) = gain * normalise(z) + bias.

The gain and the bias of LN belong to the adapter, and both fold exactly into the down projection:

    D (gain * n + bias) + b_D  =  (D diag(gain)) n + (D bias + b_D)        with  n = normalise(z),

so `AdapterWeights` holds the folded D and b_D, and applying an adapter costs two products. All
layers and all distinct directions of a micro-batch are provided by one call.

Shape legend: B sentences, T positions, D model, R bottleneck, P distinct directions, L layers (the
encoder's, then the decoder's), K keys (languages, directions or families).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AdapterStack", "AdapterWeights", "LayerAdapter", "RawAdapters", "StackedAdapters"]


class LayerAdapter(NamedTuple):
    """The adapters of one layer for P directions."""

    down_PRD: Tensor
    down_bias_PR: Tensor
    up_PDR: Tensor
    up_bias_PD: Tensor

    def residual(self, normalised_BTD: Tensor, sentences_P: Sequence[int]) -> Tensor:
        """Computes U relu(D n + b_D) + b_U, each sentence with its direction's adapter.

        Args:
            normalised_BTD: LayerNorm's output before gain and bias [B, T, D]; sentences are
                grouped by direction.
            sentences_P: Sentences of each direction, in the order of P.

        Returns:
            What the adapter adds [B, T, D].
        """
        if len(sentences_P) == 1:
            h_BTR = F.relu(F.linear(normalised_BTD, self.down_PRD[0], self.down_bias_PR[0]))
            return F.linear(h_BTR, self.up_PDR[0], self.up_bias_PD[0])
        counts = torch.tensor(sentences_P, device=normalised_BTD.device)

        def per_sentence(weight: Tensor) -> Tensor:
            return weight.repeat_interleave(counts, dim=0, output_size=normalised_BTD.size(0))

        h_BTR = F.relu(
            torch.baddbmm(
                per_sentence(self.down_bias_PR)[:, None, :],
                normalised_BTD,
                per_sentence(self.down_PRD).transpose(1, 2),
            )
        )
        return torch.baddbmm(
            per_sentence(self.up_bias_PD)[:, None, :],
            h_BTR,
            per_sentence(self.up_PDR).transpose(1, 2),
        )


class RawAdapters(NamedTuple):
    """Adapters as generated or stored, LayerNorm's gain and bias apart."""

    down_PLRD: Tensor
    down_bias_PLR: Tensor
    up_PLDR: Tensor
    up_bias_PLD: Tensor
    gain_PLD: Tensor
    bias_PLD: Tensor

    def fold(self) -> AdapterWeights:
        """Folds gain and bias into the down projection, see the head of this file."""
        shift_PLR = torch.matmul(self.down_PLRD, self.bias_PLD.unsqueeze(-1)).squeeze(-1)
        return AdapterWeights(
            down_PLRD=self.down_PLRD * self.gain_PLD.unsqueeze(-2),
            down_bias_PLR=self.down_bias_PLR + shift_PLR,
            up_PLDR=self.up_PLDR,
            up_bias_PLD=self.up_bias_PLD,
        )


class AdapterWeights(NamedTuple):
    """The adapters of all layers for the P distinct directions of a micro-batch."""

    down_PLRD: Tensor
    down_bias_PLR: Tensor
    up_PLDR: Tensor
    up_bias_PLD: Tensor

    def layer(self, index: int) -> LayerAdapter:
        """Returns the adapters of layer `index`, the encoder's layers first."""
        return LayerAdapter(*(weight.select(1, index) for weight in self))

    def direction(self, index: int) -> AdapterWeights:
        """Returns the weights of one of the P directions, with P = 1."""
        return AdapterWeights(*(weight[index : index + 1] for weight in self))


class AdapterStack(nn.Module):
    """Adapters of K keys for a stack of layers, as one parameter per kind of weight.

    A single stacked parameter lets every rank run the same graph and give every parameter a
    gradient in each step; with one module per key, ZeRO 1 to 3 train wrongly without an error.
    """

    def __init__(self, num_keys: int, num_layers: int, d_model: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.down_KLRD = nn.Parameter(torch.empty(num_keys, num_layers, bottleneck_dim, d_model))
        self.down_bias_KLR = nn.Parameter(torch.empty(num_keys, num_layers, bottleneck_dim))
        self.up_KLDR = nn.Parameter(torch.empty(num_keys, num_layers, d_model, bottleneck_dim))
        self.up_bias_KLD = nn.Parameter(torch.empty(num_keys, num_layers, d_model))
        self.gain_KLD = nn.Parameter(torch.empty(num_keys, num_layers, d_model))
        self.bias_KLD = nn.Parameter(torch.empty(num_keys, num_layers, d_model))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws Xavier-normal projections; biases are 0 and gains 1."""
        std = direct_adapter_std(self.down_KLRD.size(-1), self.down_KLRD.size(-2))
        nn.init.normal_(self.down_KLRD, std=std, generator=generator)
        nn.init.normal_(self.up_KLDR, std=std, generator=generator)
        for bias in (self.down_bias_KLR, self.up_bias_KLD, self.bias_KLD):
            nn.init.zeros_(bias)
        nn.init.ones_(self.gain_KLD)

    def forward(self, key_P: Tensor) -> RawAdapters:
        """Selects the adapters of P keys."""
        return RawAdapters(
            self.down_KLRD[key_P],
            self.down_bias_KLR[key_P],
            self.up_KLDR[key_P],
            self.up_bias_KLD[key_P],
            self.gain_KLD[key_P],
            self.bias_KLD[key_P],
        )


def direct_adapter_std(d_model: int, bottleneck_dim: int) -> float:
    """Returns the standard deviation of a direct adapter's projections (Glorot and Bengio 2010)."""
    return math.sqrt(2.0 / (d_model + bottleneck_dim))


class StackedAdapters(nn.Module):
    """Language, family and direction adapters: the kinds differ in a direction's keys only.

    Args:
        group: Key of every language, or None when a direction's own number is the key. The
            encoder's key is the source language's and the decoder's the target language's.
        encoder: The encoder's adapters.
        decoder: The decoder's adapters.
    """

    group: Tensor | None

    def __init__(
        self, group: Sequence[int] | None, encoder: AdapterStack, decoder: AdapterStack
    ) -> None:
        super().__init__()
        table = None if group is None else torch.tensor(group)
        self.register_buffer("group", table, persistent=False)
        self.encoder = encoder
        self.decoder = decoder

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draws both stacks."""
        self.encoder.reset_parameters(generator)
        self.decoder.reset_parameters(generator)

    def forward(
        self, src_language_P: Tensor, tgt_language_P: Tensor, direction_P: Tensor
    ) -> RawAdapters:
        """Selects the adapters of P directions for all layers."""
        if self.group is None:
            encoder_key, decoder_key = direction_P, direction_P
        else:
            encoder_key, decoder_key = self.group[src_language_P], self.group[tgt_language_P]
        both = zip(self.encoder(encoder_key), self.decoder(decoder_key), strict=True)
        return RawAdapters(*(torch.cat(pair, dim=1) for pair in both))
