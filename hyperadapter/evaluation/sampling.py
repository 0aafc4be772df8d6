"""Translations drawn piece by piece from the model's distribution.

A piece is drawn from p(y_t | y_<t, x) ** (1 / temperature), of the `top_k` best pieces, of those
from the fewest that have the probability `top_p` together (Holtzman et al. 2020), renormalised.

A piece is drawn by adding Gumbel noise to the scores and taking the best (Gumbel-max; Maddison et
al. 2014, section 2). The noise of a piece is a hash of the seed, the sentence's own ids, the draw,
the step and the piece. So what is drawn for a sentence depends neither on its batch nor on who has
left it, and other batches, more processes or a second start draw the same. Float rounding, which
differs between batches, matters only where the two best are equal to the last digits. A number that
is held against cumulated probabilities has thousands of boundaries to lie next to instead.

Shape legend: B sentences, A sentences in the batch, N draws of each, R = A N rows of the decoder, V
pieces of the vocabulary, C those that are drawn from, X any number.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.tokenizer import EOS_ID, PAD_ID
from hyperadapter.config import EvaluationConfig, SamplingConfig
from hyperadapter.evaluation.candidates import forbid, output_weight, repeating_pieces, top
from hyperadapter.evaluation.hypotheses import ANY_PIECE, OpenHypotheses
from hyperadapter.model.adapters import Adapters
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq

__all__ = ["draw_keys", "draw_next"]

# Scores that exist at a time: 32 MB.
_SCORES_AT_A_TIME = 1 << 23
# Likewise for noise, whose many small operations stay in the processor's cache.
_NOISE_AT_A_TIME = {"cpu": 1 << 18, "cuda": 1 << 23}
# Of the best pieces, to begin with, in search of those that have `top_p` together.
_FIRST_POOL = 256
# SplitMix64 (Steele et al. 2014): the step between states, and shifts and factors of its output.
_STATE_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, 1))


def draw_keys(prompts: Batch, draws: int, seed: int) -> Tensor:
    """Returns what the noise of each draw of each sentence is made from, int64 [B, draws].

    More draws begin with the same keys.
    """
    sources = prompts.src.pad(prompts.src_N).cpu().numpy()
    openings = prompts.tgt_in_M.view(len(sources), -1).cpu().numpy()
    keys = np.empty((len(sources), draws), np.int64)
    for row, (source, opening) in enumerate(zip(sources, openings, strict=True)):
        ids = np.concatenate([opening, source[source != PAD_ID]]).astype("<i8").tobytes()
        for draw in range(draws):
            words = np.array([seed, draw], "<u8").tobytes()
            digest = blake2b(words + ids, digest_size=8).digest()
            keys[row, draw] = int.from_bytes(digest, "little", signed=True)
    return torch.from_numpy(keys).to(prompts.src_N.device)


def _mixed(states_X: Tensor) -> Tensor:
    """Returns SplitMix64's numbers for states, computed in place; int64 stands for its uint64."""
    for shift, factor in _MIX:
        # Shifts of negative numbers bring ones in.
        shifted_X = (states_X >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        states_X.bitwise_xor_(shifted_X).mul_(factor)
    return states_X


def _gumbel_noise(keys_R: Tensor, pieces_RC: Tensor) -> Tensor:
    """Returns standard Gumbel noise [R, C] for pieces."""
    bits_RC = _mixed(pieces_RC * _STATE_STEP + keys_R[:, None])
    # Above 0; single precision is exact enough where it matters, near 0.
    uniform_RC = (bits_RC >> 11).bitwise_and_((1 << 53) - 1).bitwise_or_(1).float().mul_(2.0**-53)
    return uniform_RC.neg_().log1p_().neg_().log_().neg_()


def draw_next(
    model: Seq2Seq,
    search: OpenHypotheses,
    adapters: Adapters | None,
    config: EvaluationConfig,
    keys_BN: Tensor,
) -> None:
    """Runs the decoder by one position and draws a piece for every hypothesis.

    Hypotheses that have ended are computed until all of the sentence's have.
    """
    assert config.sampling is not None
    length, shape = search.length, search.scores_AK.shape
    hidden_RD = model.step(search.last_AK.flatten(), search.cache, adapters)
    last_step_A = search.longest_A == length
    demanded_A = search.demanded()
    if demanded_A is None:
        demanded_A = torch.full_like(search.longest_A, ANY_PIECE)
    demanded_A = demanded_A.masked_fill(last_step_A, EOS_ID)
    pieces_R, log_probs_R = _draw(
        model,
        hidden_RD,
        _mixed(keys_BN[search.places_A].flatten() + length),
        demanded_A.repeat_interleave(shape[1]),
        repeating_pieces(search.ids_AKT, config.no_repeat_ngram),
        config.sampling,
    )
    pieces_AN, scores_AN = pieces_R.view(shape), search.scores_AK + log_probs_R.view(shape)
    finished = search.finished
    ended_AN = (pieces_AN == EOS_ID) & scores_AN.isfinite() & (finished.scores_AN == -torch.inf)
    finished.put(ended_AN, scores_AN / (length + 1) ** config.length_penalty, search.ids_AKT)
    search.scores_AK, search.last_AK = scores_AN, pieces_AN
    search.ids_AKT = torch.cat([search.ids_AKT, pieces_AN[:, :, None]], dim=2)
    search.done_A = (finished.counts_A == shape[1]) | (search.longest_A < search.length)


def _draw(
    model: Seq2Seq,
    hidden_RD: Tensor,
    keys_R: Tensor,
    demanded_R: Tensor,
    forbidden_RX: Tensor | None,
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor]:
    """Draws a piece for every row, some rows at a time.

    Returns:
        The pieces [R], demanded ones where there are such, and their log-probabilities, which are
        the model's own.
    """
    weight_VD = output_weight(model)
    pieces, log_probs = [], []
    size = max(1, _SCORES_AT_A_TIME // len(weight_VD))
    for first in range(0, len(hidden_RD), size):
        part = slice(first, first + size)
        scores_RV = F.linear(hidden_RD[part], weight_VD).float()
        allowed_RV = scores_RV.clone()
        forbid(allowed_RV, None if forbidden_RX is None else forbidden_RX[part], 0)
        drawn_R = _pick(*_pool(allowed_RV / sampling.temperature, sampling), keys_R[part])
        pieces_R = torch.where(demanded_R[part] == ANY_PIECE, drawn_R, demanded_R[part])
        pieces.append(pieces_R)
        log_probs.append(scores_RV.log_softmax(dim=1).gather(1, pieces_R[:, None]).squeeze(1))
    return torch.cat(pieces), torch.cat(log_probs)


def _pool(scores_RV: Tensor, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Chooses the pieces that are drawn from.

    Returns:
        Their scores [R, C], -inf for pieces that are not, and their ids.
    """
    num_rows, num_pieces = scores_RV.shape
    if sampling.top_k is None and sampling.top_p == 1.0:
        return scores_RV, torch.arange(num_pieces, device=scores_RV.device).expand(num_rows, -1)
    count = sampling.top_k or _FIRST_POOL
    while True:
        best_RC, pieces_RC = top(scores_RV, count)
        among = scores_RV if sampling.top_k is None else best_RC
        probs_RC = (best_RC - among.logsumexp(dim=1, keepdim=True)).double().exp()
        better_RC = probs_RC.cumsum(dim=1) - probs_RC
        if sampling.top_k is not None or count >= num_pieces:
            break
        if bool((better_RC[:, -1] >= sampling.top_p).all()):
            break
        count *= 8
    if sampling.top_p < 1.0:
        best_RC = best_RC.masked_fill(better_RC >= sampling.top_p, -torch.inf)
    return best_RC, pieces_RC


def _pick(scores_RC: Tensor, pieces_RC: Tensor, keys_R: Tensor) -> Tensor:
    """Draws one piece of every row [R], with probabilities that are the softmax of the scores."""
    size = max(1, _NOISE_AT_A_TIME[scores_RC.device.type] // scores_RC.size(1))
    parts = [slice(first, first + size) for first in range(0, len(scores_RC), size)]
    noisy = (scores_RC[part] + _gumbel_noise(keys_R[part], pieces_RC[part]) for part in parts)
    best_R1 = torch.cat([noisy_RC.argmax(dim=1, keepdim=True) for noisy_RC in noisy])
    return pieces_RC.gather(1, best_R1).squeeze(1)
