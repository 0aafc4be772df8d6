"""Any damage to any file: rows come out, or a DataError that names the file, or a counted skip."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.fetching.debian import UnpackJob, unpack
from data_pipeline.formats import (
    ddtp,
    gettext,
    jsonl,
    libreoffice_help,
    mallard,
    mediawiki,
    moses,
    parquet,
    tmx,
    tsv,
)
from data_pipeline.sources import JsonlSource, MosesSource, ParquetSource, TmxSource, TsvSource
from hyperadapter.core.errors import DataError

Rows = Iterator[tuple[str, str]]
NUM_FLIPS = 60

PO = """msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals=2; plural=(n != 1);\\n"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "Datei"
msgstr[1] "Dateien"

msgid "Hello"
msgstr "Grüße"
"""
PAGE = '<page xmlns="http://projectmallard.org/1.0/" id="i"><p>Grüße &amp; <em>x</em></p></page>'
HELP = '<html><body><div id="DisplayArea"><p id="a">Grüße <b>x</b></p></div></body></html>'
TMX = """<?xml version="1.0"?><tmx version="1.4"><body><tu><tuv xml:lang="en"><seg>Hello</seg></tuv>
<tuv xml:lang="de"><seg>Grüße <ph>x</ph></seg></tuv></tu></body></tmx>"""
DDTP = "Package: a\nDescription-md5: 1\nDescription-{}: Grüße\n Text\n .\n  * Teil\n"


def zipped(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def as_parquet(folder: Path) -> bytes:
    table = pa.table({"a": ["Hello"] * 9, "b": ["Grüße" * 40] * 9})
    pq.write_table(table, folder / "whole", compression="none", use_dictionary=False)
    return (folder / "whole").read_bytes()


def read_ddtp(path: Path, skipped: Counter[str]) -> Rows:
    english = path.with_name("Translation-en")
    english.write_text(DDTP.format("en"), encoding="utf-8")
    return ddtp.iter_rows([english, path], "de", skipped)


def beside_english(reader: Any, english: str, content: str) -> Callable[..., Rows]:
    def read(path: Path, skipped: Counter[str]) -> Rows:
        root = path.parents[path.as_posix().split("/root/")[1].count("/")]
        (root / english).parent.mkdir(parents=True, exist_ok=True)
        (root / english).write_text(content, encoding="utf-8")
        rows: Rows = reader.iter_rows([root], "de", skipped)
        return rows

    return read


def of_source(reader: Any, source: Any, **fields: object) -> Callable[..., Rows]:
    def read(path: Path, skipped: Counter[str]) -> Rows:
        name = reader.__name__.split(".")[-1]
        plural = {"paths": (str(path), str(path))[: 2 if name == "moses" else 1]}
        where = {"path": str(path)} if name in ("tsv", "tmx") else plural
        made = source(format=name, name="x", languages=("en", "de"), **where, **fields)
        rows: Rows = reader.iter_rows(made, skipped)
        return rows

    return read


def read_gettext(path: Path, skipped: Counter[str]) -> Rows:
    return gettext.iter_rows([path], "de", skipped)


LINE = "Hello\tGrüße\n"
MESSAGES = json.dumps({"a": "Grüße {{PLURAL:$1|x|y}}", "b": "[[x|y]]"}, ensure_ascii=False)
CASES: dict[str, tuple[str, bytes | None, Callable[..., Rows]]] = {
    "po": ("de.po", PO.encode(), read_gettext),
    "mo": ("de.mo", polib.pofile(PO).to_binary(), read_gettext),
    "zip": ("x.whl", zipped("po/de.po", PO.encode() * 3), read_gettext),
    "mediawiki": (
        "i18n/de.json",
        MESSAGES.encode(),
        beside_english(mediawiki, "i18n/en.json", MESSAGES),
    ),
    "libreoffice_help": (
        "help/de/text/x.html",
        HELP.encode(),
        beside_english(libreoffice_help, "help/en-US/text/x.html", HELP),
    ),
    "mallard": (
        "help/de/x.page",
        PAGE.encode(),
        beside_english(mallard, "help/C/x.page", PAGE),
    ),
    "ddtp": ("Translation-de", DDTP.format("de").encode(), read_ddtp),
    "tmx": ("x.tmx", TMX.encode(), of_source(tmx, TmxSource)),
    "tsv": ("x.tsv", LINE.encode() * 9, of_source(tsv, TsvSource)),
    "moses": ("x.de", LINE.encode() * 9, of_source(moses, MosesSource)),
    "jsonl": (
        "x.jsonl",
        b'{"a": "Hello", "b": "x"}\n' * 9,
        of_source(jsonl, JsonlSource, fields=("a", "b")),
    ),
    "parquet": ("x.parquet", None, of_source(parquet, ParquetSource, fields=("a", "b"))),
}


@pytest.mark.parametrize("name", CASES)
def test_a_flipped_byte(tmp_path: Path, name: str) -> None:
    file_name, content, read = CASES[name]
    content = content or as_parquet(tmp_path)
    path = tmp_path / "root" / file_name
    path.parent.mkdir(parents=True)
    generator = random.Random(7)
    outcomes: Counter[str] = Counter()
    for flip in range(NUM_FLIPS + 2):
        damaged = bytearray(content)
        if flip > NUM_FLIPS:
            damaged = damaged[: len(damaged) // 2]
        elif flip:
            damaged[generator.randrange(len(damaged))] ^= generator.randrange(1, 256)
        path.write_bytes(damaged)
        skipped: Counter[str] = Counter()
        rows, told = [], ""
        try:
            rows = list(read(path, skipped))
        except DataError as error:
            told = str(error)
        if told:
            assert file_name in told
            outcomes["error"] += 1
            continue
        if flip == 0:
            assert rows
        outcomes["rows" if rows else "skipped"] += 1
        assert rows or skipped or name in ("po", "mo", "zip", "mallard", "libreoffice_help", "ddtp")
    assert outcomes.total() == NUM_FLIPS + 2
    assert outcomes["error"] + outcomes["skipped"] > 0


def test_a_flipped_byte_in_an_archive_in_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped("de/messages.mo", bytes(range(60)) * 9)
    generator = random.Random(7)
    for _ in range(NUM_FLIPS):
        damaged = bytearray(archive)
        damaged[generator.randrange(len(damaged))] ^= generator.randrange(1, 256)
        monkeypatch.setattr(
            "data_pipeline.fetching.debian.iter_members",
            lambda *_, content=bytes(damaged): iter([("usr/locales.zip", content)]),
        )
        told = "x.deb: its member usr/locales.zip"
        try:
            unpack(UnpackJob(tmp_path / "x.deb", "", "gettext", tmp_path / "x.zip"))
        except DataError as error:
            told = str(error)
        assert "x.deb: its member usr/locales.zip" in told


@pytest.mark.parametrize("name", ["mediawiki", "jsonl"])
def test_nesting_without_end(tmp_path: Path, name: str) -> None:
    file_name, _, read = CASES[name]
    path = tmp_path / "root" / file_name
    path.parent.mkdir(parents=True)
    deep = b'{"a": ' + b"[" * 100_000 + b"\n"
    path.write_bytes(deep if name == "mediawiki" else b'{"a": "b", "b": "c"}\n' * 200 + deep)
    skipped: Counter[str] = Counter()
    assert len(list(read(path, skipped))) == (200 if name == "jsonl" else 0)
    assert set(skipped) == {"unreadable line" if name == "jsonl" else "unreadable catalog"}
