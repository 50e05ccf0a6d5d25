"""Dominant subspaces and shares against eigenvectors that are known, and the bound against true angles."""

import math
import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from amuse_optim.landscape import (
    ClusterError,
    Coordinates,
    Eigenpairs,
    Subspace,
    dominant_subspace,
    eigenpairs,
    error_bound,
)
from tests.amuse_optim.landscape.problems import of_matrix, rotated

SPACE = dominant_subspace(eigenpairs(of_matrix(rotated(torch.tensor([9.0, 6, 4, 1, 0, -2, 0.5]))), 5), 3)
vectors = st.lists(st.floats(-1e6, 1e6), min_size=7, max_size=7).map(lambda v: torch.tensor(v).double())


def diagonal_pairs(values: list[float], residuals: list[float]) -> Eigenpairs:
    """Pairs that are what they say: unit vectors, with residuals as given."""
    return Eigenpairs(
        values=torch.tensor(values).double(),
        vectors=torch.eye(len(values)).double(),
        residuals=torch.tensor(residuals).double(),
        norm=max(map(abs, values)),
        products=0,
        stopped="tolerance",
        smallest=False,
        coordinates=Coordinates.of({"v": torch.zeros(len(values)).double()}),
    )


@given(vectors, vectors, st.floats(-100, 100))
def test_the_projector_is_one(u: Tensor, v: Tensor, a: float) -> None:
    """Linear, idempotent, symmetric; both parts together are the vector."""
    dominant, bulk = SPACE.split(v)
    close = {"rtol": 0, "atol": 1e-12 * (1 + abs(a)) * (u.norm() + v.norm()).item() + 1e-300}
    torch.testing.assert_close(SPACE.split(dominant)[0], dominant, **close)
    torch.testing.assert_close(SPACE.split(bulk)[0], torch.zeros(7).double(), **close)
    torch.testing.assert_close(dominant + bulk, v, **close)
    torch.testing.assert_close(SPACE.split(u + a * v)[0], SPACE.split(u)[0] + a * dominant, **close)
    assert abs(u @ dominant - SPACE.split(u)[0] @ v) <= 1e-12 * u.norm() * v.norm()


@given(vectors)
def test_squares_of_the_shares_add_up_to_one(v: Tensor) -> None:
    assume(v.norm() > 1e-100)
    dominant, bulk = SPACE.shares(v)
    assert dominant**2 + bulk**2 == pytest.approx(1, abs=1e-12)
    exact = (SPACE.vectors @ (v / v.norm())).norm().item()
    assert dominant == pytest.approx(exact, abs=1e-12)
    assert SPACE.shares(-3 * v) == pytest.approx((dominant, bulk), abs=1e-12)


def test_shares_of_known_parts() -> None:
    """Eigenvectors are wholly inside or outside; named tensors are taken by the coordinates."""
    matrix = torch.tensor([5.0, 4.0, 1.0, 0.0]).diag()
    space = dominant_subspace(eigenpairs(of_matrix(matrix), 3), 2)
    assert space.k == 2
    assert space.shares(torch.tensor([0.0, 0.0, 0.0, -2.0])) == pytest.approx((0, 1), abs=1e-6)
    assert space.shares({"v": torch.tensor([1.0, 2.0, 0.0, 0.0]), "w": torch.ones(2)}) == pytest.approx(
        (1, 0), abs=1e-6
    )
    assert space.shares(torch.tensor([0.0, 3.0, 4.0, 0.0])) == pytest.approx((0.6, 0.8), abs=1e-6)
    for wrong in (torch.zeros(4), torch.tensor([math.nan, 0, 0, 0]), torch.tensor([math.inf, 0, 0, 0])):
        with pytest.raises(ValueError, match="must be finite and not zero"):
            space.shares(wrong)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("seed", range(5))
def test_true_angles_are_within_the_bound(tolerance: float, seed: int) -> None:
    eigenvalues = torch.cat([torch.tensor([5.0, 4.9, 3.0, 2.5, 2.4]), torch.linspace(-1, 2.2, 95)])
    matrix = rotated(eigenvalues)
    exact = torch.linalg.eigh(matrix).eigenvectors.flip(1)
    pairs = eigenpairs(of_matrix(matrix), 6, tolerance=tolerance, seed=seed)
    for k in range(1, 6):
        sines = (pairs.vectors[:k] - (pairs.vectors[:k] @ exact[:, :k]) @ exact[:, :k].T).norm().item()
        assert sines <= error_bound(pairs, k)
        assert sines > 0


def test_the_bound_is_residuals_over_the_gap() -> None:
    pairs = diagonal_pairs([5.0, 4.0, 2.0], [0.03, 0.04, 0.5])
    assert error_bound(pairs, 2) == pytest.approx(0.05 / 1.5)
    assert error_bound(pairs, 1) == pytest.approx(0.03 / 0.96)
    assert error_bound(diagonal_pairs([5.0, 4.0, 3.9], [0.1, 0.1, 0.2]), 2) == math.inf


def test_a_cut_through_a_cluster_is_widened_to_the_next_gap_or_refused() -> None:
    pairs = diagonal_pairs([9.0, 5.0, 4.999, 4.998, 1.0, 0.999], [1e-3] * 6)
    exact = dominant_subspace(pairs, 1)
    assert (exact.k, exact.error_bound) == (1, pytest.approx(1e-3 / 3.999))
    wider = dominant_subspace(pairs, 2)
    assert (wider.k, wider.error_bound) == (4, pytest.approx(2e-3 / 3.997))
    assert torch.equal(wider.values, pairs.values[:4])
    with pytest.raises(
        ClusterError, match=re.escape("got 2: it cuts between 5 and 4.999, where the error bound")
    ):
        dominant_subspace(pairs, 2, widen=False)
    with pytest.raises(ClusterError, match="Compute more eigenpairs"):
        dominant_subspace(pairs, 5)
    assert dominant_subspace(pairs, 1, within=1e-3, widen=False).k == 1
    with pytest.raises(ClusterError):
        dominant_subspace(pairs, 1, within=1e-5)
    with pytest.raises(ValueError, match=re.escape("k must be below the number of eigenpairs, 6, got 6")):
        dominant_subspace(pairs, 6)


def test_a_repeated_eigenvalue_is_taken_whole() -> None:
    """From a computation: a space that is split in two by k = 2 is that of all three, whatever the seed."""
    matrix = rotated(torch.tensor([7.0, 5.0, 5.0, 1.0] + [0.0] * 30))
    exact = torch.linalg.eigh(matrix).eigenvectors[:, -3:]
    for seed in range(3):
        space: Subspace = dominant_subspace(eigenpairs(of_matrix(matrix), 5, seed=seed), 2)
        assert space.k == 3
        torch.testing.assert_close(space.vectors.T @ space.vectors, exact @ exact.T, rtol=0, atol=1e-3)
