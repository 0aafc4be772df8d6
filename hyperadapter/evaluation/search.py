"""Search for translations of one direction at a time, its adapters made once before it begins.

A hypothesis y_1 .. y_n, the end mark last, scores

    score(y) = sum over t of log p(y_t | y_<t, x)  /  n ** length_penalty  +  coverage(y)      nats

    coverage(y) = coverage_penalty * sum over i of log min(sum over t of a_ti, 1)

where a_ti is how much step t looks at source position i, in the decoder's last layer, the mean over
its heads (Wu et al. 2016, equation 14; their length penalty is another). Pieces of the text count,
its tag and end mark do not. It is 0 or less, and computed only if asked for.

Each step extends the K best open hypotheses of a sentence by their best pieces. An extension by the
end mark is finished if it is among the K best extensions, as in fairseq; so K = 1 is greedy search.
The N best finished hypotheses are kept. A sentence is done, and leaves the batch, when

  - it has K finished hypotheses (fairseq's rule), or
  - no open hypothesis can overtake the worst that it keeps, and it has N: log-probabilities only
    fall, so an open hypothesis of log-probability s ends at most at
    s / (longest + 1) ** length_penalty, and its coverage only lowers that, or
  - it is as long as allowed; its last step offers the end mark only.

Pieces that hypotheses must begin with are taken as if nothing else were possible; they count in the
score. A prefix may be longer than the longest output: `max_length_extra` pieces may follow always.

With `sampling`, a sentence has N hypotheses from the start, and each goes its own way until it ends
(`sampling.py`). There is no K then.

Tags are no pieces, see `Seq2Seq.logits`. A prompt may have several positions, such as `</s> tag` of
NLLB; they are read before the search begins, and are no part of the hypotheses.

The search is tensors from end to end. Python looks at them to see which sentences are done; on a
GPU only every few steps, because looking waits for it. A sentence that is done changes no more, but
is computed until it leaves. Leaving costs a copy of what the decoder remembers, so sentences leave
when they are an eighth of the batch.

Shape legend: B sentences, A sentences in the batch, K open hypotheses of each, N finished ones that
are kept of each, R = A K rows of the decoder, C candidates, T pieces so far, P pieces of the
longest prefix, S source positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_pipeline.tokenizer import EOS_ID, PAD_ID
from hyperadapter.config import EvaluationConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.evaluation.candidates import best_pieces, output_weight, repeating_pieces
from hyperadapter.evaluation.hypotheses import ANY_PIECE, Finished, Hypothesis, OpenHypotheses
from hyperadapter.evaluation.sampling import draw_keys, draw_next
from hyperadapter.model.adapters import Adapters
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq

__all__ = ["Hypothesis", "beam_search", "check_options", "search_n_best"]

# Not cuDNN's, torch's first choice on some GPUs: it plans anew for each length, for 25 ms and more.
_ATTENTION_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 4}


class _Candidates(NamedTuple):
    """The best extensions of every sentence, best first.

    Attributes:
        scores_AC: Log-probabilities.
        pieces_AC: The pieces that extend.
        parents_AC: The open hypotheses that they extend.
    """

    scores_AC: Tensor
    pieces_AC: Tensor
    parents_AC: Tensor


def beam_search(
    model: Seq2Seq, prompts: Batch, adapters: Adapters | None, config: EvaluationConfig
) -> list[Hypothesis]:
    """Finds the best hypothesis of every sentence of a batch; see `search_n_best`."""
    return [best for [best] in search_n_best(model, prompts, adapters, config)]


@torch.inference_mode()
def search_n_best(
    model: Seq2Seq,
    prompts: Batch,
    adapters: Adapters | None,
    config: EvaluationConfig,
    *,
    n_best: int = 1,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """Translates one batch of one direction.

    Args:
        model: The model, in evaluation mode.
        prompts: Sources, and decoder inputs of one or more positions, the same number for all; one
            direction only.
        adapters: The direction's adapters (P = 1), or None for a dense model.
        config: How to search. The longest output has max_length_ratio times the source positions
            (tag and end mark included), and max_length_extra more.
        n_best: N, hypotheses of each sentence.
        prefixes: Pieces that each sentence's hypotheses must begin with, possibly none.

    Returns:
        The best hypotheses of every sentence, best first, in the order of the batch. There are
        fewer than N where the search has found no more: outputs may hardly be longer than their
        prefix, or the vocabulary is tiny. With sampling always N, in the order of the draws.

    Raises:
        CheckpointError: The model's scores are not finite.
        ConfigError: The options do not go together.
    """
    assert len(prompts.direction_P) == 1, "a search has one direction"
    assert not model.training, "dropout is for training"
    check_options(config, n_best)
    found: dict[int, list[Hypothesis]] = {}
    with sdpa_kernel(_ATTENTION_KERNELS):
        search = _start(model, prompts, adapters, config, n_best, prefixes)
        keys_BN = None
        if config.sampling is not None:
            _begin_draws(search, n_best)
            keys_BN = draw_keys(prompts, n_best, config.sampling.seed)
        while len(search.done_A):
            if keys_BN is not None:
                draw_next(model, search, adapters, config, keys_BN)
            else:
                candidates = _extend(model, search, adapters, config)
                _finish(search, candidates, config)
                _branch(search, candidates, config)
            if search.length % _STEPS_BETWEEN_LOOKS[search.done_A.device.type] == 0:
                found |= search.leave()
    return [found[place] for place in range(len(found))]


def check_options(config: EvaluationConfig, n_best: int) -> None:
    """Refuses options that do not go together.

    Raises:
        ConfigError: They do not.
    """
    if n_best < 1:
        raise ConfigError(f"n_best is {n_best}; ask for 1 translation of each sentence or more")
    if config.sampling is None and n_best > config.beam_size:
        raise ConfigError(
            f"n_best is {n_best}, but a search with beam_size {config.beam_size} ends with as many "
            f"translations; set beam_size to {n_best} or more, or draw translations (sampling)"
        )


def _start(
    model: Seq2Seq,
    prompts: Batch,
    adapters: Adapters | None,
    config: EvaluationConfig,
    n_best: int,
    prefixes: Sequence[Sequence[int]] | None,
) -> OpenHypotheses:
    """Encodes the sources and reads the prompts; every sentence begins with one hypothesis."""
    memory_ND = model.encode(prompts.src_N, prompts.src, adapters)
    cache = model.new_cache(memory_ND, prompts.src)
    count, device = prompts.src.num_sentences, memory_ND.device
    prompt_AT = prompts.tgt_in_M.view(count, -1)
    for earlier_A in prompt_AT[:, :-1].unbind(1):
        model.step(earlier_A, cache, adapters)
    if config.coverage_penalty > 0:
        cache.count_coverage(_text_positions(model, prompts))
    lengths_A = torch.full((count,), prompts.src.width, device=device)
    if prompts.src.padding_mask_BX is not None:
        lengths_A -= prompts.src.padding_mask_BX.sum(dim=1)
    longest_A = (lengths_A.double() * config.max_length_ratio).long() + config.max_length_extra
    prefixes_BP = _pad_prefixes(prefixes, model, prompts)
    if prefixes_BP is not None:
        prefix_lengths_A = (prefixes_BP != ANY_PIECE).sum(dim=1)
        longest_A = longest_A.maximum(prefix_lengths_A + config.max_length_extra)
    return OpenHypotheses(
        places_A=torch.arange(count, device=device),
        longest_A=longest_A,
        prefixes_BP=prefixes_BP,
        scores_AK=torch.zeros(count, 1, device=device),
        ids_AKT=prompt_AT.new_empty(count, 1, 0),
        last_AK=prompt_AT[:, -1:],
        cache=cache,
        finished=Finished.none(count, n_best, device),
        done_A=torch.zeros_like(longest_A, dtype=torch.bool),
    )


def _text_positions(model: Seq2Seq, prompts: Batch) -> Tensor:
    """Returns True at the pieces of the sources [B, S]: neither tag nor end mark nor padding."""
    src_BS = prompts.src.pad(prompts.src_N)
    return (src_BS != EOS_ID) & (src_BS != PAD_ID) & (src_BS < model.vocabulary.num_pieces)


def _pad_prefixes(
    prefixes: Sequence[Sequence[int]] | None, model: Seq2Seq, prompts: Batch
) -> Tensor | None:
    """Lays prefixes under each other [B, P], or returns None where there is none."""
    if prefixes is None or not any(prefixes):
        return None
    assert len(prefixes) == prompts.src.num_sentences, "each sentence has a prefix, perhaps ()"
    ids = {piece for prefix in prefixes for piece in prefix}
    assert all(EOS_ID < piece < model.vocabulary.num_pieces for piece in ids), "text only"
    width = max(map(len, prefixes))
    rows = [[*prefix, *[ANY_PIECE] * (width - len(prefix))] for prefix in prefixes]
    return torch.tensor(rows, device=prompts.src_N.device)


def _begin_draws(search: OpenHypotheses, draws: int) -> None:
    """Goes on with as many equal hypotheses of each sentence as are to be drawn."""
    search.scores_AK = search.scores_AK.expand(-1, draws)
    search.ids_AKT = search.ids_AKT.expand(-1, draws, -1)
    search.last_AK = search.last_AK.expand(-1, draws)
    search.cache.branch(torch.zeros_like(search.last_AK))


def _extend(
    model: Seq2Seq, search: OpenHypotheses, adapters: Adapters | None, config: EvaluationConfig
) -> _Candidates:
    """Runs the decoder by one position and picks the 2 K best extensions of every sentence.

    Among 2 K of them at least K are open, because each hypothesis has one end mark.
    """
    hidden_RD = model.step(search.last_AK.flatten(), search.cache, adapters)
    repeating_RX = repeating_pieces(search.ids_AKT, config.no_repeat_ngram)
    # The best of all hypotheses are among the best of each.
    best_RC, pieces_RC, total_R1 = best_pieces(model, hidden_RD, 2 * config.beam_size, repeating_RX)
    shape = *search.scores_AK.shape, -1
    best_AKC, pieces_AKC = best_RC.view(shape), pieces_RC.view(shape)
    demanded_A = search.demanded()
    if demanded_A is not None:
        weight_RD = output_weight(model)[demanded_A.clamp(min=0)].repeat_interleave(shape[1], 0)
        scores_R1 = torch.linalg.vecdot(hidden_RD, weight_RD)[:, None].float()
        scores_AK1 = (scores_R1 - total_R1).view(shape)
        best_AKC, pieces_AKC = _only(demanded_A, scores_AK1, best_AKC, pieces_AKC)
    end_R1 = F.linear(hidden_RD, output_weight(model)[EOS_ID : EOS_ID + 1]).float()
    end_A = torch.where(search.longest_A == search.length, EOS_ID, ANY_PIECE)
    best_AKC, pieces_AKC = _only(end_A, (end_R1 - total_R1).view(shape), best_AKC, pieces_AKC)
    all_AC = (search.scores_AK[:, :, None] + best_AKC).flatten(1)
    scores_AC, index_AC = all_AC.topk(min(2 * config.beam_size, all_AC.size(1)), dim=1)
    pieces_AC = pieces_AKC.flatten(1).gather(1, index_AC)
    return _Candidates(scores_AC, pieces_AC, index_AC // best_AKC.size(2))


def _only(
    piece_A: Tensor, scores_AK1: Tensor, best_AKC: Tensor, pieces_AKC: Tensor
) -> tuple[Tensor, Tensor]:
    """Leaves one piece to choose from where `piece_A` is not `ANY_PIECE`."""
    piece_A11 = piece_A[:, None, None]
    only_AKC = F.pad(scores_AK1, (0, best_AKC.size(2) - 1), value=-torch.inf)
    free_A11 = piece_A11 == ANY_PIECE
    return (
        torch.where(free_A11, best_AKC, only_AKC),
        torch.where(free_A11, pieces_AKC, piece_A11),
    )


def _finish(search: OpenHypotheses, candidates: _Candidates, config: EvaluationConfig) -> None:
    """Notes the hypotheses that finish: end marks among the K best extensions."""
    scores_AK, pieces_AK, parents_AK = (part[:, : config.beam_size] for part in candidates)
    ended_AK = (pieces_AK == EOS_ID) & scores_AK.isfinite() & ~search.done_A[:, None]
    ids_AKT = search.ids_AKT.gather(1, parents_AK[:, :, None].expand(-1, -1, search.length))
    length_with_end = search.length + 1
    scores_AK = scores_AK / length_with_end**config.length_penalty
    if config.coverage_penalty > 0:
        uncovered_AK = search.cache.uncovered().gather(1, parents_AK)
        scores_AK = scores_AK + config.coverage_penalty * uncovered_AK
    search.finished.keep_best(ended_AK, scores_AK, ids_AKT)


def _branch(search: OpenHypotheses, candidates: _Candidates, config: EvaluationConfig) -> None:
    """Goes on with the K best open extensions, and notes which sentences are done."""
    scores_AC, pieces_AC, parents_AC = candidates
    # With few pieces there may be fewer than K open extensions.
    scores_AK, index_AK = scores_AC.masked_fill(pieces_AC == EOS_ID, -torch.inf).topk(
        min(config.beam_size, scores_AC.size(1)), dim=1
    )
    parents_AK, last_AK = parents_AC.gather(1, index_AK), pieces_AC.gather(1, index_AK)
    ids_AKT = search.ids_AKT.gather(1, parents_AK[:, :, None].expand(-1, -1, search.length))
    search.ids_AKT = torch.cat([ids_AKT, last_AK[:, :, None]], dim=2)
    search.scores_AK, search.last_AK = scores_AK, last_AK
    search.cache.branch(parents_AK)
    finished = search.finished
    reach_A = scores_AK[:, 0] / (search.longest_A + 1) ** config.length_penalty
    # Where N are not yet kept, the worst is -inf, and so is the reach if nothing is open any more.
    out_of_reach_A = (finished.counts_A > 0) & (finished.scores_AN[:, -1] >= reach_A)
    search.done_A = (
        search.done_A
        | (finished.counts_A >= config.beam_size)
        | out_of_reach_A
        | (search.longest_A < search.length)
    )
