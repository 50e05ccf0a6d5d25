r"""The algebra of the three sequences.

`z` is the fast base sequence, `x` its weighted average, `y = (1 - beta) z + beta x` the point where the
gradient is taken (arXiv 2605.22432; the construction is Schedule-Free's, arXiv 2405.15682). The optimizer
stores `y` and `z` only, and `x` is recovered with the beta that `y` was built with.
"""

from typing import Literal

from torch import Tensor

DecayAt = Literal["z", "y"]


def interpolate(z: Tensor, x: Tensor, beta: float) -> Tensor:
    """Return y = (1 - beta) z + beta x; z and x have one shape."""
    return z * (1.0 - beta) + x * beta


def average(x: Tensor, z: Tensor, c: float) -> Tensor:
    """Return x' = (1 - c) x + c z; x and z have one shape."""
    return x * (1.0 - c) + z * c


def recover(y: Tensor, z: Tensor, beta: float) -> Tensor:
    """Return x = (y - (1 - beta) z) / beta, the inverse of `interpolate` for the same beta."""
    return y.sub(z, alpha=1.0 - beta).div_(beta)


def descend_(z: Tensor, y: Tensor, direction: Tensor, *, lr: float, weight_decay: float, at: DecayAt) -> None:
    """Descend in place: z <- z - lr d - lr weight_decay (z or y).

    Args:
        z: The fast sequence, changed.
        y: The gradient point, read where the decay is taken at y.
        direction: d, same shape.
        lr: lr_t.
        weight_decay: Decoupled decay coefficient.
        at: Where the decay is taken.
    """
    if weight_decay != 0.0 and at == "y":
        z.add_(y, alpha=-lr * weight_decay)
    elif weight_decay != 0.0:
        z.mul_(1.0 - lr * weight_decay)
    z.add_(direction, alpha=-lr)


def advance_(
    y: Tensor,
    z: Tensor,
    direction: Tensor,
    *,
    lr: float,
    weight_decay: float,
    at: DecayAt,
    beta: float,
    c: float,
    beta_next: float,
) -> None:
    """Descend, average and interpolate in one pass over y and z, in place, with no x in memory.

    With x = (y - (1 - b) z) / b the three lines z' = descend(z), x' = (1 - c) x + c z' and
    y' = (1 - b') z' + b' x' are identically

        y' = (1 - b'(1 - c)) z' + (b'(1 - c) / b) (y - (1 - b) z)

    Args:
        y: The gradient point, changed into the next one.
        z: The fast sequence, changed.
        direction: d, same shape.
        lr: lr_t.
        weight_decay: Decoupled decay coefficient.
        at: Where the decay is taken.
        beta: b, the coefficient that decodes y.
        c: c_t.
        beta_next: b', the coefficient of the next y.
    """
    kept = beta_next * (1.0 - c)
    decay_point = y.clone() if at == "y" and weight_decay != 0.0 else y
    y.sub_(z, alpha=1.0 - beta).mul_(kept / beta)
    descend_(z, decay_point, direction, lr=lr, weight_decay=weight_decay, at=at)
    y.add_(z, alpha=1.0 - kept)
