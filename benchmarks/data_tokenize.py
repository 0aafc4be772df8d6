"""Sentences per second and core: cleaning, tokenizing, and SentencePiece called bare, side by side.

    python -m benchmarks.data_tokenize [--folder runs/quickstart/data] [--json]

Bare SentencePiece gets a list of texts and returns lists of ids, which is the least that any use of
it must do; ours also appends end marks and packs all ids into one array. Cleaning is measured on
clean text, of which every pair goes through every test. The rounds of the three alternate, and the
median of each is reported, because machines are seldom idle. Without a data folder, words are made
up and a small tokenizer is trained on them.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from benchmarks.measure import describe_machine, pin
from data_pipeline.bitext import iter_split
from data_pipeline.cleaning.clean import PairCleaner
from data_pipeline.config import CleanConfig
from data_pipeline.tokenizer import Tokenizer

Pair = tuple[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, help="a data folder with clean text and tokenizer")
    parser.add_argument("--pairs", type=int, default=20_000, help="sentence pairs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.folder:
        languages, rows = read_text(arguments.folder / "clean", arguments.pairs)
        model = (arguments.folder / "tokenizer" / "spm.model").read_bytes()
    else:
        languages, rows = ("en", "de"), make_text(arguments.pairs)
        model = train(rows)
    machine = describe_machine()
    pin(None)
    result = {"machine": machine, **measure(languages, rows, model, arguments.rounds)}
    print(json.dumps(result, indent=2) if arguments.json else format_result(result))


def read_text(clean: Path, num_pairs: int) -> tuple[Pair, list[Pair]]:
    """Reads the largest language pair of a clean corpus."""
    path = max((clean / "train").glob("*.tsv"), key=lambda path: path.stat().st_size)
    a, _, b = path.stem.partition("-")
    rows = islice(iter_split(clean, "train", (a, b)), num_pairs)
    return (a, b), [(row.a, row.b) for row in rows]


def make_text(num_pairs: int) -> list[Pair]:
    """Makes up pairs of 3 to 30 words, of which few are frequent."""
    rng = np.random.default_rng(1)
    syllables = [a + b for a, b in product("bdfgklmnprst", "aeiou")]
    words = ["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(20_000)]

    def text() -> str:
        ranks = np.minimum(rng.zipf(1.3, rng.integers(3, 31)), len(words)) - 1
        return " ".join(words[rank] for rank in ranks.tolist())

    return [(f"{text()}.", f"{text()}.") for _ in range(num_pairs)]


def train(rows: list[Pair]) -> bytes:
    """Trains a tokenizer of 3,000 pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for row in rows for text in row),
        model_writer=model,
        vocab_size=3_000,
        byte_fallback=True,
        normalization_rule_name="identity",
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        minloglevel=2,
    )
    return model.getvalue()


def measure(languages: Pair, rows: list[Pair], model: bytes, rounds: int) -> dict[str, Any]:
    """Returns sentences per second of each of the three, and the ratios to bare SentencePiece."""
    texts = [text for row in rows for text in row]
    bare = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer(model, "benchmark")
    cleaner = PairCleaner(languages, CleanConfig())

    def clean() -> None:
        for a, b in rows:
            for _ in cleaner.clean(a, b):
                pass

    tasks: dict[str, Callable[[], object]] = {
        "sentencepiece": lambda: bare.encode(texts, num_threads=1),
        "encode_ragged": lambda: ours.encode_ragged(texts),
        "clean": clean,
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for name, task in _alternate(tasks, rounds):
        begin = time.perf_counter()
        task()
        seconds[name].append(time.perf_counter() - begin)
    # The first round warms up.
    rate = {name: len(texts) / statistics.median(times[1:]) for name, times in seconds.items()}
    tokens, lengths = ours.encode_ragged(texts)
    assert tokens.tolist() == [i for ids in bare.encode(texts, add_eos=True) for i in ids]
    return {
        "languages": languages,
        "sentences": len(texts),
        "mean_tokens": float(lengths.mean()),
        "sentences_per_s_per_core": rate,
        "ratio": {name: value / rate["sentencepiece"] for name, value in rate.items()},
    }


def _alternate(
    tasks: dict[str, Callable[[], object]], rounds: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    for _ in range(rounds + 1):
        yield from tasks.items()


def format_result(result: dict[str, Any]) -> str:
    """Writes the result as a small table."""
    head = (
        f"{result['sentences']:,} sentences in {' and '.join(result['languages'])}, "
        f"{result['mean_tokens']:.1f} tokens on average; {result['machine']['cpu']}"
    )
    lines = [
        f"{name:14} {value:12,.0f} sentences/s/core {result['ratio'][name]:6.2f}"
        for name, value in result["sentences_per_s_per_core"].items()
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    main()
