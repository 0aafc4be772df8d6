"""Translates chunks of text in one process or several, in order and with little memory.

How a text is cut into chunks is the caller's matter and does not depend on the number of
processes, and neither do the translations: a chunk is sorted by length, batched and searched by
one process alone. Processes do differ in their number of threads, and with it in rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch

from data_pipeline.progress import quiet
from data_pipeline.workers import ordered_map
from hyperadapter.config import EvaluationConfig
from hyperadapter.core.errors import DataError
from hyperadapter.core.heap import keep_freed_memory
from hyperadapter.evaluation.translate import TextTranslator, Translation

__all__ = [
    "Chunk",
    "DecodingSpec",
    "TranslatedChunk",
    "search_identity",
    "threads_of",
    "translate_all",
]

_DECODING = 1  # one more where the same settings come to find other translations
_REMEDY = "fewer --processes (evaluation.num_processes)"
# What translations depend on; new metrics do not ask for new translations.
_SEARCH_FIELDS = {
    "beam_size",
    "length_penalty",
    "max_length_ratio",
    "max_length_extra",
    "batch_sentences",
}
# Came later: they count where they change something, so that older translations stay known.
_LATER_FIELDS = {"coverage_penalty", "no_repeat_ngram", "sampling"}


class Chunk(NamedTuple):
    """Sentences of one direction that one process translates in one go.

    Attributes:
        src: Their language.
        tgt: That of the translations.
        texts: The sentences.
        prefixes: What each translation must begin with.
    """

    src: str
    tgt: str
    texts: list[str]
    prefixes: list[str] | None = None


class TranslatedChunk(NamedTuple):
    """What became of a chunk.

    Attributes:
        translations: For each sentence, the best first.
        seconds: That its process took, without loading the model.
    """

    translations: list[list[Translation]]
    seconds: float


class DecodingSpec(NamedTuple):
    """What a process needs to translate; it can be pickled.

    Attributes:
        load: Loads the model to a device: a function at the top level of a module, or a partial one
            of it.
        evaluation: How to search.
        device: `cpu`, `cuda` or one of several GPUs, such as `cuda:1`. Several processes take all
            GPUs one after the other.
        n_best: Translations of each sentence.
    """

    load: Callable[[torch.device], TextTranslator]
    evaluation: EvaluationConfig
    device: str = "cpu"
    n_best: int = 1


def search_identity(evaluation: EvaluationConfig) -> dict[str, Any]:
    """Returns what translations depend on besides the weights and the texts."""
    later = evaluation.model_dump(mode="json", include=_LATER_FIELDS, exclude_defaults=True)
    version = {"decoding": _DECODING} if _DECODING > 1 else {}  # the first wrote none
    return evaluation.model_dump(mode="json", include=_SEARCH_FIELDS) | later | version


def threads_of(num_processes: int) -> int:
    """Returns how many threads each process has: all together as many as one would have alone."""
    return max(1, torch.get_num_threads() // num_processes)


def translate_all(
    spec: DecodingSpec, chunks: Iterable[Chunk], num_processes: int = 1
) -> Generator[TranslatedChunk, None, None]:
    """Yields the translations of chunks, in their order.

    All chunks of a sequence are begun at once; of an iterator two for each process are held. The
    model is loaded when there is a first one. One process is this one.

    Raises:
        DataError: A process died, or a GPU has too little memory.
        HyperAdapterError: What loading or translating raised.
    """
    if num_processes == 1:
        worker = _Worker(spec, torch.device(spec.device))
        yield from map(worker.translate, chunks)
        return
    begin = partial(_begin, spec, threads_of(num_processes), logging.getLogger().level)
    yield from ordered_map(_translate, chunks, "translating", num_processes, begin, _REMEDY)


class _Worker:
    """Translates chunks in its process."""

    def __init__(self, spec: DecodingSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._translator: TextTranslator | None = None

    def translate(self, chunk: Chunk) -> TranslatedChunk:
        """Translates one chunk; loads the model before the first."""
        try:
            return self._translate(chunk)
        except torch.OutOfMemoryError as error:
            told = ". ".join(str(error).split(". ")[:2])
            raise DataError(
                f"{self._device} ran out of memory with {len(chunk.texts)} sentences of "
                f"{chunk.src}-{chunk.tgt} ({told}); run with a smaller evaluation.batch_sentences "
                f"or --batch-sentences (now {self._spec.evaluation.batch_sentences}), or with "
                "fewer --processes on one GPU"
            ) from error

    def _translate(self, chunk: Chunk) -> TranslatedChunk:
        if self._translator is None:
            self._translator = self._spec.load(self._device)
        started = time.perf_counter()
        with quiet():
            found = self._translator.translate_n_best(
                chunk.texts,
                chunk.src,
                chunk.tgt,
                self._spec.evaluation,
                n_best=self._spec.n_best,
                prefixes=chunk.prefixes,
            )
        return TranslatedChunk(found, time.perf_counter() - started)


# Of a process that `translate_all` started.
_worker: _Worker | None = None


def _begin(spec: DecodingSpec, num_threads: int, level: int, number: int) -> None:
    """Sets a process up; the model comes with the first chunk, so that errors reach the caller."""
    global _worker
    logging.basicConfig(
        # Its progress is nobody's business, its warnings are.
        level=max(level, logging.WARNING),
        format=f"%(asctime)s process {number} %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    torch.set_num_threads(num_threads)
    keep_freed_memory()  # as the command has done for itself
    device = torch.device(spec.device)
    if device.type == "cuda":
        device = torch.device("cuda", number % torch.cuda.device_count())
        torch.cuda.set_device(device)
    _worker = _Worker(spec, device)


def _translate(chunk: Chunk) -> TranslatedChunk:
    assert _worker is not None
    return _worker.translate(chunk)
