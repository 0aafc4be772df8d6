"""One SentencePiece unigram model for all languages, trained on temperature-sampled text.

Text is neither normalised nor case-folded, so decoding gives back what was encoded (runs of white
space apart). The sample is chosen by a seeded hash of each text: it does not depend on the order of
files, and a text that stands in many pairs (the pivot side) counts once.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from data_pipeline.bitext import language_pairs, read_split
from data_pipeline.config import DataConfig, TokenizerConfig
from data_pipeline.mixing import temperature_weights
from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import atomic_directory, read_json, sha256_file, write_json, write_text
from hyperadapter.core.schema import StrictModel, fingerprint

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "UNK_ID",
    "Tokenizer",
    "TokenizerManifest",
    "clean_fingerprint",
    "expected_fingerprint",
    "run",
]

log = logging.getLogger(__name__)

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3

_MODEL, _VOCAB, _MANIFEST = "spm.model", "spm.vocab", "manifest.json"
# The trainer adds up its threads' floats in a fixed order: the same model on every machine.
_TRAINING_THREADS = 8
# Part of the fingerprint: raise it with each change of what training yields.
_FORMAT = 1


class TokenizerManifest(StrictModel):
    """What `tokenizer/manifest.json` holds.

    Attributes:
        fingerprint: Identifies the configuration and the text the model was trained on.
        vocab_size: Pieces.
        model_sha256: Checksum of `spm.model`.
        available_bytes: Deduplicated text per language.
        sampled_bytes: Text per language that the model was trained on.
        sentencepiece: Version of the trainer.
    """

    fingerprint: str
    vocab_size: int
    model_sha256: str
    available_bytes: dict[str, int]
    sampled_bytes: dict[str, int]
    sentencepiece: str


class _Inputs(StrictModel):
    """All that the model depends on."""

    format: int = _FORMAT
    clean: str
    pairs: tuple[tuple[str, str], ...]
    tokenizer: TokenizerConfig


class Tokenizer:
    """Text to pieces and back. Special ids: padding 0, unknown 1, start 2, end 3."""

    def __init__(self, model: bytes, fingerprint: str) -> None:
        self._processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.fingerprint = fingerprint

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Reads the model of a tokenizer folder.

        Raises:
            DataError: The folder is incomplete, or the model differs from the manifest.
        """
        manifest = _read_manifest(folder)
        model = (folder / _MODEL).read_bytes() if (folder / _MODEL).is_file() else b""
        found = hashlib.sha256(model).hexdigest()
        if found != manifest.model_sha256:
            raise DataError(
                f"{folder / _MODEL} has the SHA-256 {found[:12]}.., but its manifest promises "
                f"{manifest.model_sha256[:12]}..; delete {folder} and run `hyperadapter data "
                "tokenizer` again"
            )
        return cls(model, manifest.fingerprint)

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        """Copies a tokenizer folder, so that a trained model keeps its tokenizer."""
        if target.is_dir() and _read_manifest(target) == _read_manifest(source):
            return
        with atomic_directory(target) as part:
            for name in (_MODEL, _VOCAB, _MANIFEST):
                shutil.copyfile(source / name, part / name)

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the four special ones included."""
        return len(self._processor)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Splits texts into piece ids, without start or end marks."""
        return [np.array(ids, np.int32) for ids in self._processor.encode(list(texts))]

    def decode(self, sequences: Iterable[Sequence[int] | NDArray[Any]]) -> list[str]:
        """Joins piece ids to texts; special ids leave no trace."""
        special = (PAD_ID, BOS_ID, EOS_ID)
        plain = [[int(i) for i in sequence if i not in special] for sequence in sequences]
        return list(self._processor.decode(plain)) if plain else []

    def pieces(self) -> list[str]:
        """Returns all pieces in the order of their ids."""
        return [str(self._processor.id_to_piece(i)) for i in range(self.vocab_size)]


def expected_fingerprint(config: DataConfig) -> str:
    """Returns the fingerprint that the tokenizer of a configuration and its clean text has."""
    inputs = _Inputs(
        clean=clean_fingerprint(Path(config.folder) / "clean"),
        pairs=language_pairs(config),
        tokenizer=config.tokenizer,
    )
    return fingerprint(inputs)


def run(config: DataConfig) -> TokenizerManifest:
    """Trains the tokenizer of a data folder, unless it is there already.

    Raises:
        ConfigError: The text does not support `tokenizer.vocab_size`.
        DataError: The clean text is missing or empty.
    """
    folder = Path(config.folder) / "tokenizer"
    clean = Path(config.folder) / "clean"
    expected = expected_fingerprint(config)
    if (folder / _MANIFEST).is_file():
        manifest = _read_manifest(folder)
        if manifest.fingerprint == expected:
            return manifest
    available, sample = _sample(clean, config)
    text = [line for code in sample for line in sample[code]]
    log.info("tokenizer: %d pieces from %d texts", config.tokenizer.vocab_size, len(text))
    tokenizer = Tokenizer(_train(text, config.tokenizer), expected)
    with atomic_directory(folder) as part:
        (part / _MODEL).write_bytes(tokenizer._processor.serialized_model_proto())
        write_text(part / _VOCAB, "".join(f"{piece}\n" for piece in tokenizer.pieces()))
        manifest = TokenizerManifest(
            fingerprint=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            model_sha256=sha256_file(part / _MODEL),
            available_bytes=available,
            sampled_bytes={code: _num_bytes(lines) for code, lines in sample.items()},
            sentencepiece=importlib.metadata.version("sentencepiece"),
        )
        write_json(part / _MANIFEST, manifest.model_dump())
    return manifest


def _read_manifest(folder: Path) -> TokenizerManifest:
    path = folder / _MANIFEST
    if not path.is_file():
        raise DataError(f"{folder} holds no tokenizer; run `hyperadapter data tokenizer` first")
    try:
        return TokenizerManifest.model_validate(read_json(path))
    except ValueError as error:
        raise DataError(f"{path} is not a tokenizer manifest ({error}); delete {folder}") from error


def clean_fingerprint(clean: Path) -> str:
    """Returns what identifies a clean corpus.

    Raises:
        DataError: There is none.
    """
    if not (clean / _MANIFEST).is_file():
        raise DataError(f"{clean} holds no clean corpus; run `hyperadapter data clean` first")
    return str(read_json(clean / _MANIFEST)["fingerprint"])


def _num_bytes(lines: Iterable[str]) -> int:
    return sum(len(line.encode()) for line in lines)


def _iter_distinct(clean: Path, config: DataConfig, code: str) -> Iterator[tuple[int, str]]:
    """Yields every text of a language once, with a seeded hash of 64 bits."""
    key = f"{config.tokenizer.seed}:{code}".encode()
    key = hashlib.blake2b(key, digest_size=32).digest()
    seen: set[int] = set()
    for pair in language_pairs(config):
        if code not in pair:
            continue
        split = read_split(clean, "train", pair)
        for line in split.a if pair[0] == code else split.b:
            digest = hashlib.blake2b(line.encode(), digest_size=8, key=key).digest()
            number = int.from_bytes(digest, "little")
            if number not in seen:
                seen.add(number)
                yield number, line


def _sample(clean: Path, config: DataConfig) -> tuple[dict[str, int], dict[str, list[str]]]:
    """Chooses the training text: `(available bytes, chosen texts)` per language."""
    used = {code for pair in language_pairs(config) for code in pair}
    codes = [code for code in config.languages if code in used]
    available = {
        code: _num_bytes(line for _, line in _iter_distinct(clean, config, code)) for code in codes
    }
    if not any(available.values()):
        raise DataError(
            f"the train split in {clean} holds no text; check the sources in the configuration and "
            "run `hyperadapter data clean` again"
        )
    budget = _budgets(available, config.tokenizer)
    chosen: dict[str, list[str]] = {}
    for code in codes:
        threshold = int(min(1.0, budget[code] / max(available[code], 1)) * 2**64)
        chosen[code] = [
            line for number, line in _iter_distinct(clean, config, code) if number < threshold
        ]
    return available, chosen


def _budgets(available: dict[str, int], config: TokenizerConfig) -> dict[str, float]:
    """Shares `max_training_bytes` by temperature; what a language cannot supply goes to the others.

    The shares keep to the temperature among the languages that are not exhausted.
    """
    weight = dict(
        zip(
            available,
            temperature_weights(np.array(list(available.values())), config.temperature),
            strict=True,
        )
    )
    budget: dict[str, float] = {}
    rest = float(config.max_training_bytes)
    # The language whose text runs out first at rising shares is settled first.
    for code in sorted(available, key=lambda c: available[c] / max(float(weight[c]), 1e-300)):
        open_weight = sum(float(weight[c]) for c in available if c not in budget)
        share = rest * float(weight[code]) / open_weight if open_weight else 0.0
        budget[code] = min(float(available[code]), share)
        rest -= budget[code]
    return budget


def _train(text: Sequence[str], config: TokenizerConfig) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type="unigram",
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            byte_fallback=config.byte_fallback,
            normalization_rule_name="identity",
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            num_threads=_TRAINING_THREADS,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explain(str(error), config, text) from error
    return model.getvalue()


def _explain(message: str, config: TokenizerConfig, text: Sequence[str]) -> ConfigError:
    """Turns the trainer's complaint into one that names the key and the number that works."""
    size = f"data.tokenizer.vocab_size {config.vocab_size}"
    if found := re.search(r"too high .* value <= (\d+)", message):
        return ConfigError(
            f"{size} is more than the text supports ({len(text)} texts, {_num_bytes(text)} bytes); "
            f"the largest possible is {found[1]}"
        )
    if found := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return ConfigError(
            f"{size} has no room for the text's characters; use at least {found[1]}, or lower "
            f"data.tokenizer.character_coverage {config.character_coverage}"
        )
    return ConfigError(f"{size}: SentencePiece could not train on {len(text)} texts: {message}")
