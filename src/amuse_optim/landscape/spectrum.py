"""Eigenpairs of an operator by Lanczos, and the density of its eigenvalues."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amuse_optim.checks import count, positive

from .coordinates import Coordinates
from .lanczos import Lanczos
from .operators import Operator

Stopped = Literal["tolerance", "budget", "precision"]

FOLLOWED = 20
"""Products that a random direction orthogonal to converged eigenvectors is followed for."""


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at one end of a spectrum, and eigenvectors.

    Attributes:
        values: Rayleigh quotients v . H v, the outermost first, shape (k,), float64 on the CPU.
        vectors: Orthonormal rows v, shape (k, size).
        residuals: ||H v - lambda v||, each from a product of its own, shape (k,), float64 on the CPU. Some
            eigenvalue of H lies within this distance of lambda.
        norm: A lower bound of the largest |eigenvalue|, which the tolerance is relative to.
        products: Matrix-vector products that were spent, those for the residuals included.
        stopped: "tolerance" if all residuals are within it, "budget" if the products were spent before,
            "precision" if the residuals are larger than the process shows: rounding, or noise of the loss.
        smallest: Whether they are the smallest eigenvalues.
        coordinates: What the entries of the vectors stand for.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    norm: float
    products: int
    stopped: Stopped
    smallest: bool
    coordinates: Coordinates


@torch.no_grad()
def eigenpairs(
    operator: Operator,
    k: int,
    *,
    smallest: bool = False,
    tolerance: float = 1e-4,
    budget: int = 1000,
    seed: int = 0,
) -> Eigenpairs:
    """The k largest or smallest eigenvalues, counted with multiplicity, and their eigenvectors.

    Lanczos with full re-orthogonalization and thick restarts (Wu and Simon, SIAM J. Matrix Anal. Appl. 22,
    2000): of 2k + 20 basis vectors, the outermost k + 10 Ritz vectors are kept and the process goes on.
    From one starting vector it can see only one eigenvector of a repeated eigenvalue. So when k pairs have
    converged, a random direction orthogonal to them is followed for 20 products, until none of the k
    values changes any more.

    Args:
        operator: The symmetric matrix H, by its products with vectors.
        k: Number of pairs, at most the size of H.
        smallest: Whether to take the smallest eigenvalues, most negative first, instead of the largest.
        tolerance: Largest residual, relative to the largest |eigenvalue| seen.
        budget: Largest number of products, at least 2k. Memory is that of 3k + 20 vectors.
        seed: Seed of the random vectors, which are drawn by a generator of their own.

    Returns:
        The pairs, with what each is worth.

    Raises:
        ValueError: If an argument is out of range or a product is not finite.

    Example:
        >>> import torch
        >>> from amuse_optim.landscape import Coordinates, Operator, eigenpairs
        >>> diagonal = torch.tensor([1.0, 5.0, 3.0, 5.0], dtype=torch.float64)
        >>> operator = Operator(lambda v: diagonal * v, Coordinates.of({"v": diagonal}))
        >>> [round(value, 6) for value in eigenpairs(operator, 3).values.tolist()]
        [5.0, 5.0, 3.0]
    """
    size = operator.coordinates.size
    count("k", k)
    count("budget", budget)
    positive("tolerance", tolerance)
    if k > size:
        raise ValueError(f"k must be at most the number of parameters, {size}, got {k}")
    if budget < 2 * k:
        raise ValueError(f"budget must be at least 2k = {2 * k}, k products for the residuals, got {budget}")
    dtype = operator.coordinates.dtype
    if tolerance < (rounding := 10 * torch.finfo(dtype).eps):
        raise ValueError(
            f"tolerance must be at least {rounding:.3g}, got {tolerance}: that is the rounding of {dtype}"
        )
    process = Lanczos(operator, min(size, 2 * k + 20), seed)
    vectors, norm, within = _converge(process, k, smallest, tolerance, budget - k)
    return _measured(operator, process.rotated(vectors), norm, process.products, within, tolerance, smallest)


def _converge(
    process: Lanczos, k: int, smallest: bool, tolerance: float, budget: int
) -> tuple[Tensor, float, bool]:
    """Run the process until k pairs have converged and none is missing, or until the budget is spent.

    Returns:
        The coefficients of the k Ritz vectors in the basis, the norm, and whether they have converged.
    """
    known: Tensor | None = None  # the values when a random direction was last followed
    until = 0
    while True:
        if process.size == process.capacity:
            process.keep(*(found[..., : k + 10] for found in process.ritz(smallest=smallest)))
        process.expand()
        if process.size < k:
            continue
        values, vectors = process.ritz(smallest=smallest)
        wanted, vectors = values[:k], vectors[:, :k]
        norm = max(process.norm, values.abs().max().item())
        within = (process.coupling * vectors[-1]).abs().max().item() <= tolerance * norm
        if within and process.products >= until:
            unchanged = known is not None and (wanted - known).abs().max().item() <= tolerance * norm
            if unchanged or process.spans_all:
                return vectors, norm, True
            if process.products < budget:
                process.keep(wanted, vectors, follow_random=True)
                known, until = wanted, process.products + FOLLOWED
                continue
        if process.products >= budget or process.spans_all:
            return vectors, norm, process.spans_all


def _measured(
    operator: Operator,
    vectors: Tensor,
    norm: float,
    products: int,
    converged: bool,
    tolerance: float,
    smallest: bool,
) -> Eigenpairs:
    """The pairs of orthonormal vectors, with their Rayleigh quotients and residuals, sorted."""
    values, residuals = [], []
    for vector in vectors:
        product = operator @ vector
        values.append(torch.dot(vector, product).item())
        residuals.append((product - values[-1] * vector).norm().item())
    order = sorted(range(len(values)), key=values.__getitem__, reverse=not smallest)
    stopped: Stopped = "tolerance" if converged else "budget"
    if converged and max(residuals) > tolerance * norm:
        stopped = "precision"
    return Eigenpairs(
        values=torch.tensor(values, dtype=torch.float64)[order],
        vectors=vectors[order],
        residuals=torch.tensor(residuals, dtype=torch.float64)[order],
        norm=norm,
        products=products + len(values),
        stopped=stopped,
        smallest=smallest,
        coordinates=operator.coordinates,
    )


@dataclass(frozen=True)
class Density:
    """The distribution of an operator's eigenvalues, each counting 1 / size, by Gauss quadratures.

    Attributes:
        nodes: Shape (probes, steps), float64 on the CPU.
        weights: Their weights, shape (probes, steps); those of a probe sum to 1.
        products: Matrix-vector products that were spent.
    """

    nodes: Tensor
    weights: Tensor
    products: int

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Estimate the mean of a function over all eigenvalues, which is tr f(H) / size.

        Args:
            function: Elementwise function of tensors, such as `torch.square` or `lambda v: v < 0`.

        Returns:
            The estimate and its standard error over the probes, nan for a single one.
        """
        estimates = (self.weights * function(self.nodes)).sum(1)
        error = estimates.std() / len(estimates) ** 0.5 if len(estimates) > 1 else torch.nan
        return estimates.mean().item(), float(error)

    def smoothed(self, points: Tensor, width: float) -> Tensor:
        """The density, every eigenvalue a Gaussian.

        Args:
            points: Where to compute it, one-dimensional.
            width: Standard deviation of the Gaussians, > 0.

        Returns:
            The density at the points, in float64; its integral is 1.
        """
        positive("width", width)
        apart = (points.to(self.nodes).unsqueeze(1) - self.nodes.flatten()) / width
        gaussians = apart.square().mul(-0.5).exp() / (width * math.sqrt(2 * math.pi))
        return gaussians @ self.weights.flatten() / len(self.weights)


@torch.no_grad()
def spectral_density(operator: Operator, *, probes: int = 10, steps: int = 50, seed: int = 0) -> Density:
    """The density of all eigenvalues by stochastic Lanczos quadrature (Golub and Meurant; arXiv 1901.10159).

    For a random unit vector v and Lanczos from v with T = U diag(theta) U^T, the quadrature

    .. code-block:: text

        sum_i U[1, i]^2 f(theta_i)    of    v^T f(H) v,    whose expectation is tr f(H) / size,

    is exact for polynomials f of degree 2 steps - 1.

    Args:
        operator: The symmetric matrix H, by its products with vectors.
        probes: Number of random vectors v, at least 1; two or more give `Density.mean` a standard error.
        steps: Lanczos steps from each; more than H has rows are cut to these. Memory is that of steps + 1
            vectors.
        seed: Seed of the random vectors, which are drawn by a generator of their own.

    Returns:
        Nodes and weights of the quadratures, from probes * steps products.

    Raises:
        ValueError: If an argument is out of range or a product is not finite.
    """
    count("probes", probes)
    count("steps", steps)
    steps = min(steps, operator.coordinates.size)
    process = Lanczos(operator, steps, seed)
    nodes, weights = [], []
    for _ in range(probes):
        process.begin()
        for _ in range(steps):
            process.expand()
        values, vectors = process.ritz()
        nodes.append(values)
        weights.append(vectors[0].square())
    return Density(torch.stack(nodes), torch.stack(weights), process.products)
