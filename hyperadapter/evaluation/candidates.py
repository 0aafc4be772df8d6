"""Which pieces may come next, and which of them are best.

Padding, start and unknown piece are never produced: byte pieces spell what is unknown. Tags are no
pieces, see `Seq2Seq.logits`. They count in the normalisation, and so does what is forbidden only
now: log-probabilities are always the model's own.

Shape legend: A sentences, K hypotheses of each, R = A K rows of the decoder, C candidates, T pieces
so far, V pieces of the vocabulary (or of a part of it), X any number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.tokenizer import BOS_ID, PAD_ID, UNK_ID
from hyperadapter.model.seq2seq import Seq2Seq

__all__ = ["NextPieces", "best_pieces", "forbid", "output_weight", "repeating_pieces", "top"]

_NEVER_PRODUCED = slice(0, 3)
assert {PAD_ID, UNK_ID, BOS_ID} == {0, 1, 2}

# Pieces at a time: their scores stay in the processor's cache, and sizes like this multiply faster.
_PIECES_AT_A_TIME = {"cpu": 1 << 11, "cuda": 1 << 20}
# Pieces of which the best is found first, see `top`.
_BLOCK = 16


class NextPieces(NamedTuple):
    """The best pieces for every row.

    Attributes:
        scores_RC: Their log-probabilities; -inf where fewer may be produced.
        pieces_RC: Their ids.
        total_R1: What is to be taken from a piece's score to get its log-probability.
    """

    scores_RC: Tensor
    pieces_RC: Tensor
    total_R1: Tensor


def output_weight(model: Seq2Seq) -> Tensor:
    """Returns the output projection [V, D]."""
    return model.embedding.weight[: model.vocabulary.num_pieces]


def best_pieces(
    model: Seq2Seq, hidden_RD: Tensor, count: int, forbidden_RX: Tensor | None
) -> NextPieces:
    """Predicts the next piece of every row, a part of the vocabulary at a time.

    Args:
        model: The model.
        hidden_RD: Hidden states.
        count: C, pieces wanted; there are fewer where the vocabulary is smaller.
        forbidden_RX: Pieces that a row may not have next, or None.
    """
    weight_VD = output_weight(model)
    size = _PIECES_AT_A_TIME[hidden_RD.device.type]
    best, pieces, totals = [], [], []
    for first in range(0, len(weight_VD), size):
        scores_RV = F.linear(hidden_RD, weight_VD[first : first + size]).float()
        # log_softmax is a single kernel, and logsumexp is four.
        totals.append(scores_RV[:, 0] - scores_RV.log_softmax(dim=1)[:, 0])
        forbid(scores_RV, forbidden_RX, first)
        best_RC, places_RC = top(scores_RV, count)
        best.append(best_RC)
        pieces.append(places_RC + first)
    total_R1 = torch.stack(totals, dim=1).logsumexp(dim=1, keepdim=True)
    best_RC, index_RC = top(torch.cat(best, dim=1), count)
    pieces_RC = torch.cat(pieces, dim=1).gather(1, index_RC)
    return NextPieces(best_RC - total_R1, pieces_RC, total_R1)


def forbid(scores_RV: Tensor, forbidden_RX: Tensor | None, first: int) -> None:
    """Sets the scores of what may not be produced to -inf, in place.

    Args:
        scores_RV: Scores of a part of the vocabulary.
        forbidden_RX: Pieces of the whole vocabulary that a row may not have, or None.
        first: Where the part begins.
    """
    if first == 0:
        scores_RV[:, _NEVER_PRODUCED] = -torch.inf
    if forbidden_RX is None:
        return
    places_RX = forbidden_RX - first
    inside_RX = (places_RX >= 0) & (places_RX < scores_RV.size(1))
    # A minimum, so that pieces of other parts, and those named twice, do no harm.
    limits_RX = torch.where(inside_RX, -torch.inf, torch.inf)
    places_RX = places_RX.clamp(0, scores_RV.size(1) - 1)
    scores_RV.scatter_reduce_(1, places_RX, limits_RX, "amin")


def repeating_pieces(ids_AKT: Tensor, ngram: int) -> Tensor | None:
    """Finds the pieces that would complete a run of `ngram` pieces which is already there.

    Returns:
        Their ids [R, X]; where there are fewer, the padding's, which is never produced anyway. None
        where hypotheses are too short to hold such a run, or `ngram` is 0.
    """
    length = ids_AKT.size(2)
    if ngram == 0 or length < ngram:
        return None
    runs_RXN = ids_AKT.flatten(0, 1).unfold(1, ngram, 1)
    ending_R1N = ids_AKT.flatten(0, 1)[:, None, length - ngram + 1 :]
    same_RX = (runs_RXN[:, :, :-1] == ending_R1N).all(dim=2)
    return runs_RXN[:, :, -1].masked_fill(~same_RX, PAD_ID)


def top(scores_RV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the best scores of every row and their places, as topk does but faster.

    The `count` best lie in the `count` blocks whose best are best. Block j of J is the places j,
    j + J, j + 2 J and so on, so that the bests of all blocks are the maximum over a few long rows.
    """
    num_rows, num_pieces = scores_RV.shape
    num_blocks = num_pieces // _BLOCK
    if num_blocks <= count:
        return scores_RV.topk(min(count, num_pieces), dim=1)
    in_blocks = num_blocks * _BLOCK
    best_RJ = scores_RV[:, :in_blocks].view(num_rows, _BLOCK, num_blocks).amax(dim=1)
    blocks_RC = best_RJ.topk(count, dim=1, sorted=False).indices
    starts = torch.arange(0, in_blocks, num_blocks, device=scores_RV.device)
    places_RX = (blocks_RC[:, None, :] + starts[:, None]).flatten(1)
    if in_blocks < num_pieces:
        rest = torch.arange(in_blocks, num_pieces, device=scores_RV.device)
        places_RX = torch.cat([places_RX, rest.expand(num_rows, -1)], dim=1)
    best_RC, index_RC = scores_RV.gather(1, places_RX).topk(count, dim=1)
    return best_RC, places_RX.gather(1, index_RC)
