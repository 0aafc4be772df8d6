"""Files that others made cannot run code or write elsewhere.

Every attack here writes a marker file if it works; one test makes sure that it would.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.formats.container import Container
from data_pipeline.shards.reader import read_member
from hyperadapter.checkpoint import layout
from hyperadapter.checkpoint.pieces import PieceReader, write_pieces
from hyperadapter.checkpoint.weights import load_info, load_weights, save_tensors
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import CheckpointError, ConfigError
from hyperadapter.core.files import write_json
from hyperadapter.core.schema import load_config


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"


def test_the_attack_works_on_who_unpickles(marker: Path) -> None:
    pickle.loads(pickle.dumps(Attack(marker)))
    assert marker.exists()


@pytest.mark.parametrize("torch_format", [False, True])
def test_pickles_in_place_of_weights_are_refused(
    torch_format: bool, marker: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "weights.safetensors"
    path.parent.mkdir()
    if torch_format:
        torch.save({"weight": Attack(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(Attack(marker)))
    for read in (load_weights, load_info, lambda path: PieceReader(path.parent)):
        with pytest.raises(CheckpointError):
            read(path)
    assert not marker.exists()


def test_pickles_beside_the_weights_are_not_opened(marker: Path, tmp_path: Path) -> None:
    """Such as other tools leave in a folder of theirs."""
    tensor = torch.ones(2)
    save_tensors(tmp_path / "weights.safetensors", {"w": tensor}, {})
    write_pieces(tmp_path, 0, 1, [], steps=1)
    for name in ("optimizer/rank-00000.pt", "state/mp_rank_00_model_states.pt", "rng.pkl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save({"x": Attack(marker)}, tmp_path / name)
    with PieceReader(tmp_path):
        pass
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "optimizer/../../outside"])
def test_a_manifest_names_files_of_its_checkpoint_only(name: str, tmp_path: Path) -> None:
    folder = layout.checkpoint_folder(tmp_path, 1)
    record = {"bytes": 1, "sha256": "0"}
    tree = {"step": 1, "fingerprint": "f", "world_size": 1, "zero_stage": 0, "precision": "fp32",
            "data": "d", "files": {name: record}}  # fmt: skip
    write_json(folder / "manifest.json", tree)
    with pytest.raises(CheckpointError, match="lies outside of the checkpoint"):
        layout.verify(folder)


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:pathlib.Path.touch [{marker}]",
        "name: !!python/object/new:os.system ['touch {marker}']",
        "!!python/name:os.system ''",
    ],
)
def test_configs_run_no_code(text: str, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text.format(marker=marker))
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(RunConfig, path)
    assert not marker.exists()


def test_members_of_a_tar_are_bytes_and_not_paths(marker: Path, tmp_path: Path) -> None:
    """A block is read by its offset; names, links and devices in the tar mean nothing."""
    path = tmp_path / "shards" / "x.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("../marker")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, str(marker)
        tar.addfile(link)
    crc32 = zlib.crc32(path.read_bytes()[: 512 + 4])
    assert read_member(str(path), 0, 4, crc32) == b"evil"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["shards", "x.tar"]


def test_an_archive_of_catalogs_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "in" / "x.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../marker.po", "evil")
    with Container([path]) as container:
        (name,) = container.names
        assert container.read(name) == b"evil"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "x.whl"]
