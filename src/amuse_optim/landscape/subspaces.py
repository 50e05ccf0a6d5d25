"""The dominant subspace of a Hessian, and the shares of vectors inside and outside of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from amuse_optim.checks import count, flag, positive

from .coordinates import Coordinates
from .spectrum import Eigenpairs

Vector = Tensor | Mapping[str, Tensor]


class Parts(NamedTuple):
    """One number for the part of a vector in the dominant subspace and one for its part in the bulk.

    Attributes:
        dominant: The number for the part in the dominant subspace, P_k v.
        bulk: The number for the part in the bulk, (I - P_k) v.
    """

    dominant: float
    bulk: float


@dataclass(frozen=True)
class Subspace:
    """The span S_k of eigenvectors, with its projector P_k; the bulk is its orthogonal complement.

    Attributes:
        vectors: Orthonormal rows, shape (k, size).
        values: The eigenvalue of each of these vectors, the outermost first, shape (k,), float64 on the CPU.
        error_bound: A bound of ||sin angles||_F between S_k and the exact span, see `dominant_subspace`.
        coordinates: What the entries of the vectors stand for.
    """

    vectors: Tensor
    values: Tensor
    error_bound: float
    coordinates: Coordinates

    @property
    def k(self) -> int:
        """The dimension."""
        return len(self.vectors)

    def split(self, vector: Vector) -> tuple[Tensor, Tensor]:
        """The dominant part P_k v and the bulk part v - P_k v, each of shape (size,).

        Args:
            vector: v, of shape (size,) or named tensors, of which those in the coordinates are taken.
        """
        flat = vector if isinstance(vector, Tensor) else self.coordinates.flatten(vector)
        dominant = (self.vectors @ flat) @ self.vectors
        return dominant, flat - dominant

    def shares(self, vector: Vector) -> Parts:
        """r_dom(v) = ||P_k v|| / ||v|| and r_bulk(v) = ||(I - P_k) v|| / ||v||; their squares add up to 1.

        Args:
            vector: v, as for `split`; not zero.

        Raises:
            ValueError: If v is zero or not finite.
        """
        dominant, bulk = (part.norm(dtype=torch.float64).item() for part in self.split(vector))
        norm = math.hypot(dominant, bulk)
        if not 0 < norm < math.inf:
            raise ValueError(f"vector must be finite and not zero to have shares, got norm {norm}")
        return Parts(dominant / norm, bulk / norm)


class ClusterError(ValueError):
    """The dominant subspace of this k is not determined by the eigenpairs: k cuts through a cluster."""


def error_bound(pairs: Eigenpairs, k: int) -> float:
    r"""The Davis-Kahan bound of the span of the first k of more than k computed eigenvectors.

    .. code-block:: text

        ||sin angles||_F <= ||(r_1, ..., r_k)|| / (|lambda_k - lambda_{k+1}| - r_{k+1})

    with the residual norms r (Davis and Kahan, SIAM J. Numer. Anal. 7, 1970). It takes for granted that no
    eigenvalue beyond lambda_{k+1} + r_{k+1} was missed.

    Args:
        pairs: More than k eigenpairs, as `eigenpairs` returns them.
        k: Where the spectrum is cut, at least 1.

    Returns:
        The bound, infinite where the residuals leave no gap.
    """
    count("k", k)
    if k >= len(pairs.values):
        raise ValueError(
            f"k must be below the number of eigenpairs, {len(pairs.values)}, got {k}: the gap behind the "
            "k-th eigenvalue needs the next one, so compute more"
        )
    gap = ((pairs.values[k - 1] - pairs.values[k]).abs() - pairs.residuals[k]).item()
    return pairs.residuals[:k].norm().item() / gap if gap > 0 else math.inf


def dominant_subspace(pairs: Eigenpairs, k: int, *, within: float = 0.1, widen: bool = True) -> Subspace:
    """The span S_k of the k leading eigenvectors, or of a few more where k cuts through a cluster.

    Inside a cluster of eigenvalues single eigenvectors are arbitrary, and projections on some of them mean
    nothing. The bound of `error_bound` says how well the computed span is determined.

    Args:
        pairs: Eigenpairs, some more than k, so that there is a gap to be found.
        k: The dimension asked for, at least 1.
        within: Largest error bound that is accepted, > 0. With 0.1 no angle between the computed and
            the exact span exceeds 6 degrees.
        widen: Whether to take the next larger dimension with a bound within it, instead of raising.

    Returns:
        The subspace; its `k` and `error_bound` say what it has become.

    Raises:
        ClusterError: If no dimension that may be taken has a bound within `within`.
        ValueError: If there are no more than k eigenpairs.

    Example:
        >>> import torch
        >>> from amuse_optim.landscape import Coordinates, Operator, dominant_subspace, eigenpairs
        >>> diagonal = torch.tensor([9.0, 4.0, 4.0, 1.0, 0.0])
        >>> operator = Operator(lambda v: diagonal * v, Coordinates.of({"v": diagonal}))
        >>> subspace = dominant_subspace(eigenpairs(operator, 4), 2)
        >>> subspace.k  # 2 would cut through the pair of fours
        3
        >>> dominant, bulk = subspace.shares(torch.tensor([0.0, 0.0, 3.0, 4.0, 0.0]))
        >>> round(dominant, 4), round(bulk, 4)
        (0.6, 0.8)
    """
    positive("within", within)
    flag("widen", widen)
    error_bound(pairs, k)  # checks k
    for taken in range(k, len(pairs.values)) if widen else (k,):
        bound = error_bound(pairs, taken)
        if bound <= within:
            return Subspace(pairs.vectors[:taken], pairs.values[:taken], bound, pairs.coordinates)
    cut = f"{pairs.values[k - 1].item():.6g} and {pairs.values[k].item():.6g}"
    raise ClusterError(
        f"k must cut the spectrum at a gap, got {k}: it cuts between {cut}, where the error bound of the "
        f"subspace is {error_bound(pairs, k):.3g}, above {within}. Compute more eigenpairs or smaller "
        "residuals, or choose another k"
    )
