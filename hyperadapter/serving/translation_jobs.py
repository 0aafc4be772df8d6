"""Which files to translate, in which directions, and how translations are written.

text     the best translation
table    number of the line from 1, score and text, parted by tabs; a line for each translation
json     {"src": ..., "translations": [{"text": ..., "score": ...}]}; a line for each sentence
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.languages import Direction
from hyperadapter.evaluation.pool import DecodingSpec, search_identity
from hyperadapter.evaluation.text_files import (
    OutputFile,
    Render,
    TextFile,
    TranslationJob,
    inspect_text,
    output_files,
)
from hyperadapter.evaluation.translate import Translation

__all__ = ["RENDERS", "OutputFormat", "Patterns", "choose_directions", "name_file", "plan_jobs"]

log = logging.getLogger(__name__)

OutputFormat: TypeAlias = Literal["text", "table", "json"]


class Patterns(NamedTuple):
    """Names of files, in which `{src}` and `{tgt}` stand for a direction's languages."""

    input: str
    output: str
    prefixes: str | None = None


def choose_directions(sources: Sequence[str], targets: Sequence[str]) -> list[Direction]:
    """Returns every source with every target that is another language.

    Raises:
        ConfigError: None is left.
    """
    pairs = [Direction(src, tgt) for src, tgt in product(sources, targets)]
    same = [direction for direction in pairs if direction.src == direction.tgt]
    if len(same) == len(pairs):
        raise ConfigError(
            f"--src {','.join(sources)} and --tgt {','.join(targets)} are the same language; "
            "choose two languages"
        )
    if same:
        log.info("left out, being one language: %s", ", ".join(map(str, same)))
    return [direction for direction in dict.fromkeys(pairs) if direction not in same]


def plan_jobs(
    patterns: Patterns,
    directions: Sequence[Direction],
    spec: DecodingSpec,
    weights: str,
    written_as: OutputFormat,
    overwrite: bool,
) -> list[TranslationJob]:
    """Reads all inputs once, and says what is to be translated to where.

    Args:
        patterns: Names of the files.
        directions: What to translate.
        spec: How.
        weights: Checksum of the model's.
        written_as: How translations are written.
        overwrite: Whether outputs that are made from something else may be replaced.

    Raises:
        ConfigError: Two directions have one output, or a file that is read would be written.
        DataError: An input is missing, damaged, or not UTF-8, or prefixes are not as many.
    """
    outputs = _outputs(patterns, directions)
    texts: dict[Path, TextFile] = {}

    def inspected(pattern: str, direction: Direction, option: str) -> TextFile:
        path = name_file(pattern, direction)
        if path not in texts:
            texts[path] = inspect_text(path, option)
        return texts[path]

    search = search_identity(spec.evaluation)
    # Changes rounding only, and fewer of them help where memory ran out.
    del search["batch_sentences"]
    jobs = []
    for direction, output in outputs.items():
        source = inspected(patterns.input, direction, "--input")
        prefixes = patterns.prefixes and inspected(patterns.prefixes, direction, "--prefixes")
        if prefixes and prefixes.lines != source.lines:
            raise DataError(
                f"{prefixes.path} has {prefixes.lines:,} lines but {source.path} has "
                f"{source.lines:,}; give one prefix for each sentence, which may be empty"
            )
        made_from: dict[str, Any] = {
            "direction": str(direction),
            "weights": weights,
            "input": source.sha256,
            "prefixes": prefixes.sha256 if prefixes else None,
            "format": written_as,
            "n_best": spec.n_best,
            **search,
        }
        file = OutputFile(output, made_from, overwrite)
        jobs.append(TranslationJob(direction, source, prefixes or None, file))
    return jobs


def name_file(pattern: str, direction: Direction) -> Path:
    """Fills a direction's languages into the name of a file."""
    return Path(pattern.replace("{src}", direction.src).replace("{tgt}", direction.tgt))


def _outputs(patterns: Patterns, directions: Sequence[Direction]) -> dict[Direction, Path]:
    read = {
        name_file(pattern, direction).resolve()
        for pattern in (patterns.input, patterns.prefixes)
        for direction in directions
        if pattern
    }
    outputs = {direction: name_file(patterns.output, direction) for direction in directions}
    found: dict[Path, Direction] = {}
    for direction, path in outputs.items():
        other = found.setdefault(path.resolve(), direction)
        if other != direction:
            raise ConfigError(
                f"--output {patterns.output} is one file for {other} and {direction}; write "
                "{src} and {tgt} into its name, such as {src}-{tgt}.txt"
            )
        for file in output_files(path):
            if file.resolve() in read:
                raise ConfigError(
                    f"--output {path} would write {file}, which is a file that is read; choose "
                    "another"
                )
    return outputs


def _render_text(first: int, texts: Sequence[str], found: Sequence[Sequence[Translation]]) -> str:
    return "".join(f"{best.text}\n" for best, *_ in found)


def _render_table(first: int, texts: Sequence[str], found: Sequence[Sequence[Translation]]) -> str:
    return "".join(
        f"{number}\t{score:.4f}\t{text}\n"
        for number, translations in enumerate(found, first)
        for text, score in translations
    )


def _render_json(first: int, texts: Sequence[str], found: Sequence[Sequence[Translation]]) -> str:
    rows = (
        {"src": text, "translations": [{"text": t, "score": round(s, 4)} for t, s in translations]}
        for text, translations in zip(texts, found, strict=True)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


RENDERS: dict[OutputFormat, Render] = {
    "text": _render_text,
    "table": _render_table,
    "json": _render_json,
}
