"""A bundle or a run folder as an object that translates.

    model = hyperadapter.load("bundles/en-de")
    model.translate(["Good morning."], src="en", tgt="de")

It needs torch, SentencePiece, safetensors and the configuration's pydantic, and nothing of what
training needs: neither DeepSpeed nor MLflow, WebDataset or matplotlib.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch

from data_pipeline.stream.batching import BatchLayout
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.checkpoint.layout import (
    WEIGHTS_FILE,
    OtherFormatError,
    choose_weights,
    complete_checkpoints,
    read_manifest,
)
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.config import EvaluationConfig, RunConfig, SamplingConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError, LanguageError, nearest
from hyperadapter.core.files import sha256_file
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config, parse_config
from hyperadapter.evaluation.translate import (
    DirectionState,
    ModelTranslator,
    TextTranslator,
    Translation,
    Translator,
    choose_device,
    require_languages,
)
from hyperadapter.model.adapters import AdapterWeights, RawAdapters
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.serving.bundle import (
    ADAPTER_PARTS,
    MODEL_FILE,
    TOKENIZER_FOLDER,
    BundleConfig,
    load_adapters,
    read_bundle,
)
from hyperadapter.serving.ctranslate2 import CTranslate2Translator, is_ctranslate2

__all__ = ["BundleTranslator", "SearchOptions", "TranslationModel", "check_weights", "load"]

log = logging.getLogger(__name__)

_SHOWN = 20


class SearchOptions(TypedDict, total=False):
    """How to search in one call; what is not given is as in the bundle or run.

    Attributes:
        beam_size: Hypotheses kept, 1 is greedy; None is as usual.
        batch_sentences: Sentences decoded together; None is as usual.
        length_penalty: Log-probabilities are divided by the length to this power.
        max_length_ratio: Longest output over the input, in pieces.
        max_length_extra: Pieces allowed on top of the ratio.
        coverage_penalty: Weight of source positions that no output attends to.
        no_repeat_ngram: Runs of so many pieces are produced once at most; 0: no limit.
        sampling: Draws translations; None searches for the best.
    """

    beam_size: int | None
    batch_sentences: int | None
    length_penalty: float
    max_length_ratio: float
    max_length_extra: int
    coverage_penalty: float
    no_repeat_ngram: int
    sampling: SamplingConfig | None


class TranslationModel:
    """Translates the directions of a bundle or a run.

    Attributes:
        directions: What it was made for, such as `en-de`. A run may translate others, zero-shot.
        languages: Those of the directions.
    """

    def __init__(
        self,
        translator: TextTranslator,
        directions: Sequence[str],
        languages: Sequence[str],
    ) -> None:
        self._translator = translator
        self.directions = tuple(directions)
        self.languages = tuple(languages)

    def translate(
        self,
        texts: Sequence[str],
        src: str,
        tgt: str,
        **options: Unpack[SearchOptions],
    ) -> list[str]:
        """Translates sentences.

        Args:
            texts: One sentence each; an empty one gives an empty translation.
            src: Language of the texts.
            tgt: Language to translate to.
            options: How to search, see `SearchOptions`.

        Returns:
            One translation for each text, in order, each on one line.

        Raises:
            ConfigError: `texts` is one text, or an option has a value that is not allowed.
            LanguageError: A language or the direction is not there; the message lists what is.
        """
        _refuse_one_text(texts)
        return self._translator.translate(texts, src, tgt, self._search_settings(options))

    def translate_n_best(
        self,
        texts: Sequence[str],
        src: str,
        tgt: str,
        n_best: int = 1,
        prefixes: Sequence[str] | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[list[Translation]]:
        """Finds several translations of each sentence, or some that begin as they should.

        Args:
            texts: One sentence each; an empty one has one translation, empty, of score 0.
            src: Language of the texts.
            tgt: Language to translate to.
            n_best: How many translations of each text; at most beam_size without sampling.
            prefixes: What the translations of each text begin with, possibly nothing.
            options: How to search, see `SearchOptions`.

        Returns:
            For each text its translations with their scores, best first, or with sampling in the
            order of the draws; see `TextTranslator.translate_n_best`.

        Raises:
            ConfigError: `texts` is one text, or an option has a value that is not allowed.
            LanguageError: A language or the direction is not there; the message lists what is.
        """
        _refuse_one_text(texts)
        return self._translator.translate_n_best(
            texts, src, tgt, self._search_settings(options), n_best=n_best, prefixes=prefixes
        )

    def _search_settings(self, options: SearchOptions) -> EvaluationConfig:
        known = list(SearchOptions.__annotations__)
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"translate: unknown option {name!r}{nearest(name, known)}; known options: "
                    f"{', '.join(known)}"
                )
        given = {
            key: value
            for key, value in options.items()
            if value is not None or key not in ("beam_size", "batch_sentences")
        }
        if isinstance(sampling := options.get("sampling"), SamplingConfig):
            given["sampling"] = sampling.model_dump(mode="json")
        tree = self._translator.evaluation.model_dump(mode="json") | given
        return parse_config(EvaluationConfig, tree, "translate")


def _refuse_one_text(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise ConfigError("texts is one text; give a list of sentences, such as [text]")


class BundleTranslator(ModelTranslator):
    """Translates the directions of a bundle.

    Args:
        folder: The bundle.
        config: Its configuration, from `read_bundle`.
        device: Where the model goes.

    Raises:
        CheckpointError: The weights or the tokenizer are not those of the configuration.
    """

    def __init__(
        self, folder: Path, config: BundleConfig, device: torch.device | str = "cpu"
    ) -> None:
        tokenizer = _load_tokenizer(folder, config)
        model = _load_main_network(folder, config).to(device)
        super().__init__(model, tokenizer, config.decoding.evaluation, config.max_sentence_tokens)
        self.config = config
        self._stored = load_adapters(folder, config) if config.adapters else {}

    def prepare(self, direction: Direction) -> DirectionState:
        """Takes the adapters of one direction.

        Raises:
            LanguageError: The bundle does not have the direction.
        """
        self._check(direction)
        only = self.config.data_config().model_copy(update={"directions": (str(direction),)})
        layout = BatchLayout.from_config(only, self.config.num_pieces)
        if not self._stored:
            return DirectionState(layout, None)
        numbers = torch.tensor(self.config.adapters[str(direction)])
        down, down_bias, up, up_bias = (
            self._stored[part][numbers][None].to(self._device) for part in ADAPTER_PARTS
        )
        raw = RawAdapters(down, down_bias, up, up_bias, None, None)
        return DirectionState(layout, AdapterWeights(raw, self.config.model.adapted_layers))

    def _check(self, direction: Direction) -> None:
        require_languages(direction, self.config.used_languages(), "bundle")
        directions = self.config.directions
        if str(direction) not in directions:
            raise LanguageError(
                f"this bundle does not translate {direction}{nearest(str(direction), directions)}; "
                f"its directions are {_some(directions)}. Export the run with --directions for "
                "others"
            )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _load_tokenizer(folder: Path, config: BundleConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    except DataError as error:
        raise CheckpointError(
            f"the tokenizer of the bundle {folder} is damaged: {error}"
        ) from error
    if (tokenizer.fingerprint, tokenizer.vocab_size) != (config.tokenizer, config.num_pieces):
        raise CheckpointError(
            f"{folder / TOKENIZER_FOLDER} is the tokenizer {tokenizer.fingerprint} of "
            f"{tokenizer.vocab_size} pieces, but the weights were trained with {config.tokenizer} "
            f"of {config.num_pieces}; export the run again"
        )
    return tokenizer


def _load_main_network(folder: Path, config: BundleConfig) -> Seq2Seq:
    tensors, _ = load_weights(folder / MODEL_FILE)
    vocabulary = Vocabulary(config.num_pieces, config.languages, ())
    with torch.device("meta"):  # no memory for sizes that the file does not have
        shapes = Seq2Seq(config.model, vocabulary).state_dict()
    expected = {name: tensor.shape for name, tensor in shapes.items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise CheckpointError(
            f"{folder / MODEL_FILE} does not hold the tensors that config.json beside it describes;"
            " export the run again"
        )
    model = Seq2Seq(config.model, vocabulary)
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False)


def check_weights(path: Path, run_dir: Path) -> None:
    """Compares the weights of a run's checkpoint with its manifest; an average has none.

    Raises:
        CheckpointError: They are damaged.
    """
    if path.parent not in {folder for _, folder in complete_checkpoints(run_dir)}:
        return
    try:
        record = read_manifest(path.parent).files.get(WEIGHTS_FILE)
    except OtherFormatError:
        log.warning("%s has a manifest of another version: its checksum is not compared", path)
        return
    if record is None or sha256_file(path) != record.sha256:
        raise CheckpointError(
            f"{path} is not the file of its manifest; use another checkpoint, or copy this one "
            "again"
        )


def _load_run(run_dir: Path, device: torch.device) -> TranslationModel:
    config = load_config(RunConfig, run_dir / "config.yaml")
    weights = choose_weights(run_dir, "newest", config.training.checkpoint)
    check_weights(weights, run_dir)
    translator = Translator.from_weights(weights, run_dir, config, device)
    vocabulary = translator.info.vocabulary
    return TranslationModel(
        translator, [str(direction) for direction in vocabulary.directions], vocabulary.languages
    )


def load(path: Path, device: Literal["auto", "cpu", "cuda"] = "auto") -> TranslationModel:
    """Loads a bundle or a run folder; see `hyperadapter.load`."""
    chosen = choose_device(device)
    if (path / "config.yaml").is_file():
        return _load_run(path, chosen)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is no folder; name a bundle of `hyperadapter export`, or a run folder"
        )
    if is_ctranslate2(path):
        fast = CTranslate2Translator(path, chosen.type)
        return TranslationModel(fast, [str(fast.direction)], fast.direction)
    config = read_bundle(path)
    return TranslationModel(
        BundleTranslator(path, config, chosen), config.directions, config.used_languages()
    )
