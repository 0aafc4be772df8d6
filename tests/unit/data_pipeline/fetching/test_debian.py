"""Packages are read member by member; what is damaged is an error that names the file."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.fetching.debian import (
    UnpackJob,
    deb_name,
    find_deb,
    is_unpacked,
    iter_members,
    unpack,
)
from hyperadapter.core.errors import DataError, FetchError
from tests.deb_files import ar_archive, compress, tar_archive, write_deb

EVERYTHING = re.compile("")
CATALOG = "usr/share/locale/de/LC_MESSAGES/x.mo"
FILES = {CATALOG: b"catalog", "usr/share/doc/x/copyright": b"GPL", "usr/bin/odd": b"\x7fELF" * 333}


def members(deb: Path) -> dict[str, bytes]:
    return dict(iter_members(deb, EVERYTHING))


def job_of(deb: Path, format_name: str = "gettext", sha256: str = "0" * 64) -> UnpackJob:
    return UnpackJob(deb, sha256, format_name, deb.with_suffix(".zip"))


def unpacked(deb: Path, format_name: str = "gettext") -> dict[str, bytes]:
    job = job_of(deb, format_name)
    count = unpack(job)
    with zipfile.ZipFile(job.target) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert count == len(content)
    return content


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
def test_a_package_is_read_whole(tmp_path: Path, suffix: str) -> None:
    assert members(write_deb(tmp_path / "x.deb", FILES, suffix)) == FILES


names = st.text("abcdefg", min_size=1, max_size=12)


@given(st.dictionaries(names, st.binary(max_size=50)), st.dictionaries(names, st.binary()))
def test_the_members_around_the_data_do_not_matter(
    tmp_path: Path, before: dict[str, bytes], files: dict[str, bytes]
) -> None:
    data = compress(tar_archive(files), ".gz")
    (tmp_path / "x.deb").write_bytes(ar_archive({**before, "data.tar.gz": data, "_last": b"odd"}))
    assert members(tmp_path / "x.deb") == files


@pytest.mark.parametrize("suffix", [".xz", ".gz", ".zst"])
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_package_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, cut: float) -> None:
    content = write_deb(tmp_path / "x.deb", FILES, suffix).read_bytes().rstrip(b"\n")
    (tmp_path / "x.deb").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=r"x\.deb is not a whole Debian package .*fetch it again"):
        members(tmp_path / "x.deb")


@pytest.mark.parametrize("suffix", [".xz", ".gz"])
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_damage_is_reported_or_does_no_harm(
    tmp_path: Path, suffix: str, place: float, value: int
) -> None:
    content = bytearray(write_deb(tmp_path / "x.deb", FILES, suffix).read_bytes())
    content[int(place * len(content))] = value
    (tmp_path / "x.deb").write_bytes(content)
    try:
        found = members(tmp_path / "x.deb")
    except DataError:
        return
    assert found == FILES


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"PK\x03\x04", "it does not begin as an ar archive does"),
        (ar_archive({"debian-binary": b"2.0\n"}), "it has no member data.tar"),
        (ar_archive({"data.tar.lz4": b""}), "data.tar.lz4 has a compression other than .xz"),
        (ar_archive({"data.tar.xz": b"no xz"}), "not supported by decoder"),
        (ar_archive({"a": b"x"}).replace(b"1         `", b"many      `"), "of its member 'a' is"),
        (ar_archive({"a": b""}).replace(b"`\n", b"``"), "damaged or cut off before byte 68"),
    ],
)
def test_what_is_no_package_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "x.deb").write_bytes(content)
    with pytest.raises(DataError) as caught:
        members(tmp_path / "x.deb")
    assert problem in str(caught.value)


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.deb is not a whole .*No such file"):
        members(tmp_path / "x.deb")


@pytest.mark.parametrize("name", ["/etc/x.mo", "usr/../../x.mo", "../x.mo"])
def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    deb = write_deb(tmp_path / "x.deb", {name: b""})
    with pytest.raises(DataError, match=r"x\.deb .*leads out of its folder"):
        unpack(job_of(deb))
    assert not job_of(deb).target.exists()


def test_links_are_left_out(tmp_path: Path) -> None:
    links = {"usr/share/locale/de/LC_TIME/x.mo": "../LC_MESSAGES/x.mo", "x.mo": "/etc/passwd"}
    assert set(unpacked(write_deb(tmp_path / "x.deb", FILES, links=links))) == {CATALOG}


@pytest.mark.parametrize(
    ("format_name", "read", "left"),
    [
        ("gettext", ["usr/share/po/de.po", "usr/locale/de/LC_MESSAGES/x.mo"], ["usr/x.mos"]),
        (
            "mediawiki",
            ["usr/mw/languages/i18n/de.json", "usr/mw/extensions/X/i18n/api/de.json"],
            ["usr/mw/composer.json", "usr/mw/i18n/de.php"],
        ),
        (
            "libreoffice_help",
            ["usr/share/libreoffice/help/de/text/shared/01/x.html"],
            ["usr/share/libreoffice/help/de/index.html", "usr/share/doc/x.html"],
        ),
        (
            "mallard",
            ["usr/share/help/C/app/index.page", "usr/share/help/de/app/legal.xml"],
            ["usr/share/help/C/app/figures/x.png", "usr/share/mime/x.xml"],
        ),
        ("ddtp", ["lists/Translation-de", "lists/Translation-pt_BR.xz"], ["lists/Packages"]),
    ],
)
def test_only_what_the_format_reads_is_unpacked(
    tmp_path: Path, format_name: str, read: list[str], left: list[str]
) -> None:
    deb = write_deb(tmp_path / "x.deb", {name: name.encode() for name in [*read, *left]})
    assert unpacked(deb, format_name) == {name: name.encode() for name in read}


def test_catalogs_in_an_inner_zip_get_the_names_that_gettext_gives_them(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as inner:
        for name in ("pt_BR/messages.mo", "pt_BR/lcdata", "../de/x.mo", "stats.mo"):
            inner.writestr(name, b"inner")
    deb = write_deb(tmp_path / "x.deb", {"usr/localization/locales.zip": stream.getvalue()})
    name = "usr/localization/locales/pt_BR/LC_MESSAGES/messages.mo"
    assert unpacked(deb) == {name: b"inner"}
    write_deb(deb, {"usr/locales.zip": b"no zip"})
    with pytest.raises(DataError, match=r"x\.deb: its member usr/locales\.zip is no readable zip"):
        unpacked(deb)


def test_what_was_unpacked_belongs_to_one_package_and_format(tmp_path: Path) -> None:
    job = job_of(write_deb(tmp_path / "x.deb", FILES))
    assert not is_unpacked(job)
    unpack(job)
    first = job.target.read_bytes()
    assert is_unpacked(job)
    assert not is_unpacked(job._replace(sha256="1" * 64))
    assert not is_unpacked(job._replace(format="mallard"))
    unpack(job)
    assert job.target.read_bytes() == first
    job.target.write_bytes(first[:-1])
    assert not is_unpacked(job)


@pytest.mark.parametrize(
    ("name", "package", "version"),
    [
        ("gramps_5.1.5-1_all.deb", "gramps", "5.1.5-1"),
        ("mediawiki_1%3a1.39.17-1+deb12u2_all.deb", "mediawiki", "1:1.39.17-1+deb12u2"),
        ("mine.deb", "mine", ""),
    ],
)
def test_a_file_name_gives_package_and_version(name: str, package: str, version: str) -> None:
    assert deb_name(name) == (package, version)


def test_one_file_of_a_package_is_found(tmp_path: Path) -> None:
    assert find_deb(tmp_path, "vlc") is None
    first = write_deb(tmp_path / "vlc_1_all.deb", {})
    write_deb(tmp_path / "vlc-l10n_1_all.deb", {})
    assert find_deb(tmp_path, "vlc") == first
    write_deb(tmp_path / "vlc_2_all.deb", {})
    with pytest.raises(FetchError, match=r"2 files of the package vlc: vlc_1_all\.deb, .*keep one"):
        find_deb(tmp_path, "vlc")
