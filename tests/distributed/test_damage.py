"""Damaged shards while real ranks train: nothing is lost silently, nothing hangs."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hyperadapter.core.events import read_metric
from tests.distributed.runs import Train, losses

pytestmark = pytest.mark.distributed


def flip(path: Path, first_member: int = 0) -> None:
    """Flips one bit in the payload of some token members of a tar."""
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = [member for member in tar if "tokens" in member.name]
    for member in members[first_member:]:
        data[member.offset_data + 150] ^= 4
    path.write_bytes(data)


@pytest.fixture
def shards(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the shards that may be damaged."""
    return Path(shutil.copytree(corpus / "data" / "shards", tmp_path / "shards"))


def settings(shards: Path, **more: Any) -> list[str]:
    values = {"data.shards_folder": shards, "data.stream.max_lost_fraction": 0.9} | more
    return [f"{key}={value}" for key, value in values.items()]


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_ranks_agree_on_what_is_left_out(
    damage: Callable[[Path], None], shards: Path, train: Train, tmp_path: Path
) -> None:
    bad = next(shards.glob("train/en-fr-*.tar"))
    damage(bad)
    for name, processes in (("one", 1), ("two", 2)):
        done = train(name, *settings(shards), f"training.num_processes={processes}")
        assert done.returncode == 0, done.stderr[-3000:]
        assert "blocks are left out" in done.stderr
        assert str(bad) in done.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 12
    assert two == pytest.approx(one, rel=2e-5)
    records = [
        json.loads((tmp_path / name / "quarantine.json").read_text()) for name in ("one", "two")
    ]
    blocks = [{entry["block"] for entry in record["blocks"]} for record in records]
    assert blocks[0]
    assert blocks[0] == blocks[1]
    (_, lost) = read_metric(tmp_path / "two", "data/lost_blocks")[-1]
    assert lost == len(blocks[1])
    assert read_metric(tmp_path / "two", "data/lost_sentence_pairs")[-1][1] > 0


def test_a_run_over_damage_resumes_as_if_uninterrupted(
    shards: Path, train: Train, tmp_path: Path
) -> None:
    flip(next(shards.glob("train/en-fr-*.tar")))
    changes = [*settings(shards), "training.num_processes=2", "training.zero_stage=2",
               "training.checkpoint.every_steps=5", "training.checkpoint.keep=9"]  # fmt: skip
    done = train("whole", *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    part = Path(shutil.copytree(tmp_path / "whole", tmp_path / "part"))
    for folder in (part / "checkpoints").iterdir():
        if not folder.name.endswith("05"):
            shutil.rmtree(folder)
    (part / "events.jsonl").unlink()
    done = train("part", *changes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "blocks are left out as before" in done.stderr
    whole, resumed = losses(tmp_path / "whole"), losses(part)
    assert list(resumed) == list(range(6, 13))
    assert resumed == {step: whole[step] for step in resumed}


def test_too_much_damage_ends_the_run_with_a_reason(
    shards: Path, train: Train, tmp_path: Path
) -> None:
    bad = next(shards.glob("train/en-fr-*.tar"))
    bad.unlink()
    done = train("run", *settings(shards, **{"data.stream.max_lost_fraction": 0.01}),
                 "training.num_processes=2")  # fmt: skip
    assert done.returncode == 1
    assert "more than data.stream.max_lost_fraction 1.00% allows" in done.stderr
    assert str(bad) in done.stderr
    assert not (tmp_path / "run" / "quarantine.json").exists()  # when it is back, the run goes on


def test_only_the_checksum_can_tell(
    corpus: Path, shards: Path, train: Train, tmp_path: Path
) -> None:
    """The file keeps its size and its headers; loader processes read it."""
    flip(next(shards.glob("train/en-de-*.tar")), first_member=4)
    done = train("run", *settings(shards), "training.num_processes=2",
                 "data.stream.memory_bytes=1", "data.stream.workers=2")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "has the CRC-32" in done.stderr
    lost = json.loads((tmp_path / "run" / "quarantine.json").read_text())["blocks"]
    assert len(lost) > 0
