"""The learning rate as a function of the step.

All shapes rise linearly from 0 to the peak over `warmup_steps`; the first step is number 1.

    inverse_sqrt   peak * sqrt(warmup / step)                          Vaswani et al. 2017, eq. 3
    cosine         final + (peak - final) * (1 + cos(pi * t)) / 2      Loshchilov and Hutter 2017
    wsd            peak, then a linear fall over `decay_steps`         Hu et al. 2024 (MiniCPM)
"""

from __future__ import annotations

import math

from hyperadapter.config import ScheduleConfig

__all__ = ["learning_rate"]


def learning_rate(config: ScheduleConfig, peak: float, step: int, max_steps: int) -> float:
    """Returns the rate of optimizer step `step` (1 to max_steps)."""
    warmup, final = config.warmup_steps, config.final_fraction * peak
    if step < warmup:
        return peak * step / warmup
    if config.kind == "inverse_sqrt":
        return peak * math.sqrt(max(warmup, 1) / step)
    if config.kind == "cosine":
        progress = (step - warmup) / max(1, max_steps - warmup)
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
    if config.decay_steps == 0:
        return peak
    left = (max_steps - step) / config.decay_steps
    return peak if left >= 1 else final + (peak - final) * left
