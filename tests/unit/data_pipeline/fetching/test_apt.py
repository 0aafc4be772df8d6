"""apt-get stands behind a fake that answers as apt 2.6 does; what is asked of it is real."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from data_pipeline.fetching.apt import Apt, AptFile, Outcome
from hyperadapter.core.errors import FetchError

SHA256 = "ab" * 32
HASH = "0123456789abcdef" * 4
RELEASE = f"""Origin: Debian
Codename: bookworm
Version: 12.15
SHA256:
 {HASH}  1668 main/i18n/Translation-de
 {HASH}   800 main/i18n/Translation-de.xz
 {HASH}  9999 main/i18n/Translation-en
 {HASH}  9999 main/i18n/Translation-en.diff/Index
 {HASH}     0 main/i18n/Translation-ml
 {HASH}    32 main/i18n/Translation-ml.xz
 {HASH}    12 main/i18n/Translation-pt_BR
 {HASH}    12 contrib/i18n/Translation-nl
"""
SECURITY = f"Codename: bookworm-security\n {HASH} 7 main/i18n/Translation-en\n"


class FakeApt:
    """Answers apt-get: `answers` by subcommand, and lists in the folder that the settings name."""

    def __init__(self, folder: Path, **answers: Outcome) -> None:
        self.calls: list[Sequence[str]] = []
        self.config = ""
        self.lists = folder / "lists"
        self.lost: set[str] = set()
        self._answers = answers

    def __call__(self, argv: Sequence[str], folder: Path) -> Outcome:
        assert argv[:2] == ["apt-get", "-c"]
        assert folder.name == "archives"
        self.config = Path(argv[2]).read_text(encoding="utf-8")
        self.calls.append(argv[4:])
        if argv[4] == "update":
            self._write_lists()
        if argv[4] == "indextargets":
            paths = sorted(self.lists.resolve().glob("*Translation-*"))
            lines = [f"{p.name.rpartition('-')[2].replace('%5f', '_')} {p}\n" for p in paths]
            return Outcome(0, "".join(lines), "")
        return self._answers.get(argv[4], Outcome(0, "", ""))

    def _write_lists(self) -> None:
        (self.lists / "a_dists_bookworm_InRelease").write_text(RELEASE)
        (self.lists / "a_dists_bookworm-security_Release").write_text(SECURITY)
        (line,) = [x for x in self.config.splitlines() if x.startswith("Acquire::Languages")]
        for code in {"de", "en", "pt_BR"} - self.lost:
            if f'"{code}"' in line:
                name = f"a_dists_bookworm_main_i18n_Translation-{code.replace('_', '%5f')}"
                (self.lists / name).write_text(code)
        if '"en"' in line:
            (self.lists / "a_dists_bookworm-security_main_i18n_Translation-en").write_text("x")


def test_the_machine_is_left_alone(tmp_path: Path) -> None:
    fake = FakeApt(tmp_path)
    apt = Apt(tmp_path, fake)
    apt.update()
    apt.update()
    assert fake.calls == [["update"]]
    for line in (
        f'Dir::State "{tmp_path}";',
        f'Dir::Cache "{tmp_path}";',
        'Dir::State::status "/dev/null";',
        'APT::Sandbox::User "root";',
        "#clear APT::Update::Post-Invoke-Success;",
        'Acquire::Languages { "none"; };',
    ):
        assert line in fake.config.splitlines()


def test_files_come_with_the_checksums_of_the_index(tmp_path: Path) -> None:
    lines = (
        f"'http://m/x/vlc_1%2b2_all.deb' vlc_3%3a1+2_all.deb 123 SHA256:{SHA256}\n"
        f"'http://m/x/gtk_1_all.deb' gtk_1_all.deb 7 SHA512:{SHA256 * 2}\n"
    )
    fake = FakeApt(tmp_path, download=Outcome(0, lines, ""))
    apt = Apt(tmp_path, fake)
    files = apt.files(["vlc", "gtk"])
    assert files == [
        AptFile("vlc_3%3a1+2_all.deb", 123, "sha256", SHA256),
        AptFile("gtk_1_all.deb", 7, "sha512", SHA256 * 2),
    ]
    apt.download(files)
    assert fake.calls[-1] == ["download", "vlc=3:1+2", "gtk=1"]
    with pytest.raises(FetchError, match="no file and checksum for calibre, gimp"):
        apt.files(["vlc", "calibre", "gimp"])


def test_an_error_repeats_what_apt_said(tmp_path: Path) -> None:
    stderr = "N: note\nE: Unable to locate package x\n"
    update = Outcome(0, "", "W: Failed to fetch a\nW: Failed to fetch b\n")
    apt = Apt(tmp_path, FakeApt(tmp_path, update=update, download=Outcome(100, "", stderr)))
    with pytest.raises(FetchError) as caught:
        apt.files(["x"])
    assert str(caught.value) == (
        "apt-get download failed: Unable to locate package x "
        "(apt-get update said: Failed to fetch a; Failed to fetch b)"
    )
    many = "".join(f"E: Unable to locate package p{i}\n" for i in range(9))
    apt = Apt(tmp_path, FakeApt(tmp_path, download=Outcome(100, "", many)))
    with pytest.raises(FetchError, match="package p4; and 4 more"):
        apt.files(["x"])
    apt = Apt(tmp_path, FakeApt(tmp_path, update=Outcome(100, "", "")))
    with pytest.raises(FetchError, match="apt-get update failed: exit status 100"):
        apt.update()


def test_translations_are_those_of_the_release_with_most_languages(tmp_path: Path) -> None:
    fake = FakeApt(tmp_path)
    translations = Apt(tmp_path, fake).translations()
    assert 'Acquire::Languages { "de"; "en"; "pt_BR"; };' in fake.config  # ml has an empty list
    assert translations.release == "bookworm 12.15"
    texts = {code: path.read_text() for code, path in translations.files.items()}
    assert texts == {"de": "de", "en": "en", "pt_BR": "pt_BR"}


def test_a_list_that_apt_did_not_bring(tmp_path: Path) -> None:
    fake = FakeApt(tmp_path, update=Outcome(0, "", "W: Failed to fetch Translation-de\n"))
    fake.lost = {"de", "pt_BR"}
    with pytest.raises(FetchError, match=r"did not bring .* in de, pt_BR \(.*Failed to fetch Tr"):
        Apt(tmp_path, fake).translations()


def test_an_archive_without_translations(tmp_path: Path) -> None:
    apt = Apt(tmp_path, lambda argv, folder: Outcome(0, "", ""))
    with pytest.raises(FetchError, match=r"list no package descriptions .*add a Debian archive"):
        apt.translations()
