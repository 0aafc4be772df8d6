"""`hyperadapter train --dry-run`: memory, operations, disk and hours of a run before it starts.

Everything is counted from the configuration; nothing is started and nothing is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from data_pipeline.tokenizer import Tokenizer
from hyperadapter.config import RunConfig, check_world_size
from hyperadapter.core.errors import ConfigError
from hyperadapter.describe import Table
from hyperadapter.gpus import changes_that_fit, find_gpu, usable_bytes
from hyperadapter.model.accounting import count_flops
from hyperadapter.model.activations import MicroBatchSize, count_activations
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training.sharding import (
    ParameterSizes,
    checkpoint_bytes,
    element_size,
    num_checkpoints,
    parameter_sizes,
    state_bytes,
)

__all__ = ["forecast_run", "forecast_tables", "micro_batch_flops", "vocabulary_of"]

_UTILISATION = 0.40
_SENTENCE_TOKENS = 25


def forecast_run(
    config: RunConfig,
    *,
    world_size: int | None = None,
    gpu: str | None = None,
    utilisation: float | None = None,
    tokens_per_s: float | None = None,
) -> dict[str, Any]:
    """Counts what a run needs.

    Args:
        config: The run.
        world_size: Ranks; by default `training.num_processes`.
        gpu: A name of `GPUS`: says whether memory suffices, and for how many hours it computes.
        utilisation: Share of the GPU's peak that is reached; by default 0.40.
        tokens_per_s: Target tokens a second of all ranks, as measured, for the hours.

    Returns:
        Bytes of the fullest rank, operations, tokens, disk, hours, and the assumptions made.

    Raises:
        ConfigError: Ranks cannot share a step, or the type of GPU is unknown or has no bf16.
    """
    training = config.training
    world_size = training.num_processes if world_size is None else world_size
    try:
        check_world_size(training, world_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if gpu is None and utilisation is not None:
        raise ConfigError(f"--utilisation {utilisation} is of a GPU's peak; name one with --gpu")
    card = None if gpu is None else find_gpu(gpu, training.precision)
    vocabulary, source = vocabulary_of(config)
    plan = _Plan(
        vocabulary,
        parameter_sizes(config.model, vocabulary, training),
        world_size,
        on_gpu=card is not None or training.device != "cpu",
    )
    report = {
        "name": config.name,
        "world_size": world_size,
        "zero_stage": training.zero_stage,
        "precision": training.precision,
        "device": "gpu" if plan.on_gpu else "cpu",
        "vocab_size": vocabulary.num_pieces,
        "vocab_size_from": source,
        "num_parameters": plan.sizes.total,
        "num_trained": sum(plan.sizes.trained),
        "bytes_per_rank": plan.device_bytes(config),
        "host_bytes_per_rank": plan.host_bytes(config),
        **plan.work(config),
        "disk": plan.disk(config),
        "assuming": {
            "tokens_per_sentence": _SENTENCE_TOKENS,
            "tokens_per_side_of_micro_batch": training.micro_batch_tokens,
            "directions_per_micro_batch": _num_directions(config),
        },
    }
    if tokens_per_s is not None:
        hours = report["run"]["tgt_tokens"] / tokens_per_s / 3600
        report["measured"] = {"tokens_per_s": tokens_per_s, "hours": hours}
    if gpu is not None and card is not None:
        share = _UTILISATION if utilisation is None else utilisation
        flops_per_s = world_size * card.flops_per_s(training.precision) * share
        limit = usable_bytes(card)
        report["gpu"] = {
            "type": gpu.upper(),
            "peak_flops_per_s": card.flops_per_s(training.precision),
            "utilisation": share,
            "hours": report["run"]["flops"] / flops_per_s / 3600,
            "usable_bytes": limit,
            "fits": report["bytes_per_rank"]["total"] <= limit,
            "changes": changes_that_fit(
                config, world_size, lambda changed: plan.device_bytes(changed)["total"], limit
            ),
        }
    return report


def vocabulary_of(config: RunConfig) -> tuple[Vocabulary, str]:
    """Returns what a run's model is built for, and where its number of pieces is from."""
    data = config.data
    pieces, source = data.tokenizer.vocab_size, "data.tokenizer.vocab_size"
    for folder in (Path(data.folder) / "tokenizer", Path(data.tokenizer.folder or data.folder)):
        if (folder / "manifest.json").is_file() and (folder / "spm.model").is_file():
            pieces, source = Tokenizer.load(folder).vocab_size, str(folder)
            break
    return Vocabulary(pieces, data.languages, data.resolved_directions()), source


def _num_directions(config: RunConfig) -> int:
    """Returns how many directions a micro-batch can hold at most."""
    if config.data.stream.policy == "one_direction_per_micro_batch":
        return 1
    sentences = max(1, config.training.micro_batch_tokens // _SENTENCE_TOKENS)
    return min(len(config.data.resolved_directions()), sentences)


def micro_batch_flops(config: RunConfig, vocabulary: Vocabulary) -> tuple[int, int]:
    """Returns the operations of training on one micro-batch, and its target tokens."""
    training, adapter = config.training, config.model.adapter
    length = min(_SENTENCE_TOKENS, training.micro_batch_tokens)
    flops = count_flops(
        config.model,
        vocabulary.num_pieces,
        sentences=training.micro_batch_tokens // length,
        length=length,
        num_directions=_num_directions(config),
    )
    total = flops.train
    if training.activation_checkpointing:
        again = ["encoder", "decoder", "adapters"]
        again += ["hyper-network heads"] * (adapter.generation == "layer_by_layer")
        total += sum(flops.parts.get(part, 0) for part in again)
    return total, flops.tgt_tokens


class _Plan(NamedTuple):
    """What stays the same whatever is changed to save memory."""

    vocabulary: Vocabulary
    sizes: ParameterSizes
    world_size: int
    on_gpu: bool

    def device_bytes(self, config: RunConfig) -> dict[str, int]:
        """Counts the bytes of the fullest rank on its GPU, or in a CPU's memory."""
        training = config.training
        tokens = training.micro_batch_tokens
        live = count_activations(
            config.model,
            self.vocabulary,
            MicroBatchSize(tokens, tokens, _num_directions(config)),
            element_size=element_size(training),
            on_gpu=self.on_gpu,
            recompute=training.activation_checkpointing,
        )
        state = state_bytes(self.sizes, training, self.world_size, self.on_gpu)
        parts = {
            "parameters": state.parameters,
            "gathered_parameters": state.gathered,
            "gradients": state.gradients,
            "optimizer": state.optimizer,
            "communication": state.communication,
            "activations": live.kept + live.workspace,
            "generated_adapters": live.generated,
            # It takes the place that activations have left.
            "update_beyond_activations": max(0, state.update - live.total),
        }
        return parts | {"total": sum(parts.values())}

    def host_bytes(self, config: RunConfig) -> dict[str, int]:
        """Counts what rank 0 has in host memory beside Python and the data."""
        state = state_bytes(self.sizes, config.training, self.world_size, on_gpu=True)
        one = checkpoint_bytes(self.sizes.total, sum(self.sizes.trained))
        parts = {
            "optimizer": state.host_optimizer,
            "offload_copies": state.host_copies,
            # Every rank saves its share, and rank 0 puts the weights together.
            "saving": one // self.world_size + 4 * self.sizes.total,
        }
        return parts | {"total": sum(parts.values())}

    def work(self, config: RunConfig) -> dict[str, Any]:
        """Counts tokens and operations of a step and of the whole run."""
        training = config.training
        total, tokens = micro_batch_flops(config, self.vocabulary)
        step = total * training.global_batch_tokens // tokens
        return {
            "step": {
                "tgt_tokens": training.global_batch_tokens,
                "micro_batches_per_rank": training.micro_batches_per_step // self.world_size,
                "flops": step,
            },
            "run": {
                "steps": training.max_steps,
                "tgt_tokens": training.max_steps * training.global_batch_tokens,
                "flops": training.max_steps * step,
            },
        }

    def disk(self, config: RunConfig) -> dict[str, int]:
        """Counts the bytes of checkpoints."""
        one = checkpoint_bytes(self.sizes.total, sum(self.sizes.trained))
        count = num_checkpoints(config.training.checkpoint, config.training.max_steps)
        return {"checkpoint_bytes": one, "checkpoints": count, "needed_bytes": one * count}


_WORDS = {
    "parameters": "parameters",
    "gathered_parameters": "parameters gathered for use",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "communication": "buffers for gradients",
    "activations": "activations",
    "generated_adapters": "adapters' weights of a micro-batch",
    "update_beyond_activations": "update, beyond activations",
    "offload_copies": "copies for offloading",
    "saving": "a checkpoint on its way to disk, rank 0",
    "total": "total",
}


def forecast_tables(report: dict[str, Any]) -> list[Table]:
    """Returns tables of memory, of work and hours, of disk and, if needed, of what would fit."""
    assumed, gpu = report["assuming"], report.get("gpu")
    trained = f"{report['num_trained']:,} of {report['num_parameters']:,} parameters trained"
    memory = (
        f"Memory of the fullest of {report['world_size']} ranks, ZeRO stage "
        f"{report['zero_stage']}, {report['precision']}, {trained}, {report['vocab_size']:,} "
        f"pieces ({report['vocab_size_from']}); micro-batches of "
        f"{assumed['tokens_per_side_of_micro_batch']:,} tokens a side and "
        f"{assumed['directions_per_micro_batch']} directions"
    )
    device = "GPU, GB" if report["device"] == "gpu" else "process, GB"
    made: list[Table] = [
        (memory, ("", device), _gigabytes(report["bytes_per_rank"])),
        (
            "Host memory beside Python and data",
            ("", "GB"),
            _gigabytes(report["host_bytes_per_rank"]),
        ),
        (
            f"Work, for sentences of {assumed['tokens_per_sentence']} tokens",
            ("", "a step", "the run"),
            _work_rows(report),
        ),
        ("Disk", ("", "count", "GB"), _disk_rows(report["disk"])),
    ]
    if gpu is not None:
        made.append(_gpu_table(gpu, report["bytes_per_rank"]["total"]))
    return made


def _gigabytes(parts: dict[str, int]) -> list[tuple[Any, ...]]:
    shown = {name: count for name, count in parts.items() if count or name == "total"}
    return [(_WORDS[name], f"{count / 1e9:.3f}") for name, count in shown.items()]


def _work_rows(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    step, run = report["step"], report["run"]
    rows: list[tuple[Any, ...]] = [
        ("optimizer steps", 1, run["steps"]),
        ("micro-batches a rank", *(step["micro_batches_per_rank"] * n for n in (1, run["steps"]))),
        ("target tokens, at most", step["tgt_tokens"], run["tgt_tokens"]),
        ("TFLOP", f"{step['flops'] / 1e12:,.2f}", f"{run['flops'] / 1e12:,.0f}"),
    ]
    if "gpu" in report:
        gpu = report["gpu"]
        name = (
            f"hours on {report['world_size']} {gpu['type']}, assuming "
            f"{gpu['utilisation']:.0%} of {gpu['peak_flops_per_s'] / 1e12:,.1f} TFLOP/s each"
        )
        rows.append((name, None, f"{gpu['hours']:,.2f}"))
    if "measured" in report:
        measured = report["measured"]
        name = f"hours at {measured['tokens_per_s']:,.0f} target tokens a second"
        rows.append((name, None, f"{measured['hours']:,.2f}"))
    return rows


def _disk_rows(disk: dict[str, int]) -> list[tuple[Any, ...]]:
    return [
        ("a checkpoint", 1, f"{disk['checkpoint_bytes'] / 1e9:.3f}"),
        ("at most, while one is written", disk["checkpoints"], f"{disk['needed_bytes'] / 1e9:.3f}"),
    ]


def _gpu_table(gpu: dict[str, Any], total: int) -> Table:
    """Says whether the run fits, and which change each alone, or which together, make it fit."""
    title = f"The run {'fits' if gpu['fits'] else 'does not fit'} on {gpu['type']}"
    if not gpu["fits"]:
        title += (
            "; with one of these changes it does"
            if gpu["changes"]
            else "; no change of sharding, offloading, recomputing or micro-batch makes it fit"
        )
    rows = [("as it is", total), ("can be used", gpu["usable_bytes"])]
    rows += [(f"--set {' --set '.join(c['set'])}", c["total"]) for c in gpu["changes"]]
    return title, ("", "GB"), [(name, f"{count / 1e9:.3f}") for name, count in rows]
