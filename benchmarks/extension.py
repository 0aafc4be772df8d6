"""How well a language can be added to a trained run: few numbers, some parts, or everything.

    relative     nothing is fitted: the rows of the relative with the least loss on the pairs
    mixture      one weight per known language, equal at first (`analyse interpolate`); it learns by
                 the plain likelihood, in passes of its own number
    embedding    the language's rows: its embedding and its tag (`hyperadapter extend`)
    heads        these and the hyper-network's heads (`--fit hyper_heads`)
    adapters     these without a hyper-network: adapters of the two directions, which begin as those
                 that the hyper-network makes for the relative
    everything   all weights of the model (`--fit all`)

All others begin with that relative, learn from the same pairs by the same smoothed loss, stop by
the same held-out pairs, and are measured on the test split without near-duplicates. `others` is
what it does to the languages that were there: the mean loss on their validation sentences, after
less before. Seconds are those of learning.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import describe_machine
from data_pipeline.bitext import Split, read_split
from data_pipeline.stream.streams import ValidStream, shards_folder
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.checkpoint import layout
from hyperadapter.checkpoint.weights import LoadedModel, load_model, save_weights
from hyperadapter.config import RunConfig
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config, parse_config
from hyperadapter.evaluation.translate import Translator, tokenizer_folder
from hyperadapter.extension.fitting import FitOptions, fit
from hyperadapter.extension.mixture import Mixture, learn_weights
from hyperadapter.extension.model import ExtendedModel, NewLanguage, extend_config
from hyperadapter.extension.relatives import rank_by_loss
from hyperadapter.extension.text import Pairs, encode, make_batches, sample_pairs, score_pairs
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import PARTS, stack_keys
from hyperadapter.model.seq2seq import Seq2Seq

METHODS = ("relative", "mixture", "embedding", "heads", "adapters", "everything")
_LEAST_WORDS = 3


class Text(NamedTuple):
    """Pairs of a new language: to learn from, to stop by, to measure on."""

    train: Pairs
    valid: Pairs
    test: Pairs


class Base(NamedTuple):
    """The trained run, and the same with stored adapters of its directions."""

    config: RunConfig
    weights: Path
    stored_config: RunConfig
    stored_weights: Path
    tokenizer: Tokenizer


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _read(data: RunConfig, code: str, most: tuple[int, int, int]) -> Text:
    """Reads a language's clean text, shuffled with a seed: sentences of a few words and more."""
    found = []
    splits: tuple[Split, ...] = ("train", "valid", "test")
    for split, count in zip(splits, most, strict=True):
        text = read_split(Path(data.data.folder) / "clean", split, (data.data.pivot, code))
        near = text.near_duplicate or [False] * len(text.a)  # train has no marks
        rows = [
            (a, b)
            for a, b, is_near in zip(text.a, text.b, near, strict=True)
            if len(a.split()) >= _LEAST_WORDS and not is_near
        ]
        if len(rows) < count and split == "train":
            raise SystemExit(f"{code} has {len(rows)} pairs to learn from, {count} are wanted")
        random.Random(1).shuffle(rows)
        found.append(Pairs([row[0] for row in rows[:count]], [row[1] for row in rows[:count]]))
    return Text(*found)


def store_adapters(config: RunConfig, weights: Path, folder: Path) -> tuple[RunConfig, Path]:
    """Writes the weights of a model that stores what the hyper-network makes for each direction."""
    loaded = load_model(weights, config)
    vocabulary = loaded.info.vocabulary
    tree = config.model_dump(mode="json")
    adapter = config.model.adapter
    tree["model"]["adapter"] = {
        "kind": "direction",
        "bottleneck_dim": adapter.bottleneck_dim,
        "placement": adapter.placement,
        "encoder_layers": adapter.encoder_layers,
        "decoder_layers": adapter.decoder_layers,
    }
    stored_config = parse_config(RunConfig, tree, "stored adapters")
    stored = Seq2Seq(stored_config.model, vocabulary)
    numbers = [[vocabulary.languages.index(code) for code in d] for d in vocabulary.directions]
    keys = torch.tensor(numbers)
    with torch.no_grad():
        raw = loaded.model.raw_adapters(keys[:, 0], keys[:, 1], torch.arange(len(keys)))
    assert raw is not None
    parts = {name.replace("_PL", "_KL"): tensor for name, tensor in raw._asdict().items()}
    state = {
        name: tensor
        for name, tensor in loaded.model.state_dict().items()
        if not name.startswith("adapters.")
    }
    state |= {f"adapters.stack.{name}": tensor for name, tensor in parts.items()}
    stored.load_state_dict(state)
    info = loaded.info._replace(adapter_keys=stack_keys(stored_config.model.adapter, vocabulary))
    path = folder / "stored_adapters.safetensors"
    save_weights(path, stored.state_dict(), info.to_metadata())
    return stored_config, path


def _others(config: RunConfig, sentences: int) -> list[Batch]:
    """Reads validation sentences of the languages that the run knows."""
    stream = ValidStream(
        shards_folder(config.data),
        config.data,
        micro_batch_tokens=config.training.micro_batch_tokens,
        max_sentences=sentences,
    )
    return [Batch.from_micro_batch(item.micro_batch) for item in stream if item.counts]


@torch.no_grad()
def _others_loss(model: Seq2Seq, batches: Sequence[Batch]) -> float:
    nll = sum(float(model(batch).nll) for batch in batches)
    return nll / sum(batch.target_K.numel() for batch in batches)


def _fit_options(method: str, arguments: argparse.Namespace) -> FitOptions:
    options = FitOptions(
        max_passes=arguments.passes,
        learning_rate=arguments.learning_rate,
        parts_learning_rate=arguments.parts_learning_rate,
    )
    parts = {"heads": ("hyper_heads",), "everything": PARTS}.get(method, ())
    return replace(options, parts=parts)


def measure(
    method: str, base: Base, new: NewLanguage, text: Text, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Adds a language in one way and measures it."""
    stored = method == "adapters"
    weights = base.stored_weights if stored else base.weights
    config = extend_config(base.stored_config if stored else base.config, new, Path("none"))
    extended = ExtendedModel(weights, config, new)
    limit = config.data.shards.max_sentence_tokens

    def batches(pairs: Pairs, directions: Sequence[Direction]) -> list[Batch]:
        encoded = encode(base.tokenizer, pairs, limit)
        return make_batches(encoded, new, extended.model, config, directions)

    train, valid = batches(text.train, new.directions), batches(text.valid, new.directions)
    relative = rank_by_loss(extended, batches(sample_pairs(text.train, 100), new.directions))[0]
    extended.set_rows(extended.rows_of(relative.code))
    row: dict[str, Any] = {"relative": relative.code, "fitted": 0, "passes": 0}
    before = _others_loss(extended.model, arguments.others)
    started = time.perf_counter()
    if method == "mixture":
        mixture = Mixture(extended.model, new.code, extended.candidates)
        learnt = learn_weights(mixture, train, valid, seed=1)
        extended.set_rows(mixture.mix(learnt.weights))
        best = min(learnt.passes, key=lambda item: item.valid_loss)
        weights_of = dict(zip(extended.candidates, learnt.weights.tolist(), strict=True))
        row |= {"fitted": len(weights_of), "weights": weights_of, "passes": best.number}
        row["held_out"] = best.valid_loss
    elif method != "relative":
        report = fit(extended, train, valid, _fit_options(method, arguments))
        row |= {"fitted": report.num_parameters, "passes": report.best.number}
        row["held_out"] = report.best.valid_loss
    row["seconds"] = time.perf_counter() - started
    row["others"] = _others_loss(extended.model, arguments.others) - before
    loaded = LoadedModel(extended.model, extended.info)
    translator = Translator(loaded, base.tokenizer, config)
    for direction in new.directions:
        name = "out" if direction.tgt == new.code else "in"
        row[f"loss_{name}"] = extended.mean_loss(batches(text.test, [direction]))
        score = score_pairs(translator, text.test, new, direction).chrfpp
        row[f"chrfpp_{name}"], row["signature"] = score.value, score.signature
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| language | pairs | method | numbers fitted | passes | loss en-xx | xx-en "
        "| chrF++ en-xx | xx-en | others' loss | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        method = f"relative ({row['relative']})" if row["method"] == "relative" else row["method"]
        lines.append(
            f"| {row['language']} | {row['pairs']:,} | {method} | {row['fitted']:,} "
            f"| {row['passes']} | {row['loss_out']:.3f} | {row['loss_in']:.3f} "
            f"| {row['chrfpp_out']:.1f} | {row['chrfpp_in']:.1f} | {row['others']:+.3f} "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--run", type=Path, default=Path("runs/extension/base"), help="the trained run")
    add("--new", type=Path, default=Path("benchmarks/extension_new.yaml"),
        help="configuration whose clean text has the new languages")  # fmt: skip
    add("--languages", nargs="+", default=["nb", "gl"], help="to add, one after the other")
    add("--pairs", nargs="+", type=int, default=[100, 1000], help="to learn from")
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add("--valid", type=int, default=100, help="pairs to stop by, of the validation split")
    add("--test", type=int, default=200, help="pairs to measure on, of the test split")
    add("--passes", type=int, default=30, help="most passes over the pairs")
    add("--learning-rate", type=float, default=FitOptions().learning_rate)
    add("--parts-learning-rate", type=float, default=FitOptions().parts_learning_rate)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="change --new")
    add("--out", type=Path, help="also written after every row, as JSON")
    add("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    config = load_config(RunConfig, arguments.run / "config.yaml")
    weights = layout.newest_checkpoint(arguments.run) / layout.WEIGHTS_FILE
    stored = store_adapters(config, weights, arguments.run)
    tokenizer = Tokenizer.load(tokenizer_folder(arguments.run, config))
    base = Base(config, weights, *stored, tokenizer)
    arguments.others = _others(config, 20)
    rows: list[dict[str, Any]] = []
    new_config = load_config(RunConfig, arguments.new, arguments.set)
    report = {"machine": describe_machine(), "step": weights.parent.name, "rows": rows}
    for code in arguments.languages:
        new = NewLanguage(code, config.data.pivot)
        most = max(arguments.pairs), arguments.valid, arguments.test
        text = _read(new_config, code, most)
        for size in arguments.pairs:
            part = text._replace(train=text.train.select(range(size)))
            for method in arguments.methods:
                row = measure(method, base, new, part, arguments)
                rows.append({"language": code, "pairs": size, "method": method, **row})
                _say(_table(rows[-1:]).splitlines()[-1])
                if arguments.out is not None:
                    arguments.out.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps(report, indent=2) if arguments.json else _table(rows))


if __name__ == "__main__":
    main()
