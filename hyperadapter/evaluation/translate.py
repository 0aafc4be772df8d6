"""Text to text: a trained run as a translator.

`TextTranslator` knows texts, batches and the search. Where a direction's tags and adapters come
from is the matter of its subclasses: here a run's weights, in `hyperadapter.serving` a bundle.
"""

from __future__ import annotations

import logging
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.progress import track
from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_prompts
from data_pipeline.tokenizer import UNK_ID, Tokenizer
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import LoadedModel, WeightsInfo, load_model
from hyperadapter.config import EvaluationConfig, RunConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, LanguageError, nearest
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config
from hyperadapter.evaluation.search import Hypothesis, check_options, search_n_best
from hyperadapter.model.adapters import AdapterWeights
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq

__all__ = [
    "DirectionState",
    "ModelTranslator",
    "Pieces",
    "TextTranslator",
    "Translation",
    "Translator",
    "choose_device",
    "plain_text",
    "require_languages",
    "tokenizer_folder",
]

log = logging.getLogger(__name__)

Pieces = NDArray[np.int32]
_KEPT_DIRECTIONS = 8  # whose adapters stay in the device's memory


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Returns the device of a configuration's `device` key; `auto` is a GPU if there is one.

    Raises:
        ConfigError: A GPU was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "the device is cuda, but torch sees no GPU; choose cpu or auto, or install a CUDA "
            "build of torch and check the driver"
        )
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


class DirectionState(NamedTuple):
    """What one direction needs: its tags, and its adapters, made once."""

    layout: BatchLayout
    adapters: AdapterWeights | None


class Translation(NamedTuple):
    """A translation as text; its score is that of its `Hypothesis`."""

    text: str
    score: float


class TextTranslator(ABC):
    """Translates texts, in batches of similar length; subclasses search.

    Args:
        tokenizer: The one that the model was trained with.
        evaluation: How to search, unless a call says otherwise.
        max_sentence_tokens: Longest training sentence, end mark included.
    """

    def __init__(
        self, tokenizer: Tokenizer, evaluation: EvaluationConfig, max_sentence_tokens: int
    ) -> None:
        self.tokenizer = tokenizer
        self.evaluation = evaluation
        self.max_sentence_tokens = max_sentence_tokens

    @abstractmethod
    def check(
        self, direction: Direction, evaluation: EvaluationConfig, n_best: int, with_prefixes: bool
    ) -> None:
        """Refuses what cannot be translated.

        Raises:
            ConfigError: The options do not go together, or are not offered.
            LanguageError: The direction cannot be translated.
        """

    @abstractmethod
    def search(
        self,
        direction: Direction,
        pieces: Sequence[Pieces],
        evaluation: EvaluationConfig,
        n_best: int,
        prefixes: Sequence[Sequence[int]] | None,
    ) -> list[list[Hypothesis]]:
        """Finds the best hypotheses of each text of one batch, best first.

        Args:
            direction: Has passed `check`, and so has all that follows.
            pieces: Of each text, without end marks.
            evaluation: How to search.
            n_best: How many hypotheses of each.
            prefixes: Pieces that each text's hypotheses begin with.
        """

    @abstractmethod
    def _warn_of_long(self, pieces: Sequence[Pieces]) -> None:
        """Warns of texts that are longer than training sentences."""

    def translate(
        self,
        texts: Sequence[str],
        src: str,
        tgt: str,
        evaluation: EvaluationConfig | None = None,
    ) -> list[str]:
        """Translates texts.

        Args:
            texts: One sentence each; an empty one gives an empty translation.
            src: Language of the texts, as in data.languages.
            tgt: Language to translate to.
            evaluation: How to search, where it is not as usual.

        Returns:
            One translation for each text, in order, each on one line.

        Raises:
            LanguageError: A language is not among the run's, or the run cannot translate the
                direction.
        """
        found = self.translate_n_best(texts, src, tgt, evaluation)
        return [best.text for best, *_ in found]

    def translate_n_best(
        self,
        texts: Sequence[str],
        src: str,
        tgt: str,
        evaluation: EvaluationConfig | None = None,
        *,
        n_best: int = 1,
        prefixes: Sequence[str] | None = None,
    ) -> list[list[Translation]]:
        """Finds several translations of each text.

        Args:
            texts: One sentence each; an empty one has one translation, empty, of score 0.
            src: Language of the texts, as in data.languages.
            tgt: Language to translate to.
            evaluation: How to search, where it is not as usual.
            n_best: How many translations of each text; at most beam_size without sampling.
            prefixes: What the translations of each text begin with, possibly nothing. End them at
                the end of a word: what follows may go on with the word or begin a new one.

        Returns:
            For each text, in order, its translations, each on one line. They are the best that the
            search found, best first, and may be fewer; or with sampling as many draws, in their
            order.

        Raises:
            ConfigError: The options do not go together.
            LanguageError: A language is not among the run's, or the run cannot translate the
                direction.
        """
        direction, evaluation = Direction(src, tgt), evaluation or self.evaluation
        self.check(direction, evaluation, n_best, prefixes is not None)
        forced = None if prefixes is None else self._encode_prefixes(prefixes, len(texts))
        plain = [plain_text(text) for text in texts]
        filled = [index for index, text in enumerate(plain) if text]
        pieces = self.tokenizer.encode([plain[index] for index in filled])
        self._warn_of_long(pieces)
        translations = [[Translation("", 0.0)] for _ in texts]
        batches = _batches(pieces, evaluation.batch_sentences, self.max_sentence_tokens)
        for rows in track(batches, len(batches), f"translating {direction}"):
            begun = None if forced is None else [forced[filled[row]] for row in rows]
            batch = [pieces[row] for row in rows]
            found = self.search(direction, batch, evaluation, n_best, begun)
            for row, hypotheses in zip(rows, found, strict=True):
                translations[filled[row]] = self._as_text(hypotheses)
        return translations

    def _encode_prefixes(self, prefixes: Sequence[str], num_texts: int) -> list[list[int]]:
        if isinstance(prefixes, str) or len(prefixes) != num_texts:
            count = "one text" if isinstance(prefixes, str) else len(prefixes)
            raise ConfigError(
                f"prefixes is {count}, but there are {num_texts} texts; give one prefix for each, "
                "which may be empty"
            )
        encoded = self.tokenizer.encode([plain_text(prefix) for prefix in prefixes])
        for prefix, ids in zip(prefixes, encoded, strict=True):
            if UNK_ID in ids:
                raise ConfigError(
                    f"the prefix {prefix!r} has characters that the tokenizer does not know, and a "
                    "translation cannot have them; leave them out"
                )
        return [ids.tolist() for ids in encoded]

    def _as_text(self, hypotheses: Sequence[Hypothesis]) -> list[Translation]:
        texts = self.tokenizer.decode([hypothesis.ids for hypothesis in hypotheses])
        return [
            # Byte pieces can spell line breaks.
            Translation(" ".join(text.split()), hypothesis.score)
            for text, hypothesis in zip(texts, hypotheses, strict=True)
        ]


class ModelTranslator(TextTranslator):
    """Translates with a model; subclasses provide the tags and adapters of directions.

    Args:
        model: In evaluation mode.
        tokenizer: The one that the model was trained with.
        evaluation: How to search, unless a call says otherwise.
        max_sentence_tokens: Longest training sentence, end mark included.
    """

    def __init__(
        self,
        model: Seq2Seq,
        tokenizer: Tokenizer,
        evaluation: EvaluationConfig,
        max_sentence_tokens: int,
    ) -> None:
        super().__init__(tokenizer, evaluation, max_sentence_tokens)
        self.model = model
        self._states: dict[Direction, DirectionState] = {}
        self._num_texts = self._num_long = 0

    @abstractmethod
    def prepare(self, direction: Direction) -> DirectionState:
        """Makes what a direction needs.

        Raises:
            LanguageError: The direction cannot be translated.
        """

    def check(
        self, direction: Direction, evaluation: EvaluationConfig, n_best: int, with_prefixes: bool
    ) -> None:
        """Refuses what cannot be translated; prefixes go with everything."""
        self._state(direction)
        check_options(evaluation, n_best)

    def search(
        self,
        direction: Direction,
        pieces: Sequence[Pieces],
        evaluation: EvaluationConfig,
        n_best: int,
        prefixes: Sequence[Sequence[int]] | None,
    ) -> list[list[Hypothesis]]:
        """Finds the best hypotheses of each text of one batch; see `search_n_best`."""
        state = self._state(direction)
        return search_n_best(
            self.model,
            self._prompts(state, pieces),
            state.adapters,
            evaluation,
            n_best=n_best,
            prefixes=prefixes,
        )

    def _state(self, direction: Direction) -> DirectionState:
        """Returns what a direction needs; that of the last few is kept."""
        state = self._states.pop(direction, None) or self.prepare(direction)
        self._states[direction] = state  # the newest last
        if len(self._states) > _KEPT_DIRECTIONS:
            del self._states[next(iter(self._states))]
        return state

    def _prompts(self, state: DirectionState, pieces: Sequence[Pieces]) -> Batch:
        prompts, _ = build_prompts(
            state.layout, np.zeros(len(pieces), np.int64), Ragged.from_sequences(pieces)
        )
        return Batch.from_micro_batch(prompts, self._device)

    @property
    def _device(self) -> torch.device:
        return self.model.embedding.weight.device

    def _warn_of_long(self, pieces: Sequence[Pieces]) -> None:
        """Warns of the first long texts, and whenever their number has one digit more."""
        limit, before = self.max_sentence_tokens, self._num_long
        lengths = [len(sentence) + 1 for sentence in pieces]
        self._num_texts += len(pieces)
        self._num_long += sum(length > limit for length in lengths)
        if len(str(self._num_long or "")) > len(str(before or "")):
            log.warning(
                "%d of %d texts so far are longer than the %d tokens of the longest training "
                "sentence (one has %d); they are translated whole, but expect poor translations: "
                "split them into sentences",
                *(self._num_long, self._num_texts, limit, max(lengths)),
            )


def require_languages(direction: Direction, languages: Sequence[str], what: str) -> None:
    """Checks that both languages of a direction are known.

    Args:
        direction: To translate.
        languages: Those that are known.
        what: Knows them, such as `run`.

    Raises:
        LanguageError: One is not; all that are known are listed, and the nearest is named.
    """
    for code in direction:
        if code not in languages:
            raise LanguageError(
                f"this {what} has no language {code!r}{nearest(code, languages)}; its languages "
                f"are {', '.join(languages)}"
            )


def tokenizer_folder(run_dir: Path, config: RunConfig) -> Path:
    """Returns where a run's tokenizer is: its own copy, which moves with it, or the data's."""
    own = run_dir / "tokenizer"
    return own if own.is_dir() else Path(config.data.folder) / "tokenizer"


def plain_text(text: str) -> str:
    """Writes a text as training text is written: composed characters, single spaces, no BOM."""
    return unicodedata.normalize("NFC", " ".join(text.replace("\ufeff", "").split()))


def _batches(pieces: Sequence[Pieces], size: int, usual_tokens: int) -> list[list[int]]:
    """Returns the texts' numbers in batches of similar length.

    The longest come first, so that too little memory shows at once.

    Args:
        pieces: Of each text.
        size: Texts in a batch. Where one is longer than usual, fewer, so that a batch needs no more
            memory than `size` texts of the usual length, or is that one text.
        usual_tokens: Most tokens of usual texts, end mark included.
    """
    order = sorted(range(len(pieces)), key=lambda row: len(pieces[row]), reverse=True)
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        longest = len(pieces[order[start]]) + 1
        stop = start + max(1, min(size, size * usual_tokens // longest))
        batches.append(order[start:stop])
        start = stop
    return batches


class Translator(ModelTranslator):
    """Translates between the languages of a run.

    Args:
        loaded: The model.
        tokenizer: The tokenizer it was trained with.
        config: The run's configuration; its evaluation group says how to search.

    Raises:
        CheckpointError: The tokenizer is not the one of the weights.
    """

    def __init__(self, loaded: LoadedModel, tokenizer: Tokenizer, config: RunConfig) -> None:
        if tokenizer.fingerprint != loaded.info.tokenizer:
            raise CheckpointError(
                f"the weights were trained with the tokenizer {loaded.info.tokenizer} of "
                f"{loaded.info.vocabulary.num_pieces} pieces, but {config.data.folder}/tokenizer "
                f"is {tokenizer.fingerprint} of {tokenizer.vocab_size}; it was made anew since. "
                "Set data.folder to the data the run was trained on"
            )
        limit = config.data.shards.max_sentence_tokens
        super().__init__(loaded.model, tokenizer, config.evaluation, limit)
        self.info: WeightsInfo = loaded.info
        self.config = config
        self._zero_shot: set[Direction] = set()

    @classmethod
    def from_run(cls, run_dir: Path, device: torch.device | str = "cpu") -> Translator:
        """Loads the newest checkpoint of a run folder, configured by its config.yaml.

        Raises:
            CheckpointError: There is no complete checkpoint, or it does not fit the configuration.
            ConfigError: config.yaml is missing or not valid.
            DataError: The tokenizer is missing or damaged.
        """
        config = load_config(RunConfig, run_dir / "config.yaml")
        path = choose_weights(run_dir, "newest", config.training.checkpoint)
        return cls.from_weights(path, run_dir, config, device)

    @classmethod
    def from_weights(
        cls, path: Path, run_dir: Path, config: RunConfig, device: torch.device | str = "cpu"
    ) -> Translator:
        """Loads a weights file of a run.

        Args:
            path: Of a checkpoint, or an average of several.
            run_dir: The run folder.
            config: The run's configuration, perhaps with another evaluation group.
            device: Where the model goes.

        Raises:
            CheckpointError: It does not fit the configuration.
            DataError: The tokenizer is missing or damaged.
        """
        loaded = load_model(path, config, device)
        return cls(loaded, Tokenizer.load(tokenizer_folder(run_dir, config)), config)

    @torch.inference_mode()
    def prepare(self, direction: Direction) -> DirectionState:
        """Makes the tags and adapters of one direction.

        Raises:
            LanguageError: A language is not among the run's, or it cannot translate the direction.
        """
        self._check(direction)
        vocabulary = self.info.vocabulary
        only = self.config.data.model_copy(update={"directions": (str(direction),)})
        layout = BatchLayout.from_config(only, vocabulary.num_pieces)
        # A direction that was not trained has no number, and no kind of adapter asks for it.
        known = direction in vocabulary.directions
        number = vocabulary.directions.index(direction) if known else 0
        keys = [layout.src_language_D, layout.tgt_language_D, np.array([number])]
        adapters = self.model.adapter_weights(
            *(torch.from_numpy(key).to(self._device) for key in keys)
        )
        return DirectionState(layout, adapters)

    def _check(self, direction: Direction) -> None:
        vocabulary = self.info.vocabulary
        require_languages(direction, vocabulary.languages, "run")
        if direction.src == direction.tgt:
            raise LanguageError(
                f"source and target are both {direction.src!r}; choose two languages"
            )
        if direction in vocabulary.directions:
            return
        if self.config.model.adapter.kind == "direction":
            trained = ", ".join(map(str, vocabulary.directions))
            raise LanguageError(
                f"this run was not trained to translate {direction}, and its direction adapters "
                f"exist for trained directions only: {trained}"
            )
        if direction not in self._zero_shot:
            self._zero_shot.add(direction)
            log.warning("%s was not in the training data: this is zero-shot translation", direction)
