"""Runs whose languages' relations are known: nl is nearly de, the others are drawn at random."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline import tokenizer
from data_pipeline.bitext import SentencePair, format_line, language_pairs, split_path
from data_pipeline.shards import writer as shards
from data_pipeline.stream.streams import ValidStream
from hyperadapter.checkpoint.layout import WEIGHTS_FILE, commit, new_part_folder
from hyperadapter.checkpoint.weights import WeightsInfo, save_weights
from hyperadapter.config import RunConfig
from hyperadapter.core.files import write_json, write_text
from hyperadapter.core.schema import fingerprint, parse_config, to_yaml
from hyperadapter.model.batch import Batch
from hyperadapter.model.parts import stack_keys
from hyperadapter.model.seq2seq import Seq2Seq, build_model
from hyperadapter.model.vocabulary import Vocabulary

LANGUAGES = ("en", "de", "nl", "es", "fr", "uk")


def adapter(kind: str, **hyper: Any) -> dict[str, Any]:
    """Returns the adapter group of a kind."""
    tree: dict[str, Any] = {"kind": kind}
    if kind != "none":
        tree["bottleneck_dim"] = 4
    if kind == "hyper":
        tree["hyper_network"] = {"hyper_dim": 16, "language_dim": 8, "layer_dim": 4} | hyper
    return tree


def make_config(
    run_dir: Path,
    kind: str = "hyper",
    *,
    languages: tuple[str, ...] = LANGUAGES,
    data: Mapping[str, Any] | None = None,
    **hyper: Any,
) -> RunConfig:
    """Builds a configuration whose languages only the adapters tell apart, if there are any."""
    tree = {
        "name": "tiny",
        "run_dir": str(run_dir),
        "data": {
            "folder": "data",
            "languages": list(languages),
            "sources": [
                {"format": "tsv", "name": code, "languages": ["en", code], "path": "x.tsv"}
                for code in languages[1:]
            ],
            "tokenizer": {"vocab_size": 300},
            "shards": {"max_sentence_tokens": 40},
            "tags": {
                "encoder": "none",
                "decoder": "target" if kind in ("none", "family") else "none",
            },
            **(data or {}),
        },
        "model": {
            "d_model": 16,
            "ffn_dim": 24,
            "num_heads": 2,
            "num_encoder_layers": 2,
            "num_decoder_layers": 1,
            "dropout": 0.0,
            "adapter": adapter(kind, **hyper),
        },
        "training": {
            "device": "cpu",
            "micro_batch_tokens": 200,
            "global_batch_tokens": 200,
            "max_steps": 1,
            "learning_rate": 0.1,
            "schedule": {"kind": "inverse_sqrt", "warmup_steps": 0},
            "checkpoint": {"every_steps": 1},
            "validation": {"every_steps": 1},
        },
        "evaluation": {"beam_size": 1, "max_length_ratio": 0.5, "max_length_extra": 3},
        "tracking": {"enabled": False},
    }
    return parse_config(RunConfig, tree, "tiny")


@torch.no_grad()
def make_dialects(model: Seq2Seq, noise: float = 0.01) -> Seq2Seq:
    """Makes nl a dialect of de: its embeddings or adapters become those of de and a little more."""
    tables: list[torch.Tensor] = []
    de, nl = (model.vocabulary.languages.index(code) for code in ("de", "nl"))
    for name, parameter in model.adapters.named_parameters() if model.adapters else ():
        if name.startswith(("stack.", "src_embedding", "tgt_embedding")):
            tables.append(parameter)
    generator = torch.Generator().manual_seed(7)
    for table in tables:
        drawn = torch.randn(table[de].shape, generator=generator)
        table[nl] = table[de] + noise * table[de].std() * drawn
    return model


def save_run(config: RunConfig, model: Seq2Seq, pieces: str = "none", step: int = 7) -> Path:
    """Writes a run folder with one checkpoint, and returns it."""
    run_dir = Path(config.run_dir)
    write_text(run_dir / "config.yaml", to_yaml(config))
    keys = stack_keys(config.model.adapter, model.vocabulary)
    info = WeightsInfo(step, fingerprint(config), model.vocabulary, pieces, keys)
    part = new_part_folder(run_dir, step)
    save_weights(part / WEIGHTS_FILE, model.state_dict(), info.to_metadata())
    values = {"world_size": 1, "zero_stage": 0, "precision": "fp32", "data": "0123456789ab"}
    commit(part, step=step, values={"fingerprint": info.fingerprint, **values})
    return run_dir


def make_model(config: RunConfig, seed: int = 1) -> Seq2Seq:
    """Builds the model of a configuration, in evaluation mode."""
    data = config.data
    vocabulary = Vocabulary(data.tokenizer.vocab_size, data.languages, data.resolved_directions())
    return build_model(config.model, vocabulary, seed).eval()


@pytest.fixture
def dialect_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder whose weights are random but for nl: `dialect_run("hyper")`."""

    def make(kind: str = "hyper", **changes: Any) -> Path:
        config = make_config(tmp_path / "run", kind, **changes)
        model = make_model(config)
        dialects = {"de", "nl"} <= set(config.data.languages) and kind in ("hyper", "language")
        return save_run(config, make_dialects(model) if dialects else model)

    return make


WORDS = {
    "en": ("house", "tree", "river", "bird"),
    "de": ("haus", "baum", "fluss", "vogel"),
    "nl": ("haus", "baum", "fluss", "vogel"),
    "es": ("casa", "arbol", "rio", "pajaro"),
    "fr": ("foyer", "chene", "fleuve", "oie"),
    "uk": ("dim", "derevo", "richka", "ptakh"),
}
"""Word k of one language translates word k of the others; nl has the words of de."""


def _texts(code: str, count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, 4, generator.integers(2, 5)) for _ in range(count)]
    return [" ".join(WORDS[code][k] for k in row) for row in rows]


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clean text of all languages, tokenizer and shards. Do not write to it."""
    folder = tmp_path_factory.mktemp("analysis-data")
    config = make_config(folder / "run", data={"folder": str(folder)}).data
    for pair in language_pairs(config):
        for seed, (split, count) in enumerate({"train": 40, "valid": 20, "test": 4}.items()):
            mark = None if split == "train" else False
            sides = (_texts(code, count, seed) for code in pair)
            lines = [
                format_line(SentencePair(a, b, "x"), mark) for a, b in zip(*sides, strict=True)
            ]
            write_text(split_path(folder / "clean", split, pair), "".join(lines))
    write_json(folder / "clean" / "manifest.json", {"fingerprint": "words"})
    tokenizer.run(config)
    shards.run(config)
    return folder


@pytest.fixture(scope="session")
def trained(
    data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Seq2Seq]]:
    """Trains a model from English for a second; nl starts as a dialect: `trained("hyper")`."""

    @functools.cache
    def train(kind: str) -> tuple[Path, Seq2Seq]:
        run_dir = tmp_path_factory.mktemp("analysis") / "run"
        config = make_config(run_dir, kind, data={"folder": str(data_folder)})
        model = make_dialects(make_model(config)).train()
        data = config.data.model_copy(update={"directions": ("en-*",)})
        stream = ValidStream(
            data_folder / "shards", data, micro_batch_tokens=1000, max_sentences=20
        )
        batches = [Batch.from_micro_batch(item.micro_batch) for item in stream]
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            for batch in batches:
                (model(batch).loss / batch.target_K.numel()).backward()
            optimizer.step()
        pieces = tokenizer.Tokenizer.load(data_folder / "tokenizer").fingerprint
        return save_run(config, model.eval(), pieces), model

    return train
