"""The hypotheses of a search as tensors: open ones, and those that have finished.

Shape legend: B sentences, A sentences in the batch, K open hypotheses of each, N finished ones that
are kept of each, X of both, P pieces of the longest prefix, T pieces so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperadapter.core.errors import CheckpointError
from hyperadapter.model.cache import DecoderCache

__all__ = ["ANY_PIECE", "Finished", "Hypothesis", "OpenHypotheses"]

ANY_PIECE = -1
"""Where a piece may be demanded: none is."""

_LEAST_SHARE_THAT_LEAVES = 1 / 8


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished translation.

    Attributes:
        ids: Pieces, without the end mark.
        score: Log-probability over length to the power of the length penalty, in nats, and the
            coverage penalty where there is one.
    """

    ids: tuple[int, ...]
    score: float


@dataclass(slots=True)
class Finished:
    """The finished hypotheses of every sentence that are kept.

    Attributes:
        scores_AN: Their scores, -inf where there is none.
        ids_ANT: Their pieces, then anything.
        lengths_AN: How many pieces they have.
        counts_A: Finished hypotheses so far, kept or not.
    """

    scores_AN: Tensor
    ids_ANT: Tensor
    lengths_AN: Tensor
    counts_A: Tensor

    @classmethod
    def none(cls, num_sentences: int, kept: int, device: torch.device) -> Finished:
        """Begins without any."""
        scores_AN = torch.full((num_sentences, kept), -torch.inf, device=device)
        ids_ANT = torch.empty(num_sentences, kept, 0, dtype=torch.int64, device=device)
        counts_A = torch.zeros(num_sentences, dtype=torch.int64, device=device)
        return cls(scores_AN, ids_ANT, torch.zeros_like(scores_AN, dtype=torch.int64), counts_A)

    def keep_best(self, ended_AK: Tensor, scores_AK: Tensor, ids_AKT: Tensor) -> None:
        """Notes hypotheses of the same length, and keeps the best of all, best first.

        Args:
            ended_AK: True for those that have ended; the others are ignored.
            scores_AK: Their scores.
            ids_AKT: Their pieces, without the end mark.
        """
        kept, length = self.scores_AN.size(1), ids_AKT.size(2)
        self.counts_A = self.counts_A + ended_AK.sum(dim=1)
        scores_AX = torch.cat([self.scores_AN, scores_AK.masked_fill(~ended_AK, -torch.inf)], 1)
        # Stable: of two with the same score the earlier one comes first.
        scores_AX, index_AX = scores_AX.sort(dim=1, descending=True, stable=True)
        self.scores_AN, index_AN = scores_AX[:, :kept], index_AX[:, :kept]
        lengths_AK = torch.full_like(scores_AK, length, dtype=torch.int64)
        self.lengths_AN = torch.cat([self.lengths_AN, lengths_AK], 1).gather(1, index_AN)
        ids_AXT = torch.cat([self._longer(length), ids_AKT], 1)
        self.ids_ANT = ids_AXT.gather(1, index_AN[:, :, None].expand(-1, -1, length))

    def put(self, ended_AN: Tensor, scores_AN: Tensor, ids_ANT: Tensor) -> None:
        """Notes hypotheses of the same length, each at its own place; see `keep_best`."""
        length = ids_ANT.size(2)
        self.counts_A = self.counts_A + ended_AN.sum(dim=1)
        self.scores_AN = torch.where(ended_AN, scores_AN, self.scores_AN)
        self.ids_ANT = torch.where(ended_AN[:, :, None], ids_ANT, self._longer(length))
        self.lengths_AN = self.lengths_AN.masked_fill(ended_AN, length)

    def _longer(self, length: int) -> Tensor:
        return F.pad(self.ids_ANT, (0, length - self.ids_ANT.size(2)))

    def select(self, sentences_A: Tensor) -> Finished:
        """Returns those of some sentences."""
        index = sentences_A
        return Finished(
            self.scores_AN[index], self.ids_ANT[index], self.lengths_AN[index], self.counts_A[index]
        )

    def to_lists(self) -> list[list[Hypothesis]]:
        """Copies them from the device.

        Raises:
            CheckpointError: A sentence has none.
        """
        columns = self.scores_AN.tolist(), self.ids_ANT.tolist(), self.lengths_AN.tolist()
        found = [
            [
                Hypothesis(tuple(ids[:length]), score)
                for score, ids, length in zip(*of_sentence, strict=True)
                if score > -torch.inf
            ]
            for of_sentence in zip(*columns, strict=True)
        ]
        if not all(found):
            raise CheckpointError(
                "the model gives scores that are not finite, so nothing can be translated; its "
                "training has diverged: use an earlier checkpoint, or train with a lower "
                "learning_rate"
            )
        return found


@dataclass(slots=True)
class OpenHypotheses:
    """The open hypotheses of the sentences in the batch.

    Attributes:
        places_A: The sentences' places in the prompts.
        longest_A: Most pieces allowed.
        prefixes_BP: Pieces that hypotheses must begin with, then `ANY_PIECE`; None without any.
        scores_AK: Log-probabilities; -inf where there are fewer than K hypotheses.
        ids_AKT: Pieces so far.
        last_AK: What the decoder reads next: the prompt's end, then the last piece.
        cache: What the decoder remembers.
        finished: Hypotheses that have ended.
        done_A: True where nothing changes any more.
    """

    places_A: Tensor
    longest_A: Tensor
    prefixes_BP: Tensor | None
    scores_AK: Tensor
    ids_AKT: Tensor
    last_AK: Tensor
    cache: DecoderCache
    finished: Finished
    done_A: Tensor

    @property
    def length(self) -> int:
        """T."""
        return self.ids_AKT.size(2)

    def demanded(self) -> Tensor | None:
        """Returns the next piece of the sentences' prefixes [A], or None where all have ended."""
        if self.prefixes_BP is None or self.length >= self.prefixes_BP.size(1):
            return None
        return self.prefixes_BP[self.places_A, self.length]

    def leave(self) -> dict[int, list[Hypothesis]]:
        """Takes the sentences that are done out of the batch, if it is worth it.

        Returns:
            Their finished hypotheses, by their places in the prompts.

        Raises:
            CheckpointError: The model's scores are not finite.
        """
        done = self.done_A.tolist()
        if sum(done) < max(1.0, _LEAST_SHARE_THAT_LEAVES * len(done)):
            return {}
        leaving_A = self.done_A.nonzero().squeeze(1)
        hypotheses = self.finished.select(leaving_A).to_lists()
        left = dict(zip(self.places_A[leaving_A].tolist(), hypotheses, strict=True))
        if len(left) < len(done):
            self._keep((~self.done_A).nonzero().squeeze(1))
        else:
            self.done_A = self.done_A[:0]
        return left

    def _keep(self, kept_A: Tensor) -> None:
        """Goes on with these sentences only."""
        self.places_A, self.longest_A = self.places_A[kept_A], self.longest_A[kept_A]
        self.scores_AK, self.ids_AKT = self.scores_AK[kept_A], self.ids_AKT[kept_A]
        self.last_AK, self.done_A = self.last_AK[kept_A], self.done_A[kept_A]
        self.cache.keep(kept_A)
        self.finished = self.finished.select(kept_A)
