"""One translator of `benchmarks.serving`, from text to text, in a process of its own.

    python -m benchmarks.serving_task NAME TASK.json

It builds the translator, translates everything once (its outputs, and the warm-up), and then obeys
stdin: `batched` times all sentences in one call, `single` one call for each of the first few.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import memory_mb
from benchmarks.processes import PeakMemory, serve, timed

__all__ = ["NAMES", "ServingTask"]

TextToText = Callable[[Sequence[str]], list[str]]


@dataclasses.dataclass(frozen=True, slots=True)
class ServingTask:
    """What all translators share; written as JSON for the processes that measure them.

    Attributes:
        folders: What was exported, by the name of the translator.
        src: Source language.
        tgt: Target language.
        texts: All sentences.
        single: How many of them are translated one by one.
        threads: Of each translator.
        beam_size: Hypotheses of each sentence.
        length_penalty: Of the search.
        max_length_ratio: Longest output over the source.
        max_length_extra: Pieces allowed on top of it.
        batch_sentences: Sentences translated together.
    """

    folders: dict[str, str]
    src: str
    tgt: str
    texts: list[str]
    single: int
    threads: int
    beam_size: int
    length_penalty: float
    max_length_ratio: float
    max_length_extra: int
    batch_sentences: int

    @classmethod
    def read(cls, path: Path) -> ServingTask:
        """Reads what `write` wrote, and sets torch's threads."""
        task = cls(**json.loads(path.read_text(encoding="utf-8")))
        torch.set_num_threads(task.threads)
        return task

    def write(self, path: Path) -> None:
        """Writes JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def _build_ours(task: ServingTask, folder: Path) -> TextToText:
    import hyperadapter

    model = hyperadapter.load(folder, "cpu")
    sizes: dict[str, Any] = {
        "beam_size": task.beam_size, "batch_sentences": task.batch_sentences
    }  # fmt: skip
    return lambda texts: model.translate(texts, task.src, task.tgt, **sizes)


def _build_ctranslate2(task: ServingTask, folder: Path) -> TextToText:
    from hyperadapter.serving.ctranslate2 import CTranslate2Translator

    translator = CTranslate2Translator(folder, "cpu")
    evaluation = translator.evaluation.model_copy(
        update={"beam_size": task.beam_size, "batch_sentences": task.batch_sentences}
    )
    return lambda texts: translator.translate(texts, task.src, task.tgt, evaluation)


def _build_huggingface(task: ServingTask, folder: Path) -> TextToText:
    """In favour of transformers: batches of similar length, and a search that ends a sentence with
    its K-th finished hypothesis, as the others do."""
    from transformers import M2M100ForConditionalGeneration, M2M100Tokenizer

    tokenizer: Any = M2M100Tokenizer.from_pretrained(folder)
    model: Any = M2M100ForConditionalGeneration.from_pretrained(folder).eval()

    @torch.inference_mode()
    def translate(texts: Sequence[str]) -> list[str]:
        found = [""] * len(texts)
        lengths = [len(ids) for ids in tokenizer(list(texts)).input_ids]
        order = sorted(range(len(texts)), key=lengths.__getitem__, reverse=True)
        for first in range(0, len(order), task.batch_sentences):
            rows = order[first : first + task.batch_sentences]
            batch = tokenizer([texts[row] for row in rows], return_tensors="pt", padding=True)
            longest = int(lengths[rows[0]] * task.max_length_ratio) + task.max_length_extra
            out = model.generate(
                **batch,
                num_beams=task.beam_size,
                length_penalty=task.length_penalty,
                early_stopping=task.beam_size > 1,
                max_length=None,
                max_new_tokens=longest + 1,
            )
            decoded = tokenizer.batch_decode(out, skip_special_tokens=True)
            for row, text in zip(rows, decoded, strict=True):
                found[row] = " ".join(text.split())
        return found

    return translate


_BUILDERS: dict[str, tuple[str, Callable[[ServingTask, Path], TextToText]]] = {
    "hyperadapter": ("torch", _build_ours),
    "ctranslate2 float32": ("ctranslate2", _build_ctranslate2),
    "ctranslate2 int8": ("ctranslate2", _build_ctranslate2),
    "transformers": ("transformers", _build_huggingface),
}
NAMES = tuple(_BUILDERS)
"""Of the translators."""


def _import(package: str) -> str:
    """Imports what a translator needs and returns the package's version."""
    importlib.import_module("hyperadapter.serving.loader")
    module = importlib.import_module(package)
    if package == "transformers":  # it imports a model's code when it is asked for
        for name in ("M2M100ForConditionalGeneration", "M2M100Tokenizer"):
            getattr(module, name)
    return f"{package} {importlib.metadata.version(package)}"


def _start(name: str, path: Path) -> tuple[dict[str, Any], Callable[[str], dict[str, Any]]]:
    task = ServingTask.read(path)
    package, build = _BUILDERS[name]
    version = _import(package)
    memory = PeakMemory("cpu")
    begin = time.perf_counter()
    translate = build(task, Path(task.folders[name]))
    load_s = time.perf_counter() - begin
    outputs = translate(task.texts)

    def single() -> list[float]:
        seconds = []
        for text in task.texts[: task.single]:
            begin = time.perf_counter()
            translate([text])
            seconds.append(time.perf_counter() - begin)
        return seconds

    def answer(what: str) -> dict[str, Any]:
        if what == "single":
            return {"latencies_s": single()}
        found = timed(lambda: translate(task.texts), "cpu")
        del found["result"]
        return {
            **found,
            "peak_beyond_imports_mb": memory.read() / 1e6,
            "peak_rss_mb": memory_mb()["peak_rss_mb"],
        }

    return {"version": version, "load_s": load_s, "outputs": outputs}, answer


def main() -> None:
    """Obeys stdin, see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("task", type=Path)
    arguments = parser.parse_args()
    serve(lambda: _start(arguments.name, arguments.task))


if __name__ == "__main__":
    main()
