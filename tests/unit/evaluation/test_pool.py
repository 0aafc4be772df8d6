"""Translating in several processes: order, errors, and what must not depend on their number."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from hyperadapter.config import EvaluationConfig
from hyperadapter.core.errors import DataError, HyperAdapterError, LanguageError
from hyperadapter.core.schema import parse_config
from hyperadapter.evaluation import pool
from hyperadapter.evaluation.pool import (
    Chunk,
    DecodingSpec,
    search_identity,
    threads_of,
    translate_all,
)
from hyperadapter.evaluation.translate import Translation, Translator

MakeRun = Callable[..., Any]
TEXTS = ["Open the file", "", "Save the last image now", "page", "Close the old menu", "new page"]
SETTINGS = EvaluationConfig()


class Made:
    """A translator without a model, which says where it works."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def translate_n_best(
        self, texts: Sequence[str], src: str, tgt: str, *_: Any, **__: Any
    ) -> list[list[Translation]]:
        if "kill" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "large" in texts:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4"
            )
        if "raise" in texts:
            raise LanguageError("there is no language 'x'")
        says = f"{os.getpid()} {self.device} {torch.get_num_threads()} "
        return [[Translation(says + text, 0.0)] for text in texts]


def refuse(device: torch.device) -> Made:
    raise HyperAdapterError(f"no model for {device}")


def chunks_of(*texts: str) -> list[Chunk]:
    return [Chunk("en", "de", [text]) for text in texts]


def made(load: Callable[..., Any] = Made) -> DecodingSpec:
    return DecodingSpec(load, SETTINGS)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_processes_translate_as_one(tiny_run: MakeRun, two_threads: None) -> None:
    run = tiny_run()
    path = next((run.run_dir / "checkpoints").glob("*/weights.safetensors"))
    load = partial(Translator.from_weights, path, run.run_dir, run.config)
    spec = DecodingSpec(load, run.config.evaluation, n_best=2)
    chunks = [
        Chunk(src, tgt, TEXTS[start:])
        for src, tgt in (("en", "de"), ("fr", "en"))
        for start in range(4)
    ]
    several = [chunk.translations for chunk in translate_all(spec, chunks, 2)]
    torch.set_num_threads(1)  # as each of the two
    alone = [chunk.translations for chunk in translate_all(spec, chunks)]
    assert several == alone
    assert [len(chunk) for chunk in alone] == [6, 5, 4, 3] * 2
    translator = load("cpu")
    assert [row[0].text for row in alone[5]] == translator.translate(TEXTS[1:], "fr", "en")


def test_one_process_is_this_one_and_takes_one_chunk_at_a_time() -> None:
    chunks = iter(chunks_of("a", "b", "c"))
    translated = translate_all(made(), chunks)
    assert next(translated).translations[0][0].text.startswith(f"{os.getpid()} cpu ")
    assert [chunk.texts for chunk in chunks] == [["b"], ["c"]]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_nothing_to_do_loads_nothing(num_processes: int) -> None:
    assert list(translate_all(made(refuse), [], num_processes)) == []


def test_errors_come_through_after_what_was_done_before() -> None:
    translated = translate_all(made(), chunks_of("a", "raise", "b"))
    assert next(translated).translations
    with pytest.raises(LanguageError, match="there is no language 'x'"):
        next(translated)
    with pytest.raises(HyperAdapterError, match="no model for cpu"):
        list(translate_all(made(refuse), chunks_of("a")))


def test_a_process_that_is_killed_ends_the_call(two_threads: None) -> None:
    translated = translate_all(made(), chunks_of("a", "b", "kill", "c", "d", "e"), 2)
    for text in "ab":
        chunk = next(translated)
        process, *says = chunk.translations[0][0].text.split()
        assert says == ["cpu", "1", text]
        assert process != str(os.getpid())
        assert chunk.seconds >= 0
    with pytest.raises(
        DataError,
        match=r"worker process died.*memory.*with fewer --processes \(\S+\) if it happens twice$",
    ):
        list(translated)


def test_too_little_memory_of_a_gpu_is_said() -> None:
    with pytest.raises(DataError) as error:
        list(translate_all(made(), [Chunk("en", "de", ["a", "large"])]))
    assert str(error.value) == (
        "cpu ran out of memory with 2 sentences of en-de (CUDA out of memory. Tried to allocate "
        "2.00 GiB); run with a smaller evaluation.batch_sentences or --batch-sentences (now 64), "
        "or with fewer --processes on one GPU"
    )


def test_a_process_keeps_freed_memory_as_the_command_does(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(pool, "keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr(pool, "_worker", None)
    pool._begin(made(), torch.get_num_threads(), logging.WARNING, 0)
    assert called == [True]


def test_processes_share_the_threads_of_one(two_threads: None) -> None:
    assert [threads_of(count) for count in (1, 2, 3)] == [2, 1, 1]


def test_progress_of_chunks_is_nobodys_business(
    tiny_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny_run()
    path = next((run.run_dir / "checkpoints").glob("*/weights.safetensors"))
    load = partial(Translator.from_weights, path, run.run_dir, run.config)
    with caplog.at_level(logging.INFO):
        list(translate_all(DecodingSpec(load, SETTINGS), [Chunk("en", "de", TEXTS)]))
    assert "translating en-de" not in caplog.text


def test_the_identity_of_a_search() -> None:
    old = {
        "beam_size": 4,
        "length_penalty": 1.0,
        "max_length_ratio": 1.5,
        "max_length_extra": 10,
        "batch_sentences": 64,
    }
    # What older versions wrote: their translations stay known.
    assert search_identity(SETTINGS) == old
    same = {"num_processes": 4, "metrics": ["bleu", "chrf", "chrfpp", "ter"], "max_sentences": 5}
    assert search_identity(parse_config(EvaluationConfig, same, "x")) == old
    changes: list[dict[str, Any]] = [
        {"coverage_penalty": 0.5},
        {"no_repeat_ngram": 3},
        {"sampling": {}},
        {"sampling": {"seed": 2}},
        {"beam_size": 5},
    ]
    identities = [search_identity(parse_config(EvaluationConfig, c, "x")) for c in changes]
    assert all(identity != old for identity in identities)
    assert all(a != b for n, a in enumerate(identities) for b in identities[:n])


def test_other_decoding_is_another_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = search_identity(SETTINGS)
    monkeypatch.setattr(pool, "_DECODING", 2)
    second = search_identity(SETTINGS)
    monkeypatch.setattr(pool, "_DECODING", 3)
    assert second == before | {"decoding": 2}
    assert search_identity(SETTINGS) == before | {"decoding": 3}
