"""A folder that CTranslate2 translates with: one direction, its adapters folded in.

DIR/
    model.bin, config.json, shared_vocabulary.json    CTranslate2's own files
    tokenizer/             SentencePiece model, pieces, manifest
    README.md              a card, for people
    hyperadapter.json      what it is, how to search, size and SHA-256 of every file; comes last

The vocabulary is our pieces and the tags in use, such as `__de__`. Tags have an output bias that
makes them impossible. Padding, start and unknown piece keep their scores, because our scores count
them too, and are forbidden in each call.

All names are fixed. The package ctranslate2 is imported when it is needed. Its search is like ours
but for two rules: it knows one longest length for a batch (outputs are cut to their own), and it
ends a sentence with its K-th finished hypothesis and never before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from pydantic import Field

from data_pipeline.tokenizer import BOS_ID, PAD_ID, Tokenizer
from hyperadapter.checkpoint.layout import FileRecord
from hyperadapter.config import EvaluationConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError, LanguageError
from hyperadapter.core.files import read_json, sha256_file
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.core.schema import StrictModel, parse_config
from hyperadapter.evaluation.search import Hypothesis
from hyperadapter.evaluation.translate import Pieces, TextTranslator
from hyperadapter.serving.bundle import TOKENIZER_FOLDER, DecodingConfig

__all__ = [
    "ABOUT_FILE",
    "FORMAT",
    "MODEL_FILE",
    "CTranslate2Config",
    "CTranslate2Translator",
    "Quantization",
    "check_search",
    "import_ctranslate2",
    "is_ctranslate2",
    "read_about",
]

log = logging.getLogger(__name__)

ABOUT_FILE = "hyperadapter.json"
FORMAT = 1
MODEL_FILE = "model.bin"
_READ_FILES = (
    MODEL_FILE,
    "config.json",
    "shared_vocabulary.json",
    *(f"{TOKENIZER_FOLDER}/{name}" for name in ("spm.model", "spm.vocab", "manifest.json")),
)
Quantization = Literal[
    "float32", "float16", "bfloat16", "int16",
    "int8", "int8_float32", "int8_float16", "int8_bfloat16",
]  # fmt: skip
# Keys of the evaluation group that this search has no equal of, and what they are when not used.
_NOT_HERE = {"coverage_penalty": 0.0, "sampling": None}


class CTranslate2Config(StrictModel):
    """What hyperadapter.json holds."""

    format: int = Field(description="Version of the layout")
    name: str = Field(description="Of the run")
    step: int = Field(description="Optimizer steps taken")
    fingerprint: str = Field(description="Of the configuration that trained it")
    tokenizer: str = Field(description="Fingerprint of the tokenizer")
    direction: str = Field(description="The one that it translates")
    source_opening: tuple[str, ...] = Field(description="Tokens before a source's pieces")
    target_opening: tuple[str, ...] = Field(
        description="Tokens before a target's pieces, behind CTranslate2's decoder_start_token"
    )
    max_sentence_tokens: int = Field(description="Longest training sentence")
    num_positions: int = Field(description="Longest source or target that can be computed")
    decoding: DecodingConfig = Field(description="How to search, unless a call says otherwise")
    quantization: Quantization = Field(description="How the matrices are stored")
    files: dict[str, FileRecord]


def import_ctranslate2() -> ModuleType:
    """Returns the package ctranslate2, which is not needed for anything else.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import ctranslate2
    except ImportError as error:
        raise ConfigError(
            f"CTranslate2 cannot be imported ({error}); pip install 'hyperadapter[ctranslate2]'"
        ) from error
    package: ModuleType = ctranslate2
    return package


def is_ctranslate2(folder: Path) -> bool:
    """Says whether a folder is one of `export --format ctranslate2`, perhaps a damaged one."""
    return (folder / ABOUT_FILE).is_file()


def read_about(folder: Path) -> CTranslate2Config:
    """Checks all files but the card, which people edit, and reads hyperadapter.json.

    Raises:
        CheckpointError: The folder is of another version, incomplete or damaged.
    """
    path = folder / ABOUT_FILE
    try:
        tree = read_json(path)
        found = tree.get("format") if isinstance(tree, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"{path} has format {found!r}, but this version of hyperadapter reads format "
                f"{FORMAT}; export the run again"
            )
        config = parse_config(CTranslate2Config, tree, str(path))
    except (ConfigError, DataError) as error:
        raise CheckpointError(f"{error}\nexport the run again") from error
    for name in _READ_FILES:
        file, record = folder / name, config.files.get(name)
        if record is None or not file.is_file() or sha256_file(file) != record.sha256:
            raise CheckpointError(
                f"the file {file} is missing, or not the one that {ABOUT_FILE} names; copy the "
                "folder again"
            )
    return config


def check_search(evaluation: EvaluationConfig, n_best: int, with_prefixes: bool) -> None:
    """Refuses what CTranslate2 does not do as we do.

    Raises:
        ConfigError: It is asked for.
    """
    for name, unused in _NOT_HERE.items():
        if (value := getattr(evaluation, name)) != unused:
            raise ConfigError(
                f"{name} is {value!r}, which translating with CTranslate2 does not offer here; "
                "leave it out, or use a bundle"
            )
    if with_prefixes:
        raise ConfigError(
            "prefixes are given, which translating with CTranslate2 does not offer here; leave "
            "them out, or use a bundle"
        )
    if not 1 <= n_best <= evaluation.beam_size:
        raise ConfigError(
            f"n_best is {n_best}, but a search with beam_size {evaluation.beam_size} finds 1 "
            f"to {evaluation.beam_size}"
        )


class CTranslate2Translator(TextTranslator):
    """Translates the direction of a folder, with as many threads as torch has.

    Args:
        folder: What `hyperadapter export --format ctranslate2` wrote.
        device: `auto`, `cpu` or `cuda`, with the number of the GPU (`cuda:1`) if it is not the
            first.

    Raises:
        CheckpointError: The folder is damaged.
        ConfigError: ctranslate2 is not installed.
    """

    def __init__(self, folder: Path, device: str = "auto") -> None:
        package = import_ctranslate2()
        self.config = read_about(folder)
        self.direction: Direction = parse_direction(self.config.direction)
        super().__init__(
            Tokenizer.load(folder / TOKENIZER_FOLDER),
            self.config.decoding.evaluation,
            self.config.max_sentence_tokens,
        )
        self._pieces = self.tokenizer.pieces()
        self._ids = {piece: number for number, piece in enumerate(self._pieces)}
        kind, _, number = device.partition(":")
        self._translator: Any = package.Translator(
            str(folder),
            device=kind,
            device_index=int(number or 0),
            inter_threads=1,
            intra_threads=torch.get_num_threads(),
        )

    def check(
        self, direction: Direction, evaluation: EvaluationConfig, n_best: int, with_prefixes: bool
    ) -> None:
        """Refuses another direction, and what CTranslate2 does not do as we do."""
        if direction != self.direction:
            raise LanguageError(
                f"this folder translates {self.direction} and not {direction}: the adapters of one "
                "direction are in its weights. Export the other direction to a folder of its own"
            )
        check_search(evaluation, n_best, with_prefixes)

    def search(
        self,
        direction: Direction,
        pieces: Sequence[Pieces],
        evaluation: EvaluationConfig,
        n_best: int,
        prefixes: Sequence[Sequence[int]] | None,
    ) -> list[list[Hypothesis]]:
        """Finds the best hypotheses of each text of one batch.

        Raises:
            ConfigError: A text has more tokens than the folder has positions.
        """
        sources = [self._source(ids.tolist()) for ids in pieces]
        opening = self.config.target_opening
        room = self.config.num_positions - 1 - len(opening)
        longest = [
            min(int(len(source) * evaluation.max_length_ratio) + evaluation.max_length_extra, room)
            for source in sources
        ]
        results = self._translator.translate_batch(
            sources,
            target_prefix=[list(opening)] * len(sources) if opening else None,
            beam_size=evaluation.beam_size,
            length_penalty=evaluation.length_penalty,
            no_repeat_ngram_size=evaluation.no_repeat_ngram,
            max_input_length=0,
            max_decoding_length=max(longest) + len(opening),
            disable_unk=True,
            suppress_sequences=[[self._pieces[number]] for number in (PAD_ID, BOS_ID)],
            num_hypotheses=n_best,
            return_scores=True,
        )
        return [
            [
                Hypothesis(self._to_ids(tokens[len(opening) :][:most]), score)
                for tokens, score in zip(result.hypotheses, result.scores, strict=True)
            ]
            for result, most in zip(results, longest, strict=True)
        ]

    def _to_ids(self, tokens: Sequence[str]) -> tuple[int, ...]:
        return tuple(self._ids[token] for token in tokens)

    def _source(self, ids: Sequence[int]) -> list[str]:
        pieces = [self._pieces[number] for number in ids]
        source = [*self.config.source_opening, *pieces, "</s>"]
        limit, most = self.config.max_sentence_tokens, self.config.num_positions
        if len(source) > most:
            raise ConfigError(
                f"a text has {len(source)} tokens, but the folder has {most} positions; split it "
                f"into sentences of up to {limit} tokens, or use a bundle"
            )
        return source

    def _warn_of_long(self, pieces: Sequence[Pieces]) -> None:
        limit = self.max_sentence_tokens
        count = sum(len(ids) + 1 > limit for ids in pieces)
        if count:
            log.warning(
                "%d of %d texts are longer than the %d tokens of the longest training sentence; "
                "expect poor translations, and split them into sentences",
                *(count, len(pieces), limit),
            )
