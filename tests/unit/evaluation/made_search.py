"""A tiny model to search with, and a slow reference that knows neither batches nor caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_prompts
from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from hyperadapter.config import EvaluationConfig, RunConfig
from hyperadapter.evaluation.search import Hypothesis, beam_search, search_n_best
from hyperadapter.model.adapters import AdapterWeights
from hyperadapter.model.batch import Batch
from hyperadapter.model.rows import PaddedRows
from hyperadapter.model.seq2seq import build_model
from hyperadapter.model.transformer import DecoderLayer
from hyperadapter.model.vocabulary import Vocabulary

Sources = Sequence[Sequence[int]]
Prefixes = Sequence[Sequence[int]]
HEADS = 2


class Task:
    """A model with few pieces, sharp enough that no two hypotheses tie, and one direction of it."""

    def __init__(self, run: RunConfig, num_pieces: int, seed: int) -> None:
        vocabulary = Vocabulary(num_pieces, run.data.languages, run.data.resolved_directions())
        self.model = build_model(run.model, vocabulary, seed).eval().double()
        with torch.no_grad():
            # Hidden states have unit variance: logits spread by 1.5, and the end mark is likely.
            self.model.embedding.weight.mul_(1.5)
        self.layout = BatchLayout.from_config(run.data, num_pieces)

    def prompts(self, sources: Sources, direction: int = 2) -> Batch:
        rows = Ragged.from_sequences([np.array(s, np.int64) for s in sources])
        prompts, _ = build_prompts(self.layout, np.full(len(sources), direction), rows)
        return Batch.from_micro_batch(prompts)

    def adapters(self, prompts: Batch) -> AdapterWeights | None:
        return self.model.adapter_weights(
            prompts.src_language_P, prompts.tgt_language_P, prompts.direction_P
        )

    def n_best(
        self,
        sources: Sources,
        config: EvaluationConfig,
        n_best: int,
        prefixes: Prefixes | None = None,
    ) -> list[list[Hypothesis]]:
        prompts = self.prompts(sources)
        adapters = self.adapters(prompts)
        return search_n_best(
            self.model, prompts, adapters, config, n_best=n_best, prefixes=prefixes
        )

    def search(self, sources: Sources, config: EvaluationConfig) -> list[Hypothesis]:
        prompts = self.prompts(sources)
        return beam_search(self.model, prompts, self.adapters(prompts), config)

    @torch.no_grad()
    def decode(self, source: Sequence[int], prefix: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decodes a whole target anew.

        Returns:
            Log-probabilities of the next piece [V], and where each position looks in the source, in
            the last layer, the mean over heads [T, S].
        """
        prompts = self.prompts([source])
        adapters = self.adapters(prompts)
        memory = self.model.encode(prompts.src_N, prompts.src, adapters)
        tgt_in = torch.cat([prompts.tgt_in_M, torch.tensor(prefix, dtype=torch.int64)])
        width = len(tgt_in)
        tgt = PaddedRows.from_lengths(np.array([width]), width, np.array([1]))
        last = self.model.decoder.layers[-1]
        assert isinstance(last, DecoderLayer)
        seen: dict[str, Tensor] = {}
        hooks = [
            getattr(last.cross_attention, name).register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: output})
            )
            for name in ("q", "kv")
        ]
        hidden = self.model.decode(tgt_in, tgt, memory, prompts.src, adapters)
        for hook in hooks:
            hook.remove()
        looks = []
        keys = seen["kv"][:, : seen["q"].size(1)]
        for q, k in zip(seen["q"].chunk(HEADS, 1), keys.chunk(HEADS, 1), strict=True):
            looks.append((q @ k.T / q.size(1) ** 0.5).softmax(1))
        log_probs = self.model.logits(hidden[-1]).log_softmax(-1)
        log_probs[[PAD_ID, UNK_ID, BOS_ID]] = -torch.inf
        return log_probs, torch.stack(looks).mean(0)

    def log_probs(self, source: Sequence[int], prefix: Sequence[int]) -> Tensor:
        """Log-probabilities of the next piece."""
        return self.decode(source, prefix)[0]

    def coverage(self, source: Sequence[int], ids: Sequence[int]) -> float:
        """Sum of log(min(coverage, 1)) over the pieces of the source, for a finished output."""
        opening = self.prompts([source]).tgt_in_M.numel()
        looks = self.decode(source, ids)[1][opening - 1 :]  # what produces the pieces and the end
        assert looks.shape == (len(ids) + 1, len(source) + 2)
        of_pieces = looks.sum(0)[1:-1]  # the tag comes before them, the end mark behind
        return float(of_pieces.clamp(max=1.0).log().sum())

    def longest(self, source: Sequence[int], config: EvaluationConfig) -> int:
        # Tag and end mark count.
        return int(config.max_length_ratio * (len(source) + 2)) + config.max_length_extra

    def reference(self, source: Sequence[int], config: EvaluationConfig) -> Hypothesis:
        return self.reference_n_best(source, config, 1)[0]

    def reference_n_best(
        self,
        source: Sequence[int],
        config: EvaluationConfig,
        n_best: int,
        prefix: Sequence[int] = (),
    ) -> list[Hypothesis]:
        """Beam search for one sentence: plain lists, no cache, and no bound that stops it early."""
        beam_size, longest = config.beam_size, self.longest(source, config)
        longest = max(longest, len(prefix) + config.max_length_extra)
        beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        finished: list[Hypothesis] = []
        for length in range(1, longest + 2):
            extensions = []
            for score, ids in beams:
                log_probs = self.log_probs(source, ids)
                for piece, log_prob in enumerate(log_probs.tolist()):
                    if length <= len(prefix):
                        allowed = piece == prefix[length - 1]
                    elif length > longest:
                        allowed = piece == EOS_ID
                    else:
                        allowed = not repeats((*ids, piece), config.no_repeat_ngram)
                    if log_prob > -np.inf and allowed:
                        extensions.append((score + log_prob, (*ids, piece)))
            extensions.sort(reverse=True)
            for score, (*pieces, last) in extensions[:beam_size]:
                if last == EOS_ID:
                    finished.append(self.hypothesis(source, tuple(pieces), score, config))
            beams = [e for e in extensions if e[1][-1] != EOS_ID][:beam_size]
            if len(finished) >= beam_size:
                break
        return sorted(finished, key=lambda hypothesis: -hypothesis.score)[:n_best]

    def hypothesis(
        self,
        source: Sequence[int],
        ids: tuple[int, ...],
        log_prob: float,
        config: EvaluationConfig,
    ) -> Hypothesis:
        """Scores a finished output."""
        score = log_prob / (len(ids) + 1) ** config.length_penalty
        if config.coverage_penalty:
            score += config.coverage_penalty * self.coverage(source, ids)
        return Hypothesis(ids, score)


def repeats(ids: Sequence[int], ngram: int) -> bool:
    """Says whether the last `ngram` pieces stand earlier already, or there is an end mark."""
    if not ngram or len(ids) <= ngram or ids[-1] == EOS_ID:
        return False
    runs = [tuple(ids[start : start + ngram]) for start in range(len(ids) - ngram + 1)]
    return runs[-1] in runs[:-1]


def make_task(
    tiny_config: Callable[..., RunConfig],
    num_pieces: int = 9,
    seed: int = 1,
    kind: str = "hyper",
    **tags: object,
) -> Task:
    """Makes a model and one direction of it."""
    adapter: dict[str, object] = {"kind": kind, "bottleneck_dim": 4}
    if kind == "hyper":
        adapter["hyper_network"] = {"hyper_dim": 8}
    return Task(tiny_config(adapter=adapter, data={"tags": tags}), num_pieces, seed)


def options(beam_size: int = 4, **changes: object) -> EvaluationConfig:
    sizes = {"max_length_ratio": 1.0, "max_length_extra": 2, "beam_size": beam_size}
    return EvaluationConfig.model_validate(sizes | changes)


def assert_same(found: Sequence[Hypothesis], expected: Sequence[Hypothesis]) -> None:
    assert [h.ids for h in found] == [h.ids for h in expected]
    # The search adds up in fp32.
    np.testing.assert_allclose([h.score for h in found], [h.score for h in expected], rtol=1e-4)
