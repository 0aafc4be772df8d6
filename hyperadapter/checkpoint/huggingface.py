"""Import of M2M100 (Fan et al. 2020) and NLLB-200 (NLLB Team 2022) from a Hugging Face folder.

Both are the Transformer of this package without adapters: LayerNorm before each sublayer and after
the last, ReLU, biases, one embedding for everything scaled by sqrt(d_model), positions of the same
formula. The import renames tensors, joins the projections that we store as one, and puts the rows
of the embedding in our order; no number changes, so both models give the same scores.

Only safetensors are read. A pytorch_model.bin is a pickle, which can run code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.tokenizer import write_tokenizer
from hyperadapter.checkpoint.huggingface_vocabulary import SourceVocabulary, read_vocabulary
from hyperadapter.checkpoint.layout import WEIGHTS_FILE
from hyperadapter.checkpoint.weights import WeightsInfo, save_weights
from hyperadapter.config import ModelConfig
from hyperadapter.core.errors import CheckpointError, ConfigError, DataError
from hyperadapter.core.files import atomic_directory, read_json, write_json, write_text
from hyperadapter.core.schema import StrictModel, parse_config, to_yaml
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary

__all__ = ["REQUIRED", "SIZES", "ImportReport", "import_huggingface", "their_names"]

_WEIGHTS, _INDEX, _REPORT = "model.safetensors", "model.safetensors.index.json", "import.json"
_SHOWN = 5
# Rows behind the last token: M2M100 has 8, NLLB 2; others pad to a multiple of up to 256.
_MOST_SPARE_ROWS = 256

REQUIRED: dict[str, Any] = {
    "model_type": "m2m_100",
    "activation_function": "relu",
    "scale_embedding": True,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
"""What our Transformer is, as their configuration says it; a key not given is as it should be."""
SIZES = {
    "d_model": "d_model",
    "ffn_dim": "encoder_ffn_dim",
    "num_heads": "encoder_attention_heads",
    "num_encoder_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
}
"""Their names of our sizes."""
_IGNORED = ("attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
_LAYER_PARTS = {
    "self_attention_norm": ("self_attn_layer_norm",),
    "self_attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.out": ("self_attn.out_proj",),
    "cross_attention_norm": ("encoder_attn_layer_norm",),
    "cross_attention.q": ("encoder_attn.q_proj",),
    "cross_attention.kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross_attention.out": ("encoder_attn.out_proj",),
    "feed_forward.norm": ("final_layer_norm",),
    "feed_forward.up": ("fc1",),
    "feed_forward.down": ("fc2",),
}
_OUR_NAME = re.compile(
    r"^(encoder|decoder)\.(?:layers\.(\d+)\.(\w+(?:\.\w+)?)|norm)\.(weight|bias)$"
)
_EMBEDDINGS = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
)
# Written by old versions of transformers; the formula gives them.
_COMPUTED = ("encoder.embed_positions.weights", "decoder.embed_positions.weights")


class ImportReport(StrictModel):
    """What an import made, and what it left out."""

    source: str = Field(description="The folder that was read")
    family: str = Field(description="m2m100 or nllb")
    num_pieces: int = Field(description="Value for data.tokenizer.vocab_size")
    languages: tuple[str, ...] = Field(description="BCP 47 codes, in the order of the tags")
    num_parameters: int = Field(description="Numbers in weights.safetensors")
    borrowed: tuple[str, ...] = Field(description="Pieces that begin as the unknown piece")
    dropped: dict[str, tuple[str, ...]] = Field(description="Rows of the embedding left out")
    ignored: dict[str, float] = Field(description="Regularisation that training here lacks")

    def rows(self) -> list[tuple[str, int]]:
        """Returns what is counted, as the rows of a table."""
        return [
            ("pieces", self.num_pieces),
            ("languages", len(self.languages)),
            ("parameters", self.num_parameters),
            ("pieces that begin as the unknown piece", len(self.borrowed)),
            *((f"dropped: {reason}", len(tokens)) for reason, tokens in self.dropped.items()),
        ]


def import_huggingface(
    folder: Path, out: Path, languages: Sequence[str] | None = None
) -> ImportReport:
    """Turns an M2M100 or NLLB folder into a tokenizer, a weights file and a model configuration.

    Args:
        folder: Holds config.json, the weights as safetensors, and the tokenizer's files.
        out: Is made; holds `tokenizer/`, `weights.safetensors`, `model.yaml` and `import.json`.
        languages: Those to keep, in any known spelling; all if not given.

    Raises:
        CheckpointError: The folder is incomplete, or holds another kind of model.
        ConfigError: `out` is something else, or a language is not in the model.
        DiskFullError: There is no room; nothing half-written is kept.
    """
    if out.exists() and not (out / _REPORT).is_file():
        raise ConfigError(f"{out} exists and is no earlier import; name a new folder")
    settings = _read_settings(folder)
    config = _model_config(settings, folder)
    source = read_vocabulary(folder)
    if languages is not None:
        source = source.only(languages)
    vocabulary = Vocabulary(source.tokenizer.vocab_size, tuple(source.language_rows), ())
    tensors, spare_rows = _convert(_Tensors(folder), config, vocabulary, source)
    dropped = source.dropped | ({"rows without a token": spare_rows} if spare_rows else {})
    report = ImportReport(
        source=str(folder),
        family=source.family,
        num_pieces=vocabulary.num_pieces,
        languages=vocabulary.languages,
        num_parameters=sum(tensor.numel() for tensor in tensors.values()),
        borrowed=tuple(source.borrowed),
        dropped={reason: tuple(tokens) for reason, tokens in dropped.items()},
        ignored={key: float(settings[key]) for key in _IGNORED if settings.get(key)},
    )
    with atomic_directory(out) as part:
        (part / "tokenizer").mkdir()
        tokenizer = write_tokenizer(part / "tokenizer", source.tokenizer, {}, {})
        info = WeightsInfo(0, "imported", vocabulary, tokenizer.fingerprint)
        save_weights(part / WEIGHTS_FILE, tensors, info.to_metadata())
        write_text(part / "model.yaml", f"# Imported from {folder.name}.\n{to_yaml(config)}")
        write_json(part / _REPORT, report.model_dump(mode="json"))
    return report


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings = read_json(folder / "config.json")
    except DataError as error:
        raise CheckpointError(
            f"{folder} is no model folder of Hugging Face: {error}; download all files of the "
            "model's repository"
        ) from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{folder / 'config.json'} must hold keys and values")
    return settings


def _model_config(settings: Mapping[str, Any], folder: Path) -> ModelConfig:
    """Checks that the architecture is ours, and translates its sizes."""
    path = folder / "config.json"
    if "model_type" not in settings:
        raise CheckpointError(f"{path} names no model_type; it must be 'm2m_100' (M2M100 and NLLB)")
    wanted = REQUIRED | {
        "decoder_ffn_dim": settings.get("encoder_ffn_dim"),
        "decoder_attention_heads": settings.get("encoder_attention_heads"),
    }
    for key, value in wanted.items():
        found = settings.get(key, value)
        if found is not None and found != value:
            raise CheckpointError(
                f"{path} has {key} {found!r}, but only {value!r} can be imported: a pre-LayerNorm "
                "encoder-decoder with ReLU and one shared, scaled embedding, as M2M100 and the "
                "dense NLLB-200 models are"
            )
    for key in SIZES.values():
        if key not in settings:
            raise CheckpointError(f"{path} lacks {key}; download it again")
    tree = {ours: settings[theirs] for ours, theirs in SIZES.items()}
    tree |= {"dropout": settings.get("dropout", 0.1), "adapter": {"kind": "none"}}
    return parse_config(ModelConfig, tree, str(path))


class _Tensors:
    """The tensors of a folder, each read when it is asked for. Names are those without `model.`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: dict[str, tuple[Any, str]] = {}
        for path in _weight_files(folder):
            try:
                handle = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"{path} is not a whole safetensors file ({error}); download it again"
                ) from error
            self._handles |= {key.removeprefix("model."): (handle, key) for key in _keys(handle)}

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def take(self, name: str) -> Tensor:
        """Reads a tensor in single precision and strikes it off.

        Raises:
            CheckpointError: There is none of this name.
        """
        if name not in self._handles:
            raise CheckpointError(
                f"the weights in {self.folder} lack {name!r}; download them again, or check that "
                "config.json belongs to them"
            )
        handle, key = self._handles.pop(name)
        tensor: Tensor = handle.get_tensor(key)
        return tensor.float()

    def check_empty(self) -> None:
        """Checks that everything was used.

        Raises:
            CheckpointError: Tensors are left that our model has no place for.
        """
        left = sorted(self._handles.keys() - set(_COMPUTED))
        if left:
            shown = ", ".join(left[:_SHOWN]) + (", .." if len(left) > _SHOWN else "")
            raise CheckpointError(
                f"the weights in {self.folder} have {len(left)} tensors that M2M100 and NLLB do "
                f"not have: {shown}; check that config.json belongs to them"
            )


def _keys(handle: Any) -> list[str]:
    return list(handle.keys())


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    if (folder / _INDEX).is_file():
        return _indexed_files(folder)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise CheckpointError(
            f"{folder} has its weights in {pickles[0]} only, a pickle, which can run code when it "
            f"is read and is never opened here; convert it to {_WEIGHTS} as docs/import.md shows"
        )
    raise CheckpointError(f"{folder} has no weights: {_WEIGHTS} or {_INDEX} with its files")


def _indexed_files(folder: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / _INDEX} does not say which files the tensors are in ({error!r}); download "
            "it again"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {', '.join(missing)}, which {_INDEX} names; download them"
        )
    return [folder / name for name in names]


def _convert(
    tensors: _Tensors, config: ModelConfig, vocabulary: Vocabulary, source: SourceVocabulary
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns our tensors, and the rows of the embedding that no token has."""
    with torch.device("meta"):
        shapes = {
            name: tensor.shape for name, tensor in Seq2Seq(config, vocabulary).state_dict().items()
        }
    embedding, spare_rows = _convert_embedding(tensors, source)
    converted = {"embedding.weight": embedding}
    for name in shapes:
        if name not in converted:
            converted[name] = torch.cat([tensors.take(part) for part in their_names(name)])
        if converted[name].shape != shapes[name]:
            raise CheckpointError(
                f"the weights in {tensors.folder} give {name} the shape "
                f"{list(converted[name].shape)}, but the sizes in config.json "
                f"{list(shapes[name])}; they do not belong together"
            )
    tensors.check_empty()
    return converted, spare_rows


def their_names(name: str) -> Iterator[str]:
    """Yields the tensors that one of ours is made of, one below the other."""
    match = _OUR_NAME.match(name)
    assert match is not None, name
    side, layer, part, kind = match.groups()
    if layer is None:
        yield f"{side}.layer_norm.{kind}"
        return
    for theirs in _LAYER_PARTS[part]:
        yield f"{side}.layers.{layer}.{theirs}.{kind}"


def _convert_embedding(tensors: _Tensors, source: SourceVocabulary) -> tuple[Tensor, list[str]]:
    """Puts the rows in our order: pieces, then languages."""
    names = [name for name in _EMBEDDINGS if name in tensors] or [_EMBEDDINGS[0]]
    theirs = tensors.take(names[0])
    if not all(torch.equal(theirs, tensors.take(name)) for name in names[1:]):
        raise CheckpointError(
            f"the weights in {tensors.folder} have different embeddings for source, target and "
            "output; only one that all three share can be imported"
        )
    spare = theirs.size(0) - source.num_ids
    if not 0 <= spare <= _MOST_SPARE_ROWS:
        raise CheckpointError(
            f"the embedding in {tensors.folder} has {theirs.size(0)} rows, but the tokenizer beside"
            f" it has {source.num_ids} tokens; they do not belong together"
        )
    rows = torch.tensor([*source.piece_rows, *source.language_rows.values()])
    return theirs[rows], [str(row) for row in range(source.num_ids, theirs.size(0))]
