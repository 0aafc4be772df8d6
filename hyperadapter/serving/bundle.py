"""What a bundle is: a folder that translates chosen directions and holds no hyper-network.

DIR/
    config.json             what it is: sizes, languages, directions, tags, how to search
    model.safetensors       the main network; the one embedding is stored once
    adapters.safetensors    materialised adapters; absent where the model has none
    tokenizer/              SentencePiece model, pieces, manifest
    README.md               a card, for people
    manifest.json           size and SHA-256 of every file; comes last

An adapter is stored once, however many directions and layers have it: `language` adapters of n
languages serve n (n - 1) directions. `adapters` in config.json says which one each layer of a
direction has. LayerNorm's gain and bias are folded in, see `hyperadapter.model.adapters`.

All names are fixed. No file is opened because another one names it, and nothing is a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from data_pipeline.config import DataConfig, TagsConfig, TokenizerConfig
from hyperadapter.checkpoint.layout import FileRecord
from hyperadapter.checkpoint.weights import load_weights
from hyperadapter.config import EvaluationConfig, ModelConfig, SamplingConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError
from hyperadapter.core.files import read_json, sha256_file, write_json
from hyperadapter.core.languages import parse_direction
from hyperadapter.core.schema import StrictModel, parse_config

__all__ = [
    "ADAPTERS_FILE",
    "ADAPTER_PARTS",
    "CARD_FILE",
    "CONFIG_FILE",
    "FORMAT",
    "MANIFEST_FILE",
    "MODEL_FILE",
    "TOKENIZER_FOLDER",
    "BundleConfig",
    "BundleManifest",
    "DecodingConfig",
    "StorageType",
    "added_by_people",
    "is_bundle",
    "load_adapters",
    "read_bundle",
    "record_files",
    "write_manifest",
]

FORMAT = 1
CONFIG_FILE, MANIFEST_FILE, CARD_FILE = "config.json", "manifest.json", "README.md"
MODEL_FILE, ADAPTERS_FILE, TOKENIZER_FOLDER = (
    "model.safetensors",
    "adapters.safetensors",
    "tokenizer",
)
ADAPTER_PARTS = ("down", "down_bias", "up", "up_bias")
_KIND: Literal["hyperadapter bundle"] = "hyperadapter bundle"
_READ_FILES = frozenset(
    {
        CONFIG_FILE,
        MODEL_FILE,
        ADAPTERS_FILE,
        *(f"{TOKENIZER_FOLDER}/{name}" for name in ("spm.model", "spm.vocab", "manifest.json")),
    }
)

StorageType = Literal["fp32", "bf16", "fp16"]
StoredNumber = Annotated[int, Field(ge=0)]


class DecodingConfig(StrictModel):
    """How to search, as in the evaluation group of a run.

    Keys with a default here came later: bundles that are older do not have them.
    """

    beam_size: int
    length_penalty: float
    max_length_ratio: float
    max_length_extra: int
    batch_sentences: int
    coverage_penalty: float = 0.0
    no_repeat_ngram: int = 0
    sampling: SamplingConfig | None = None

    @classmethod
    def of(cls, evaluation: EvaluationConfig) -> DecodingConfig:
        """Takes the keys that are about searching."""
        return cls(**{name: getattr(evaluation, name) for name in cls.model_fields})

    @property
    def evaluation(self) -> EvaluationConfig:
        """The same as a run's evaluation group."""
        return EvaluationConfig(**self.model_dump())

    @model_validator(mode="after")
    def _allowed(self) -> DecodingConfig:
        EvaluationConfig(**self.model_dump())  # its complaint is ours
        return self


class BundleConfig(StrictModel):
    """What config.json holds."""

    format: int = Field(description="Version of the layout")
    name: str = Field(description="Of the run")
    step: int = Field(description="Optimizer steps taken")
    fingerprint: str = Field(description="Of the configuration that trained it")
    tokenizer: str = Field(description="Fingerprint of the tokenizer")
    num_pieces: int = Field(description="Pieces of the tokenizer")
    model: ModelConfig = Field(description="The main network; adapter.kind is none")
    languages: tuple[str, ...] = Field(description="In the order of their rows in the embedding")
    directions: tuple[str, ...] = Field(min_length=1, description="That it translates")
    tags: TagsConfig = Field(description="Which language opens source and target")
    max_sentence_tokens: int = Field(description="Longest training sentence")
    decoding: DecodingConfig = Field(description="How to search, unless a call says otherwise")
    dtype: StorageType = Field(description="Of the stored numbers; they are used in fp32")
    adapters: dict[str, tuple[StoredNumber, ...]] = Field(
        description="The stored adapter of each adapted layer, by direction"
    )

    @model_validator(mode="after")
    def _consistent(self) -> BundleConfig:
        if self.model.adapter.kind != "none":
            raise ValueError(f"model.adapter.kind is {self.model.adapter.kind!r} instead of 'none'")
        self.data_config()  # languages and directions are known and belong together
        if self.adapters and set(self.adapters) != set(self.directions):
            raise ValueError("adapters are not those of the directions")
        depths = {len(numbers) for numbers in self.adapters.values()}
        if depths - {len(self.model.adapted_layers)}:
            raise ValueError("a direction's adapters are not as many as the adapted layers")
        return self

    def data_config(self) -> DataConfig:
        """Returns what numbers languages and builds prompts; its folders do not exist."""
        return DataConfig(
            folder="none",
            shards_folder="none",
            languages=self.languages,
            pivot=self.languages[0] if self.languages else "",
            # Their order is the bundle's own: a `*` would stand for several.
            directions=tuple(str(parse_direction(text)) for text in self.directions),
            tokenizer=TokenizerConfig(vocab_size=self.num_pieces),
            tags=self.tags,
        )

    def used_languages(self) -> tuple[str, ...]:
        """Returns the languages that some direction has, in their order."""
        used = {code for text in self.directions for code in parse_direction(text)}
        return tuple(code for code in self.languages if code in used)


class BundleManifest(StrictModel):
    """What manifest.json holds."""

    kind: Literal["hyperadapter bundle"]
    files: dict[str, FileRecord]


def is_bundle(folder: Path) -> bool:
    """Says whether a folder is a bundle, perhaps a damaged one."""
    try:
        tree = read_json(folder / MANIFEST_FILE)
    except DataError:
        return False
    return isinstance(tree, dict) and tree.get("kind") == _KIND


def added_by_people(folder: Path) -> list[str]:
    """Returns the files of a bundle that its export did not write so: an edited card, others."""
    try:
        known = BundleManifest.model_validate(read_json(folder / MANIFEST_FILE)).files
    except (DataError, ValueError):
        return []  # a damaged one
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    found = paths.keys() - known.keys() - {MANIFEST_FILE}
    if CARD_FILE in paths.keys() & known.keys():
        edited = sha256_file(paths[CARD_FILE]) != known[CARD_FILE].sha256
        found |= {CARD_FILE} if edited else set()
    return sorted(found)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Returns size and checksum of every file of a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileRecord(
            bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in paths
    }


def write_manifest(folder: Path) -> BundleManifest:
    """Writes the manifest of a folder that holds everything else."""
    manifest = BundleManifest(kind=_KIND, files=record_files(folder))
    write_json(folder / MANIFEST_FILE, manifest.model_dump())
    return manifest


def read_bundle(folder: Path) -> BundleConfig:
    """Checks all files that translating needs, and reads config.json.

    The card is not checked: people write into it.

    Raises:
        CheckpointError: The folder is no bundle, of another version, incomplete or damaged.
    """
    manifest = _read_manifest(folder)
    tree = _read_tree(folder, manifest)
    found = tree.get("format")
    if found != FORMAT:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has format {found!r}, but this version of hyperadapter reads "
            f"format {FORMAT}; export the run again, or use the version that wrote the bundle"
        )
    try:
        config = parse_config(BundleConfig, tree, str(folder / CONFIG_FILE))
    except ConfigError as error:
        raise CheckpointError(f"{error}\nexport the run again") from error
    needed = _READ_FILES if config.adapters else _READ_FILES - {ADAPTERS_FILE}
    for name in sorted(needed):
        _verify(folder, name, manifest)
    return config


def _read_manifest(folder: Path) -> BundleManifest:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is no bundle: it has no {MANIFEST_FILE}; make one with "
            "`hyperadapter export --run RUN_DIR --out DIR`"
        )
    try:
        return parse_config(BundleManifest, read_json(path), str(path))
    except (ConfigError, DataError) as error:
        raise CheckpointError(f"{folder} is no whole bundle: {error}") from error


def _read_tree(folder: Path, manifest: BundleManifest) -> Mapping[str, Any]:
    _verify(folder, CONFIG_FILE, manifest)
    try:
        tree = read_json(folder / CONFIG_FILE)
    except DataError as error:
        raise CheckpointError(f"{folder} is no whole bundle: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{folder / CONFIG_FILE} must hold keys and values")
    return tree


def _verify(folder: Path, name: str, manifest: BundleManifest) -> None:
    path, record = folder / name, manifest.files.get(name)
    if record is None or not path.is_file():
        where = "its manifest does not name it" if record is None else "it is missing"
        raise CheckpointError(f"the bundle's file {path} is needed, but {where}; copy it again")
    size = path.stat().st_size
    if size != record.bytes or sha256_file(path) != record.sha256:
        raise CheckpointError(
            f"the bundle's file {path} ({size} bytes) is not the one of its manifest "
            f"({record.bytes} bytes, SHA-256 {record.sha256[:12]}..); copy it again"
        )


def load_adapters(folder: Path, config: BundleConfig) -> dict[str, Tensor]:
    """Reads the A stored adapters in single precision.

    Returns:
        By part: down [A, R, D], down_bias [A, R], up [A, D, R], up_bias [A, D].

    Raises:
        CheckpointError: The file is damaged, or is not the one of the configuration.
    """
    path = folder / ADAPTERS_FILE
    tensors = {name: tensor.float() for name, tensor in load_weights(path)[0].items()}
    count = 1 + max((max(numbers, default=0) for numbers in config.adapters.values()), default=0)
    width, rank = config.model.d_model, config.model.adapter.bottleneck_dim
    shapes = ((rank, width), (rank,), (width, rank), (width,))
    expected = {part: (count, *shape) for part, shape in zip(ADAPTER_PARTS, shapes, strict=True)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise CheckpointError(
            f"{path} holds {found}, but {CONFIG_FILE} beside it asks for {expected}; export the "
            "run again"
        )
    return tensors
