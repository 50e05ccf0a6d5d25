"""The Lanczos process with full re-orthogonalization, in a basis of bounded size."""

import torch
from torch import Tensor

from .operators import Operator

PASSES = 4
"""At most this many times a vector is orthogonalized against the basis; two are nearly always enough."""

COLUMNS = 2**16
"""Columns of the basis that are rotated at once, so that a restart needs no second basis."""


class Lanczos:
    """An orthonormal basis Q of Krylov vectors of H, one a row, and the projection T = Q H Q^T.

    With q the next basis vector, which is orthogonal to the rows of Q, and b the coupling,

    .. code-block:: text

        H Q^T = Q^T T + b q e^T,    e the last unit vector

    Every new vector is made orthogonal to all of the basis, and T holds all of the coefficients, so the same
    code goes on after a restart. Memory is that of `capacity` + 1 vectors. Random vectors are drawn on the
    CPU by a generator of its own.

    Args:
        operator: The symmetric matrix H, by its products with vectors.
        capacity: Largest number of rows of Q, at least 1 and at most the size of H.
        seed: Seed of the random vectors.
    """

    def __init__(self, operator: Operator, capacity: int, seed: int) -> None:
        self._operator = operator
        self._generator = torch.Generator().manual_seed(seed)
        coordinates = operator.coordinates
        self.basis = torch.empty(
            capacity + 1, coordinates.size, dtype=coordinates.dtype, device=coordinates.device
        )
        self.capacity = capacity
        self.products = 0
        self.norm = 0.0  # the largest ||H q|| so far, a lower bound of the largest |eigenvalue|
        self.begin()

    def begin(self) -> None:
        """Empty the basis and start from a random vector."""
        self.projection = torch.zeros(self.capacity, self.capacity, dtype=torch.float64)
        self.size = 0
        self.coupling = 0.0
        self._set_random(0)

    @property
    def spans_all(self) -> bool:
        """Whether the basis is one of the whole space, so that T has all eigenvalues."""
        return self.size == self._operator.coordinates.size

    def expand(self) -> None:
        """Take the next vector into Q, by one product."""
        last = self.size
        vector = self._operator @ self.basis[last]
        self.products += 1
        self.norm = max(self.norm, vector.norm().item())
        self.size += 1
        vector, coefficients, self.coupling = self._orthogonal(vector, self.size)
        self.projection[last, : self.size] = self.projection[: self.size, last] = coefficients
        if self.spans_all:
            return
        # What is left of a vector within the span is rounding: the span is invariant, and another direction
        # is needed to see the rest of the space.
        if self.coupling <= 10 * torch.finfo(vector.dtype).eps * self.norm:
            self._set_random(self.size)
        else:
            self.basis[self.size] = vector / self.coupling

    def ritz(self, *, smallest: bool = False) -> tuple[Tensor, Tensor]:
        """Eigenvalues of T, the wanted end first, and eigenvectors as columns, in float64 on the CPU."""
        values, vectors = torch.linalg.eigh(self.projection[: self.size, : self.size])
        return (values, vectors) if smallest else (values.flip(0), vectors.flip(1))

    def keep(self, values: Tensor, vectors: Tensor, *, follow_random: bool = False) -> None:
        """Restart: let the basis be Ritz vectors.

        Args:
            values: The Ritz values to keep, shape (kept,), float64 on the CPU, as `ritz` gives them.
            vectors: Their coefficients in the present basis, shape (size, kept).
            follow_random: Whether to go on with a random vector instead of the next one. The coupling is
                dropped, which is right for Ritz vectors that have converged.
        """
        kept = len(values)
        following = self.basis[self.size].clone()
        self.rotated(vectors)
        self.projection.zero_()
        self.projection[:kept, :kept] = values.diag()
        self.size = kept
        if follow_random:
            self._set_random(kept)
        else:
            self.basis[kept] = following

    def rotated(self, vectors: Tensor) -> Tensor:
        """Overwrite the first basis vectors with combinations of all of them.

        Args:
            vectors: The coefficients of each as a column, shape (size, kept).

        Returns:
            A view of the combinations, shape (kept, size of H). The basis holds nothing else any more.
        """
        turn = vectors.T.to(self.basis)
        for part in self.basis.split(COLUMNS, dim=1):
            part[: len(turn)] = turn @ part[: self.size]
        return self.basis[: len(turn)]

    def _set_random(self, row: int) -> None:
        """Let a row of the basis be a random direction that is orthogonal to those before it."""
        drawn = torch.randn(self.basis.shape[1], generator=self._generator, dtype=torch.float64)
        vector, _, norm = self._orthogonal(drawn.to(self.basis), row)
        self.basis[row] = vector / norm

    def _orthogonal(self, vector: Tensor, size: int) -> tuple[Tensor, Tensor, float]:
        """A vector without its components in the first rows of the basis; these; the norm of what is left."""
        rows = self.basis[:size]
        coefficients = torch.zeros(size, dtype=torch.float64)
        norm = vector.norm().item()
        for _ in range(PASSES):
            part = rows @ vector
            vector = vector - part @ rows
            coefficients += part.to("cpu", torch.float64)
            before, norm = norm, vector.norm().item()
            if norm > 0.5 * before:
                break
        return vector, coefficients, norm
