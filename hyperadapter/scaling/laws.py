"""The laws: a floor and a sum of powers, their logarithms and derivatives.

    n       L(N)       = E + A N^-alpha
    nd      L(N, D)    = E + A N^-alpha + B D^-beta                  (Hoffmann et al. 2022, eq. 2)
    joint   L(N, H, D) = E + A N^-alpha + C H^-gamma + B D^-beta

N parameters of the main network, H of the hyper-network, D training tokens. The joint law is our
proposal: the smallest one that gives each network an exponent of its own, and that becomes `nd`
where H is held fixed (C H^-gamma then is part of E).

With mixture weights N counts as f(w) N, where w is the share of the training batches that a
direction gets and f the share of the network that it can use (Fernandes et al. 2023):

    f(w) = w + c1 w^c2 (1 - w)^c3,    f(0) = 0, f(1) = 1

A fit searches in `theta`, which has no units and little correlation: logarithms of E, of every
term's value at the geometric centre of the points, the exponents, and logarithms of c1, c2, c3.
`values` are what people read: E, A, ..., alpha, ..., c1, c2, c3.

Shape legend: S sets of parameters, P parameters, M points, K terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["LAWS", "Array", "Design", "Law", "Term"]

Array = NDArray[np.float64]

_LOG_OF_ZERO = -1e30  # finite, so that its product with an exponential that vanishes is 0


@dataclass(frozen=True)
class Term:
    """One power in a law, such as A N^-alpha.

    Attributes:
        column: The measured size.
        coefficient: Name of the factor.
        exponent: Name of the exponent.
    """

    column: str
    coefficient: str
    exponent: str


@dataclass(frozen=True)
class Design:
    """The sizes of the points as the laws see them.

    Attributes:
        logs: Natural logarithms of the sizes, less `centres`: [points, terms].
        centres: Means of the logarithms: [terms].
        weights: Mixture weights in (0, 1]: [points]; empty without them.
    """

    logs: Array
    centres: Array
    weights: Array


@dataclass(frozen=True)
class Law:
    """A floor E and terms that fall with size; the first term may be shared by mixture weight.

    Attributes:
        name: One of `LAWS`.
        terms: The powers, that of N first.
        mixture: Whether N counts as f(w) N.
    """

    name: str
    terms: tuple[Term, ...]
    mixture: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the sizes that a point must have, without the loss."""
        return (*(term.column for term in self.terms), *(("weight",) if self.mixture else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of `values`."""
        coefficients = (term.coefficient for term in self.terms)
        exponents = (term.exponent for term in self.terms)
        return ("E", *coefficients, *exponents, *(("c1", "c2", "c3") if self.mixture else ()))

    @property
    def formula(self) -> str:
        """The law in writing."""
        signs = {"params": "N", "hyper_params": "H", "tokens": "D"}
        if self.mixture:
            signs["params"] = "(f(w) N)"
        powers = (f" + {t.coefficient} {signs[t.column]}^-{t.exponent}" for t in self.terms)
        share = ", f(w) = w + c1 w^c2 (1-w)^c3" if self.mixture else ""
        return "L = E" + "".join(powers) + share

    def with_mixture(self) -> Law:
        """Returns this law with mixture weights."""
        return replace(self, mixture=True)

    def design(self, columns: Mapping[str, Array], centres: Array | None = None) -> Design:
        """Takes the logarithms of the sizes.

        Args:
            columns: The sizes of the points by name.
            centres: Those of another design, to use its `theta` with these points.
        """
        logs = np.stack([np.log(columns[term.column]) for term in self.terms], axis=-1)
        centres = logs.mean(axis=0) if centres is None else centres
        weights = columns["weight"] if self.mixture else np.empty(0)
        return Design(logs - centres, centres, weights)

    # Prediction.

    def log_loss(self, theta: Array, design: Design) -> Array:
        """Returns the logarithms of the predicted losses.

        Args:
            theta: One or more sets of parameters: [..., P].
            design: The points: [M].

        Returns:
            [..., M].
        """
        logits, _ = self.logits(theta, design)
        top = logits.max(axis=-1)
        result: Array = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
        return result

    def log_loss_and_jacobian(self, theta: Array, design: Design) -> tuple[Array, Array]:
        """Returns the logarithms of the predicted losses [M] and their derivatives [M, P].

        The derivative by a term's logarithm is the term's share of the loss, a soft-max.
        """
        terms = len(self.terms)
        logits, share_logs = self.logits(theta, design)
        top = logits.max(axis=-1)
        powers = np.exp(logits - top[:, None])
        total = powers.sum(axis=-1)
        shares = powers / total[:, None]
        by_exponent = -shares[:, 1:] * design.logs
        parts = [shares, by_exponent]
        if self.mixture:
            alpha = theta[1 + terms]
            by_exponent[:, 0] -= shares[:, 1] * share_logs
            parts.append((-alpha * shares[:, 1])[:, None] * self._share_slopes(theta, design))
        jacobian: Array = np.concatenate(parts, axis=1)
        return top + np.log(total), jacobian

    def logits(self, theta: Array, design: Design) -> tuple[Array, Array]:
        """Returns logarithms of floor and terms, and of the share f(w) of the network.

        Args:
            theta: One or more sets of parameters: [..., P].
            design: The points: [M].

        Returns:
            [..., M, 1 + K] and [..., M].
        """
        terms = len(self.terms)
        heights, exponents = theta[..., None, 1 : 1 + terms], theta[..., None, 1 + terms :]
        powers = heights - exponents[..., :terms] * design.logs
        share_logs = np.zeros(powers.shape[:-1])
        if self.mixture:
            share_logs = np.log(self._shares(theta, design)[0])
            powers[..., 0] -= exponents[..., 0] * share_logs
        floor = np.broadcast_to(theta[..., None, :1], (*powers.shape[:-1], 1))
        return np.concatenate([floor, powers], axis=-1), share_logs

    def _shares(self, theta: Array, design: Design) -> tuple[Array, Array]:
        """Returns f(w) and its second summand, both [..., M]."""
        weights = design.weights
        log_c1, c2, c3 = theta[..., -3, None], *np.exp(np.moveaxis(theta[..., -2:, None], -2, 0))
        bonus: Array = np.exp(log_c1 + c2 * np.log(weights) + c3 * _log_rest(weights))
        return weights + bonus, bonus

    def _share_slopes(self, theta: Array, design: Design) -> Array:
        """Returns the derivatives of log f(w) by the logarithms of c1, c2, c3: [M, 3]."""
        share, bonus = self._shares(theta, design)
        c2, c3 = np.exp(theta[-2:])
        logs = (np.ones_like(share), c2 * np.log(design.weights), c3 * _log_rest(design.weights))
        return np.stack([bonus * part / share for part in logs], axis=1)

    # Between what is searched for and what is read.

    def to_values(self, theta: Array, centres: Array) -> Array:
        """Returns E, A, ..., alpha, ..., c1, c2, c3 in the units of the columns: [..., P]."""
        terms = len(self.terms)
        values = theta.copy()
        exponents = theta[..., 1 + terms : 1 + 2 * terms]
        values[..., 0] = np.exp(theta[..., 0])
        values[..., 1 : 1 + terms] = np.exp(theta[..., 1 : 1 + terms] + exponents * centres)
        values[..., 1 + 2 * terms :] = np.exp(theta[..., 1 + 2 * terms :])
        return values

    def to_theta(self, values: Array, centres: Array) -> Array:
        """The inverse of `to_values`."""
        terms = len(self.terms)
        theta = values.copy()
        exponents = values[..., 1 + terms : 1 + 2 * terms]
        theta[..., 0] = np.log(values[..., 0])
        theta[..., 1 : 1 + terms] = np.log(values[..., 1 : 1 + terms]) - exponents * centres
        theta[..., 1 + 2 * terms :] = np.log(values[..., 1 + 2 * terms :])
        return theta

    def predict(self, values: Array, columns: Mapping[str, Array]) -> Array:
        """Returns predicted losses [..., M] of parameters [..., P] at sizes [M] by name."""
        design = self.design(columns)
        result: Array = np.exp(self.log_loss(self.to_theta(values, design.centres), design))
        return result

    def index(self, name: str) -> int:
        """Returns the place of a parameter in `values`."""
        return self.names.index(name)


def _log_rest(weights: Array) -> Array:
    """Returns log(1 - w)."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log1p(-weights), _LOG_OF_ZERO)


_MAIN = Term("params", "A", "alpha")
_HYPER = Term("hyper_params", "C", "gamma")
_DATA = Term("tokens", "B", "beta")

LAWS = {
    "n": Law("n", (_MAIN,)),
    "nd": Law("nd", (_MAIN, _DATA)),
    "joint": Law("joint", (_MAIN, _HYPER, _DATA)),
}
