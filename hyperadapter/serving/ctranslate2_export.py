"""From a run to a CTranslate2 folder of one direction, adapters folded in.

It is written from the run's own tensors and pieces, without transformers and without M2M100's list
of languages, so every language and every choice of `data.tags` is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from data_pipeline.tokenizer import Tokenizer
from hyperadapter.core.errors import CheckpointError, ConfigError
from hyperadapter.core.files import (
    atomic_directory,
    require_space,
    sha256_file,
    write_json,
    write_text,
)
from hyperadapter.core.languages import Direction
from hyperadapter.core.schema import StrictModel
from hyperadapter.serving.bundle import CARD_FILE, TOKENIZER_FOLDER, DecodingConfig, record_files
from hyperadapter.serving.card import CardFacts, write_card
from hyperadapter.serving.ctranslate2 import (
    ABOUT_FILE,
    FORMAT,
    MODEL_FILE,
    CTranslate2Config,
    Quantization,
    import_ctranslate2,
)
from hyperadapter.serving.ctranslate2_spec import build_spec
from hyperadapter.serving.export import TrainedRun, require_one_direction
from hyperadapter.serving.fold import Folded, fold_adapters

__all__ = ["CTranslate2Report", "export_ctranslate2"]

_LEAST_POSITIONS, _SENTENCES = 512, 4


class CTranslate2Report(StrictModel):
    """What was written."""

    direction: str
    quantization: Quantization
    num_layers: int = Field(description="Encoder's and decoder's, sequential adapters among them")
    vocab_size: int = Field(description="Pieces, and the tags in use")
    model_bytes: int = Field(description="Size of model.bin")

    def rows(self) -> list[tuple[str, int]]:
        """Returns the sizes as rows of a table."""
        fields = ("num_layers", "vocab_size", "model_bytes")
        return [(name.replace("_", " "), getattr(self, name)) for name in fields]


def export_ctranslate2(
    run_dir: Path,
    out: Path,
    *,
    which: str = "newest",
    directions: Sequence[str] | None = None,
    quantization: Quantization = "float32",
) -> CTranslate2Report:
    """Writes one direction of a run as a folder that CTranslate2 loads.

    Args:
        run_dir: The run folder.
        out: A new folder.
        which: `newest`, `best`, a step, or a weights file.
        directions: The one direction, such as `en-de`.
        quantization: How the matrices are stored.

    Raises:
        ConfigError: `out` exists, ctranslate2 is not installed, or not one direction is named.
        CheckpointError: There is no such checkpoint, or its numbers are not finite.
        DiskFullError: There is no room; nothing half-written is kept.
    """
    import_ctranslate2()
    require_one_direction(out, directions)
    run = TrainedRun(run_dir, which)
    (direction,) = run.directions(directions)
    folded = fold_adapters(run.main_network(), run.config.model, run.adapters(direction))
    openings = _openings(run, direction)
    about = _about(run, direction, openings, quantization)
    _check_finite(folded)
    tags = sorted({row for row in (*openings[0], *openings[1]) if row >= _num_pieces(run)})
    tokens = [*run.translator.tokenizer.pieces(), *(_token(run, row) for row in tags)]
    if len(set(tokens)) < len(tokens):
        raise ConfigError(
            f"the tokenizer has a piece that reads as a tag: {', '.join(tokens[-len(tags) :])}; "
            "such a model cannot be named in CTranslate2's vocabulary, export a bundle"
        )
    spec = build_spec(
        folded,
        folded.others["embedding.weight"][[*range(_num_pieces(run)), *tags]],
        tokens,
        num_pieces=_num_pieces(run),
        num_heads=run.config.model.num_heads,
        num_positions=about.num_positions,
    )
    spec.config.decoder_start_token = _token(run, openings[1][0])
    spec.validate()
    spec.optimize(None if quantization == "float32" else quantization)
    # An alias, such as the decoder's embedding, is the name of another tensor.
    stored = (x.num_bytes() for x in spec.variables().values() if not isinstance(x, str))
    require_space(out, sum(stored), "the CTranslate2 folder")
    with atomic_directory(out) as part:
        Tokenizer.copy(run.tokenizer_folder, part / TOKENIZER_FOLDER)
        spec.save(str(part))
        sums = {MODEL_FILE: sha256_file(part / MODEL_FILE)}
        write_text(part / CARD_FILE, write_card(_facts(run, about), run_dir, run.weights, sums))
        about = about.model_copy(update={"files": record_files(part)})
        write_json(part / ABOUT_FILE, about.model_dump(mode="json"))
    return CTranslate2Report(
        direction=str(direction),
        quantization=quantization,
        num_layers=len(folded.encoder) + len(folded.decoder),
        vocab_size=len(tokens),
        model_bytes=about.files[MODEL_FILE].bytes,
    )


def _num_pieces(run: TrainedRun) -> int:
    return run.info.vocabulary.num_pieces


def _token(run: TrainedRun, row: int) -> str:
    """Returns the name of a row of our embedding."""
    if row < _num_pieces(run):
        return run.translator.tokenizer.pieces()[row]
    return f"__{run.info.vocabulary.languages[row - _num_pieces(run)]}__"


def _openings(run: TrainedRun, direction: Direction) -> tuple[list[int], list[int]]:
    """Returns the rows that open a source, perhaps none, and those that open a target."""
    layout = run.translator.prepare(direction).layout
    first = np.zeros(1, np.int64)
    src = [] if layout.src_tag_D is None else layout.src_tag_D.tolist()
    return src, layout.tgt_opening(first)[0].tolist()


def _about(
    run: TrainedRun,
    direction: Direction,
    openings: tuple[list[int], list[int]],
    quantization: Quantization,
) -> CTranslate2Config:
    src, (_, *tgt) = openings
    longest = run.config.data.shards.max_sentence_tokens
    return CTranslate2Config(
        format=FORMAT,
        name=run.config.name,
        step=run.info.step,
        fingerprint=run.info.fingerprint,
        tokenizer=run.info.tokenizer,
        direction=str(direction),
        source_opening=tuple(_token(run, row) for row in src),
        target_opening=tuple(_token(run, row) for row in tgt),
        max_sentence_tokens=longest,
        num_positions=max(_LEAST_POSITIONS, _SENTENCES * longest),
        decoding=DecodingConfig.of(run.config.evaluation),
        quantization=quantization,
        files={},
    )


def _facts(run: TrainedRun, about: CTranslate2Config) -> CardFacts:
    return CardFacts(
        name=about.name,
        step=about.step,
        fingerprint=about.fingerprint,
        directions=(about.direction,),
        has_adapters=run.config.model.adapter.kind != "none",
        stored=f"a CTranslate2 model in {about.quantization}",
        exact=False,  # even in float32: its beam search ends by other rules
        max_sentence_tokens=about.max_sentence_tokens,
        decoding=about.decoding,
        checksums_file=ABOUT_FILE,
    )


def _check_finite(folded: Folded) -> None:
    layers = [folded.others, *folded.encoder, *folded.decoder]
    for name, tensor in ((name, x) for layer in layers for name, x in layer.items()):
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} has numbers that are not finite; use another checkpoint")
