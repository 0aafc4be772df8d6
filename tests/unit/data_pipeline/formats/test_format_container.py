"""Folders, files and zip archives under one roof."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from data_pipeline.formats.container import Container
from hyperadapter.core.errors import DataError


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_all_roots_have_one_sorted_list_of_names(tmp_path: Path) -> None:
    wheel = make_zip(tmp_path / "z.whl", {"x/de.po": b"1", "x/": b""})
    folder = tmp_path / "a"
    make_zip(folder / "share" / "locales.zip", {"de/messages.mo": b"2"})
    (folder / "b.po").write_bytes(b"3")
    single = tmp_path / "c" / "fr.po"
    single.parent.mkdir()
    single.write_bytes(b"4")
    with Container([wheel, folder, single]) as container:
        contents = {
            name.removeprefix(f"{tmp_path}/"): container.read(name) for name in container.names
        }
        assert list(container.names) == sorted(container.names)
    assert contents == {
        "a/b.po": b"3",
        "a/share/locales.zip/de/messages.mo": b"2",
        "c/fr.po": b"4",
        "z.whl/x/de.po": b"1",
    }


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.whl does not exist; fetch the sources"):
        Container([tmp_path / "nothing.whl"])


def test_an_archive_that_is_no_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(b"<html>proxy error</html>")
    good = make_zip(tmp_path / "a.whl", {"a": b""})
    with pytest.raises(DataError, match=r"x\.whl is not a readable archive .*fetch it again"):
        Container([good, path])


def test_a_damaged_member_and_a_file_that_went_away(tmp_path: Path) -> None:
    wheel = make_zip(tmp_path / "x.whl", {"de.po": b"message"})
    wheel.write_bytes(wheel.read_bytes().replace(b"message", b"massage"))
    gone = tmp_path / "y.po"
    gone.touch()
    with Container([wheel, gone]) as container:
        gone.unlink()
        with pytest.raises(DataError, match=r"x\.whl/de\.po cannot be read \(Bad CRC-32"):
            container.read(f"{wheel}/de.po")
        with pytest.raises(DataError, match=r"y\.po cannot be read .*No such file"):
            container.read(str(gone))


def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "po" / "secret").mkdir(parents=True)
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"po/secret cannot be read \(Permission denied\)"):
        Container([tmp_path])
