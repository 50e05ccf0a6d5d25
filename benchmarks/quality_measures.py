"""What `orthogonalization_quality.py` measures: nearness to the exact polar factor, and the worst case."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import mean

import torch
from quality_matrices import SEED, random_basis, spectra
from torch import Tensor

Stacked = Callable[[Tensor], Tensor]
Measured = dict[str, float]

POWERS_OF_TWO = tuple(2.0**k for k in (-99, -66, -33, -1, 33, 66, 99))
POWERS_OF_TEN = tuple(10.0**k for k in (-30, -20, -10, -1, 10, 20, 30))


class Reference:
    """A matrix, its singular value decomposition in float64, and how near an output comes.

    Args:
        matrix: Shape (rows, cols), float32.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self._tall = matrix.shape[0] > matrix.shape[1]
        wide = (matrix.T if self._tall else matrix).double()
        left, values, right = torch.linalg.svd(wide / torch.linalg.vector_norm(wide), full_matrices=False)
        self._polar = left @ right
        self._right = {power: right[values >= 10.0**-power] for power in (2, 3)}

    def measure(self, function: Stacked) -> Measured:
        """Measure what a function makes of the matrix.

        Returns:
            "largest" singular value. "low_k", "high_k": the interval in which singular values of at least
            10^-k of the norm end; these are the output's on their right singular vectors. "error":
            ||O O^T - I||^2 / rows. "cosine" and "norm": against the exact polar factor. Infinite, or 0,
            for an output that is not finite.
        """
        output = function(self.matrix.unsqueeze(0))[0]
        wide = (output.T if self._tall else output).double()
        gram = wide @ wide.T
        if not bool(gram.isfinite().all()):
            bad = dict.fromkeys(("largest", "error", "norm", "high_2", "high_3"), math.inf)
            return bad | dict.fromkeys(("cosine", "low_2", "low_3"), 0.0)
        found = {
            "largest": float(_roots(gram)[-1]),
            "error": float((gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum() / len(gram)),
            "cosine": float((wide * self._polar).sum() / wide.norm() / self._polar.norm()),
            "norm": float(wide.norm() / self._polar.norm()),
        }
        for power, right in self._right.items():
            image = wide @ right.T
            values = _roots(image.T @ image)
            found |= {f"low_{power}": float(values[0]), f"high_{power}": float(values[-1])}
        return found


def _roots(gram: Tensor) -> Tensor:
    """Singular values from their squares' matrix, ascending."""
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


def search(function: Stacked, guide: Stacked, rows: int, cols: int, count: int, moves: int) -> float:
    """The largest singular value among a function's outputs while hill climbing raises that of a guide's.

    Matrices start with few or many equal singular values and a tail anywhere down to 1e-4 of them; at each
    move their singular values change, and stay changed if the guide's output grows.

    Args:
        function: From stacks (n, rows, cols) to stacks; what is judged.
        guide: The same, or its first steps, whose overshoot the others may amplify.
        rows: Of the matrices.
        cols: Of the matrices.
        count: How many matrices, a multiple of 4.
        moves: How many.
    """
    kinds = ("gauss", "levels", "sparse", "lognormal")
    generator = torch.Generator().manual_seed(SEED)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    uniform = partial(torch.rand, generator=generator, dtype=torch.float64)
    left = torch.cat([random_basis(count // 4, rows, rows, generator, kind) for kind in kinds])
    right = torch.cat([random_basis(count // 4, cols, rows, generator, kind) for kind in kinds]).mT

    def matrices(logarithms: Tensor) -> Tensor:
        found = (left * logarithms.exp().unsqueeze(-2)) @ right
        return (found / torch.linalg.vector_norm(found, dim=(-2, -1), keepdim=True)).float()

    bounds = torch.tensor([5, rows // 2 + 1]).repeat(count // 2).unsqueeze(1)
    equal = torch.arange(rows) < 1 + (uniform(count, 1) * (bounds - 1)).floor()
    tail = uniform(count, 1) * normal(count, rows) - 0.5 - 9 * uniform(count, 1)
    logarithms = torch.where(equal, 0.0, tail)
    best = _largest(guide(matrices(logarithms)))
    worst = float(_largest(function(matrices(logarithms))).max())
    for move in range(moves):
        sizes = torch.exp(normal(count, 1) - 1) * (uniform(count, rows) < 0.15)
        moved = logarithms + normal(count, rows) * sizes
        if move % 4 == 0:
            moved += 0.3 * normal(count, 1) * (logarithms < -0.5)
        inputs = matrices(moved)
        values = _largest(guide(inputs))
        better = values > best
        if guide is not function and bool(better.any()):
            worst = max(worst, float(_largest(function(inputs[better])).max()))
        logarithms = torch.where(better.unsqueeze(-1), moved, logarithms)
        best = torch.maximum(values, best)
    return max(worst, float(best.max())) if guide is function else worst


def _largest(outputs: Tensor) -> Tensor:
    """The largest singular value of each matrix, at most about 1e16."""
    bounded = torch.nan_to_num(outputs.double(), nan=1e15).clamp(-1e15, 1e15)
    return _roots(bounded @ bounded.mT)[:, -1]


def change_with_scale(function: Stacked, factors: Iterable[float]) -> float:
    """The largest relative change of an output when the matrix is multiplied by a factor."""
    matrix = spectra(64, 160)["rank 1 + noise 1e-02"][0].unsqueeze(0)
    expected = function(matrix).double()
    changes = [(function(matrix * f).double() - expected).norm() / expected.norm() for f in factors]
    return float(torch.stack(changes).max())


def summary(measured: Sequence[Measured]) -> Measured:
    """Extremes of singular values, means of everything else."""
    return {
        name: (min if name.startswith("low") else max if name.startswith(("high", "largest")) else mean)(
            [each[name] for each in measured]
        )
        for name in measured[0]
    }


def momentum(kinds: dict[str, Measured], *, late: bool) -> Measured:
    """The kinds of the last step, or of those before it, as one."""
    steps = {kind: int(kind.rsplit(" ", 1)[1]) for kind in kinds if kind.startswith("momentum")}
    last = max(steps.values())
    return summary([kinds[kind] for kind, step in steps.items() if (step == last) is late])
