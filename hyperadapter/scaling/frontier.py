"""The best sizes for a budget: the least loss with k N D floating-point operations.

Hoffmann et al. (2022, eq. 4), for the terms A N^-alpha and B D^-beta:

    N = G (C/k)^a,  D = (C/k)^b / G,  G = (alpha A / (beta B))^(1 / (alpha + beta)),
    a = beta / (alpha + beta),  b = alpha / (alpha + beta)

k is 6 for a network that every token passes once, forward (2 N) and backward (4 N). The joint law's
H does not count: generating adapters costs a batch, not a token. With mixture weights the frontier
is that of weight 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hyperadapter.scaling.laws import Array, Law

__all__ = ["Optimum", "default_budgets", "exponents", "has_frontier", "optimum"]


class Optimum(NamedTuple):
    """The best sizes for one budget or more.

    Attributes:
        params: N.
        tokens: D.
        reducible_loss: A N^-alpha + B D^-beta there, nats per token.
    """

    params: Array
    tokens: Array
    reducible_loss: Array


def has_frontier(law: Law) -> bool:
    """Says whether a law has both N and D."""
    return {"params", "tokens"} <= set(law.columns)


def _parts(law: Law, values: Array) -> tuple[Array, Array, Array, Array]:
    a, b, alpha, beta = (values[..., law.index(name)] for name in ("A", "B", "alpha", "beta"))
    return a, b, alpha, beta


def exponents(law: Law, values: Array) -> tuple[Array, Array]:
    """Returns a and b of N ~ C^a, D ~ C^b, for parameters [..., P]."""
    _, _, alpha, beta = _parts(law, values)
    return beta / (alpha + beta), alpha / (alpha + beta)


def optimum(law: Law, values: Array, flops: float | Array, flops_factor: float = 6.0) -> Optimum:
    """Returns the sizes of least loss for a budget, or for several.

    Args:
        law: A law with N and D.
        values: Its parameters: [..., P].
        flops: The budget C: a number, or [...] as the parameters.
        flops_factor: k in C = k N D.
    """
    a, b, alpha, beta = _parts(law, values)
    product = np.log(flops / flops_factor)
    by_params, _ = exponents(law, values)
    log_params = np.log(alpha * a / (beta * b)) / (alpha + beta) + by_params * product
    params, tokens = np.exp(log_params), np.exp(product - log_params)
    return Optimum(params, tokens, a * params**-alpha + b * tokens**-beta)


def default_budgets(params: Array, tokens: Array, flops_factor: float = 6.0) -> Sequence[float]:
    """Returns powers of ten from the points' median budget to a hundred times their largest."""
    spent = np.log10(flops_factor * params * tokens)
    first, last = int(np.floor(np.median(spent))), int(np.ceil(spent.max())) + 2
    return [10.0**power for power in range(first, last + 1)]
