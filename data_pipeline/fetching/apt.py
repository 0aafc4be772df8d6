"""apt without root: packages and translated package descriptions of the machine's archives.

apt works in a folder of its own. It takes the machine's list of archives, its keys and its proxy,
but neither reads nor changes what is installed. Versions, sizes and checksums come from the
archive's signed index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.fetching.debian import deb_name
from hyperadapter.core.errors import FetchError

__all__ = ["Apt", "AptFile", "Outcome", "Translations"]

_URI_LINE = re.compile(r"'[^']*' (?P<name>\S+) (?P<bytes>\d+) (?P<kind>\w+):(?P<digest>\w+)")
# A plain list that is not empty; every one is listed beside its compressed form.
_TRANSLATION = re.compile(r"^ \w+ +[1-9]\d* main/i18n/Translation-([\w@]+)$", re.MULTILINE)


class Outcome(NamedTuple):
    """What a program did: its exit status and what it wrote."""

    code: int
    stdout: str
    stderr: str


class AptFile(NamedTuple):
    """A package file as the archive's index describes it."""

    name: str
    num_bytes: int
    algorithm: str
    digest: str


class Translations(NamedTuple):
    """The lists of package descriptions of one release: files by apt's language code."""

    release: str
    files: dict[str, Path]


class Apt:
    """apt-get with a folder of its own in place of `/var/lib/apt` and `/var/cache/apt`.

    Args:
        folder: Its folder, which is made. What an interrupted download left there is resumed.
        run: Runs a program in a folder; raises `FetchError` if that is not possible at all.
    """

    def __init__(self, folder: Path, run: Callable[[Sequence[str], Path], Outcome]) -> None:
        self._run = run
        self._config = folder / "apt.conf"
        self._lists = folder / "lists"
        self.archives = folder / "archives"
        for path in (self._lists, self.archives):
            (path / "partial").mkdir(parents=True, exist_ok=True)
        self._folder = folder.resolve()
        self._warnings = ""
        self._updated = False

    def _apt_get(self, *arguments: str) -> Outcome:
        argv = ["apt-get", "-c", str(self._config.resolve()), "--quiet", *arguments]
        done = self._run(argv, self.archives)
        if done.code:
            raise FetchError(
                f"apt-get {arguments[0]} failed: "
                + (_problems(done.stderr) or f"exit status {done.code}")
                + self._warnings
            )
        return done

    def update(self, languages: Sequence[str] = ()) -> None:
        """Fetches the index of the machine's archives, once; again if languages are asked for.

        Args:
            languages: Codes of the package descriptions to fetch too.

        Raises:
            FetchError: apt failed. A single archive that cannot be reached is no error yet.
        """
        if self._updated and not languages:
            return
        self._config.write_text(_apt_config(self._folder, languages), encoding="utf-8")
        problems = _problems(self._apt_get("update").stderr)
        self._warnings = f" (apt-get update said: {problems})" if problems else ""
        self._updated = True

    def files(self, packages: Sequence[str]) -> list[AptFile]:
        """Looks up the files of packages in the index.

        Raises:
            FetchError: apt failed, or a package is in none of the machine's archives.
        """
        self.update()
        output = self._apt_get("download", "--print-uris", *packages).stdout
        files = [
            AptFile(m["name"], int(m["bytes"]), m["kind"].lower(), m["digest"])
            for m in map(_URI_LINE.match, output.splitlines())
            if m
        ]
        found = {deb_name(file.name)[0] for file in files}
        if lost := [package for package in packages if package not in found]:
            raise FetchError(f"apt-get gives no file and checksum for {', '.join(lost)}")
        return files

    def download(self, files: Sequence[AptFile]) -> None:
        """Downloads package files into `archives`, going on where an earlier call was stopped.

        Raises:
            FetchError: apt failed.
        """
        names = [deb_name(file.name) for file in files]
        self._apt_get("download", *(f"{package}={version}" for package, version in names))

    def translations(self) -> Translations:
        """Fetches the lists of package descriptions in all languages of the archive's release.

        Of several archives and suites, the one with the most languages is taken.

        Raises:
            FetchError: apt failed, or a list is missing.
        """
        self.update()
        releases = list(self._lists.glob("*Release"))
        release = max(releases, key=lambda path: len(_translation_codes(path)), default=None)
        codes = _translation_codes(release) if release else []
        if release is None or not codes:
            raise FetchError(
                "the archives in this machine's apt sources list no package descriptions "
                f"(main/i18n/Translation-*){self._warnings}; add a Debian archive"
            )
        self.update(codes)
        target = ("Created-By: Translations", "Component: main")
        output = self._apt_get("indextargets", "--format", "$(LANGUAGE) $(FILENAME)", *target)
        prefix = str(release.resolve()).removesuffix("Release").removesuffix("In")
        files = {
            code: Path(name)
            for code, _, name in (line.partition(" ") for line in output.stdout.splitlines())
            if name.startswith(prefix) and Path(name).is_file()
        }
        if lost := [code for code in codes if code not in files]:
            raise FetchError(
                f"apt-get did not bring the package descriptions in {', '.join(lost)}"
                + self._warnings
            )
        return Translations(_release_name(release), files)


def _apt_config(folder: Path, languages: Sequence[str]) -> str:
    """Returns apt's settings, which are read after those of the machine.

    Hooks that delete archives or tell a desktop about updates are taken out, and all index files
    but the two that are read here. Without the switch of user, apt that root has started could not
    write to our folder.
    """
    quoted = " ".join(f'"{code}";' for code in languages or ["none"])
    return f"""\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb {{
  Packages {{
    MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
    flatMetaKey "Packages";
    ShortDescription "Packages";
    Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
    flatDescription "$(RELEASE) Packages";
    Optional "false";
  }};
  Translations {{
    MetaKey "$(COMPONENT)/i18n/Translation-$(LANGUAGE)";
    flatMetaKey "$(LANGUAGE)";
    ShortDescription "Translation-$(LANGUAGE)";
    Description "$(RELEASE)/$(COMPONENT) Translation-$(LANGUAGE)";
    flatDescription "$(RELEASE) Translation-$(LANGUAGE)";
  }};
}};
#clear Acquire::Languages;
Acquire::Languages {{ {quoted} }};
Acquire::GzipIndexes "false";
Acquire::PDiffs "false";
Acquire::Retries "3";
APT::Sandbox::User "root";
Dir::State "{folder}";
Dir::State::lists "lists";
Dir::State::status "/dev/null";
Dir::Cache "{folder}";
Dir::Cache::archives "archives";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
"""


def _problems(stderr: str) -> str:
    """Returns apt's errors and warnings in one line, shortened if there are many."""
    lines = [line[2:].strip() for line in stderr.splitlines() if line.startswith(("E:", "W:"))]
    more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
    return "; ".join(lines[:5]) + more


def _translation_codes(release: Path) -> list[str]:
    text = release.read_text(encoding="utf-8", errors="replace")
    return sorted(set(_TRANSLATION.findall(text)))


def _release_name(release: Path) -> str:
    """Returns the code name and version of a release, such as `bookworm 12.15`."""
    text = release.read_text(encoding="utf-8", errors="replace")
    fields = dict(re.findall(r"^(Codename|Version): *(\S+)", text, re.MULTILINE))
    return " ".join(fields[key] for key in ("Codename", "Version") if key in fields)
