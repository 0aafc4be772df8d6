"""What adapters that are folded in cost in CTranslate2, beside the main network alone.

    python -m benchmarks.serving_fold

Random weights of the base model; every search is forced to the same length, so that all do the same
steps. `sequential, layers alike` is what the format of M2M100 asks for: whole attentions that add
zero, and blocks padded to one width. Times are of the processor, as ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch

from benchmarks.measure import ROOT, describe_machine
from hyperadapter.config import ModelConfig
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config
from hyperadapter.model.seq2seq import build_model
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.serving.ctranslate2_spec import build_spec
from hyperadapter.serving.fold import Folded, as_ordinary, fold_adapters

_PIECES, _LENGTH = 8000, 25
_VOCABULARY = Vocabulary(_PIECES, ("en", "de"), (Direction("en", "de"),))
_TOKENS = ["<pad>", "<unk>", "<s>", "</s>", *map(str, range(4, _PIECES))]
_KINDS = {
    "main network alone": ("none", "sequential"),
    "parallel": ("direction", "parallel"),
    "sequential": ("direction", "sequential"),
    "sequential, layers alike": ("direction", "sequential"),
}


@torch.no_grad()
def _fold(name: str, overrides: list[str]) -> tuple[Folded, int]:
    """Returns a random model, folded, and its number of heads."""
    kind, placement = _KINDS[name]
    config = load_config(
        ModelConfig,
        ROOT / "configs" / "models" / "base.yaml",
        [*overrides, f"adapter.placement={placement}"],
    )
    adapter = config.adapter.model_copy(update={"kind": kind, "hyper_network": None})
    config = config.model_copy(update={"adapter": adapter})
    model = build_model(config, _VOCABULARY, 1).eval()
    number = torch.zeros(1, dtype=torch.int64)
    adapters = model.adapter_weights(number, number + 1, number)
    state = model.state_dict()
    main = {name: x for name, x in state.items() if not name.startswith("adapters.")}
    folded = fold_adapters(main, config, adapters)
    if name.endswith("alike"):
        tensors, ordinary = as_ordinary(folded, config)
        folded = fold_adapters(tensors, ordinary, None)
    return folded, config.num_heads


def _translator(folded: Folded, num_heads: int, quantization: str | None) -> tuple[Any, float]:
    """Returns a translator and the size of its model in MB."""
    rows = folded.others["embedding.weight"][:_PIECES]
    spec = build_spec(
        folded, rows, _TOKENS, num_pieces=_PIECES, num_heads=num_heads, num_positions=256
    )
    spec.validate()
    spec.optimize(quantization)
    with tempfile.TemporaryDirectory() as folder:
        spec.save(folder)
        size = (Path(folder) / "model.bin").stat().st_size / 1e6
        return ctranslate2.Translator(folder, intra_threads=1), size


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change the model, such as num_encoder_layers=3")  # fmt: skip
    parser.add_argument("--sentences", type=int, default=16, help="in the one batch")
    parser.add_argument("--beam-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    ids = rng.integers(4, _PIECES, (arguments.sentences, _LENGTH))
    sources = [[*map(str, row), "</s>"] for row in ids]
    machine = describe_machine()
    print(f"{machine['cpu']}, one thread, load {machine['load_1_min']:.1f}\n")
    print("| folded model | type | times the main network alone | MB |\n|---|---|---|---|")
    for quantization in (None, "int8"):
        made = {name: _translator(*_fold(name, arguments.set), quantization) for name in _KINDS}
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(arguments.rounds):
            for name, (translator, _size) in made.items():
                begin = time.process_time()
                translator.translate_batch(
                    sources, beam_size=arguments.beam_size,
                    min_decoding_length=_LENGTH, max_decoding_length=_LENGTH,
                )  # fmt: skip
                seconds[name].append(time.process_time() - begin)
        alone = seconds["main network alone"]
        for name, (_, size) in made.items():
            ratio = statistics.median(a / b for a, b in zip(seconds[name], alone, strict=True))
            print(f"| {name} | {quantization or 'float32'} | {ratio:.2f} | {size:.0f} |")


if __name__ == "__main__":
    main()
