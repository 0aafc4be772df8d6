"""What the decoder remembers during a search, so that each step computes one new position.

A search follows K hypotheses of each of A sentences. The keys and values of a sentence's hypotheses
lie in one row of slots, the K of a step side by side, and stay where they were written. A mask says
which slots a hypothesis descends from, so when hypotheses branch or die the mask changes and no key
moves. The K queries of a sentence are K queries of one attention, over its slots or its source.

    step             0  1 1 1  2 2 2
    hypothesis 0     x  x . .  x . .       continues hypothesis 0 of step 1
    hypothesis 1     x  x . .  . x .       so does this one
    hypothesis 2     x  . . x  . . x       hypothesis 1 of step 1 died: nobody sees its slot

Most hypotheses die after a few steps. Slots that nobody sees are left behind whenever the slots are
copied: when they are full, or when sentences are done. So there are hardly more slots in use than
positions, not K times as many.

On request the last layer also adds up what each hypothesis has looked at, its coverage. The fused
attention says no probabilities, so they are computed beside it, and only then.

Shape legend: A sentences, K hypotheses of each, R = A K rows of the decoder, F filled slots, C all
slots, N heads, H head, S source positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["DecoderCache", "LayerCache"]

# Kernels for half precision want the rows of a mask to begin at multiples of 8 elements.
_ALIGNMENT = 8


class _Slots:
    """Which slots are filled and who sees them; shared by all layers.

    Attributes:
        filled: Slots in use.
        width: K.
        seen_AKF: True where a hypothesis descends from a slot. None: everywhere; K is 1.
        dtype: Of keys and values.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.filled = 0
        self.width = 1
        self.seen_AKF: Tensor | None = None
        self.dtype = dtype
        self._mask: Tensor | None = None

    @property
    def end(self) -> int:
        """Slots in use after the next step."""
        return self.filled + self.width

    def mask(self) -> Tensor | None:
        """Returns what the next step adds to its scores [A, 1, K, end]; its own slots are last."""
        if self._mask is None and self.seen_AKF is not None:
            self._mask = _additive(self._with_own(self.seen_AKF), self.dtype)
        return self._mask

    def fill(self) -> None:
        """Notes that a step has filled one slot for each hypothesis, which continues itself."""
        if self.seen_AKF is not None:
            self.seen_AKF = self._with_own(self.seen_AKF)
        self.filled += self.width
        self._mask = None

    def see(self, seen_AKF: Tensor | None, filled: int, width: int) -> None:
        """Replaces slots and hypotheses."""
        self.seen_AKF, self.filled, self.width = seen_AKF, filled, width
        self._mask = None

    def _with_own(self, seen_AKF: Tensor) -> Tensor:
        own_KK = torch.eye(self.width, dtype=torch.bool, device=seen_AKF.device)
        return torch.cat([seen_AKF, own_KK.expand(seen_AKF.size(0), -1, -1)], dim=2)


def _additive(seen_AKC: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns 0 where True and -inf where False [A, 1, K, C], the rows aligned."""
    num_sentences, width, count = seen_AKC.shape
    shape = num_sentences, 1, width, _round_up(count)
    mask = torch.zeros(shape, dtype=dtype, device=seen_AKC.device)[..., :count]
    return mask.masked_fill_(~seen_AKC[:, None], -torch.inf)


def _round_up(count: int) -> int:
    return -(-count // _ALIGNMENT) * _ALIGNMENT


class LayerCache:
    """Keys and values of one decoder layer.

    Args:
        cross: The encoder's keys and values [A, N, S, H].
        slots: Shared by all layers.
        num_slots: Room to begin with.

    Attributes:
        coverage_AKS: Probabilities with which each hypothesis looked at its source, summed over its
            positions; None where nobody wants to know.
    """

    def __init__(self, cross: tuple[Tensor, Tensor], slots: _Slots, num_slots: int) -> None:
        keys_ANSH, values_ANSH = cross
        self.cross = keys_ANSH.contiguous(), values_ANSH.contiguous()
        self.cross_mask: Tensor | None = None
        self.coverage_AKS: Tensor | None = None
        self._slots = slots
        num_sentences, num_heads, _, head_dim = keys_ANSH.shape
        shape = num_sentences, num_heads, num_slots, head_dim
        self.own = keys_ANSH.new_empty(shape), keys_ANSH.new_empty(shape)

    def self_attend(self, q_RNH: Tensor, k_RNH: Tensor, v_RNH: Tensor) -> Tensor:
        """Stores a new position of every row and lets the row look at all of its positions.

        Returns:
            What each head found [R, N, H].
        """
        begin, end = self._slots.filled, self._slots.end
        for own_ANCH, new_RNH in zip(self.own, (k_RNH, v_RNH), strict=True):
            own_ANCH[:, :, begin:end] = self._by_sentence(new_RNH)
        keys, values = (own_ANCH[:, :, :end] for own_ANCH in self.own)
        return self._attend(q_RNH, keys, values, self._slots.mask())

    def cross_attend(self, q_RNH: Tensor) -> Tensor:
        """Lets every row look at its source.

        Returns:
            What each head found [R, N, H].
        """
        if self.coverage_AKS is not None:
            self.coverage_AKS = self.coverage_AKS + self._cross_probabilities(q_RNH)
        return self._attend(q_RNH, *self.cross, self.cross_mask)

    def _cross_probabilities(self, q_RNH: Tensor) -> Tensor:
        """Returns the mean over heads of where every row looks in its source [A, K, S]."""
        keys_ANSH, _ = self.cross
        q_ANKH = self._by_sentence(q_RNH * keys_ANSH.size(3) ** -0.5)
        scores_ANKS = (q_ANKH @ keys_ANSH.transpose(2, 3)).float()
        if self.cross_mask is not None:
            scores_ANKS = scores_ANKS + self.cross_mask.float()
        probabilities_AKS: Tensor = scores_ANKS.softmax(dim=3).mean(dim=1)
        return probabilities_AKS

    def _by_sentence(self, x_RNH: Tensor) -> Tensor:
        """[R, N, H] to [A, N, K, H]."""
        return x_RNH.view(-1, self._slots.width, *x_RNH.shape[1:]).transpose(1, 2)

    def _attend(self, q_RNH: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        out_ANKH = F.scaled_dot_product_attention(
            self._by_sentence(q_RNH), keys, values, attn_mask=mask
        )
        return out_ANKH.transpose(1, 2).flatten(0, 1)


class DecoderCache:
    """What the decoder remembers between the steps of a search.

    It begins with one hypothesis of each sentence. A step calls every layer's `self_attend` and
    `cross_attend` once, then `advance`. After it `branch` and `keep` may choose what goes on.

    Attributes:
        layers: One cache per decoder layer.
        length: Positions so far: the number of the position that comes next.
    """

    def __init__(
        self, layers: Sequence[LayerCache], slots: _Slots, padding_mask_AS: Tensor | None
    ) -> None:
        self.layers = tuple(layers)
        self.length = 0
        self._slots = slots
        self._mask_padding(padding_mask_AS)

    @classmethod
    def start(
        cls, keys_values: Sequence[tuple[Tensor, Tensor]], padding_mask_AS: Tensor | None
    ) -> DecoderCache:
        """Begins a search.

        Args:
            keys_values: The encoder's keys and values [A, N, S, H] for every decoder layer.
            padding_mask_AS: True at the sources' padding, or None where there is none.
        """
        slots = _Slots(keys_values[0][0].dtype)
        return cls([LayerCache(kv, slots, 16) for kv in keys_values], slots, padding_mask_AS)

    @property
    def num_slots(self) -> int:
        """Slots of each sentence, filled or not."""
        return self.layers[0].own[0].size(2)

    def count_coverage(self, counted_AS: Tensor) -> None:
        """Adds up from now on what the last layer looks at; there is one hypothesis each so far.

        Args:
            counted_AS: True at the source positions that matter; all others count as looked at.
        """
        self.layers[-1].coverage_AKS = (~counted_AS)[:, None].float()

    def uncovered(self) -> Tensor:
        """Returns the sum over source positions of log(min(coverage, 1)) [A, K]: 0 or less."""
        coverage_AKS = self.layers[-1].coverage_AKS
        assert coverage_AKS is not None, "coverage was not asked for"
        # The sum of probabilities that are all rounded to 0 is no reason for minus infinity.
        return coverage_AKS.clamp(torch.finfo(torch.float32).tiny, 1.0).log().sum(dim=2)

    def advance(self) -> None:
        """Ends a step: every hypothesis is one position longer."""
        self.length += 1
        self._slots.fill()
        self._make_room()

    def branch(self, parents_AK: Tensor) -> None:
        """Goes on with continuations of each sentence's hypotheses.

        Args:
            parents_AK: The hypothesis, counted within its sentence, that each new one continues.
        """
        slots, (num_sentences, width) = self._slots, parents_AK.shape
        seen_AKF = slots.seen_AKF
        if seen_AKF is not None:
            seen_AKF = seen_AKF.gather(1, parents_AK[:, :, None].expand(-1, -1, slots.filled))
        elif width > 1:
            seen_AKF = parents_AK.new_ones(num_sentences, width, slots.filled, dtype=torch.bool)
        slots.see(seen_AKF, slots.filled, width)
        last = self.layers[-1]
        if last.coverage_AKS is not None:
            index_AKS = parents_AK[:, :, None].expand(-1, -1, last.coverage_AKS.size(2))
            last.coverage_AKS = last.coverage_AKS.gather(1, index_AKS)
        self._make_room()

    def keep(self, sentences_A: Tensor) -> None:
        """Goes on with these sentences only, in this order."""
        for layer in self.layers:
            keys_ANSH, values_ANSH = layer.cross
            layer.cross = keys_ANSH[sentences_A], values_ANSH[sentences_A]
            if layer.coverage_AKS is not None:
                layer.coverage_AKS = layer.coverage_AKS[sentences_A]
        if self._padding_mask_AS is not None:
            self._mask_padding(self._padding_mask_AS[sentences_A])
        self._copy_slots(sentences_A)

    def _mask_padding(self, padding_mask_AS: Tensor | None) -> None:
        self._padding_mask_AS = padding_mask_AS
        if padding_mask_AS is not None:
            mask = _additive(~padding_mask_AS[:, None, :], self._slots.dtype)
            for layer in self.layers:
                layer.cross_mask = mask

    def _make_room(self) -> None:
        """Copies the slots if the next step has no room."""
        if self._slots.end > self.num_slots:
            num_sentences = self.layers[0].own[0].size(0)
            self._copy_slots(torch.arange(num_sentences, device=self.layers[0].own[0].device))

    def _copy_slots(self, sentences_A: Tensor) -> None:
        """Copies what is seen of these sentences' slots, into twice as many."""
        slots = self._slots
        if slots.seen_AKF is None:
            seen_AKF, filled = None, slots.filled
            from_AF = torch.arange(filled, device=sentences_A.device).expand(len(sentences_A), -1)
        else:
            seen_AKF = slots.seen_AKF[sentences_A]
            alive_AF = seen_AKF.any(dim=1)
            filled = int(alive_AF.sum(dim=1).max())
            # In their old order. Sentences with fewer of them add some that nobody sees.
            from_AF = alive_AF.byte().argsort(dim=1, descending=True, stable=True)[:, :filled]
            seen_AKF = seen_AKF.gather(2, from_AF[:, None].expand(-1, slots.width, -1))
        old, room = self.num_slots, _round_up(2 * (filled + slots.width))
        # Slots behind the filled ones get copies of slot 0, until a step writes them.
        from_AC = F.pad(from_AF, (0, room - filled))
        _, num_heads, _, head_dim = self.layers[0].own[0].shape
        heads_N1 = torch.arange(num_heads, device=sentences_A.device)[:, None]
        row_ANC = (sentences_A[:, None, None] * num_heads + heads_N1) * old + from_AC[:, None]
        shape, rows = (*row_ANC.shape, head_dim), row_ANC.flatten()
        for layer in self.layers:
            keys_ANCH, values_ANCH = layer.own
            layer.own = (
                keys_ANCH.flatten(0, 2).index_select(0, rows).view(shape),
                values_ANCH.flatten(0, 2).index_select(0, rows).view(shape),
            )
        slots.see(seen_AKF, filled, slots.width)
