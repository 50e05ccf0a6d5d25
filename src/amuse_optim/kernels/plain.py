"""The products of `symmetric` in plain torch: the same functions, for every device and dtype."""

import torch
from torch import Tensor


def gram(x: Tensor) -> Tensor:
    """Return G = X X^T for a stack (n, rows, cols)."""
    return torch.bmm(x, x.mT)


def polynomial(g: Tensor, *, a: float, b: float, c: float) -> Tensor:
    """Return a I + b G + c G G for a stack (n, rows, rows) of symmetric G."""
    result = torch.baddbmm(g, g, g, beta=b, alpha=c)
    if a != 0.0:
        result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


def commuting_product(p: Tensor, q: Tensor) -> Tensor:
    """Return P Q for stacks (n, rows, rows) of symmetric matrices that commute, so that P Q is symmetric."""
    return torch.bmm(p, q)
