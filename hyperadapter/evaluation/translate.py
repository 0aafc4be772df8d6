"""Text to text: a trained run as a translator."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.progress import track
from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_prompts
from data_pipeline.tokenizer import Tokenizer
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import LoadedModel, WeightsInfo, load_model
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, LanguageError, nearest
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import load_config
from hyperadapter.evaluation.search import beam_search
from hyperadapter.model.adapters import AdapterWeights
from hyperadapter.model.batch import Batch

__all__ = ["Translator", "choose_device"]

log = logging.getLogger(__name__)

Pieces = NDArray[np.int32]


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Returns the device of a configuration's `device` key; `auto` is a GPU if there is one.

    Raises:
        ConfigError: A GPU was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "training.device is cuda, but torch sees no GPU; use device: cpu, or install a CUDA "
            "build of torch and check the driver"
        )
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


class _DirectionState(NamedTuple):
    """What one direction needs: its tags, and its adapters, made once."""

    layout: BatchLayout
    adapters: AdapterWeights | None


class Translator:
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
        self.model = loaded.model
        self.info: WeightsInfo = loaded.info
        self.tokenizer = tokenizer
        self.config = config
        self._states: dict[Direction, _DirectionState] = {}

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
        # A run folder has its own copy, so that it works wherever it is put.
        own = run_dir / "tokenizer"
        tokenizer = Tokenizer.load(own if own.is_dir() else Path(config.data.folder) / "tokenizer")
        return cls(loaded, tokenizer, config)

    def translate(self, texts: Sequence[str], src: str, tgt: str) -> list[str]:
        """Translates texts.

        Args:
            texts: One sentence each; an empty one gives an empty translation.
            src: Language of the texts, as in data.languages.
            tgt: Language to translate to.

        Returns:
            One translation for each text, in order, each on one line.

        Raises:
            LanguageError: A language is not among the run's, or the run cannot translate the
                direction.
        """
        state = self._state(src, tgt)
        filled = [index for index, text in enumerate(texts) if text.strip()]
        pieces = self.tokenizer.encode([texts[index] for index in filled])
        self._warn_of_long(pieces)
        translations = [""] * len(texts)
        for rows, outputs in self._iter_batches(state, pieces, f"translating {src}-{tgt}"):
            for row, text in zip(rows, self.tokenizer.decode(outputs), strict=True):
                # Byte pieces can spell line breaks.
                translations[filled[row]] = " ".join(text.split())
        return translations

    def _iter_batches(
        self, state: _DirectionState, pieces: Sequence[Pieces], title: str
    ) -> Iterator[tuple[list[int], list[tuple[int, ...]]]]:
        """Yields the texts' numbers and their translations' pieces, batch by batch.

        Batches hold texts of similar length, the longest first, so that too little memory shows
        at once.
        """
        size = self.config.evaluation.batch_sentences
        order = sorted(range(len(pieces)), key=lambda row: len(pieces[row]), reverse=True)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for rows in track(batches, len(batches), title):
            yield rows, self._search(state, [pieces[row] for row in rows])

    def _search(self, state: _DirectionState, pieces: Sequence[Pieces]) -> list[tuple[int, ...]]:
        prompts, _ = build_prompts(
            state.layout, np.zeros(len(pieces), np.int64), Ragged.from_sequences(pieces)
        )
        batch = Batch.from_micro_batch(prompts, self._device)
        found = beam_search(self.model, batch, state.adapters, self.config.evaluation)
        return [hypothesis.ids for hypothesis in found]

    @property
    def _device(self) -> torch.device:
        return self.model.embedding.weight.device

    def _warn_of_long(self, pieces: Sequence[Pieces]) -> None:
        limit = self.config.data.shards.max_sentence_tokens
        lengths = [len(sentence) + 1 for sentence in pieces]
        count = sum(length > limit for length in lengths)
        if count:
            log.warning(
                "%d of %d texts are longer than the %d tokens of the longest training sentence "
                "(the longest has %d); they are translated whole, but expect poor translations: "
                "split them into sentences",
                *(count, len(pieces), limit, max(lengths)),
            )

    def _state(self, src: str, tgt: str) -> _DirectionState:
        direction = Direction(src, tgt)
        if direction not in self._states:
            self._check(direction)
            self._states[direction] = self._prepare(direction)
        return self._states[direction]

    def _check(self, direction: Direction) -> None:
        vocabulary = self.info.vocabulary
        for code in direction:
            if code not in vocabulary.languages:
                raise LanguageError(
                    f"this run has no language {code!r}{nearest(code, vocabulary.languages)}; its "
                    f"languages are {', '.join(vocabulary.languages)}"
                )
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
        log.warning("%s was not in the training data: this is zero-shot translation", direction)

    @torch.inference_mode()
    def _prepare(self, direction: Direction) -> _DirectionState:
        """Makes the adapters of one direction."""
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
        return _DirectionState(layout, adapters)
