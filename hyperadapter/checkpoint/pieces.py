"""The state of training in pieces: any number of processes and any ZeRO stage can read it.

    weights.safetensors                 every parameter whole, fp32
    optimizer/rank-00000.safetensors    Adam's two moments of what rank 0 updates, fp32
    weights/rank-00000.safetensors      its weights, until they are joined in weights.safetensors

A piece is a range of a parameter that is laid out as one row of numbers, so it does not matter how
a sharding cuts: who loads reads those ranges of the files that overlap with its own. Everything is
safetensors: nothing in a checkpoint can run code.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hyperadapter.checkpoint.layout import WEIGHTS_FILE
from hyperadapter.checkpoint.weights import save_tensors
from hyperadapter.core.errors import CheckpointError

__all__ = ["MOMENTS", "Piece", "PieceReader", "join_weights", "optimizer_files", "write_pieces"]

MOMENTS = ("exp_avg", "exp_avg_sq")
_OPTIMIZER, _WEIGHTS = "optimizer", "weights"


class Piece(NamedTuple):
    """A range of one parameter, and what the optimizer keeps of it.

    Attributes:
        name: The parameter.
        shape: Of the whole parameter.
        start: First number of the range.
        weight: The numbers [n].
        moments: Tensors [n] by the names of `MOMENTS`; none of a frozen parameter.
        replicated: Every rank has the whole of it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    weight: Tensor
    moments: Mapping[str, Tensor]
    replicated: bool

    def share(self, rank: int, size: int) -> Piece:
        """Returns the range that a rank saves: its own, or its share of what every rank has."""
        if not self.replicated:
            return self
        numel = self.weight.numel()
        first, end = (numel * n // size for n in (rank, rank + 1))
        moments = {key: value[first:end] for key, value in self.moments.items()}
        return self._replace(start=first, weight=self.weight[first:end], moments=moments)


def optimizer_files(ranks: int) -> list[str]:
    """Returns the files of the moments, relative to the checkpoint's folder."""
    return [f"{_OPTIMIZER}/{_file(rank)}" for rank in range(ranks)]


def _file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def write_pieces(folder: Path, rank: int, ranks: int, pieces: Iterable[Piece], steps: int) -> None:
    """Writes what one rank saves.

    Args:
        folder: Of the checkpoint; no other rank writes the same files.
        rank: This rank.
        ranks: How many save.
        pieces: On the CPU, fp32; of each parameter one at most.
        steps: Updates that the optimizer has made.

    Raises:
        DiskFullError: The disk is full.
    """
    places: dict[str, dict[str, Any]] = {}
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for piece in pieces:
        places[piece.name] = {"start": piece.start, "shape": piece.shape}
        weights[piece.name] = piece.weight
        moments |= {f"{piece.name}/{key}": value for key, value in piece.moments.items()}
    metadata = {"pieces": json.dumps(places), "steps": str(steps), "ranks": str(ranks)}
    for kind, tensors in ((_WEIGHTS, weights), (_OPTIMIZER, moments)):
        save_tensors(folder / kind / _file(rank), tensors, metadata)


def join_weights(folder: Path, ranks: int) -> dict[str, Tensor]:
    """Puts the weights of so many ranks together and removes their files.

    Files are opened by name: a network file system may not list yet what other nodes wrote.

    Raises:
        CheckpointError: They are not there, or do not make up whole parameters.
    """
    weights: dict[str, Tensor] = {}
    left: dict[str, int] = {}
    paths = [folder / _WEIGHTS / _file(rank) for rank in range(ranks)]
    for path in paths:
        with _opened(path) as file:
            for name, place in json.loads(file.metadata()["pieces"]).items():
                part = file.get_tensor(name)
                if name not in weights:
                    numel = math.prod(place["shape"])
                    weights[name] = torch.empty(place["shape"])
                    left[name] = numel
                weights[name].view(-1)[place["start"] :][: part.numel()] = part
                left[name] -= part.numel()
    wrong = [name for name, numel in left.items() if numel]
    if wrong:
        raise CheckpointError(f"the {ranks} ranks did not write all of {wrong[0]} into {folder}")
    for path in paths:
        path.unlink()
    (folder / _WEIGHTS).rmdir()
    return weights


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        handle = safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); the run folder must lie on a disk that all nodes "
            "share"
        ) from error
    with handle as file:
        yield file


class PieceReader:
    """Reads any range of any parameter from a checkpoint; a context manager.

    Attributes:
        steps: Updates that the optimizer had made.

    Raises:
        CheckpointError: A file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._weights = self._stack.enter_context(_opened(folder / WEIGHTS_FILE))
        self._moments: dict[str, list[tuple[int, int, Any]]] = defaultdict(list)
        self.steps = 0
        rank, ranks = 0, 1
        while rank < ranks:
            file = self._stack.enter_context(_opened(folder / _OPTIMIZER / _file(rank)))
            rank, ranks = rank + 1, int(file.metadata()["ranks"])
            self.steps = int(file.metadata()["steps"])
            places = json.loads(file.metadata()["pieces"])
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                start = places[key.rpartition("/")[0]]["start"]
                numel = file.get_slice(key).get_shape()[0]
                self._moments[key].append((start, start + numel, file))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stack.close()

    @torch.no_grad()
    def fill(self, piece: Piece) -> None:
        """Copies a piece's numbers from the files into its tensors.

        Raises:
            CheckpointError: The checkpoint does not have them, or has another shape.
        """
        if piece.weight.numel():
            piece.weight.copy_(self._weight(piece))
        for key, moment in piece.moments.items():
            left = moment.numel()
            for first, last, part in self._overlaps(f"{piece.name}/{key}", piece):
                moment[first:last].copy_(part)
                left -= last - first
            if left:
                raise CheckpointError(
                    f"{self._folder} lacks {left} numbers of {piece.name}/{key}; what is trained "
                    "now was frozen then, or a file is gone: start a new run from its weights "
                    "(training.start_from)"
                )

    def _weight(self, piece: Piece) -> Tensor:
        """Reads as many whole rows as the piece touches, and cuts it out of them."""
        try:
            whole = self._weights.get_slice(piece.name)
        except SafetensorError as error:
            raise CheckpointError(f"{self._folder} has no {piece.name}") from error
        if tuple(whole.get_shape()) != piece.shape:
            raise CheckpointError(
                f"{self._folder} has {piece.name} of shape {whole.get_shape()}, but this model's "
                f"is {list(piece.shape)}"
            )
        row = math.prod(piece.shape[1:])
        first, end = piece.start // row, -(-(piece.start + piece.weight.numel()) // row)
        rows: Tensor = whole[first:end] if piece.shape else whole[...]
        return rows.reshape(-1)[piece.start - first * row :][: piece.weight.numel()]

    def _overlaps(self, key: str, piece: Piece) -> Iterator[tuple[int, int, Tensor]]:
        """Yields (first, end, numbers): places in the piece, and what belongs there."""
        for start, end, file in self._moments.get(key, ()):
            low = max(start, piece.start)
            high = min(end, piece.start + piece.weight.numel())
            if low < high:
                part = file.get_slice(key)[low - start : high - start]
                yield low - piece.start, high - piece.start, part
