"""A folded direction in the format of M2M100 (Fan et al. 2020) of Hugging Face.

The reverse of `hyperadapter.checkpoint.huggingface`, whose head says why the two models are one.
M2M100's tokenizer opens a source with the token of the source language, and its language tokens
have fixed ids behind the pieces. Two of the hundred are used: the source language's has the row of
whichever tag opens our sources, the target language's that of the tag that opens our targets. The
rows of the others are zeros, and generation_config.json forbids to produce any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field
from torch import Tensor

from data_pipeline.config import TagsConfig
from data_pipeline.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from hyperadapter.checkpoint import huggingface, huggingface_vocabulary
from hyperadapter.config import ModelConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.files import atomic_directory, require_space, write_json
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import StrictModel
from hyperadapter.serving.export import TrainedRun, require_one_direction, save_for_all
from hyperadapter.serving.fold import as_ordinary, fold_adapters

__all__ = ["FoldReport", "export_m2m100"]

# Their ids of special pieces, and ours in that order.
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_OUR_SPECIAL = (BOS_ID, PAD_ID, EOS_ID, UNK_ID)
_THEIR_BOS, _THEIR_PAD, _THEIR_EOS, _THEIR_UNK = range(4)
_MADE_UP = 8
"""Rows behind the languages, which their tokenizer counts."""


class FoldReport(StrictModel):
    """What was written."""

    direction: str
    num_layers: int = Field(description="Encoder's and decoder's, sequential adapters among them")
    ffn_dim: int = Field(description="Units of the widest feed-forward block")
    vocab_size: int = Field(description="Rows of the embedding")
    num_parameters: int
    weights_bytes: int

    def rows(self) -> list[tuple[str, int]]:
        """Returns the sizes as rows of a table."""
        fields = ("num_layers", "ffn_dim", "vocab_size", "num_parameters", "weights_bytes")
        return [(name.replace("_", " "), getattr(self, name)) for name in fields]


class _Ids(NamedTuple):
    """Their ids.

    Attributes:
        vocab_size: Rows of the embedding.
        languages: Codes of their language tokens, in order.
        first_language: Id of the first of them.
        src: Their code of the source language.
        tgt: Their code of the target language.
    """

    vocab_size: int
    languages: tuple[str, ...]
    first_language: int
    src: str
    tgt: str

    def token(self, code: str) -> int:
        """Returns the id of a language's token."""
        return self.first_language + self.languages.index(code)


def export_m2m100(
    run_dir: Path, out: Path, *, which: str = "newest", directions: Sequence[str] | None = None
) -> FoldReport:
    """Writes one direction of a run as a folder that transformers loads.

    Args:
        run_dir: The run folder.
        out: A new folder.
        which: `newest`, `best`, a step, or a weights file.
        directions: The one direction, such as `en-de`.

    Raises:
        ConfigError: `out` exists, or M2M100 cannot express the direction; the message says why.
        CheckpointError: There is no such checkpoint.
        DiskFullError: There is no room; nothing half-written is kept.
    """
    require_one_direction(out, directions)
    run = TrainedRun(run_dir, which)
    (direction,) = run.directions(directions)
    tags = run.config.data.tags
    model = run.config.model
    folded = fold_adapters(run.main_network(), model, run.adapters(direction))
    main, config = as_ordinary(folded, model)
    ids = _number(run, direction)
    tensors = _rename(main, _embedding(main["embedding.weight"], run, direction, ids))
    size = sum(x.numel() * x.element_size() for x in tensors.values())
    require_space(out, size, "the folded model")
    with atomic_directory(out) as part:
        save_for_all(part / "model.safetensors", tensors)
        opening = _opening(tags, ids)
        write_json(part / "config.json", _their_config(config, ids) | opening)
        write_json(part / "generation_config.json", _generation(run, ids, opening))
        _write_tokenizer(part, run, ids)
    return FoldReport(
        direction=str(direction),
        num_layers=config.num_layers,
        ffn_dim=config.ffn_dim,
        vocab_size=ids.vocab_size,
        num_parameters=sum(x.numel() for x in tensors.values()),
        weights_bytes=size,
    )


def _number(run: TrainedRun, direction: Direction) -> _Ids:
    """Finds their language tokens.

    Raises:
        ConfigError: M2M100 has no token for a language, or sources have no tag.
    """
    tags = run.config.data.tags
    if tags.encoder == "none":
        raise ConfigError(
            "data.tags.encoder is 'none', but M2M100's tokenizer always opens a source with a "
            "language; choose another --format"
        )
    codes = tuple(huggingface_vocabulary.LANGUAGE_CODES["m2m100"].split())
    theirs: dict[str | None, str] = {}
    for code in codes:
        theirs.setdefault(huggingface_vocabulary.language_of_name(code), code)
    missing = [code for code in direction if code not in theirs]
    if missing:
        raise ConfigError(
            f"M2M100 has no token for {', '.join(missing)}; its languages are "
            f"{', '.join(sorted(code for code in theirs if code))}. Choose another --format"
        )
    first = run.info.vocabulary.num_pieces
    src, tgt = (theirs[code] for code in direction)
    return _Ids(first + len(codes) + _MADE_UP, codes, first, src, tgt)


def _embedding(ours: Tensor, run: TrainedRun, direction: Direction, ids: _Ids) -> Tensor:
    """Puts the rows in their order; tags that are not used are zeros."""
    vocabulary, tags = run.info.vocabulary, run.config.data.tags
    theirs = ours.new_zeros(ids.vocab_size, ours.size(1))
    theirs[: vocabulary.num_pieces] = ours[: vocabulary.num_pieces]
    theirs[: len(_OUR_SPECIAL)] = ours[list(_OUR_SPECIAL)]
    code_of = {"source": direction.src, "target": direction.tgt}
    for tag, token in ((tags.encoder, ids.src), (tags.decoder, ids.tgt)):
        if tag != "none":
            row = vocabulary.num_pieces + vocabulary.languages.index(code_of[tag])
            theirs[ids.token(token)] = ours[row]
    return theirs


def _rename(main: dict[str, Tensor], embedding: Tensor) -> dict[str, Tensor]:
    """Gives the tensors their names, and takes apart what we store as one."""
    renamed = {"model.shared.weight": embedding}
    for name, tensor in main.items():
        if name != "embedding.weight":
            theirs = list(huggingface.their_names(name))
            for part, rows in zip(theirs, tensor.chunk(len(theirs)), strict=True):
                renamed[f"model.{part}"] = rows.detach().clone()
    return renamed


def _opening(tags: TagsConfig, ids: _Ids) -> dict[str, int | None]:
    """Returns what the decoder reads first, and what it must say first."""
    tag = None if tags.decoder == "none" else ids.token(ids.tgt)
    if tags.decoder_start:
        return {"decoder_start_token_id": _THEIR_EOS, "forced_bos_token_id": tag}
    return {
        "decoder_start_token_id": _THEIR_BOS if tag is None else tag,
        "forced_bos_token_id": None,
    }


def _their_config(config: ModelConfig, ids: _Ids) -> dict[str, Any]:
    sizes = {theirs: getattr(config, ours) for ours, theirs in huggingface.SIZES.items()}
    return {
        **huggingface.REQUIRED,
        **sizes,
        "architectures": ["M2M100ForConditionalGeneration"],
        "is_encoder_decoder": True,
        "num_hidden_layers": config.num_encoder_layers,
        "decoder_ffn_dim": config.ffn_dim,
        "decoder_attention_heads": config.num_heads,
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "max_position_embeddings": 1024,
        "vocab_size": ids.vocab_size,
        "torch_dtype": "float32",
    }


def _generation(run: TrainedRun, ids: _Ids, opening: dict[str, int | None]) -> dict[str, Any]:
    """Returns how to search: as the run does, as far as transformers has a key for it."""
    evaluation = run.config.evaluation
    never = [_THEIR_BOS, _THEIR_PAD, _THEIR_UNK, *range(ids.first_language, ids.vocab_size)]
    return {
        "bos_token_id": _THEIR_BOS,
        "pad_token_id": _THEIR_PAD,
        "eos_token_id": _THEIR_EOS,
        **opening,
        "num_beams": evaluation.beam_size,
        "length_penalty": evaluation.length_penalty,
        "max_length": 2 * run.config.data.shards.max_sentence_tokens,
        # A token that is forced must not be forbidden as well.
        "suppress_tokens": [n for n in never if n != opening["forced_bos_token_id"]],
    }


def _write_tokenizer(folder: Path, run: TrainedRun, ids: _Ids) -> None:
    tokenizer = run.translator.tokenizer
    names = [*_SPECIAL, *tokenizer.pieces()[len(_SPECIAL) :]]
    write_json(folder / "vocab.json", {name: number for number, name in enumerate(names)})
    source = run.tokenizer_folder / "spm.model"
    (folder / "sentencepiece.bpe.model").write_bytes(source.read_bytes())
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "M2M100Tokenizer",
            "language_codes": "m2m100",
            "num_madeup_words": _MADE_UP,
            "src_lang": ids.src,
            "tgt_lang": ids.tgt,
            "additional_special_tokens": [f"__{code}__" for code in ids.languages],
            "bos_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )
