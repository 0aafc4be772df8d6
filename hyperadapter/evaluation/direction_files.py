"""The files of one evaluated direction: what was translated, from what, and how it scored.

A direction whose weights, settings and sources are the same is not translated again; one whose
texts are the same too is not scored again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import Field

from hyperadapter.core.errors import ConfigError, DataError
from hyperadapter.core.files import read_json, sha256_file, write_json, write_text
from hyperadapter.core.schema import StrictModel, parse_config
from hyperadapter.evaluation.results import DirectionResult, read_lines

__all__ = ["Decoded", "DirectionFiles", "digest"]

log = logging.getLogger(__name__)

_SCORING = 1  # one more where our own part of scores or rates changes


class Decoded(StrictModel):
    """What `<direction>.json` holds: the manifest of the three text files.

    Attributes:
        fingerprint: Of the weights, the settings and the sources.
        sentences: How many there are.
        decoding_s: Seconds that translating took.
        hyp_sha256: Checksum of the file of translations.
        scored: Of what `result` is made; empty before there is one.
        result: The scores and rates.
    """

    fingerprint: str
    sentences: int
    decoding_s: float
    hyp_sha256: str
    scored: str = Field(default="")
    result: DirectionResult | None = Field(default=None)


def digest(*values: Any) -> str:
    """Returns the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class DirectionFiles:
    """The files of one direction in the folder of an evaluation.

    Args:
        folder: Of the evaluation.
        name: Of the direction.
        fingerprint: Of the weights, the settings and the sources.
    """

    def __init__(self, folder: Path, name: str, fingerprint: str) -> None:
        self._folder, self._name, self._fingerprint = folder, name, fingerprint
        self._manifest, self._hyp = folder / f"{name}.json", folder / f"{name}.hyp.txt"
        self._decoded = self._read()

    @property
    def decoded(self) -> bool:
        """Says whether the translations are there."""
        return self._decoded is not None

    def translations(self) -> list[str]:
        """Reads the translations."""
        return read_lines(self._hyp)

    def save(
        self, src: Sequence[str], ref: Sequence[str], hyp: Sequence[str], decoding_s: float
    ) -> None:
        """Writes the texts, and what they are last."""
        self.save_sides(src, ref)
        _write_lines(self._hyp, hyp)
        self._decoded = Decoded(
            fingerprint=self._fingerprint,
            sentences=len(hyp),
            decoding_s=decoding_s,
            hyp_sha256=sha256_file(self._hyp),
        )
        self._write()

    def save_sides(self, src: Sequence[str], ref: Sequence[str]) -> None:
        """Writes sources and references: they may have been lost, or changed without the others."""
        _write_lines(self._folder / f"{self._name}.src.txt", src)
        _write_lines(self._folder / f"{self._name}.ref.txt", ref)

    def result(
        self, basis: Sequence[Any], score: Callable[[Decoded], DirectionResult]
    ) -> DirectionResult:
        """Returns what was scored before, or scores.

        Args:
            basis: What scores and rates depend on besides the translations, as plain values.
            score: Computes them.
        """
        assert self._decoded is not None
        packages = [_SCORING, version("sacrebleu"), version("py3langid")]
        scored = digest(self._decoded.hyp_sha256, packages, *basis)
        if self._decoded.result is None or self._decoded.scored != scored:
            update = {"scored": scored, "result": score(self._decoded)}
            self._decoded = self._decoded.model_copy(update=update)
            self._write()
        assert self._decoded.result is not None
        return self._decoded.result

    def _read(self) -> Decoded | None:
        if not (self._manifest.is_file() and self._hyp.is_file()):
            return None
        try:
            found = self._parse(read_json(self._manifest))
        except (ConfigError, DataError) as error:
            log.warning("%s is decoded again: %s", self._name, error)
            return None
        if found.fingerprint != self._fingerprint or found.hyp_sha256 != sha256_file(self._hyp):
            return None
        log.info("%s was decoded before with the same weights and settings", self._name)
        return found

    def _parse(self, tree: Any) -> Decoded:
        """Parses a manifest; scores that cannot be read do not take translations with them."""
        try:
            return parse_config(Decoded, tree, str(self._manifest))
        except ConfigError as error:
            if not isinstance(tree, dict):
                raise
            rest = {key: tree[key] for key in tree.keys() - {"scored", "result"}}
            found = parse_config(Decoded, rest, str(self._manifest))
            log.warning("%s is scored again: %s", self._name, error)
            return found

    def _write(self) -> None:
        assert self._decoded is not None
        write_json(self._manifest, self._decoded.model_dump(mode="json"))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    write_text(path, "".join(f"{line}\n" for line in lines))
