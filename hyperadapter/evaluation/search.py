"""Beam search over one direction at a time, its adapters made once before it begins.

A hypothesis y_1 .. y_n, the end mark last, scores

    score(y) = sum over t of log p(y_t | y_<t, x)  /  n ** length_penalty          nats

Each step extends the K best open hypotheses of a sentence by their best pieces. An extension by the
end mark is finished if it is among the K best extensions, as in fairseq; so K = 1 is greedy search.
A sentence is done, and leaves the batch, when

  - it has K finished hypotheses (fairseq's rule), or
  - no open hypothesis can overtake its best finished one: log-probabilities only fall, so an open
    hypothesis of log-probability s ends at most at s / (longest + 1) ** length_penalty, or
  - it is as long as allowed; its last step offers the end mark only.

Padding, start and unknown piece are never produced: byte pieces spell what is unknown. Tags are no
pieces, see `Seq2Seq.logits`.

Shape legend: B sentences, A sentences not yet done, K open hypotheses of each, R = A K rows of the
decoder, C candidates, S source, T target, V pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from hyperadapter.config import EvaluationConfig
from hyperadapter.core.errors import CheckpointError
from hyperadapter.model.adapters import AdapterWeights
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.transformer import DecoderCache

__all__ = ["Hypothesis", "beam_search"]

_NEVER_PRODUCED = (PAD_ID, UNK_ID, BOS_ID)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished translation.

    Attributes:
        ids: Pieces, without the end mark.
        score: Log-probability over length to the power of the length penalty, in nats.
    """

    ids: tuple[int, ...]
    score: float


@dataclass(slots=True)
class _State:
    """The open hypotheses of the sentences that are not yet done.

    Attributes:
        sentences: Their places in the batch [A].
        longest: Most pieces allowed [A].
        scores_AK: Log-probabilities; -inf where there are fewer than K hypotheses.
        tokens_RT: Pieces so far.
        last_R: What the decoder reads next: the prompt, then the last piece.
        padding_mask_RS: True at padding of the sources.
        cache: What the decoder remembers of the rows.
    """

    sentences: list[int]
    longest: list[int]
    scores_AK: Tensor
    tokens_RT: Tensor
    last_R: Tensor
    padding_mask_RS: Tensor
    cache: DecoderCache


class _Candidates(NamedTuple):
    """The best extensions of every sentence, best first.

    Attributes:
        scores_AC: Log-probabilities.
        pieces_AC: The pieces that extend.
        rows_AC: The rows that they extend.
    """

    scores_AC: Tensor
    pieces_AC: Tensor
    rows_AC: Tensor


class _Finished:
    """The best finished hypothesis of every sentence, and how many there are."""

    def __init__(self, num_sentences: int, length_penalty: float) -> None:
        self.length_penalty = length_penalty
        self.best: list[Hypothesis | None] = [None] * num_sentences
        self.count = [0] * num_sentences

    def add(self, sentence: int, log_prob: float, ids: list[int]) -> None:
        """Adds a hypothesis, whose length includes its end mark."""
        score = log_prob / (len(ids) + 1) ** self.length_penalty
        best = self.best[sentence]
        if best is None or score > best.score:
            self.best[sentence] = Hypothesis(tuple(ids), score)
        self.count[sentence] += 1

    def is_out_of_reach(self, sentence: int, log_prob: float, longest: int) -> bool:
        """Says whether an open hypothesis cannot overtake the sentence's best finished one."""
        best = self.best[sentence]
        return best is not None and best.score >= log_prob / (longest + 1) ** self.length_penalty


@torch.inference_mode()
def beam_search(
    model: Seq2Seq, prompts: Batch, adapters: AdapterWeights | None, config: EvaluationConfig
) -> list[Hypothesis]:
    """Translates one batch of one direction.

    Args:
        model: The model, in evaluation mode.
        prompts: Sources, and a decoder input of one position; one direction only.
        adapters: The direction's adapters (P = 1), or None for a dense model.
        config: Beam size, length penalty and the longest output: max_length_ratio times the source
            positions (tag and end mark included), and max_length_extra more.

    Returns:
        The best hypothesis of every sentence, in the order of the batch.

    Raises:
        CheckpointError: The model's scores are not finite.
    """
    assert len(prompts.sentences_P) == 1, "a search has one direction"
    assert not model.training, "dropout is for training"
    state = _start(model, prompts, adapters, config)
    finished = _Finished(len(state.sentences), config.length_penalty)
    length = 0
    while state.sentences:
        candidates = _extend(model, state, adapters, length, config.beam_size)
        length += 1
        _collect(candidates, state, finished, config.beam_size)
        _advance(candidates, state, finished, length, config.beam_size)
    return [_check_found(hypothesis) for hypothesis in finished.best]


def _check_found(hypothesis: Hypothesis | None) -> Hypothesis:
    if hypothesis is None:
        raise CheckpointError(
            "the model gives scores that are not finite, so nothing can be translated; its "
            "training has diverged: use an earlier checkpoint, or train with a lower learning_rate"
        )
    return hypothesis


def _start(
    model: Seq2Seq, prompts: Batch, adapters: AdapterWeights | None, config: EvaluationConfig
) -> _State:
    """Encodes the sources; every sentence begins with one row, its prompt."""
    src_BS, mask_BS = prompts.src_BS, prompts.src_padding_mask_BS
    memory_BSD = model.encode(src_BS, mask_BS, adapters, prompts.sentences_P)
    lengths: list[int] = (~mask_BS).sum(dim=1).tolist()
    ratio, extra = config.max_length_ratio, config.max_length_extra
    return _State(
        sentences=list(range(len(lengths))),
        longest=[int(ratio * length) + extra for length in lengths],
        scores_AK=torch.zeros(len(lengths), 1, device=src_BS.device),
        tokens_RT=src_BS.new_empty(len(lengths), 0),
        last_R=prompts.tgt_in_BT[:, 0],
        padding_mask_RS=mask_BS,
        cache=model.new_cache(memory_BSD),
    )


def _extend(
    model: Seq2Seq, state: _State, adapters: AdapterWeights | None, length: int, beam_size: int
) -> _Candidates:
    """Runs the decoder by one position and picks the 2 K best extensions of every sentence.

    Among 2 K of them at least K are open, because each row has one end mark.
    """
    num_rows = len(state.last_R)
    hidden_R1D = model.decode(
        state.last_R[:, None], state.cache, state.padding_mask_RS, adapters, (num_rows,)
    )
    logits_RV = model.logits(hidden_R1D[:, 0]).float()
    total_R1 = logits_RV.logsumexp(dim=1, keepdim=True)
    logits_RV[:, _NEVER_PRODUCED] = -torch.inf
    num_active, width = state.scores_AK.shape
    last_step = [longest == length for longest in state.longest]
    if any(last_step):
        forced_R = torch.tensor(last_step, device=logits_RV.device).repeat_interleave(width)
        end_R = logits_RV[:, EOS_ID].clone()
        logits_RV.masked_fill_(forced_R[:, None], -torch.inf)
        logits_RV[:, EOS_ID] = end_R
    # The best of all rows are among the best of each.
    best_RC, pieces_RC = logits_RV.topk(min(2 * beam_size, logits_RV.size(1)), dim=1)
    scores_AKC = state.scores_AK[:, :, None] + (best_RC - total_R1).view(num_active, width, -1)
    per_row = scores_AKC.size(2)
    scores_AC, index_AC = scores_AKC.flatten(1).topk(min(2 * beam_size, width * per_row), dim=1)
    first_A1 = torch.arange(0, num_rows, width, device=index_AC.device)[:, None]
    return _Candidates(
        scores_AC,
        pieces_RC.view(num_active, -1).gather(1, index_AC),
        first_A1 + index_AC // per_row,
    )


def _collect(candidates: _Candidates, state: _State, finished: _Finished, beam_size: int) -> None:
    """Notes the hypotheses that finish: end marks among the K best extensions."""
    scores_AK = candidates.scores_AC[:, :beam_size]
    ended_AK = (candidates.pieces_AC[:, :beam_size] == EOS_ID) & scores_AK.isfinite()
    places = ended_AK.nonzero()
    if len(places) == 0:
        return
    rows = candidates.rows_AC[:, :beam_size][ended_AK]
    log_probs: list[float] = scores_AK[ended_AK].tolist()
    for place, log_prob, ids in zip(
        places[:, 0].tolist(), log_probs, state.tokens_RT[rows].tolist(), strict=True
    ):
        finished.add(state.sentences[place], log_prob, ids)


def _advance(
    candidates: _Candidates, state: _State, finished: _Finished, length: int, beam_size: int
) -> None:
    """Goes on with the K best open extensions of the sentences that are not done."""
    ended_AC = candidates.pieces_AC == EOS_ID
    open_AK = ended_AC.byte().argsort(dim=1, stable=True)[:, :beam_size]
    # With few pieces there may be fewer than K open extensions.
    scores_AK = candidates.scores_AC.masked_fill(ended_AC, -torch.inf).gather(1, open_AK)
    best_open: list[float] = scores_AK.amax(dim=1).tolist()
    kept = [
        place
        for place, (sentence, longest) in enumerate(
            zip(state.sentences, state.longest, strict=True)
        )
        if length <= longest
        and finished.count[sentence] < beam_size
        and not finished.is_out_of_reach(sentence, best_open[place], longest)
    ]
    moved = len(kept) < len(state.sentences) or scores_AK.shape != state.scores_AK.shape
    state.sentences = [state.sentences[place] for place in kept]
    state.longest = [state.longest[place] for place in kept]
    if not kept:
        return
    kept_A = torch.tensor(kept, device=scores_AK.device)
    rows_R = candidates.rows_AC.gather(1, open_AK)[kept_A].flatten()
    state.scores_AK = scores_AK[kept_A]
    state.last_R = candidates.pieces_AC.gather(1, open_AK)[kept_A].flatten()
    state.tokens_RT = torch.cat([state.tokens_RT[rows_R], state.last_R[:, None]], dim=1)
    if moved:
        state.padding_mask_RS = state.padding_mask_RS[rows_R]
    if moved or beam_size > 1:
        state.cache.reorder(rows_R, cross=moved)
