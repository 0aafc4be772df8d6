"""Distances between languages, and what can be said of them.

    cosine    1 - a.b / (|a| |b|)
    CKA       1 - |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F), columns centred: linear centred kernel
              alignment (Kornblith, Norouzi, Lee and Hinton 2019, "Similarity of Neural Network
              Representations Revisited", equation 3 with linear kernels), which is the cosine of
              the centred Gram matrices X X^T and Y Y^T
    map       classical multidimensional scaling (Torgerson 1952)
    Mantel    correlation of two distance matrices; its p-value is the share of permutations of the
              languages that correlate as well (Mantel 1967, "The Detection of Disease Clustering
              and a Generalized Regression Approach")

Entries of a distance matrix are not independent: n languages give n (n - 1) / 2 of them. So
languages are permuted, never entries.
"""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperadapter.core.errors import DataError
from hyperadapter.core.languages import from_catalog_code, script_of

__all__ = [
    "LEAST_LANGUAGES",
    "Correlation",
    "DistanceTable",
    "GivenDistances",
    "cka_distances",
    "classical_mds",
    "cosine_distances",
    "family_distances",
    "family_gap",
    "linkage",
    "mantel",
    "nearest_relatives",
    "read_distances",
]

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
LEAST_LANGUAGES = 3
"""Of fewer, no distance can be called small or large."""
_ROUNDING = 1e-12
_NO_FAMILIES = ("creole", "constructed")


class Correlation(NamedTuple):
    """A Mantel test.

    Attributes:
        r: Pearson's correlation of the matrices' entries; None where one of them is constant.
        p: Share of permutations with an r as high, this one included; one-sided.
    """

    r: float | None
    p: float | None


def cosine_distances(vectors: Array) -> Array:
    """Returns the distances [n, n] of n vectors [n, size]; those of a zero vector are 1."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms > 0, norms, 1.0)
    distances = np.clip(1.0 - units @ units.T, 0.0, 2.0)
    distances = (distances + distances.T) / 2
    np.fill_diagonal(distances, 0.0)
    return distances


def cka_distances(matrices: Array) -> Array:
    """Returns the distances [n, n] of n matrices [n, examples, features]."""
    centred = matrices - matrices.mean(axis=1, keepdims=True)
    grams = centred @ np.swapaxes(centred, 1, 2)
    return cosine_distances(grams.reshape(len(grams), -1))


def classical_mds(distances: Array, dimensions: int = 2) -> tuple[Array, float]:
    """Places points whose distances are as near to the given ones as an eigenvector can make them.

    Args:
        distances: [n, n].
        dimensions: Coordinates of a point.

    Returns:
        The points [n, dimensions], and the share of the positive eigenvalues that they show. The
        largest coordinate of each axis is positive.
    """
    size = len(distances)
    centring = np.eye(size) - 1.0 / size
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    values, vectors = values[::-1].clip(min=0.0), vectors[:, ::-1]
    points = np.zeros((size, dimensions))
    shown = min(size, dimensions)
    points[:, :shown] = vectors[:, :shown] * np.sqrt(values[:shown])
    largest = points[np.abs(points).argmax(axis=0), np.arange(dimensions)]
    total = values.sum()
    share = float(values[:shown].sum() / total) if total > 0 else 1.0
    return points * np.where(largest < 0, -1.0, 1.0), share


def linkage(distances: Array) -> tuple[Array, list[int]]:
    """Clusters by average linkage (Sokal and Michener 1958).

    Returns:
        SciPy's table of merges, and the order of the leaves that brings relatives together.
    """
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    merges = hierarchy.linkage(squareform(distances, checks=False), "average", True)
    order: list[int] = hierarchy.leaves_list(merges).tolist()
    return merges, order


def nearest_relatives(
    distances: Array, languages: Sequence[str], count: int
) -> dict[str, list[tuple[str, float]]]:
    """Returns the nearest languages of each language, nearest first, with their distances."""
    found = {}
    for row, code in enumerate(languages):
        others = [column for column in np.argsort(distances[row], kind="stable") if column != row]
        found[code] = [(languages[c], float(distances[row, c])) for c in others[:count]]
    return found


def family_distances(families: Sequence[str]) -> Array:
    """Returns 0 for languages of one family and 1 for others [n, n].

    Creoles and constructed languages are classes of the table, not families: each stands alone.
    """
    names = np.array(families)
    distances: Array = (names[:, None] != names[None, :]).astype(np.float64)
    alone = np.isin(names, _NO_FAMILIES)
    distances[alone] = 1.0
    np.fill_diagonal(distances, 0.0)
    return distances


def family_gap(distances: Array, families: Sequence[str]) -> float | None:
    """Returns the mean distance between families less that within; None where there is but one.

    Its permutation test is the Mantel test against `family_distances`: for a matrix of zeros and
    ones the correlation is the gap times what no permutation changes.
    """
    upper = np.triu_indices(len(distances), 1)
    apart = family_distances(families)[upper] > 0
    if apart.all() or not apart.any():
        return None
    return float(distances[upper][apart].mean() - distances[upper][~apart].mean())


def mantel(
    first: Array, second: Array, permutations: int, generator: np.random.Generator
) -> Correlation:
    """Correlates two symmetric matrices [n, n], whose diagonals do not count.

    Args:
        first: Distances.
        second: Distances of the same languages, in the same order.
        permutations: How many are drawn; the least p-value is 1 / (permutations + 1).
        generator: Draws them.
    """
    upper = np.triu_indices(len(first), 1)
    a, b = _standardise(first[upper]), _standardise(second[upper])
    if a is None or b is None:
        return Correlation(None, None)
    square = np.zeros_like(first)
    square[upper] = a
    square += square.T
    found = float(a @ b)
    as_high = 1
    for _ in range(permutations):
        order = generator.permutation(len(first))
        drawn = float(square[order[upper[0]], order[upper[1]]] @ b)
        as_high += int(drawn >= found - _ROUNDING)
    return Correlation(found, as_high / (permutations + 1))


def _standardise(values: Array) -> Array | None:
    """Subtracts the mean and divides by the norm; None where nothing differs."""
    centred = values - values.mean()
    norm = float(np.linalg.norm(centred))
    # What equal adapters differ by is rounding, not a distance.
    scale = float(np.abs(values).max(initial=1.0))
    return None if norm <= _ROUNDING * scale else centred / norm


class DistanceTable(NamedTuple):
    """Distances of n languages by one measure.

    Attributes:
        view: `embedding`, `embedding_src`, `embedding_tgt`, `encoder` or `decoder`.
        measure: `cosine` or `cka`.
        languages: Their codes.
        layers: Names of the layers; none for embeddings.
        by_layer: Distances [max(layers, 1), n, n].
    """

    view: str
    measure: str
    languages: tuple[str, ...]
    layers: tuple[str, ...]
    by_layer: Array

    @property
    def name(self) -> str:
        """Of files and metrics."""
        return f"{self.view}_{self.measure}"

    @property
    def mean(self) -> Array:
        """The mean over the layers [n, n]."""
        mean: Array = self.by_layer.mean(axis=0)
        return mean

    def select(self, codes: Sequence[str]) -> Array:
        """Returns the mean distances of some of the languages, in that order."""
        rows = [self.languages.index(code) for code in codes]
        return self.mean[np.ix_(rows, rows)]


class GivenDistances(NamedTuple):
    """Distances from elsewhere: codes, and a symmetric matrix of them."""

    languages: tuple[str, ...]
    matrix: Array


def read_distances(path: Path, languages: Sequence[str]) -> GivenDistances:
    """Reads a square CSV matrix: codes in the first row and the first column, then numbers.

    Any spelling of a code is understood, ISO 639-3 too. Languages that are not the run's are left
    out, and the run's that are not in the file are named in the log.

    Raises:
        DataError: The file is missing, is no symmetric matrix of numbers, or knows too few of the
            run's languages.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"--distances {path} cannot be read: {error}; give a CSV file of a square matrix with "
            "language codes in its first row and first column"
        ) from error
    if not rows:
        raise DataError(f"--distances {path} is empty; give a square matrix with language codes")
    columns = _places(rows[0][1:], languages, f"--distances {path} has, in its first row,")
    names = [row[0] for row in rows[1:]]
    lines = _places(names, languages, f"--distances {path} has, in its first column,")
    codes = [code for code in languages if code in columns and code in lines]
    missing = [code for code in languages if code not in codes]
    if len(codes) < LEAST_LANGUAGES:
        raise DataError(
            f"--distances {path} knows {len(codes)} of the run's languages ({', '.join(codes)}), "
            f"and {LEAST_LANGUAGES} are needed; it lacks {', '.join(missing)}: add their rows and "
            "columns"
        )
    if missing:
        log.warning("%s lacks %s; the correlation is without them", path, ", ".join(missing))
    matrix = np.array(
        [[_number(rows, lines[a] + 1, columns[b] + 1, path) for b in codes] for a in codes]
    )
    wrong = np.argwhere(~np.isclose(matrix, matrix.T))
    if len(wrong):
        a, b = (codes[index] for index in wrong[0])
        raise DataError(
            f"--distances {path} is not symmetric: {a},{b} is {matrix[tuple(wrong[0])]:g}, but "
            f"{b},{a} is {matrix[tuple(wrong[0][::-1])]:g}; give one distance for a pair"
        )
    return GivenDistances(tuple(codes), matrix)


def _places(cells: Sequence[str], languages: Sequence[str], where: str) -> dict[str, int]:
    """Returns the place of each of the run's languages that a row or column of codes has."""
    found: dict[str, int] = {}
    for index, cell in enumerate(cells):
        code = _find_code(cell, languages)
        if code is not None and code in found:
            raise DataError(
                f"{where} {code!r} twice: {cells[found[code]]!r} and {cell!r}; keep one"
            )
        if code is not None:
            found[code] = index
    return found


def _find_code(cell: str, languages: Sequence[str]) -> str | None:
    """Returns which of the run's languages a code stands for, if any.

    URIEL's codes are ISO 639-3; with a script behind them they are FLORES-200's, which are known.
    """
    scripts = dict.fromkeys(script_of(code) for code in languages)
    for spelling in (cell, *(f"{cell.strip()}-{script}" for script in scripts)):
        code = from_catalog_code(spelling)
        if code in languages:
            return code
    return None


def _number(rows: Sequence[Sequence[str]], row: int, column: int, path: Path) -> float:
    text = rows[row][column] if column < len(rows[row]) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"--distances {path}: row {row + 1} ({rows[row][0]}) has {text!r} in column "
            f"{column + 1}, which is no finite number; fill it in, or remove that language"
        )
    return value
