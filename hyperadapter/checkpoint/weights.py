"""Weights in safetensors files: tensors and text, nothing that can run code.

A file's metadata holds what is needed to use it: the step, the fingerprint of the run, the number
of pieces, and the languages and directions in the order of their numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hyperadapter.config import RunConfig
from hyperadapter.core.errors import CheckpointError, LanguageError
from hyperadapter.core.files import translate_disk_full
from hyperadapter.core.languages import parse_direction
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary

__all__ = [
    "LoadedModel",
    "WeightsInfo",
    "load_info",
    "load_model",
    "load_weights",
    "save_tensors",
    "save_weights",
]

_SHOWN = 5


class WeightsInfo(NamedTuple):
    """What a weights file says about itself.

    Attributes:
        step: Optimizer steps taken.
        fingerprint: Of the run's configuration.
        vocabulary: Pieces, languages and directions that the weights were made for.
        tokenizer: Fingerprint of the tokenizer whose pieces these are.
        adapter_keys: Whose stored adapters these are, in order; none if nothing is stored.
    """

    step: int
    fingerprint: str
    vocabulary: Vocabulary
    tokenizer: str
    adapter_keys: tuple[str, ...] = ()

    def to_metadata(self) -> dict[str, str]:
        """Writes the fields as a file's metadata."""
        metadata = {
            "format": "pt",
            "step": str(self.step),
            "fingerprint": self.fingerprint,
            "tokenizer": self.tokenizer,
            "num_pieces": str(self.vocabulary.num_pieces),
            "languages": json.dumps(self.vocabulary.languages),
            "directions": json.dumps([str(direction) for direction in self.vocabulary.directions]),
        }
        if self.adapter_keys:
            metadata["adapter_keys"] = json.dumps(self.adapter_keys)
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], path: Path) -> WeightsInfo:
        """Reads the fields from the metadata of the file `path`.

        Raises:
            CheckpointError: A field is missing or cannot be read.
        """
        try:
            vocabulary = Vocabulary(
                num_pieces=int(metadata["num_pieces"]),
                languages=tuple(json.loads(metadata["languages"])),
                directions=tuple(map(parse_direction, json.loads(metadata["directions"]))),
            )
            return cls(
                step=int(metadata["step"]),
                fingerprint=metadata["fingerprint"],
                vocabulary=vocabulary,
                tokenizer=metadata["tokenizer"],
                adapter_keys=tuple(json.loads(metadata.get("adapter_keys", "[]"))),
            )
        except KeyError as error:
            raise CheckpointError(
                f"{path} has no {error.args[0]!r} in its metadata, so it was not written by a "
                "training run; use the weights.safetensors of a checkpoint folder"
            ) from error
        except (ValueError, TypeError, LanguageError) as error:
            raise CheckpointError(f"{path} has metadata that cannot be read: {error}") from error


class LoadedModel(NamedTuple):
    """A model in evaluation mode, and what its file says."""

    model: Seq2Seq
    info: WeightsInfo


def save_weights(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a model's tensors and metadata atomically; a tensor under two names is written twice.

    Args:
        path: The final name; its folder is made.
        state_dict: Tensors on any device.
        metadata: Text to go with them, for example `WeightsInfo.to_metadata()`.

    Raises:
        DiskFullError: The disk is full; the partial file has been removed.
    """
    save_tensors(path, _separate(state_dict), metadata)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes contiguous tensors of the CPU, each with memory of its own, and metadata atomically.

    Raises:
        DiskFullError: The disk is full; the partial file has been removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with translate_disk_full(path):
            _write(part, dict(tensors), dict(metadata))
            with open(part, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # The library is written in Rust, and its I/O errors keep their number in the text only.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), str(error), str(path)) from error


def _separate(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moves tensors to the CPU, each with memory of its own, as the format demands."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state_dict.items():
        tensor = tensor.detach().to("cpu").contiguous()
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return tensors


def load_info(path: Path) -> WeightsInfo:
    """Reads what a weights file says about itself, without its tensors.

    Raises:
        CheckpointError: The file is missing, damaged or of something else.
    """
    with _opened(path) as handle:
        return WeightsInfo.from_metadata(handle.metadata() or {}, path)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads a weights file to the CPU.

    Returns:
        The tensors, and the metadata.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    with _opened(path) as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        return tensors, dict(handle.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as handle:
            yield handle
    except FileNotFoundError as error:
        raise CheckpointError(f"the weights {path} do not exist{_neighbours(path)}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); use another checkpoint, or copy "
            "this one again"
        ) from error


def _neighbours(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    found = sorted(p.name for p in folder.glob("*.safetensors"))
    return f"; {folder} has {', '.join(found)}" if found else f"; {folder} has no *.safetensors"


def load_model(path: Path, config: RunConfig, device: torch.device | str = "cpu") -> LoadedModel:
    """Builds the model of a run and loads its weights, all of them and no others.

    Args:
        path: A weights file.
        config: The run's resolved configuration.
        device: Where the model goes.

    Returns:
        The model in evaluation mode.

    Raises:
        CheckpointError: The file is missing or damaged, or belongs to another configuration.
    """
    tensors, metadata = load_weights(path)
    info = WeightsInfo.from_metadata(metadata, path)
    _check_symbols(info.vocabulary, config, path)
    model = Seq2Seq(config.model, info.vocabulary)
    _check_tensors(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)
    return LoadedModel(model.to(device).eval(), info)


def _check_symbols(vocabulary: Vocabulary, config: RunConfig, path: Path) -> None:
    directions = tuple(map(str, config.data.resolved_directions()))
    for key, trained, wanted in (
        ("data.languages", vocabulary.languages, config.data.languages),
        ("data.directions", tuple(map(str, vocabulary.directions)), directions),
    ):
        if trained != wanted:
            raise CheckpointError(
                f"{path} was trained with {key} {_list(trained)}, but the configuration has "
                f"{_list(wanted)}; their order gives the numbers of embedding rows, so use the "
                "config.yaml of the same run folder"
            )


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    remedy = "use the config.yaml of the run that wrote it"
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f"lacks {len(missing)} tensors of the model: {_list(missing)}")
        if unexpected:
            near = get_close_matches(unexpected[0], missing, n=1)
            hint = f" (the model has {near[0]!r})" if near else ""
            parts.append(f"has {len(unexpected)} tensors unknown to it: {_list(unexpected)}{hint}")
        raise CheckpointError(f"{path} {' and '.join(parts)}; {remedy}")
    wrong = [name for name in expected if expected[name].shape != found[name].shape]
    if wrong:
        name = wrong[0]
        more = f", and {len(wrong) - 1} more tensors differ" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{path} has {name!r} of shape {list(found[name].shape)}, but the configured model's "
            f"is {list(expected[name].shape)}{more}; {remedy}"
        )


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
