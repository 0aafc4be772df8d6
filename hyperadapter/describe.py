"""`hyperadapter model describe`: parameters and operations, counted without building the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperadapter.config import ModelConfig, RunConfig
from hyperadapter.core.errors import ConfigError
from hyperadapter.core.languages import Direction, known_languages
from hyperadapter.core.schema import load_config, read_config_tree
from hyperadapter.model.accounting import adapter_size, count_flops, count_parameters
from hyperadapter.model.vocabulary import Vocabulary

__all__ = ["describe_model", "tables"]

_LENGTH = 25
_SENTENCES = 160


def describe_model(
    path: Path,
    overrides: Sequence[str] = (),
    vocab_size: int | None = None,
    num_languages: int | None = None,
    num_directions: int | None = None,
) -> dict[str, Any]:
    """Counts a model's parameters and operations.

    Args:
        path: A run, or a model file; a model file needs the sizes below.
        overrides: `key=value` changes.
        vocab_size: Pieces.
        num_languages: Languages, English among them.
        num_directions: Trained directions; by default every language to and from the first.

    Returns:
        `parameters` and `forward_flops` by part, their totals, `train_flops_per_tgt_token`, and the
        assumptions made.

    Raises:
        ConfigError: The file is no run and no model, or a size is missing.
    """
    if "training" in read_config_tree(path):
        run = load_config(RunConfig, path, overrides)
        given = {"--vocab-size": vocab_size, "--num-languages": num_languages}
        clash = [name for name, value in given.items() if value is not None]
        if clash or num_directions is not None:
            raise ConfigError(
                f"{path} is a run, which fixes its vocabulary and languages; leave out "
                f"{', '.join(clash or ['--num-directions'])} or use --set"
            )
        model = run.model
        vocabulary = Vocabulary(
            run.data.tokenizer.vocab_size, run.data.languages, run.data.resolved_directions()
        )
    else:
        model = load_config(ModelConfig, path, overrides)
        if vocab_size is None or num_languages is None:
            raise ConfigError(
                f"{path} is a model without data: give --vocab-size and --num-languages"
            )
        vocabulary = _imagined_vocabulary(vocab_size, num_languages, num_directions)
    return _report(model, vocabulary)


def _imagined_vocabulary(
    vocab_size: int, num_languages: int, num_directions: int | None
) -> Vocabulary:
    known = known_languages()
    if num_languages > len(known):
        raise ConfigError(f"--num-languages {num_languages} is more than the {len(known)} known")
    languages = ("en", *[code for code in known if code != "en"][: num_languages - 1])
    pairs = [Direction(a, b) for a in languages for b in languages if a != b]
    pairs.sort(key=lambda pair: "en" not in pair)
    wanted = 2 * (num_languages - 1) if num_directions is None else num_directions
    if wanted > len(pairs):
        raise ConfigError(
            f"--num-directions {wanted} is more than {num_languages} languages have ({len(pairs)})"
        )
    return Vocabulary(vocab_size, languages, tuple(pairs[:wanted]))


def _report(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    parameters = count_parameters(model, vocabulary)
    num_directions = min(len(vocabulary.directions), _SENTENCES)
    flops = count_flops(
        model,
        vocabulary.num_pieces,
        sentences=_SENTENCES,
        length=_LENGTH,
        num_directions=num_directions,
    )
    return {
        "adapter_kind": model.adapter.kind,
        "vocab_size": vocabulary.num_pieces,
        "num_languages": len(vocabulary.languages),
        "num_directions": len(vocabulary.directions),
        "parameters": parameters,
        "total_parameters": sum(parameters.values()),
        "parameters_of_one_adapter": adapter_size(model.d_model, model.adapter.bottleneck_dim),
        "forward_flops_per_tgt_token": {
            name: count / flops.tgt_tokens for name, count in flops.parts.items()
        },
        "train_flops_per_tgt_token": flops.train_per_tgt_token,
        "assuming": {
            "tokens_per_sentence": _LENGTH,
            "tgt_tokens_per_micro_batch": flops.tgt_tokens,
            "directions_per_micro_batch": num_directions,
        },
    }


def tables(report: dict[str, Any]) -> list[tuple[str, tuple[str, ...], list[tuple[Any, ...]]]]:
    """Returns (title, columns, rows) for parameters and for operations."""
    total = report["total_parameters"]
    rows: list[tuple[Any, ...]] = [
        (name, count, f"{100 * count / total:.1f} %")
        for name, count in report["parameters"].items()
    ]
    rows.append(("total", total, "100.0 %"))
    title = (
        f"Parameters: {report['adapter_kind']} adapters, {report['num_languages']} languages, "
        f"{report['num_directions']} directions, {report['vocab_size']:,} pieces"
    )
    forward = report["forward_flops_per_tgt_token"]
    flops: list[tuple[Any, ...]] = [(name, f"{v / 1e6:.2f}") for name, v in forward.items()]
    flops.append(("forward", f"{sum(forward.values()) / 1e6:.2f}"))
    flops.append(("forward and backward", f"{report['train_flops_per_tgt_token'] / 1e6:.2f}"))
    assumed = report["assuming"]
    flops_title = (
        f"MFLOP per target token, sentences of {assumed['tokens_per_sentence']} tokens, "
        f"{assumed['tgt_tokens_per_micro_batch']:,} tokens and "
        f"{assumed['directions_per_micro_batch']} directions a micro-batch"
    )
    return [
        (title, ("part", "parameters", "share"), rows),
        (flops_title, ("part", "MFLOP"), flops),
    ]
