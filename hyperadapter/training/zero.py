"""Where DeepSpeed ZeRO keeps the state of training, seen as pieces of parameters.

    stage 0      every rank has all weights and moments
    stage 1, 2   one flat fp32 partition a rank and group; parameters know their ranges of it
    stage 3      each parameter is cut into equal ranges, one a rank; the last may be padded

The pieces are views: what is read into them is what DeepSpeed computes with, once `publish` has
brought it to the weights of the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hyperadapter.checkpoint.pieces import MOMENTS, Piece

__all__ = ["ZeroState"]


class ZeroState:
    """Weights and moments of an engine.

    Args:
        engine: DeepSpeed's, with AdamW.
        stage: Of ZeRO.
        rank: Of this process.
    """

    def __init__(self, engine: Any, stage: int, rank: int) -> None:
        self._module: nn.Module = engine.module
        self._optimizer = engine.optimizer
        self._stage = stage
        self._rank = rank

    @property
    def _adam(self) -> torch.optim.Optimizer:
        adam: torch.optim.Optimizer = self._optimizer.optimizer if self._stage else self._optimizer
        return adam

    def _flat(self) -> list[Tensor]:
        """Returns the tensors that AdamW updates."""
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        if self._stage:
            return list(self._optimizer.single_partition_of_fp32_groups)
        return [p for p in self._module.parameters() if p.requires_grad]

    @property
    def steps(self) -> int:
        """Updates that AdamW has made."""
        flat = self._flat()
        state = self._adam.state.get(flat[0], {}) if flat else {}
        return int(state.get("step", 0))

    @steps.setter
    def steps(self, steps: int) -> None:
        for flat in self._flat():
            self._adam.state[flat]["step"] = self._step_of(flat, steps)

    def _step_of(self, flat: Tensor, steps: int) -> Tensor:
        # A fused AdamW wants it beside the parameter.
        return torch.tensor(float(steps), dtype=torch.float32, device=flat.device)

    def _make_moments(self) -> None:
        """Makes what AdamW makes before its first update."""
        for flat in self._flat():
            if not self._adam.state.get(flat):
                zeros = {key: torch.zeros_like(flat.detach()) for key in MOMENTS}
                self._adam.state[flat] = {"step": self._step_of(flat, 0), **zeros}

    @torch.no_grad()
    def pieces(self) -> Iterator[Piece]:
        """Yields this rank's piece of every parameter of which it has one."""
        self._make_moments()
        for name, parameter in self._module.named_parameters():
            if self._stage == 3:
                yield from self._sharded_piece(name, parameter)
            elif self._stage and parameter.requires_grad:
                yield from self._flat_piece(name, parameter)
            else:
                state = self._adam.state[parameter] if parameter.requires_grad else {}
                moments = {key: state[key].view(-1) for key in MOMENTS if state}
                weight = parameter.detach().view(-1)
                yield Piece(name, tuple(parameter.shape), 0, weight, moments, replicated=True)

    def _flat_piece(self, name: str, parameter: Any) -> Iterator[Piece]:
        fragment = parameter._hp_mapping
        if fragment is None:  # another rank has it
            return
        group, place = fragment.param_group_index, fragment.hp_fragment_address
        flat = self._optimizer.single_partition_of_fp32_groups[group]
        state = self._adam.state[flat]
        moments = {key: state[key].narrow(0, place.start, place.numel) for key in MOMENTS}
        weight = flat.detach().narrow(0, place.start, place.numel)
        start = fragment.lp_fragment_address.start
        yield Piece(name, tuple(parameter.shape), start, weight, moments, replicated=False)

    def _sharded_piece(self, name: str, parameter: Any) -> Iterator[Piece]:
        length = parameter.partition_numel()
        start = length * self._rank
        numel = min(length, parameter.ds_numel - start)
        if numel <= 0:  # nothing but padding
            return
        shape = tuple(parameter.ds_shape)
        if not parameter.requires_grad:
            weight = parameter.ds_tensor.detach()[:numel]
            yield Piece(name, shape, start, weight, {}, replicated=False)
            return
        group, offset, _ = self._optimizer.grad_position[parameter.ds_id]
        flat = self._optimizer.fp32_partitioned_groups_flat[group]
        state = self._adam.state[flat]
        moments = {key: state[key].narrow(0, offset, numel) for key in MOMENTS}
        weight = flat.detach().narrow(0, offset, numel)
        yield Piece(name, shape, start, weight, moments, replicated=False)

    @torch.no_grad()
    def publish(self) -> None:
        """Brings weights that were read into the pieces to the forward pass; all ranks must."""
        optimizer = self._optimizer
        if self._stage == 3:
            # Parameters that stay whole between steps are cut, and put together anew.
            optimizer.checkpoint_event_prologue()
            for group in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            optimizer.checkpoint_event_epilogue()
        elif self._stage:
            optimizer.update_lp_params()
