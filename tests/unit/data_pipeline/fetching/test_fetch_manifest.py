"""The record of files: checksums are taken again when, and only when, something has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_pipeline.fetching import fetch_manifest
from data_pipeline.fetching.fetch_manifest import FetchManifest, SourcePath, describe, read_manifest
from hyperadapter.core.errors import DataError

EMPTY = FetchManifest(files=())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "catalogs"
    (path / "de").mkdir(parents=True)
    (path / "de" / "a.po").write_text("a")
    (path / "b.po").write_text("bb")
    return path


def manifest_of(*paths: Path, known: FetchManifest = EMPTY) -> FetchManifest:
    items = [SourcePath(f"source{number}", path) for number, path in enumerate(paths)]
    return describe(items, known, workers=1)


def test_a_folder_is_one_entry_that_follows_its_files(folder: Path) -> None:
    first = manifest_of(folder)
    assert len(first.files) == 1
    (folder / "b.po").write_text("cc")
    changed = manifest_of(folder, known=first)
    (folder / "b.po").rename(folder / "de" / "b.po")
    moved = manifest_of(folder, known=changed)
    (folder / "de" / "a.po").unlink()
    shorter = manifest_of(folder, known=moved)
    assert len({m.fingerprint for m in (first, changed, moved, shorter)}) == 4


def test_what_did_not_change_is_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = manifest_of(folder, folder / "b.po")
    monkeypatch.setattr(fetch_manifest, "sha256_file", lambda path: pytest.fail(f"read {path}"))
    assert manifest_of(folder, folder / "b.po", known=first) == first


def test_a_fingerprint_is_that_of_the_contents(folder: Path) -> None:
    manifest = manifest_of(folder, folder / "b.po")
    copy = folder.parent / "copy.po"
    copy.write_text("bb")
    os.utime(copy, ns=(1, 1))
    elsewhere = manifest_of(folder, copy)
    assert elsewhere != manifest
    assert elsewhere.fingerprint == manifest.fingerprint
    copy.write_text("dd")
    other = manifest_of(folder, copy)
    assert other.fingerprint != manifest.fingerprint
    assert other.fingerprint_of("source0") == manifest.fingerprint_of("source0")
    assert other.fingerprint_of("source1") != manifest.fingerprint_of("source1")


def test_a_file_of_two_sources_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(fetch_manifest, "sha256_file", lambda path: read.append(path) or "0" * 64)
    first, second = manifest_of(folder / "b.po", folder / "b.po").files
    assert (first.sha256, len(read)) == (second.sha256, 1)


def test_a_file_that_is_not_there_names_its_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source 'source0': .*none\.tsv cannot be read: No such"):
        manifest_of(tmp_path / "none.tsv")


def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "fetch.json"
    assert read_manifest(path) == EMPTY
    path.write_text('{"files": [{"source": "x"}]}')
    assert read_manifest(path) == EMPTY
