"""Whatever way the state is cut by those who save, it can be cut otherwise by those who load."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hyperadapter.checkpoint.layout import WEIGHTS_FILE
from hyperadapter.checkpoint.pieces import (
    MOMENTS,
    Piece,
    PieceReader,
    join_weights,
    write_pieces,
)
from hyperadapter.checkpoint.weights import load_weights, save_weights
from hyperadapter.core.errors import CheckpointError

SHAPES = {"a": (5, 3), "b.c": (7,), "d/e": (2, 3, 4), "frozen": (4, 2)}


def state() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    kinds = {"weight": 0, **dict.fromkeys(MOMENTS, 0)}
    return {
        name: {kind: torch.randn(shape, generator=generator) for kind in kinds}
        for name, shape in SHAPES.items()
    }


def cut(tensors: dict[str, dict[str, Tensor]], bounds: dict[str, list[int]], rank: int,
        empty: bool = False) -> list[Piece]:  # fmt: skip
    """Returns the pieces of a rank, where `bounds` cuts each parameter."""
    pieces = []
    for name, kinds in tensors.items():
        numel = math.prod(SHAPES[name])
        edges = [0, *sorted(min(bound, numel) for bound in bounds[name]), numel]
        start, end = edges[rank], edges[rank + 1]
        flat = {kind: value.view(-1)[start:end] for kind, value in kinds.items()}
        if empty:
            flat = {kind: torch.full_like(value, math.nan) for kind, value in flat.items()}
        moments = {} if name == "frozen" else {key: flat[key] for key in MOMENTS}
        if end > start:
            pieces.append(Piece(name, SHAPES[name], start, flat["weight"], moments, False))
    return pieces


def save(folder: Path, bounds: dict[str, list[int]], ranks: int) -> None:
    for rank in range(ranks):
        write_pieces(folder, rank, ranks, cut(state(), bounds, rank), steps=17)
    save_weights(folder / WEIGHTS_FILE, join_weights(folder, ranks), {})


def cuts(ranks: int) -> st.SearchStrategy[dict[str, list[int]]]:
    places = st.lists(st.integers(0, 24), min_size=ranks - 1, max_size=ranks - 1)
    return st.fixed_dictionaries(dict.fromkeys(SHAPES, places))


@given(data=st.data(), saved=st.integers(1, 4), loaded=st.integers(1, 4))
def test_any_cut_can_be_loaded_as_any_other(
    data: st.DataObject, saved: int, loaded: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    save(folder, data.draw(cuts(saved)), saved)
    whole = load_weights(folder / WEIGHTS_FILE)[0]
    for name, kinds in state().items():
        assert whole[name].equal(kinds["weight"])
    bounds = data.draw(cuts(loaded))
    for rank in range(loaded):
        with PieceReader(folder) as reader:
            assert reader.steps == 17
            found = cut(state(), bounds, rank, empty=True)
            for piece, wanted in zip(found, cut(state(), bounds, rank), strict=True):
                reader.fill(piece)
                assert piece.weight.equal(wanted.weight)
                assert piece.moments.keys() == wanted.moments.keys()
                for key, moment in piece.moments.items():
                    assert moment.equal(wanted.moments[key])


def test_what_all_ranks_have_is_shared_out() -> None:
    numbers = torch.arange(11.0)
    piece = Piece("a", (11,), 0, numbers, {"exp_avg": 2 * numbers}, replicated=True)
    shares = [piece.share(rank, 4) for rank in range(4)]
    assert torch.cat([share.weight for share in shares]).equal(numbers)
    assert torch.cat([share.moments["exp_avg"] for share in shares]).equal(2 * numbers)
    assert [share.start for share in shares] == [0, 2, 5, 8]
    own = piece._replace(replicated=False, start=3)
    assert own.share(2, 4) is own


def test_ranks_that_write_elsewhere_are_noticed(tmp_path: Path) -> None:
    bounds = {name: [2] for name in SHAPES}
    write_pieces(tmp_path, 0, 2, cut(state(), bounds, 0), steps=1)
    with pytest.raises(CheckpointError, match=r"rank-00001.*all nodes share"):
        join_weights(tmp_path, 2)
    write_pieces(tmp_path, 1, 2, [], steps=1)
    with pytest.raises(CheckpointError, match=r"the 2 ranks did not write all of a into"):
        join_weights(tmp_path, 2)


def test_a_rank_whose_file_is_gone_is_named(tmp_path: Path) -> None:
    save(tmp_path, {name: [2] for name in SHAPES}, 2)
    (tmp_path / "optimizer" / "rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors cannot be read"):
        PieceReader(tmp_path)


def test_what_a_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    bounds: dict[str, list[int]] = {name: [] for name in SHAPES}
    save(tmp_path, bounds, 1)
    with PieceReader(tmp_path) as reader:
        frozen = torch.zeros(8)
        thawed = Piece("frozen", (4, 2), 0, frozen, {"exp_avg": frozen}, False)
        with pytest.raises(CheckpointError, match="lacks 8 numbers of frozen/exp_avg"):
            reader.fill(thawed)
        with pytest.raises(CheckpointError, match="has no z"):
            reader.fill(Piece("z", (2,), 0, torch.zeros(2), {}, False))
        other = Piece("a", (3, 5), 0, torch.zeros(15), {}, False)
        with pytest.raises(CheckpointError, match=r"a of shape \[5, 3\].*is \[3, 5\]"):
            reader.fill(other)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    save(tmp_path, {name: [] for name in SHAPES}, 1)
    path = tmp_path / "optimizer" / "rank-00000.safetensors"
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors cannot be read"):
        PieceReader(tmp_path)
