"""A small corpus of invented but regular bitext, and runs of the real command on it.

English and German come as gettext catalogs in a wheel, English and French as tab-separated columns.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polib
import pytest

from hyperadapter.core.files import sha256_file, write_json, write_text

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

ENDINGS = {"en": "ish", "de": "haft", "fr": "esque"}
"""So that words have parts, and SentencePiece a reason to make pieces of them."""

NOT_IN_THE_CORPUS = {"fuzzy": 1, "obsolete": 1, "untranslated": 1, "no English text": 1}
"""Entries of the German catalogs that are no translations, by the reason to skip them."""

RunCommand = Callable[..., "subprocess.CompletedProcess[str]"]


def sentences(language: str, count: int, seed: int) -> list[str]:
    """Draws sentences; the same seed gives translations of each other in all languages."""
    generator = np.random.default_rng(seed)
    forms = [*WORDS[language], *(word + ENDINGS[language] for word in WORDS[language])]
    share = np.repeat([0.85, 0.15], len(WORDS[language])) / len(WORDS[language])
    rows = [generator.choice(len(forms), generator.integers(4, 10), p=share) for _ in range(count)]
    return [" ".join([*(forms[k] for k in row), str(i % 10)]) for i, row in enumerate(rows)]


def bitext(language: str, count: int, seed: int) -> list[tuple[str, str]]:
    """Draws sentences in English and their translations."""
    columns = (sentences(code, count, seed) for code in ("en", language))
    return list(zip(*columns, strict=True))


GERMAN = bitext("de", 600, 0)
FRENCH = bitext("fr", 200, 1)


def _catalog(entries: Sequence[polib.POEntry]) -> polib.POFile:
    catalog = polib.POFile(wrapwidth=78)  # long texts go over several lines, as tools write them
    catalog.metadata = {
        "Content-Type": "text/plain; charset=UTF-8",
        "Plural-Forms": "nplurals=2; plural=n != 1;",
    }
    catalog.extend(entries)
    return catalog


def _entries(rows: Sequence[tuple[str, str]]) -> list[polib.POEntry]:
    return [polib.POEntry(msgid=a, msgstr=b) for a, b in rows]


def write_wheel(folder: Path, rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Writes a wheel with German catalogs of every kind, and returns it as a source.

    One domain has a `.po` with what is no translation besides, one a `.mo` only, and one keys that
    are symbolic, with the English in a comment, as Plone writes them.
    """
    plain = _entries(rows[0::3])
    plain.append(polib.POEntry(msgid="the fuzzy house", msgstr="das alte Boot", flags=["fuzzy"]))
    plain.append(polib.POEntry(msgid="the former house", msgstr="das Ex-Haus", obsolete=True))
    plain.append(polib.POEntry(msgid="the house without a translation"))
    symbolic = [
        polib.POEntry(msgid=f"label_text_{i}", msgstr=b, comment=f'Default: "{a}"')
        for i, (a, b) in enumerate(rows[2::3])
    ]
    symbolic.append(polib.POEntry(msgid="label_without_default", msgstr="das Haus ohne Text"))
    members = {
        "plain.po": str(_catalog(plain)).encode(),
        "binary.mo": _catalog(_entries(rows[1::3])).to_binary(),
        "symbolic.po": str(_catalog(symbolic)).encode(),
    }
    folder.mkdir(parents=True)
    path = folder / "tiny_locales-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            # A ZipInfo of its own has a fixed time, so that the checksum is always the same.
            archive.writestr(zipfile.ZipInfo(f"tiny/locales/de/LC_MESSAGES/{name}"), content)
    return {
        "format": "gettext",
        "name": "de",
        "wheel": {"package": "tiny.locales", "version": "1.0", "sha256": sha256_file(path)},
        "license": "CC0-1.0",
    }


def write_tsv(path: Path, rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Writes English and French in two columns, and returns them as a source."""
    write_text(path, "".join(f"{a}\t{b}\n" for a, b in rows))
    return {"format": "tsv", "name": "fr", "languages": ["en", "fr"], "path": str(path)}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and `run.yaml`, prepared up to the shards."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def make_corpus(folder: Path) -> Path:
    """Fills an empty folder with data and `run.yaml`, prepared up to the shards."""
    tree = {
        "name": "tiny",
        "run_dir": str(folder / "run"),
        "data": {
            "folder": str(folder / "data"),
            "languages": ["en", "de", "fr"],
            "sources": [
                write_wheel(folder / "data" / "raw", GERMAN),
                write_tsv(folder / "en-fr.tsv", FRENCH),
            ],
            "clean": {"min_letters": 0.3, "max_english_copy": 1.0},
            "split": {"valid_fraction": 0.1, "test_fraction": 0.1},
            "tokenizer": {"vocab_size": 344},
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
    """Runs the command, without network; one thread a process, so that ranks do not fight."""
    return subprocess.run(
        [sys.executable, "-m", "hyperadapter", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"},
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
