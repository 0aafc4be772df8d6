"""A small corpus of invented but regular bitext, and runs of the real command on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hyperadapter.core.files import write_json, write_text

WORDS = {
    "en": [
        "the",
        "house",
        "tree",
        "river",
        "bird",
        "sees",
        "finds",
        "loves",
        "small",
        "green",
        "old",
        "near",
        "every",
        "friend",
    ],
    "de": [
        "das",
        "Haus",
        "Baum",
        "Fluss",
        "Vogel",
        "sieht",
        "findet",
        "liebt",
        "klein",
        "gruen",
        "alt",
        "nahe",
        "jeder",
        "Freund",
    ],
    "fr": [
        "la",
        "maison",
        "arbre",
        "fleuve",
        "oiseau",
        "voit",
        "trouve",
        "aime",
        "petit",
        "vert",
        "vieux",
        "proche",
        "chaque",
        "ami",
    ],
}
"""Word k of one language translates word k of the others."""

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def sentences(language: str, count: int, seed: int) -> list[str]:
    """Draws sentences; the same seed gives translations of each other in all languages."""
    generator = np.random.default_rng(seed)
    rows = [
        generator.integers(0, len(WORDS["en"]), generator.integers(4, 10)) for _ in range(count)
    ]
    return [" ".join(WORDS[language][word] for word in row) + f" {i}" for i, row in enumerate(rows)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and `run.yaml`, prepared up to the shards."""
    folder = tmp_path_factory.mktemp("corpus")
    sources = []
    for number, (language, count) in enumerate({"de": 600, "fr": 200}.items()):
        rows = zip(sentences("en", count, number), sentences(language, count, number), strict=True)
        path = folder / f"en-{language}.tsv"
        write_text(path, "".join(f"{a}\t{b}\n" for a, b in rows))
        sources.append(
            {"format": "tsv", "name": language, "languages": ["en", language], "path": str(path)}
        )
    tree = {
        "name": "tiny",
        "run_dir": str(folder / "run"),
        "data": {
            "folder": str(folder / "data"),
            "languages": ["en", "de", "fr"],
            "sources": sources,
            "clean": {"min_letters": 0.3, "max_english_copy": 1.0},
            "split": {"valid_fraction": 0.1, "test_fraction": 0.1},
            "tokenizer": {"vocab_size": 340},
            "shards": {"block_sentences": 64, "max_sentence_tokens": 60},
        },
        "model": {
            "d_model": 32,
            "ffn_dim": 48,
            "num_heads": 2,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "dropout": 0.1,
            "adapter": {
                "kind": "hyper",
                "bottleneck_dim": 8,
                "hyper_network": {"hyper_dim": 16, "language_dim": 8, "layer_dim": 4},
            },
        },
        "training": {
            "device": "cpu",
            "micro_batch_tokens": 250,
            "global_batch_tokens": 1000,
            "max_steps": 12,
            "learning_rate": 2e-3,
            "schedule": {"kind": "inverse_sqrt", "warmup_steps": 4},
            "checkpoint": {"every_steps": 100},
            "validation": {"every_steps": 100},
            "log_every_steps": 1,
        },
        "tracking": {"enabled": False},
    }
    write_json(folder / "run.yaml", tree)
    for step in ("fetch", "clean", "tokenizer", "shard"):
        done = run_hyperadapter("data", step, "--config", str(folder / "run.yaml"))
        assert done.returncode == 0, done.stderr
    return folder


def run_hyperadapter(
    *arguments: str, stdin: str = "", timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs the command; one thread a process, so that ranks do not fight for the cores."""
    return subprocess.run(
        [sys.executable, "-m", "hyperadapter", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def hyperadapter() -> RunCommand:
    """Runs the command with the given arguments."""
    return run_hyperadapter


@pytest.fixture
def train(corpus: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Trains in `tmp_path / name` with `key=value` changes."""

    def call(name: str, *changes: str) -> subprocess.CompletedProcess[str]:
        settings = [f"run_dir={tmp_path / name}", *changes]
        sets = [part for setting in settings for part in ("--set", setting)]
        return run_hyperadapter("train", "--config", str(corpus / "run.yaml"), *sets)

    return call
