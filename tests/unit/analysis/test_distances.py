"""Distances, maps and Mantel tests: properties, and matrices that are refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperadapter.analysis.distances import (
    DistanceTable,
    cka_distances,
    classical_mds,
    cosine_distances,
    family_distances,
    family_gap,
    linkage,
    mantel,
    nearest_relatives,
    read_distances,
)
from hyperadapter.core.errors import DataError

LANGUAGES = ("en", "de", "nl", "es")
seeds = st.integers(0, 10_000)


def planar(seed: int, size: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, 2))


def euclidean(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@given(seeds)
def test_cosine_distances_ignore_length_and_know_right_angles(seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(5, 6))
    distances = cosine_distances(vectors)
    np.testing.assert_allclose(
        cosine_distances(vectors * rng.uniform(0.1, 9, (5, 1))), distances, atol=1e-12
    )
    np.testing.assert_array_equal(distances, distances.T)
    a, b = vectors[:2]
    expected = 1 - a @ b / np.sqrt((a @ a) * (b @ b))
    assert distances[0, 1] == pytest.approx(expected)


def test_cosine_distances_of_known_angles() -> None:
    vectors = np.array([[1.0, 0], [0, 2], [-3, 0], [0, 0]])
    expected = [[0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_allclose(cosine_distances(vectors), expected)


@given(seeds)
def test_cka_ignores_rotation_scale_and_shift_but_not_other_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    same = np.stack([x, 3.7 * x @ rotation, x[:, [2, 0, 3, 1]] + rng.normal(size=4)])
    np.testing.assert_allclose(cka_distances(same), np.zeros((3, 3)), atol=1e-12)
    stretched = x @ np.diag([20.0, 1, 1, 1])
    assert cka_distances(np.stack([x, stretched]))[0, 1] > 1e-3


def test_cka_is_that_of_the_paper() -> None:
    x, y = np.random.default_rng(3).normal(size=(2, 9, 5))
    xc, yc = x - x.mean(0), y - y.mean(0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(b.T @ a) ** 2)

    expected = hsic(xc, yc) / np.sqrt(hsic(xc, xc) * hsic(yc, yc))
    assert cka_distances(np.stack([x, y]))[0, 1] == pytest.approx(1 - expected)


@given(seeds)
def test_the_map_of_points_in_a_plane_is_exact(seed: int) -> None:
    distances = euclidean(planar(seed))
    points, share = classical_mds(distances)
    np.testing.assert_allclose(euclidean(points), distances, atol=1e-8)
    assert share == pytest.approx(1.0)
    assert (points.max(axis=0) >= -points.min(axis=0)).all()


def test_the_map_says_how_little_a_plane_shows() -> None:
    points, share = classical_mds(1.0 - np.eye(5))  # a simplex: four dimensions, none larger
    assert points.shape == (5, 2)
    assert share == pytest.approx(0.5)
    assert classical_mds(np.zeros((3, 3)))[1] == 1.0
    # No points have these distances; what a plane cannot show in any way does not count.
    detour = np.array([[0.0, 1, 9], [1, 0, 1], [9, 1, 0]])
    points, share = classical_mds(detour)
    assert share == pytest.approx(1.0)
    assert (points[:, 1] == 0).all()


@given(seeds)
def test_a_matrix_correlates_with_itself_whatever_its_scale(seed: int) -> None:
    distances = euclidean(planar(seed))
    found = mantel(distances, 2 * distances + 3, 99, np.random.default_rng(0))
    assert found.r == pytest.approx(1.0)
    assert found.p == pytest.approx(0.01)
    assert mantel(distances, -distances, 9, np.random.default_rng(0)).r == pytest.approx(-1.0)


@given(seeds, seeds)
def test_mantel_is_symmetric_and_does_not_look_at_the_diagonal(one: int, other: int) -> None:
    a, b = euclidean(planar(one)), euclidean(planar(other))
    found = mantel(a, b, 50, np.random.default_rng(1))
    assert mantel(b, a, 0, np.random.default_rng(1)).r == pytest.approx(found.r)
    assert mantel(a + 5 * np.eye(7), b, 50, np.random.default_rng(1)) == found
    expected = np.corrcoef(a[np.triu_indices(7, 1)], b[np.triu_indices(7, 1)])[0, 1]
    assert found.r == pytest.approx(expected)


def test_p_values_of_unrelated_matrices_are_uniform() -> None:
    generator = np.random.default_rng(5)
    values = np.array(
        [
            mantel(euclidean(planar(seed)), euclidean(planar(seed + 9999)), 49, generator).p
            for seed in range(400)
        ],
        dtype=float,
    )
    for level in (0.1, 0.25, 0.5, 0.9):
        # Four standard errors of a share of 400.
        assert abs((values <= level).mean() - level) < 4 * np.sqrt(level * (1 - level) / 400)


def test_p_counts_ties_and_the_same_seed_gives_the_same() -> None:
    # Any permutation of two families of one and four is as good for a fifth of the orders.
    families = family_distances(["a", "b", "b", "b", "b"])
    found = mantel(families, families, 4000, np.random.default_rng(2))
    assert found.p == pytest.approx(0.2, abs=0.03)
    assert mantel(families, families, 4000, np.random.default_rng(2)) == found


def test_what_is_constant_correlates_with_nothing() -> None:
    distances = euclidean(planar(1))
    for other in (np.ones((7, 7)), 1e-15 * distances):
        assert mantel(distances, other, 9, np.random.default_rng(0)) == (None, None)
        assert mantel(other, distances, 9, np.random.default_rng(0)) == (None, None)


def test_families() -> None:
    families = ["x", "x", "y"]
    distances = np.array([[0.0, 1, 4], [1, 0, 6], [4, 6, 0]])
    np.testing.assert_array_equal(family_distances(families), [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    assert family_gap(distances, families) == pytest.approx(4.0)
    assert family_gap(distances, ["x", "x", "x"]) is None
    assert family_gap(distances, ["x", "y", "z"]) is None


def test_relatives_and_tree() -> None:
    points = np.array([[0.0], [10], [1], [11.5]])
    distances = euclidean(points)
    assert nearest_relatives(distances, LANGUAGES, 2)["en"] == [("nl", 1.0), ("de", 10.0)]
    merges, order = linkage(distances)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset({0, 2}), frozenset({1, 3})}
    # Average linkage: the mean of the distances 10, 11.5, 9 and 10.5.
    assert merges[-1, 2] == pytest.approx(10.25)


def test_a_table_is_the_mean_of_its_layers() -> None:
    layers = np.stack([np.full((3, 3), 1.0), np.arange(9.0).reshape(3, 3)])
    table = DistanceTable("encoder", "cka", ("en", "de", "nl"), ("encoder.0", "encoder.1"), layers)
    assert table.name == "encoder_cka"
    assert table.mean[1, 2] == pytest.approx(3.0)
    np.testing.assert_allclose(table.select(["nl", "de"]), table.mean[[2, 1]][:, [2, 1]])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_given_distances_come_in_the_order_of_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = ",nld,xx,deu,eng\neng,3,7,2,0\nxx,7,0,7,7\ndeu,1,7,0,2\nnld,0,7,1,3\n"
    with caplog.at_level(logging.WARNING):
        given = read_distances(write(tmp_path / "uriel.csv", text), LANGUAGES)
    assert given.languages == ("en", "de", "nl")
    np.testing.assert_array_equal(given.matrix, [[0, 2, 3], [2, 0, 1], [3, 1, 0]])
    assert "lacks es; the correlation is without them" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("x,en,de\nen,0,1\nde,1,0\n", r"knows 2 of the run's languages \(en, de\).*lacks nl, es"),
        (",en,de,nl\nen,0,1,2\nde,1,0,3\nnl,2,4,0\n", "not symmetric: de,nl is 3, but nl,de is 4"),
        (",en,de,nl\nen,0,1,2\nde,1,0,x\nnl,2,3,0\n", r"row 3 \(de\) has 'x' in column 4"),
        (",en,de,nl\nen,0,1,2\nde,1,0\nnl,2,3,0\n", r"row 3 \(de\) has '' in column 4"),
        (",en,de,nl\nen,0,1,2\nde,1,0,nan\nnl,2,nan,0\n", "'nan'.*no finite number"),
        (",en,de,nl,deu\nen,0,1,2,1\n", "has, in its first row, 'de' twice: 'de' and 'deu'"),
    ],
)
def test_matrices_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "given.csv", text)
    with pytest.raises(DataError, match=f"--distances .*given.csv.*{message}"):
        read_distances(path, LANGUAGES)


def test_a_missing_matrix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.csv cannot be read.*give a CSV file"):
        read_distances(tmp_path / "none.csv", LANGUAGES)


def test_creoles_and_constructed_languages_stand_alone() -> None:
    found = family_distances(["creole", "creole", "romance", "romance", "constructed"])
    assert found[2, 3] == 0.0
    assert np.diagonal(found).tolist() == [0.0] * 5
    assert found.sum() == 18.0
