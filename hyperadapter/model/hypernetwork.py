"""The hyper-network that generates all adapters (Baziotis et al. 2022, arXiv 2205.10835).

    h = MLP([e_src ; e_tgt ; e_layer])
    D, b_D, U, b_U, gain - 1, bias  =  head(h) / sqrt(d_h)      each head linear in h

MLP is an input projection with a ReLU and then residual pre-LayerNorm blocks of width d_h. Each
head's output is divided by sqrt(d_h) because it is a dot product over d_h terms, as in scaled
dot-product attention: without it, wide hyper-networks generate adapters that are too large.

Where this differs from the authors' code: sizes of language and layer embeddings are independent,
and the calibrated initialisation allows for the rescaling and looks at all languages and layers.

Shape legend: P distinct directions, L layers (the encoder's, then the decoder's), E hyper-network
input, H hyper-network width d_h, R bottleneck, D model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperadapter.config import AdapterConfig, HyperNetworkConfig, ModelConfig
from hyperadapter.model.adapters import RawAdapters, direct_adapter_std

__all__ = ["HyperNetwork", "ResidualBlock"]


class ResidualBlock(nn.Module):
    """x + W_2 dropout(relu(W_1 LN(x)))."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_PLH: Tensor) -> Tensor:
        """Maps [..., H] to [..., H]."""
        out: Tensor = x_PLH + self.down(self.dropout(F.relu(self.up(self.norm(x_PLH)))))
        return out


class HyperNetwork(nn.Module):
    """Generates the adapters of all layers for any number of directions in one call.

    Args:
        config: The model's configuration; its adapter group must hold a hyper_network.
        num_languages: Rows of each language embedding table.
    """

    input_mask_L3: Tensor

    def __init__(self, config: ModelConfig, num_languages: int) -> None:
        super().__init__()
        adapter, hyper = config.adapter, config.adapter.hyper_network
        assert hyper is not None
        self.hyper: HyperNetworkConfig = hyper
        self.adapter: AdapterConfig = adapter
        self.d_model, self.num_layers = config.d_model, config.num_layers

        self.src_embedding = nn.Embedding(num_languages, hyper.language_dim)
        # None: the table of the sources also embeds the targets.
        self.tgt_embedding = (
            None
            if hyper.tied_language_embeddings
            else nn.Embedding(num_languages, hyper.language_dim)
        )
        self.layer_embedding = nn.Embedding(self.num_layers, hyper.layer_dim)
        self.input = nn.Linear(2 * hyper.language_dim + hyper.layer_dim, hyper.hyper_dim)
        self.blocks = nn.ModuleList(
            ResidualBlock(hyper.hyper_dim, hyper.dropout) for _ in range(hyper.num_blocks)
        )
        width, size = adapter.bottleneck_dim, adapter.bottleneck_dim * self.d_model
        self.down = nn.Linear(hyper.hyper_dim, size)
        self.down_bias = nn.Linear(hyper.hyper_dim, width)
        self.up = nn.Linear(hyper.hyper_dim, size)
        self.up_bias = nn.Linear(hyper.hyper_dim, self.d_model)
        if adapter.generated_layer_norm:
            self.gain = nn.Linear(hyper.hyper_dim, self.d_model)
            self.bias = nn.Linear(hyper.hyper_dim, self.d_model)
        else:
            self.gain_LD = nn.Parameter(torch.ones(self.num_layers, self.d_model))
            self.bias_LD = nn.Parameter(torch.zeros(self.num_layers, self.d_model))
        masks = [hyper.encoder_inputs] * config.num_encoder_layers
        masks += [hyper.decoder_inputs] * config.num_decoder_layers
        mask = [[float(name in inputs) for name in ("src", "tgt", "layer")] for inputs in masks]
        self.register_buffer("input_mask_L3", torch.tensor(mask), persistent=False)

    @property
    def output_scale(self) -> float:
        """What every head's output is multiplied by: 1/sqrt(d_h), or 1 without rescaling."""
        return self.hyper.hyper_dim**-0.5 if self.hyper.rescale == "sqrt" else 1.0

    def heads(self) -> list[nn.Linear]:
        """Returns the output projections, the two large ones first."""
        heads = [self.down, self.up, self.down_bias, self.up_bias]
        return heads + ([self.gain, self.bias] if self.adapter.generated_layer_norm else [])

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialises all parameters.

        `default` draws every projection as the main network does (Xavier, biases 0).
        `calibrated` draws the two large heads such that generated projections have, over all
        languages and layers, the standard deviation of a direct adapter's; the other heads start
        at 0, so that biases start at 0 and gains at 1, as a direct adapter's do.
        """
        nn.init.normal_(self.src_embedding.weight, generator=generator)
        if self.tgt_embedding is not None:
            nn.init.normal_(self.tgt_embedding.weight, generator=generator)
        nn.init.normal_(self.layer_embedding.weight, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if not self.adapter.generated_layer_norm:
            nn.init.ones_(self.gain_LD)
            nn.init.zeros_(self.bias_LD)
        if self.hyper.init == "calibrated":
            self._calibrate(generator)

    def _calibrate(self, generator: torch.Generator) -> None:
        training = self.training
        language_P = torch.arange(self.src_embedding.num_embeddings)
        rms = self.eval().hidden(language_P, language_P).pow(2).mean().sqrt().item()
        self.train(training)
        target = direct_adapter_std(self.d_model, self.adapter.bottleneck_dim)
        # out = scale * sum over d_h terms w h, so std(out) = scale * sqrt(d_h) * std(w) * rms(h).
        std = target / (self.output_scale * self.hyper.hyper_dim**0.5 * max(rms, 1e-6))
        for head in self.heads():
            nn.init.zeros_(head.weight)
        for head in (self.down, self.up):
            nn.init.normal_(head.weight, std=std, generator=generator)

    def hidden(self, src_language_P: Tensor, tgt_language_P: Tensor) -> Tensor:
        """Computes the MLP's output h [P, L, H]."""
        num, layers = src_language_P.size(0), self.num_layers
        src_PLE = self.src_embedding(src_language_P)[:, None, :].expand(num, layers, -1)
        tgt_embedding = self.src_embedding if self.tgt_embedding is None else self.tgt_embedding
        tgt_PLE = tgt_embedding(tgt_language_P)[:, None, :].expand(num, layers, -1)
        layer_LE = self.layer_embedding(torch.arange(layers, device=src_language_P.device))
        mask = self.input_mask_L3.to(src_PLE.dtype)
        x_PLE = torch.cat(
            [
                src_PLE * mask[:, 0:1],
                tgt_PLE * mask[:, 1:2],
                (layer_LE * mask[:, 2:3]).expand(num, layers, -1),
            ],
            dim=-1,
        )
        h_PLH: Tensor = F.relu(self.input(x_PLE))
        for block in self.blocks:
            h_PLH = block(h_PLH)
        return h_PLH

    def forward(
        self, src_language_P: Tensor, tgt_language_P: Tensor, direction_P: Tensor
    ) -> RawAdapters:
        """Generates the adapters of P directions for all layers.

        Args:
            src_language_P: Numbers of the source languages [P].
            tgt_language_P: Numbers of the target languages [P].
            direction_P: Not used; hyper-adapters exist for directions never seen.

        Returns:
            Adapters with leading dimensions [P, L].
        """
        h_PLH = self.hidden(src_language_P, tgt_language_P)
        lead = h_PLH.shape[:2]
        scale, width, d_model = self.output_scale, self.adapter.bottleneck_dim, self.d_model
        if self.adapter.generated_layer_norm:
            gain_PLD = 1.0 + scale * self.gain(h_PLH)
            bias_PLD = scale * self.bias(h_PLH)
        else:
            gain_PLD = self.gain_LD.expand(*lead, d_model)
            bias_PLD = self.bias_LD.expand(*lead, d_model)
        return RawAdapters(
            down_PLRD=scale * self.down(h_PLH).view(*lead, width, d_model),
            down_bias_PLR=scale * self.down_bias(h_PLH),
            up_PLDR=scale * self.up(h_PLH).view(*lead, d_model, width),
            up_bias_PLD=scale * self.up_bias(h_PLH),
            gain_PLD=gain_PLD,
            bias_PLD=bias_PLD,
        )
