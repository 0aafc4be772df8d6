"""A trained model with rows for one language more.

A new language adds rows at the ends of tensors (see `rows.py`) and changes no other number, so what
the model does for the others stays the same bit for bit, as long as nothing but the new rows is
fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from hyperadapter.checkpoint.weights import WeightsInfo, load_info
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import LanguageError, nearest
from hyperadapter.core.languages import Direction, family_of, parse_language
from hyperadapter.core.schema import parse_config
from hyperadapter.extension.rows import LanguageRows, Rows
from hyperadapter.model.parts import NamedRows, named_rows, part_of, stack_keys
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training.start import take_over

__all__ = ["ExtendedModel", "NewLanguage", "extend_config"]


class NewLanguage(NamedTuple):
    """The language to add, and the one on the other side of its text.

    Attributes:
        code: Of the new language.
        pivot: A language of the model.
    """

    code: str
    pivot: str

    @property
    def directions(self) -> tuple[Direction, Direction]:
        """Out of the pivot, and into it."""
        return Direction(self.pivot, self.code), Direction(self.code, self.pivot)


def extend_config(config: RunConfig, new: NewLanguage, run_dir: Path) -> RunConfig:
    """Returns the configuration of the run that knows one language more.

    Languages and directions get their new ones at the end, because their order numbers the rows.

    Args:
        config: Of the trained run.
        new: The language to add.
        run_dir: Of the new run, whose name becomes that of the folder.

    Raises:
        LanguageError: The code is none, the model has the language, or it has no such pivot.
    """
    known = config.data.languages
    if parse_language(new.code) != new.code:
        raise LanguageError(f"write the language {new.code!r} as {parse_language(new.code)!r}")
    if new.code in known:
        raise LanguageError(
            f"this run knows {new.code!r} already; name a language that is not among "
            f"{', '.join(known)}, or train on with `training.start_from`"
        )
    if new.pivot not in known:
        raise LanguageError(
            f"this run has no language {new.pivot!r}{nearest(new.pivot, known)}; the other side of "
            f"the pairs must be one of {', '.join(known)}"
        )
    tree = config.model_dump(mode="json")
    tree["name"], tree["run_dir"] = run_dir.name, str(run_dir)
    data = tree["data"]
    data["languages"] = [*known, new.code]
    directions = [*config.data.resolved_directions(), *new.directions]
    data["directions"] = [str(direction) for direction in directions]
    return parse_config(RunConfig, tree, "the extended run")


class ExtendedModel(LanguageRows):
    """A model with new rows, which begin as they were drawn.

    Args:
        weights: The trained run's weights file.
        config: From `extend_config`.
        new: The language.
        device: Where the model goes.

    Attributes:
        model: In evaluation mode.
        info: What the trained weights say about themselves, with the new vocabulary.
        candidates: Languages whose rows can stand in for the new ones.

    Raises:
        CheckpointError: The weights are missing, damaged, or do not fit the configuration.
        LanguageError: No language was trained in both directions with the pivot.
    """

    def __init__(
        self,
        weights: Path,
        config: RunConfig,
        new: NewLanguage,
        device: torch.device | str = "cpu",
    ) -> None:
        info = load_info(weights)
        vocabulary = Vocabulary(
            info.vocabulary.num_pieces, config.data.languages, config.data.resolved_directions()
        )
        self.new, self.config = new, config
        model = Seq2Seq(config.model, vocabulary)
        # Rows of new languages are drawn where nothing stands in for them.
        model.reset_parameters(torch.Generator().manual_seed(config.training.seed))
        take_over(weights, model, info.tokenizer)
        keys = stack_keys(config.model.adapter, vocabulary)
        self.info = info._replace(vocabulary=vocabulary, adapter_keys=keys)
        places: dict[str, list[int]] = {}
        self._names: dict[str, NamedRows] = {}
        for name, weight in model.named_parameters():
            before = named_rows(name, info.vocabulary, info.adapter_keys)
            now = named_rows(name, vocabulary, keys)
            if before is not None and now is not None and len(now.names) > len(before.names):
                self._names[name] = now
                places[name] = list(range(now.first + len(before.names), len(weight)))
        super().__init__(model.to(device).eval().requires_grad_(False), places)
        self.candidates = _candidates(info, new)

    def names(self, parameter: str) -> tuple[str, ...]:
        """Returns whose a parameter's new rows are; none where there are none."""
        if parameter not in self._names:
            return ()
        return self._names[parameter].names[-len(self._places[parameter]) :]

    def rows_of(self, code: str) -> Rows:
        """Returns what stands for a known language where the new rows stand for the new one."""
        found = {}
        for name, (first, names) in self._names.items():
            theirs = [self._stand_in(name, text, code) for text in self.names(name)]
            rows = [first + names.index(text) for text in theirs]
            found[name] = self._weights[name].detach()[rows]
        return found

    def _stand_in(self, parameter: str, name: str, code: str) -> str:
        """Returns whose row stands for a known language where that of `name` is new."""
        adapter = self.config.model.adapter
        if adapter.kind == "family" and part_of(parameter) == "adapters":
            return adapter.families.get(code) or family_of(code)
        return _rename(name, self.new.code, code)


def _candidates(info: WeightsInfo, new: NewLanguage) -> tuple[str, ...]:
    trained = set(info.vocabulary.directions)
    found = tuple(
        code
        for code in info.vocabulary.languages
        if {Direction(new.pivot, code), Direction(code, new.pivot)} <= trained
    )
    if not found:
        raise LanguageError(
            f"this run was trained in both directions between {new.pivot} and no language, so "
            f"nothing can stand in for {new.code}; give pairs with another of its languages "
            f"({', '.join(info.vocabulary.languages)})"
        )
    return found


def _rename(name: str, new: str, known: str) -> str:
    """Returns the row of a known language, or of its direction, that matches a new one."""
    return "-".join(known if part == new else part for part in _parts(name, new))


def _parts(name: str, new: str) -> Sequence[str]:
    if name == new:
        return (name,)
    if name.endswith(f"-{new}"):
        return name.removesuffix(f"-{new}"), new
    if name.startswith(f"{new}-"):
        return new, name.removeprefix(f"{new}-")
    return (name,)
