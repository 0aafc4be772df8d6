"""Made-up sentence pairs of realistic lengths, and the plain files that every reader starts from.

Lengths are log-normal, the two sides of a pair are correlated, sizes of language pairs follow a
power law, and tokens are distributed as in Zipf's law. Needs numpy only, because the peers' virtual
environment imports it too.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOS_ID", "EOS_ID", "PAD_ID", "CorpusSpec", "FlatCorpus", "PairTokens", "temperature"]

# As data_pipeline/tokenizer.py has them.
PAD_ID, BOS_ID, EOS_ID, FIRST_PIECE = 0, 2, 3, 4

_LENGTH_SIGMA = 0.6  # of the logarithm of a sentence's length; an assumption
_RATIO_SIGMA = 0.2  # of the logarithm of the ratio of a pair's two lengths
_LONGEST = 255  # pieces; the end mark makes 256
_POOL = 1 << 22


class PairTokens(NamedTuple):
    """One language pair: the tokens of both sides, an end mark behind each sentence."""

    a_tokens: NDArray[np.uint16]
    a_lengths: NDArray[np.int64]
    b_tokens: NDArray[np.uint16]
    b_lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CorpusSpec:
    """What a made-up corpus looks like.

    Attributes:
        pairs: Language pairs; there are twice as many directions.
        sentences: Sentence pairs of all language pairs together.
        power: The k-th largest language pair has a share in proportion to k^-power.
        mean_tokens: Mean pieces of a sentence.
        vocab_size: Pieces of the tokenizer that never was.
        seed: Of everything.
    """

    pairs: int = 20
    sentences: int = 400_000
    power: float = 1.0
    mean_tokens: float = 25.0
    vocab_size: int = 32_000
    seed: int = 1

    def sizes(self) -> list[int]:
        """Returns the sentence pairs of each language pair, the largest first."""
        shares = np.arange(1, self.pairs + 1, dtype=np.float64) ** -self.power
        return [max(1, round(n)) for n in shares / shares.sum() * self.sentences]

    def make_pair(self, number: int, sentences: int) -> PairTokens:
        """Makes one language pair."""
        rng = np.random.default_rng([self.seed, number])
        ratio = math.exp(rng.normal(0.0, 0.1))  # some languages need more pieces than others
        location = math.log(self.mean_tokens) - _LENGTH_SIGMA**2 / 2
        lengths = np.exp(rng.normal(location, _LENGTH_SIGMA, sentences))
        others = lengths * ratio * np.exp(rng.normal(0.0, _RATIO_SIGMA, sentences))
        sides: list[NDArray[Any]] = []
        for pieces in (lengths, others):
            counts = np.clip(np.rint(pieces), 1, _LONGEST).astype(np.int64) + 1
            sides += [self._tokens(rng, counts), counts]
        return PairTokens(*sides)

    def _tokens(self, rng: np.random.Generator, counts: NDArray[np.int64]) -> NDArray[np.uint16]:
        pool = _zipf_pool(self.vocab_size, self.seed)
        total = int(counts.sum())
        tokens = np.resize(np.roll(pool, int(rng.integers(_POOL))), total)
        tokens[np.cumsum(counts) - 1] = EOS_ID
        return tokens


_pools: dict[tuple[int, int], NDArray[np.uint16]] = {}


def _zipf_pool(vocab_size: int, seed: int) -> NDArray[np.uint16]:
    """Returns tokens whose rank is log-uniform, which is Zipf's law; made once a process."""
    key = (vocab_size, seed)
    if key not in _pools:
        uniform = np.random.default_rng([seed, 0xF00]).random(_POOL)
        ranks = (vocab_size - FIRST_PIECE) ** uniform - 1
        _pools[key] = (ranks + FIRST_PIECE).astype(np.uint16)
    return _pools[key]


def temperature(sizes: NDArray[Any], value: float) -> NDArray[np.float64]:
    """Returns the probability of each language pair under temperature sampling."""
    powered = np.asarray(sizes, np.float64) ** (1.0 / value)
    return np.asarray(powered / powered.sum(), np.float64)


class FlatCorpus:
    """All tokens in one file, and where each sentence lies: what a memory map reads.

    Attributes:
        spec: What it was made from.
        tokens: Memory-mapped tokens of both sides of all language pairs, `[total]`.
        pair: Language pair of each sentence pair, `[sentences]`, ascending.
        starts: Where side a and b of each sentence pair begin in `tokens`, `[2, sentences]`.
        lengths: Their tokens, end mark included, `[2, sentences]`.
    """

    def __init__(self, folder: Path) -> None:
        """Opens what `write` wrote."""
        spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
        self.spec = CorpusSpec(**spec)
        # A plain array over the map: slicing an np.memmap takes several times as long.
        self.tokens = np.asarray(np.memmap(folder / "tokens.u16", np.uint16, "r"))
        self.pair = np.load(folder / "pair.npy")
        self.starts = np.load(folder / "starts.npy")
        self.lengths = np.load(folder / "lengths.npy")

    def sides(self, row: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
        """Returns views of the two sentences of a pair."""
        (a, b), (a_length, b_length) = self.starts[:, row], self.lengths[:, row]
        return self.tokens[a : a + a_length], self.tokens[b : b + b_length]

    @staticmethod
    def write(folder: Path, spec: CorpusSpec) -> None:
        """Writes the files into a folder; `spec.json` comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        pairs: list[NDArray[Any]] = []
        starts: list[NDArray[Any]] = []
        lengths: list[NDArray[Any]] = []
        total = 0
        with open(folder / "tokens.u16", "wb") as stream:
            for number, sentences in enumerate(spec.sizes()):
                made = spec.make_pair(number, sentences)
                begins = []
                for tokens, counts in (made[:2], made[2:]):
                    stream.write(tokens.tobytes())
                    begins.append(np.cumsum(counts) - counts + total)
                    total += len(tokens)
                pairs.append(np.full(sentences, number, np.int32))
                starts.append(np.stack(begins))
                lengths.append(np.stack([made.a_lengths, made.b_lengths]))
        np.save(folder / "pair.npy", np.concatenate(pairs))
        np.save(folder / "starts.npy", np.concatenate(starts, axis=1))
        np.save(folder / "lengths.npy", np.concatenate(lengths, axis=1))
        (folder / "spec.json").write_text(json.dumps(asdict(spec)), encoding="utf-8")
