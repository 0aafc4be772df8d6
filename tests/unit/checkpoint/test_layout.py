from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from hyperadapter.checkpoint import layout
from hyperadapter.config import CheckpointConfig
from hyperadapter.core.errors import CheckpointError
from hyperadapter.core.schema import parse_config

VALUES = {"fingerprint": "f", "world_size": 2, "zero_stage": 2, "precision": "fp32", "data": "d"}


def save(run_dir: Path, step: int) -> Path:
    part = layout.new_part_folder(run_dir, step)
    (part / "state").mkdir()
    (part / "state" / "rank0.pt").write_bytes(b"0123456789")
    (part / "weights.safetensors").write_bytes(b"abc")
    return layout.commit(part, step=step, values=VALUES)


def test_only_what_has_a_manifest_exists(tmp_path: Path) -> None:
    assert layout.complete_checkpoints(tmp_path) == []
    with pytest.raises(CheckpointError, match=r"holds no complete checkpoint; train first"):
        layout.newest_checkpoint(tmp_path)
    first, second = save(tmp_path, 5), save(tmp_path, 10)
    layout.new_part_folder(tmp_path, 15)
    (second / "manifest.json").unlink()
    assert layout.complete_checkpoints(tmp_path) == [(5, first)]
    assert layout.newest_checkpoint(tmp_path) == first
    assert layout.verify(first).step == 5


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (900_000_000, 20, 3):
        save(tmp_path, step)
    assert [step for step, _ in layout.complete_checkpoints(tmp_path)] == [3, 20, 900_000_000]


def test_saving_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    assert layout.verify(save(tmp_path, 5)).files.keys() == {
        "state/rank0.pt",
        "weights.safetensors",
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"rank0\.pt is missing"),
        (lambda path: path.write_bytes(b"01234"), r"rank0\.pt has 5 bytes instead of 10"),
        (lambda path: path.write_bytes(b"0123456780"), r"rank0\.pt has a wrong checksum"),
    ],
)
def test_damage_is_named_with_its_remedy(damage: object, message: str, tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    damage(folder / "state" / "rank0.pt")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=message):
        layout.verify(folder)


def test_a_broken_manifest_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    (folder / "manifest.json").write_text('{"step": 5')
    with pytest.raises(CheckpointError, match=r"is not a whole checkpoint"):
        layout.verify(folder)


def keep(**keys: object) -> CheckpointConfig:
    return parse_config(CheckpointConfig, {"every_steps": 1, **keys}, "test")


def steps(run_dir: Path) -> list[int]:
    return [step for step, _ in layout.complete_checkpoints(run_dir)]


def test_prune_keeps_the_newest_and_removes_parts(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    layout.new_part_folder(tmp_path, 9)
    layout.prune(tmp_path, keep(keep=2))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]


def test_prune_keeps_multiples_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 9):
        save(tmp_path, step)
    for step, value in ((2, 0.5), (3, 0.1), (4, float("nan")), (5, 0.9), (6, 0.2)):
        layout.note_value(tmp_path, "valid/macro/nll", step, value)
    config = keep(keep=1, keep_best=2, keep_every_steps=4)
    assert [step for step, _ in layout.best_checkpoints(tmp_path, config)] == [3, 6, 2, 5]
    layout.prune(tmp_path, config)
    assert steps(tmp_path) == [3, 4, 6, 8]
    highest = keep(keep=1, keep_best=1, best_is="highest")
    layout.prune(tmp_path, highest)
    assert steps(tmp_path) == [6, 8]


def test_values_of_another_metric_are_forgotten(tmp_path: Path) -> None:
    save(tmp_path, 1)
    layout.note_value(tmp_path, "a", 1, 0.5)
    layout.note_value(tmp_path, "b", 2, 0.5)
    assert layout.best_checkpoints(tmp_path, keep(best_metric="a")) == []
    assert layout.best_checkpoints(tmp_path, keep(best_metric="b")) == []  # no such checkpoint


def test_what_is_set_aside_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    aside = layout.set_aside(save(tmp_path, 2))
    assert aside.name == "step-00000002.damaged"
    assert steps(tmp_path) == [1]
    layout.prune(tmp_path, keep(keep=1))
    assert aside.is_dir()


def test_weights_are_chosen_by_name(tmp_path: Path) -> None:
    folders = {step: save(tmp_path, step) for step in (1, 2, 3)}
    layout.note_value(tmp_path, "valid/macro/nll", 2, 0.5)
    file = tmp_path / "mean.safetensors"
    file.write_bytes(b"x")
    config = keep()
    for which, step in (("newest", 3), ("best", 2), ("1", 1)):
        expected = folders[step] / "weights.safetensors"
        assert layout.choose_weights(tmp_path, which, config) == expected
    assert layout.choose_weights(tmp_path, str(file), config) == file
    with pytest.raises(CheckpointError, match=r"'7' is neither newest.*\(1, 2, 3\), nor a weights"):
        layout.choose_weights(tmp_path, "7", config)
    with pytest.raises(CheckpointError, match=r"no checkpoint whose other is known"):
        layout.choose_weights(tmp_path, "best", keep(best_metric="other"))


def test_a_changed_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    path = folder / "manifest.json"
    text = path.read_text()
    for old, new in (
        ('"data": "d"', '"data": "e"'),
        ('"step": 5', '"step": 4'),
        ("rank0", "rank1"),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(CheckpointError, match=r"not a whole checkpoint: .* was changed"):
            layout.verify(folder)
    path.write_text(text)
    layout.verify(folder)


def test_what_cannot_be_read_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, 5)

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(layout, "sha256_file", fail)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*Input/output error"):
        layout.verify(folder)


def test_another_format_is_not_damage(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    del tree["checksum"], tree["zero_stage"]
    path.write_text(json.dumps(tree))
    with pytest.raises(layout.OtherFormatError, match=r"another version of hyperadapter"):
        layout.verify(folder)


def test_what_cannot_be_removed_stays_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A network file system keeps what somebody reads."""
    old = save(tmp_path, 1)
    save(tmp_path, 2)
    remove = shutil.rmtree

    def busy(path: Path, **keys: bool) -> None:
        if path == old:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(path, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        layout.prune(tmp_path, keep(keep=1))
    assert "cannot be removed now" in caplog.text
    assert old.exists()
    assert steps(tmp_path) == [2]
    layout.prune(tmp_path, keep(keep=1))
    assert not old.exists()


def test_files_of_other_nodes_must_be_there(tmp_path: Path) -> None:
    part = layout.new_part_folder(tmp_path, 5)
    with pytest.raises(FileNotFoundError):
        layout.commit(part, step=5, values=VALUES, names=["optimizer/rank-00001.safetensors"])
    assert steps(tmp_path) == []
