"""Eigenpairs and densities against known matrices, torch.linalg.eigh and SciPy's ARPACK."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from amuse_optim.landscape import Operator, eigenpairs, gauss_newton, hessian, lanczos, spectral_density
from tests.amuse_optim.landscape.problems import (
    PROBLEMS,
    dense_hessian,
    llama,
    mlp,
    of_matrix,
    rotated,
)

SPECTRA = {
    "even": torch.linspace(-1, 1, 120),
    "decaying": torch.logspace(2, -6, 120),
    "cluster of 3 within 1e-6": torch.cat(
        [torch.tensor([5.0, 5 - 1e-6, 5 - 2e-6]), torch.linspace(0, 1, 100)]
    ),
    "repeated": torch.cat([torch.tensor([5.0, 5, 5, 3, 3, 2]), torch.linspace(-1, 1, 100)]),
    "repeated near the bulk": torch.cat([torch.tensor([1.05, 1.05, 1.05]), torch.linspace(0, 1, 120)]),
    "mostly zero": torch.cat([torch.tensor([4.0, 3.0, -2.0]), torch.zeros(100)]),
    "negative": -torch.linspace(1, 2, 100),
    "identity": torch.ones(60),
    "zero": torch.zeros(60),
    "smaller than the basis": torch.tensor([3.0, -1.0, -1.0, 0.0, 2.0, 2.0]),
    "one": torch.tensor([-2.0]),
}


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("name", SPECTRA)
def test_known_spectra_with_multiplicities(name: str, smallest: bool) -> None:
    eigenvalues = SPECTRA[name].double()
    matrix = rotated(eigenvalues)
    expected = eigenvalues.sort(descending=not smallest).values
    size = eigenvalues.abs().max().item()
    for k in {1, 2, min(5, len(eigenvalues)), min(len(eigenvalues), 6)}:
        if k > len(eigenvalues):
            continue
        pairs = eigenpairs(of_matrix(matrix), k, smallest=smallest, tolerance=1e-6, budget=3000)
        if pairs.stopped == "budget":  # the flat end of a decaying spectrum
            assert name == "decaying"
            assert smallest
        else:
            assert (pairs.values - expected[:k]).abs().max() <= 1e-6 * size
            assert pairs.residuals.max() <= 1e-6 * size
        products = pairs.vectors @ matrix
        recomputed = (products - pairs.values.unsqueeze(1) * pairs.vectors).norm(dim=1)
        torch.testing.assert_close(pairs.residuals, recomputed, rtol=1e-4, atol=1e-13 * size)
        torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(k).double(), atol=1e-12, rtol=0)
        assert pairs.values.equal(pairs.values.sort(descending=not smallest).values)


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_eigenpairs_of_networks_are_those_of_the_whole_hessian(name: str, smallest: bool) -> None:
    problem = PROBLEMS[name]()
    values, vectors = torch.linalg.eigh(dense_hessian(problem))
    if not smallest:
        values, vectors = values.flip(0), vectors.flip(1)
    operator = hessian(problem.objective, problem.parameters)
    pairs = eigenpairs(operator, 5, smallest=smallest, tolerance=1e-10)
    assert pairs.stopped == "tolerance"
    torch.testing.assert_close(pairs.values, values[:5], rtol=1e-8, atol=1e-8 * pairs.norm)
    # Projectors, since signs are arbitrary; a gap of 1e-3 leaves an error of 1e-7.
    gaps = (values[:5] - values[1:6]).abs() > 1e-3 * pairs.norm
    for cut in [int(index) + 1 for index in gaps.nonzero()]:
        ours, exact = pairs.vectors[:cut], vectors[:, :cut]
        torch.testing.assert_close(ours.T @ ours, exact @ exact.T, rtol=0, atol=1e-6)
    assert gaps.any()


@pytest.mark.parametrize("smallest", [False, True])
def test_eigenpairs_are_those_of_arpack(smallest: bool) -> None:
    problem = llama()
    operator = hessian(problem.objective, problem.parameters)
    size = operator.coordinates.size
    arpack = LinearOperator(
        (size, size), matvec=lambda v: (operator @ torch.from_numpy(v)).numpy(), dtype=float
    )
    start = np.random.default_rng(0).normal(size=size)
    expected = np.sort(
        eigsh(arpack, 6, which="SA" if smallest else "LA", v0=start, return_eigenvectors=False)
    )
    pairs = eigenpairs(operator, 6, smallest=smallest, tolerance=1e-10)
    found = pairs.values.sort().values.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9 * pairs.norm)


def test_float32_eigenvalues_are_right_up_to_rounding() -> None:
    exact = torch.linspace(-1, 1, 120)
    pairs = eigenpairs(of_matrix(rotated(exact).float()), 4)
    assert pairs.stopped == "tolerance"
    assert pairs.vectors.dtype == torch.float32
    assert (pairs.values - exact.flip(0)[:4].double()).abs().max() < 1e-6


def test_residuals_are_measured_not_estimated() -> None:
    """An operator that is not quite symmetric: the process believes in convergence, the products do not."""
    matrix = rotated(SPECTRA["repeated"])
    skew = 1e-5 * torch.ones_like(matrix).triu(1)
    pairs = eigenpairs(of_matrix(matrix + skew - skew.T), 2, tolerance=1e-5)
    assert pairs.stopped == "precision"
    assert pairs.residuals.max() > 1e-5 * pairs.norm


def test_the_budget_is_kept_to_and_said_to_be_spent() -> None:
    counted = [0]
    matrix = rotated(SPECTRA["even"])

    def product(vector: Tensor) -> Tensor:
        counted[0] += 1
        return matrix @ vector

    operator = Operator(product, of_matrix(matrix).coordinates)
    for budget in (6, 7, 20, 50, 80):
        counted[0] = 0
        pairs = eigenpairs(operator, 3, budget=budget)
        assert counted[0] == pairs.products == budget
        assert pairs.stopped == "budget"
        assert len(pairs.values) == 3
    counted[0] = 0
    pairs = eigenpairs(operator, 3, budget=1000)
    assert counted[0] == pairs.products < 1000
    assert pairs.stopped == "tolerance"


def test_many_pairs_need_restarts_and_are_found() -> None:
    """k = 50, several times around a basis of 120 vectors."""
    eigenvalues = torch.cat([torch.linspace(2, 1, 60), torch.linspace(-1, 1, 340)]).double()
    pairs = eigenpairs(of_matrix(rotated(eigenvalues)), 50, tolerance=1e-8)
    assert pairs.stopped == "tolerance"
    assert pairs.products > 2 * (2 * 50 + 20)
    torch.testing.assert_close(pairs.values, eigenvalues[:50], rtol=1e-8, atol=0)


def test_the_basis_is_orthonormal_and_projects_after_restarts() -> None:
    """H Q^T = Q^T T + b q e^T, also where Krylov vectors of a large eigenvalue want to come back."""
    matrix = rotated(torch.cat([torch.tensor([1e6]), torch.linspace(0, 1, 99)]))
    process = lanczos.Lanczos(of_matrix(matrix), 24, seed=0)
    for _ in range(5):
        while process.size < 24:
            process.expand()
        basis, following = process.basis[:24], process.basis[24]
        torch.testing.assert_close(
            process.basis @ process.basis.T, torch.eye(25).double(), atol=1e-13, rtol=0
        )
        rest = matrix @ basis.T - basis.T @ process.projection
        rest[:, -1] -= process.coupling * following
        assert rest.norm() < 1e-13 * 1e6
        process.keep(*(found[..., :10] for found in process.ritz()))


def test_seeds_and_the_global_random_state() -> None:
    operator = of_matrix(rotated(SPECTRA["even"]))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same = eigenpairs(operator, 2, seed=3), eigenpairs(operator, 2, seed=3)
    density, equal = spectral_density(operator, seed=3), spectral_density(operator, seed=3)
    assert torch.equal(one.vectors, same.vectors)
    assert torch.equal(density.nodes, equal.nodes)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(eigenpairs(operator, 2, seed=4).vectors, one.vectors)
    assert not torch.equal(spectral_density(operator, seed=4).nodes, density.nodes)


def test_arguments_are_checked() -> None:
    operator = of_matrix(torch.eye(3))
    for wrong, message in (
        ({"k": 4}, "k must be at most the number of parameters, 3, got 4"),
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"k": 2, "budget": 3}, "budget must be at least 2k = 4"),
        ({"k": 1, "tolerance": 0.0}, "tolerance must be finite and > 0, got 0.0"),
        ({"k": 1, "tolerance": 1e-6}, "tolerance must be at least 1.19e-06, got 1e-06"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            eigenpairs(operator, **wrong)
    for name in ("probes", "steps"):
        with pytest.raises(ValueError, match=f"{name} must be >= 1"):
            spectral_density(operator, **{name: 0})
    with pytest.raises(ValueError, match="width must be finite and > 0"):
        spectral_density(operator).smoothed(torch.zeros(1), 0.0)


entries = st.floats(-10, 10, allow_subnormal=False)


@given(
    st.lists(entries, min_size=2, max_size=40),
    st.lists(st.integers(1, 4), min_size=40, max_size=40),
    st.integers(1, 4),
    st.booleans(),
)
def test_any_spectrum_with_any_multiplicities(
    levels: list[float], multiplicities: list[int], k: int, smallest: bool
) -> None:
    """By Weyl's theorem each value is within the residuals of the exact one with its number."""
    eigenvalues = torch.tensor(levels).double().repeat_interleave(torch.tensor(multiplicities[: len(levels)]))
    pairs = eigenpairs(of_matrix(rotated(eigenvalues)), min(k, len(eigenvalues)), smallest=smallest)
    expected = eigenvalues.sort(descending=not smallest).values[: len(pairs.values)]
    assert pairs.stopped == "tolerance"
    assert (pairs.values - expected).abs().max() <= pairs.residuals.norm() + 1e-12 * pairs.norm


def test_densities_of_polynomials_are_exact_for_every_probe() -> None:
    """Moments v^T H^p v of each random vector up to 2 steps - 1, against a quadrature of another kind."""
    matrix = rotated(torch.linspace(-1, 2, 40))
    steps = 4
    density = spectral_density(of_matrix(matrix), probes=3, steps=steps, seed=1)
    moments = torch.empty(3, 2 * steps)
    process = lanczos.Lanczos(of_matrix(matrix), steps, seed=1)
    for probe in range(3):
        process.begin()
        vector = process.basis[0].clone()
        moments[probe] = torch.stack(
            [vector @ torch.linalg.matrix_power(matrix, power) @ vector for power in range(2 * steps)]
        )
    found = torch.stack(
        [(density.weights * density.nodes**power).sum(1) for power in range(2 * steps)], dim=1
    )
    torch.testing.assert_close(found, moments.double(), rtol=1e-6, atol=1e-6)
    assert density.products == 3 * steps


def test_means_over_the_spectrum() -> None:
    """Trace, squared Frobenius norm and trace of the exponential, within four standard errors."""
    dense = dense_hessian(llama())
    values = torch.linalg.eigvalsh(dense)
    density = spectral_density(of_matrix(dense), probes=40, steps=60)
    for function in (lambda v: v, torch.square, torch.exp):
        estimate, error = density.mean(function)
        exact = function(values).mean().item()
        assert abs(estimate - exact) < 4 * error
        assert error < 0.3 * abs(exact) + 1e-3
    assert math.isnan(spectral_density(of_matrix(dense), probes=1, steps=3).mean(torch.square)[1])


def test_all_steps_see_a_known_density() -> None:
    """With as many steps as distinct eigenvalues, nodes are eigenvalues; the rest has no weight."""
    eigenvalues = torch.tensor([0.0] * 30 + [1.0] * 20 + [4.0] * 10)
    density = spectral_density(of_matrix(rotated(eigenvalues)), probes=200, steps=6)
    heavy = density.nodes[density.weights > 1e-12]
    assert torch.cdist(heavy.unsqueeze(1), torch.tensor([[0.0], [1.0], [4.0]]).double()).amin(1).max() < 1e-10
    points = torch.linspace(-3, 7, 2001)
    curve = density.smoothed(points, 0.1)
    assert torch.trapezoid(curve, points.double()).item() == pytest.approx(1, abs=1e-6)
    shares = [
        torch.trapezoid(part, x.double()).item()
        for part, x in (
            (curve[points < 0.5], points[points < 0.5]),
            (curve[points > 2.5], points[points > 2.5]),
        )
    ]
    assert shares == pytest.approx([30 / 60, 10 / 60], abs=0.03)


def test_smallest_eigenvalues_of_a_gauss_newton_matrix_are_not_negative() -> None:
    problem = mlp()
    pairs = eigenpairs(gauss_newton(problem.objective, problem.parameters), 8, smallest=True, tolerance=1e-8)
    assert pairs.values.abs().max() < 1e-8 * pairs.norm  # 8 rows of 3 probabilities: rank 16 of 31 at most
