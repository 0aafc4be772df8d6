"""From a run to a bundle: chosen directions, adapters materialised, the hyper-network left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from data_pipeline.tokenizer import Tokenizer
from hyperadapter.checkpoint.layout import choose_weights
from hyperadapter.checkpoint.weights import WeightsInfo, save_tensors
from hyperadapter.config import RunConfig
from hyperadapter.core.errors import CheckpointError, ConfigError
from hyperadapter.core.files import (
    atomic_directory,
    require_space,
    sha256_file,
    write_json,
    write_text,
)
from hyperadapter.core.languages import Direction, parse_direction
from hyperadapter.core.schema import StrictModel, load_config
from hyperadapter.evaluation.translate import Translator, tokenizer_folder
from hyperadapter.model.adapters import AdapterWeights
from hyperadapter.serving.bundle import (
    ADAPTER_PARTS,
    ADAPTERS_FILE,
    CARD_FILE,
    CONFIG_FILE,
    FORMAT,
    MANIFEST_FILE,
    MODEL_FILE,
    TOKENIZER_FOLDER,
    BundleConfig,
    DecodingConfig,
    StorageType,
    added_by_people,
    is_bundle,
    write_manifest,
)
from hyperadapter.serving.card import CardFacts, write_card
from hyperadapter.serving.fold import main_network_config
from hyperadapter.serving.loader import check_weights

__all__ = ["ExportReport", "TrainedRun", "export_bundle", "require_one_direction", "save_for_all"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PROVIDER = "adapters."
"""How the tensors begin that make or store adapters."""


class ExportReport(StrictModel):
    """Bytes of a bundle, and of what was left out."""

    directions: int = Field(description="That it translates")
    stored_adapters: int = Field(description="Adapters of one layer each, no two alike")
    main_network_bytes: int
    adapters_bytes: int = Field(description="What replaces the hyper-network, or stored adapters")
    other_bytes: int = Field(description="Tokenizer, configuration and card")
    bundle_bytes: int
    left_out_bytes: int = Field(
        description="The hyper-network, or all stored adapters, in the bundle's precision"
    )

    def rows(self) -> list[tuple[str, int]]:
        """Returns the sizes as rows of a table."""
        return [
            ("main network", self.main_network_bytes),
            (f"adapters of {self.directions} directions", self.adapters_bytes),
            ("tokenizer, configuration, card", self.other_bytes),
            ("bundle", self.bundle_bytes),
            (
                "with the hyper-network, or stored adapters, instead",
                self.bundle_bytes - self.adapters_bytes + self.left_out_bytes,
            ),
        ]


class TrainedRun:
    """A run's checkpoint, opened to be exported.

    Args:
        run_dir: The run folder.
        which: `newest`, `best`, a step, or a weights file.

    Raises:
        CheckpointError: There is no such checkpoint, it is damaged, or it does not fit the run.
        ConfigError: The run's config.yaml is missing or not valid.
    """

    def __init__(self, run_dir: Path, which: str = "newest") -> None:
        self.run_dir = run_dir
        self.config = load_config(RunConfig, run_dir / "config.yaml")
        self.weights = choose_weights(run_dir, which, self.config.training.checkpoint)
        check_weights(self.weights, run_dir)
        self.translator = Translator.from_weights(self.weights, run_dir, self.config)

    @property
    def info(self) -> WeightsInfo:
        """What the weights file says about itself."""
        return self.translator.info

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer was read from: the run's own copy, or the data's."""
        return tokenizer_folder(self.run_dir, self.config)

    def directions(self, wanted: Sequence[str] | None) -> tuple[Direction, ...]:
        """Returns the directions to export: those that were trained if none are named.

        Raises:
            ConfigError: A direction is named twice.
            LanguageError: A text is no direction, or its language is unknown.
        """
        if wanted is None:
            return tuple(self.info.vocabulary.directions)
        directions = tuple(map(parse_direction, wanted))
        twice = sorted({str(d) for d in directions if directions.count(d) > 1})
        if twice or not directions:
            problem = f"{', '.join(twice)} is given twice" if twice else "no direction is named"
            raise ConfigError(f"--directions: {problem}; list each once, such as en-de,de-en")
        return directions

    def adapters(self, direction: Direction) -> AdapterWeights | None:
        """Returns the folded adapters of a direction, as its translations use them.

        Raises:
            LanguageError: The run cannot translate the direction.
        """
        return self.translator.prepare(direction).adapters

    def main_network(self) -> dict[str, Tensor]:
        """Returns all tensors that belong to no adapter."""
        state = self.translator.model.state_dict()
        return {name: x for name, x in state.items() if not name.startswith(_PROVIDER)}

    def num_provider_parameters(self) -> int:
        """Counts the numbers that make or store adapters."""
        state = self.translator.model.state_dict()
        return sum(x.numel() for name, x in state.items() if name.startswith(_PROVIDER))


def require_one_direction(out: Path, directions: Sequence[str] | None) -> None:
    """Checks, before anything is loaded, what all formats of one direction ask for.

    Raises:
        ConfigError: `out` exists, or not one direction is named.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; name a new folder")
    if directions is None or len(directions) != 1:
        raise ConfigError(
            "a folded model has the adapters of one direction in its weights; name one, such as "
            "--directions en-de"
        )


def export_bundle(
    run_dir: Path,
    out: Path,
    *,
    which: str = "newest",
    directions: Sequence[str] | None = None,
    dtype: StorageType = "fp32",
) -> ExportReport:
    """Writes a bundle, whole or not at all.

    Args:
        run_dir: The run folder.
        out: The bundle's folder; an older bundle there is replaced.
        which: `newest`, `best`, a step, or a weights file.
        directions: Such as `en-de`; those that were trained if not given.
        dtype: How numbers are stored. They are used in fp32, so only `fp32` changes nothing.

    Raises:
        CheckpointError: There is no such checkpoint, or its numbers are too large for fp16.
        ConfigError: `out` is something else, or a direction cannot be exported.
        DiskFullError: There is no room; nothing half-written is kept.
    """
    if out.exists() and not is_bundle(out):
        raise ConfigError(f"{out} exists and is no earlier bundle; name a new folder")
    own = added_by_people(out) if out.exists() else []
    if own:
        raise ConfigError(
            f"{out} would be replaced, with what was written into it since: {', '.join(own)}; move "
            "that away, or name a new folder"
        )
    run = TrainedRun(run_dir, which)
    chosen = run.directions(directions)
    adapters, numbers = _collect_adapters(run, chosen)
    main = _cast(run.main_network(), dtype)
    stored = _cast(adapters, dtype)
    config = _bundle_config(run, chosen, numbers, dtype)
    main_bytes, adapter_bytes = (
        sum(x.numel() * x.element_size() for x in part.values()) for part in (main, stored)
    )
    require_space(out, main_bytes + adapter_bytes, "the bundle")
    with atomic_directory(out) as part:
        Tokenizer.copy(run.tokenizer_folder, part / TOKENIZER_FOLDER)
        save_for_all(part / MODEL_FILE, main)
        if stored:
            save_for_all(part / ADAPTERS_FILE, stored)
        write_json(part / CONFIG_FILE, config.model_dump(mode="json"))
        sums = {file: sha256_file(part / file) for file in _weights_files(part)}
        write_text(part / CARD_FILE, write_card(_facts(config, run), run_dir, run.weights, sums))
        manifest = write_manifest(part)
    total = sum(record.bytes for record in manifest.files.values())
    return ExportReport(
        directions=len(chosen),
        stored_adapters=len(stored["down"]) if stored else 0,
        main_network_bytes=main_bytes,
        adapters_bytes=adapter_bytes,
        other_bytes=total - main_bytes - adapter_bytes,
        bundle_bytes=total,
        left_out_bytes=run.num_provider_parameters() * _DTYPES[dtype].itemsize,
    )


def _facts(config: BundleConfig, run: TrainedRun) -> CardFacts:
    return CardFacts(
        name=config.name,
        step=config.step,
        fingerprint=config.fingerprint,
        directions=config.directions,
        has_adapters=run.config.model.adapter.kind != "none",
        stored=config.dtype,
        exact=config.dtype == "fp32",
        max_sentence_tokens=config.max_sentence_tokens,
        decoding=config.decoding,
        checksums_file=MANIFEST_FILE,
    )


def save_for_all(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors to a file that others than its owner may read."""
    save_tensors(path, tensors, {"format": "pt"})
    path.chmod(0o644)  # safetensors makes it 0600


def _weights_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _collect_adapters(
    run: TrainedRun, directions: Sequence[Direction]
) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]]]:
    """Makes the adapters of all directions and stores each once.

    Returns:
        The A stored adapters by part, [A, ...], and the numbers of each direction's layers.
    """
    number_of: dict[str, int] = {}
    kept: list[tuple[Tensor, ...]] = []
    numbers: dict[str, tuple[int, ...]] = {}
    for direction in directions:
        weights = run.adapters(direction)
        if weights is None:
            return {}, {}
        of_layers = []
        for layer in range(len(weights.layers)):
            parts = tuple(x[0, layer] for x in weights.raw[: len(ADAPTER_PARTS)] if x is not None)
            number = number_of.setdefault(_digest(parts), len(kept))
            if number == len(kept):
                kept.append(parts)
            of_layers.append(number)
        numbers[str(direction)] = tuple(of_layers)
    columns = zip(*kept, strict=True)
    stored = {name: torch.stack(list(xs)) for name, xs in zip(ADAPTER_PARTS, columns, strict=True)}
    return stored, numbers


def _digest(parts: Sequence[Tensor]) -> str:
    """Returns what identifies an adapter's numbers."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _cast(tensors: Mapping[str, Tensor], dtype: StorageType) -> dict[str, Tensor]:
    """Converts tensors for storing.

    Raises:
        CheckpointError: A number is not finite, or becomes so.
    """
    cast = {}
    for name, tensor in tensors.items():
        cast[name] = tensor.detach().to(_DTYPES[dtype]).contiguous()
        if not cast[name].isfinite().all():
            most = tensor.abs().max().item()
            raise CheckpointError(
                f"{name} holds numbers up to {most:g}, which {dtype} cannot hold; use --dtype bf16 "
                "or fp32, or another checkpoint if they are not finite"
            )
    return cast


def _bundle_config(
    run: TrainedRun,
    directions: Sequence[Direction],
    numbers: Mapping[str, tuple[int, ...]],
    dtype: StorageType,
) -> BundleConfig:
    info, config = run.info, run.config
    return BundleConfig(
        format=FORMAT,
        name=config.name,
        step=info.step,
        fingerprint=info.fingerprint,
        tokenizer=info.tokenizer,
        num_pieces=info.vocabulary.num_pieces,
        model=main_network_config(config.model),
        languages=info.vocabulary.languages,
        directions=tuple(map(str, directions)),
        tags=config.data.tags,
        max_sentence_tokens=config.data.shards.max_sentence_tokens,
        decoding=DecodingConfig.of(config.evaluation),
        dtype=dtype,
        adapters=dict(numbers),
    )
