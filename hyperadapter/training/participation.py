"""Refuses a model that does not use all of its trained parameters in every micro-batch.

ZeRO expects a gradient of every trained parameter from every rank. If ranks use different ones,
because each language has a module of its own, stages 1 to 3 mix gradients up: they train wrongly
without an error, or wait for each other for ever. A hook inside such a step comes too late, because
stages 2 and 3 reduce during the backward pass. So this runs before DeepSpeed sees the model.

The micro-batches are made up, as poor as they can come: one sentence of one direction, another one
on each rank, and a sentence without any target, which is what damaged data leave. What takes part
in those takes part in all that hold more. A gradient of 0 is one.

Every gradient is dropped as soon as it is there: the peak of memory is the largest one, not all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from data_pipeline.ragged import Ragged
from data_pipeline.stream.batching import BatchLayout, build_micro_batch, build_prompts
from data_pipeline.tokenizer import EOS_ID
from hyperadapter.core.errors import TrainingError
from hyperadapter.model.batch import Batch
from hyperadapter.model.seq2seq import Seq2Seq
from hyperadapter.model.vocabulary import Vocabulary
from hyperadapter.training.world import World

__all__ = ["check_participation"]

_NAMED = 3


def check_participation(model: Seq2Seq, world: World) -> None:
    """Checks that each trained parameter has a gradient in the poorest micro-batches.

    Every rank must call it, after `freeze` and before compilation and `Engine`. It changes nothing.

    Args:
        model: On any device.
        world: All ranks; they agree over the control group.

    Raises:
        TrainingError: A parameter has none on some rank; all ranks raise the same.
    """
    batches = _poorest_batches(model.vocabulary, world.rank, model.embedding.weight.device)
    # In training mode, since dropout may leave out whole layers; `Engine` seeds each micro-batch.
    with torch.random.fork_rng(devices=[]):
        unused = {name for batch in batches for name in _without_gradient(model, batch)}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    unused_of_rank = world.gather([name for name in trained if name in unused])
    if any(unused_of_rank):
        raise TrainingError(_message(unused_of_rank, len(trained)))


def _poorest_batches(vocabulary: Vocabulary, rank: int, device: torch.device) -> list[Batch]:
    number = {code: index for index, code in enumerate(vocabulary.languages)}
    src = np.array([number[direction.src] for direction in vocabulary.directions])
    tgt = np.array([number[direction.tgt] for direction in vocabulary.directions])
    pieces = vocabulary.num_pieces
    layout = BatchLayout(src, tgt, src + pieces, tgt + pieces)
    direction = np.array([rank % len(vocabulary.directions)])
    sentence = Ragged.from_sequences([np.array([EOS_ID])])
    whole = build_micro_batch(layout, direction, sentence, sentence)
    no_target, _ = build_prompts(layout, direction, sentence)
    return [Batch.from_micro_batch(batch, device) for batch in (whole, no_target)]


def _without_gradient(model: nn.Module, batch: Batch) -> list[str]:
    """Returns the trained parameters that one forward and backward pass gives no gradient."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    seen: set[int] = set()

    def drop(parameter: torch.Tensor) -> None:
        seen.add(id(parameter))
        parameter.grad = None

    hooks = [
        p.register_post_accumulate_grad_hook(drop)  # type: ignore[no-untyped-call]
        for p in trained.values()
    ]
    try:
        with torch.enable_grad():
            loss = model(batch).loss
        if loss.requires_grad:
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, parameter in trained.items() if id(parameter) not in seen]


def _message(unused_of_rank: Sequence[Sequence[str]], trained: int) -> str:
    found: list[str] = []
    for names in dict.fromkeys(map(tuple, unused_of_rank)):
        if names:
            ranks = [rank for rank, other in enumerate(unused_of_rank) if tuple(other) == names]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            who = f"ranks {', '.join(map(str, ranks))}" if len(ranks) > 1 else f"rank {ranks[0]}"
            found.append(f"{', '.join(names[:_NAMED])}{more} on {who}")
    return (
        f"not all of the {trained} trained parameters have a gradient in a micro-batch of one "
        f"direction: {'; '.join(found[:_NAMED])} have none. ZeRO would mix up the gradients of the "
        "ranks without an error. Stack what belongs to languages or directions in one parameter "
        "and select its rows, as AdapterStack does; remove, or name in training.frozen, what no "
        "micro-batch uses"
    )
