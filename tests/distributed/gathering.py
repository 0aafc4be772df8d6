"""The whole weights of an engine, put together from what its ranks would save."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperadapter.training.engine import Engine
from hyperadapter.training.world import World

__all__ = ["gathered_weights"]


def gathered_weights(engine: Engine, world: World) -> dict[str, Tensor]:
    """Returns the fp32 weights on every rank; every rank must call it."""
    shares = [piece.share(world.rank, world.size) for piece in engine.state.pieces()]
    own = [(p.name, p.shape, p.start, p.weight.to("cpu", torch.float32, copy=True)) for p in shares]
    weights: dict[str, Tensor] = {}
    for parts in world.gather(own):
        for name, shape, start, part in parts:
            whole = weights.setdefault(name, torch.full(shape, torch.nan))
            whole.view(-1)[start:][: part.numel()] = part
    assert not any(weight.isnan().any() for weight in weights.values())
    return weights
