"""One micro-batch as tensors.

Shape legend: B sentences, S source, T target, P distinct directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.stream.batching import MicroBatch

__all__ = ["Batch"]


@dataclass(frozen=True)
class Batch:
    """A micro-batch on a device; its sentences are sorted by direction.

    Attributes:
        src_BS: Source ids: language tag if any, pieces, end mark, padding.
        src_padding_mask_BS: True at padding.
        tgt_in_BT: What the decoder reads: language tag or start mark, pieces, padding.
        tgt_out_BT: What it must predict: pieces, end mark, padding.
        tgt_padding_mask_BT: True at padding.
        direction_P: Numbers of the distinct directions.
        src_language_P: Their source languages' numbers.
        tgt_language_P: Their target languages' numbers.
        sentences_P: How many consecutive sentences each direction has; the sum is B.
    """

    src_BS: Tensor
    src_padding_mask_BS: Tensor
    tgt_in_BT: Tensor
    tgt_out_BT: Tensor
    tgt_padding_mask_BT: Tensor
    direction_P: Tensor
    src_language_P: Tensor
    tgt_language_P: Tensor
    sentences_P: tuple[int, ...]

    @classmethod
    def from_micro_batch(cls, micro_batch: MicroBatch, device: torch.device | str = "cpu") -> Batch:
        """Copies a micro-batch of the data pipeline to a device."""

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

        def padding(lengths: np.ndarray, width: int) -> Tensor:
            return tensor(np.arange(width)[None, :] >= lengths[:, None])

        mb = micro_batch
        return cls(
            src_BS=tensor(mb.src_BS),
            src_padding_mask_BS=padding(mb.src_lengths_B, mb.src_BS.shape[1]),
            tgt_in_BT=tensor(mb.tgt_in_BT),
            tgt_out_BT=tensor(mb.tgt_out_BT),
            tgt_padding_mask_BT=padding(mb.tgt_lengths_B, mb.tgt_out_BT.shape[1]),
            direction_P=tensor(mb.direction_P),
            src_language_P=tensor(mb.src_language_P),
            tgt_language_P=tensor(mb.tgt_language_P),
            sentences_P=tuple(int(n) for n in mb.sentences_P),
        )
