"""A tiny run with random weights: data folder and run folder as training leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import tokenizer
from data_pipeline.bitext import SPLITS, SentencePair, format_line, language_pairs, split_path
from data_pipeline.config import DataConfig
from hyperadapter.checkpoint.layout import WEIGHTS_FILE, commit, new_part_folder
from hyperadapter.checkpoint.weights import WeightsInfo, save_weights
from hyperadapter.config import RunConfig
from hyperadapter.core.files import write_json, write_text
from hyperadapter.core.schema import fingerprint, parse_config, to_yaml
from hyperadapter.model.seq2seq import build_model
from hyperadapter.model.vocabulary import Vocabulary

HYPER = {"kind": "hyper", "bottleneck_dim": 4, "hyper_network": {"hyper_dim": 8}}
NUM_PIECES = 310
# English, German, French.
WORDS = [
    ("Open", "Öffne", "Ouvrez"),
    ("Close", "Schließe", "Fermez"),
    ("Delete", "Lösche", "Supprimez"),
    ("Save", "Speichere", "Gardez"),
    ("the", "das", "le"),
    ("new", "neue", "nouveau"),
    ("old", "alte", "vieux"),
    ("last", "letzte", "dernier"),
    ("file", "Dokument", "fichier"),
    ("menu", "Menü", "menu"),
    ("window", "Fenster", "cadre"),
    ("page", "Blatt", "texte"),
    ("image", "Bild", "dessin"),
]
ENGLISH = [
    f"{verb} the {adjective} {noun}"
    for noun in ("file", "menu", "window", "page", "image")
    for verb in ("Open", "Close", "Delete", "Save")
    for adjective in ("new", "old", "last")
]


def translate(text: str, language: str) -> str:
    """Translates an English text word by word."""
    column = ("en", "de", "fr").index(language)
    words = {row[0]: row[column] for row in WORDS}
    return " ".join(words[word] for word in text.split())


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RunConfig]:
    """Makes a run's configuration from the keys that differ from the tiny one."""

    def make(
        *,
        folder: Path | str = "data",
        run_dir: Path | str = "run",
        adapter: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        tree = {
            "name": "tiny",
            "run_dir": str(run_dir),
            "data": {
                "folder": str(folder),
                "languages": ["en", "de", "fr"],
                "sources": [
                    {"format": "tsv", "name": other, "languages": ["en", other], "path": "x.tsv"}
                    for other in ("de", "fr")
                ],
                "tokenizer": {"vocab_size": NUM_PIECES},
                "shards": {"max_sentence_tokens": 40},
                **(data or {}),
            },
            "model": {
                "d_model": 8,
                "ffn_dim": 16,
                "num_heads": 2,
                "num_encoder_layers": 1,
                "num_decoder_layers": 2,
                "adapter": adapter or HYPER,
            },
            "training": {
                "micro_batch_tokens": 64,
                "global_batch_tokens": 64,
                "max_steps": 1,
                "learning_rate": 0.1,
                "schedule": {"kind": "inverse_sqrt", "warmup_steps": 0},
                "checkpoint": {"every_steps": 1},
                "validation": {"every_steps": 1},
            },
            "evaluation": {"max_length_ratio": 0.5, "max_length_extra": 3} | dict(evaluation or {}),
        }
        return parse_config(RunConfig, tree, "tiny")

    return make


def write_clean(config: DataConfig) -> None:
    """Writes 36 pairs for training, 12 to validate and 12 to test, every third near to training."""
    parts = {"train": ENGLISH[:36], "valid": ENGLISH[36:48], "test": ENGLISH[48:]}
    clean = Path(config.folder) / "clean"
    for a, b in language_pairs(config):
        assert a == "en"
        for split in SPLITS:
            lines = [
                format_line(
                    SentencePair(text, translate(text, b), b),
                    None if split == "train" else row % 3 == 0,
                )
                for row, text in enumerate(parts[split])
            ]
            write_text(split_path(clean, split, (a, b)), "".join(lines))
    write_json(clean / "manifest.json", {"fingerprint": "tiny"})


@pytest.fixture(scope="session")
def data_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., RunConfig]
) -> Path:
    """The clean corpus and its tokenizer. Do not write to it."""
    folder = tmp_path_factory.mktemp("data")
    config = tiny_config(folder=folder).data
    write_clean(config)
    tokenizer.run(config)
    return folder


@dataclass(frozen=True)
class TinyRun:
    """A run folder and its configuration."""

    run_dir: Path
    config: RunConfig

    def save(self, step: int = 100, seed: int = 1) -> Path:
        """Writes a checkpoint of random weights, sharp enough for translations to differ."""
        data = self.config.data
        vocabulary = Vocabulary(NUM_PIECES, data.languages, data.resolved_directions())
        state = build_model(self.config.model, vocabulary, seed).state_dict()
        state["embedding.weight"].mul_(3)
        part = new_part_folder(self.run_dir, step)
        pieces = tokenizer.Tokenizer.load(Path(data.folder) / "tokenizer")
        info = WeightsInfo(step, fingerprint(self.config), vocabulary, pieces.fingerprint)
        save_weights(part / WEIGHTS_FILE, state, info.to_metadata())
        values = {
            "fingerprint": info.fingerprint,
            "world_size": 1,
            "zero_stage": 0,
            "precision": "fp32",
            "data": "0123456789ab",
        }
        return commit(part, step=step, values=values)


@pytest.fixture
def tiny_run(
    tmp_path: Path, data_folder: Path, tiny_config: Callable[..., RunConfig]
) -> Callable[..., TinyRun]:
    """Makes a run folder with one checkpoint: `tiny_run(adapter=..., evaluation=...)`."""

    def make(**changes: Any) -> TinyRun:
        run_dir = tmp_path / "run"
        run = TinyRun(run_dir, tiny_config(folder=data_folder, run_dir=run_dir, **changes))
        write_text(run_dir / "config.yaml", to_yaml(run.config))
        run.save()
        return run

    return make
