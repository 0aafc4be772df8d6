"""A small clean corpus of made-up words, and the tokenizer and shards made from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import tokenizer
from data_pipeline.bitext import SPLITS, SentencePair, format_line, language_pairs, split_path
from data_pipeline.config import DataConfig
from data_pipeline.shards import writer as shards
from hyperadapter.core.files import write_json, write_text
from hyperadapter.core.schema import parse_config

SYLLABLES = ["ba", "do", "fi", "gu", "ke", "la", "mo", "ni", "pa", "ro", "su", "ti"]


def make_config(
    folder: Path, languages: tuple[str, ...] = ("en", "de", "cs"), **data: Any
) -> DataConfig:
    """Builds a configuration whose sources are never read."""
    tree: dict[str, Any] = {
        "folder": str(folder),
        "languages": list(languages),
        "sources": [
            {"format": "tsv", "name": f"toy-{code}", "languages": ["en", code], "path": "none.tsv"}
            for code in languages[1:]
        ],
        "tokenizer": {"vocab_size": 350},
        "shards": {"block_sentences": 16, "shard_bytes": 10_000, "max_sentence_tokens": 40},
        "stream": {"window_blocks": 2},
    }
    return parse_config(DataConfig, tree | data, "test")


def make_text(rng: np.random.Generator, count: int, suffix: str, longest: int = 9) -> list[str]:
    """Makes `count` texts of one to `longest` words, which end in a language's suffix."""
    return [
        " ".join(
            "".join(rng.choice(SYLLABLES, 2)) + suffix for _ in range(rng.integers(1, longest + 1))
        )
        for _ in range(count)
    ]


def write_clean(config: DataConfig, sizes: dict[str, int], valid: int = 12) -> None:
    """Writes a clean corpus of `sizes[other language]` train pairs; half of English is shared."""
    folder = Path(config.folder) / "clean"
    rng = np.random.default_rng(1)
    shared = make_text(rng, max(sizes.values()), "")
    for pair in language_pairs(config):
        for split in SPLITS:
            count = sizes[pair[1]] if split == "train" else valid
            english = make_text(rng, count, "")
            english[: count // 2] = shared[: count // 2]
            other = make_text(rng, count, pair[1])
            mark = None if split == "train" else False
            lines = [
                format_line(SentencePair(a, b, "toy"), mark)
                for a, b in zip(english, other, strict=True)
            ]
            write_text(split_path(folder, split, pair), "".join(lines))
    write_json(folder / "manifest.json", {"fingerprint": f"toy-{sorted(sizes.items())}-{valid}"})


@pytest.fixture(scope="session", name="make_config")
def _make_config() -> Callable[..., DataConfig]:
    """Builds a configuration: `make_config(folder, languages, **data keys)`."""
    return make_config


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """A corpus with 150 en-de and 40 en-cs pairs, tokenised and sharded. Do not write to it."""
    config = make_config(tmp_path_factory.mktemp("corpus"))
    write_clean(config, {"de": 150, "cs": 40})
    tokenizer.run(config)
    shards.run(config)
    return config


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., DataConfig]:
    """Makes a clean corpus of one's own: `make_corpus({"de": 30}, **data keys)`."""

    def make(sizes: dict[str, int], valid: int = 12, **data: Any) -> DataConfig:
        config = make_config(tmp_path, ("en", *sizes), **data)
        write_clean(config, sizes, valid)
        return config

    return make
