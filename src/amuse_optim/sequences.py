r"""The algebra of the three sequences.

`z` is the fast base sequence, `x` its weighted average, `y = (1 - beta) z + beta x` the point where the
gradient is taken (arXiv 2605.22432; the construction is Schedule-Free's, arXiv 2405.15682). The optimizer
stores `y` and `z` only, and `x` is recovered with the beta that `y` was built with.
"""

from typing import Literal

from torch import Tensor

DecayAt = Literal["z", "y"]


def interpolate(z: Tensor, x: Tensor, beta: float | Tensor) -> Tensor:
    """Return y = (1 - beta) z + beta x; z and x have one shape."""
    return z * (1.0 - beta) + x * beta


def average(x: Tensor, z: Tensor, c: float) -> Tensor:
    """Return x' = (1 - c) x + c z; x and z have one shape."""
    return x * (1.0 - c) + z * c


def recover(y: Tensor, z: Tensor, beta: float | Tensor) -> Tensor:
    """Return x = (y - (1 - beta) z) / beta = z + (y - z) / beta, the inverse of `interpolate`."""
    return (y - z).div_(beta).add_(z)


def descend_(
    z: Tensor,
    x: Tensor,
    direction: Tensor,
    *,
    scale: float,
    lr: float,
    weight_decay: float,
    at: DecayAt,
    beta: float,
) -> None:
    """Descend in place: z <- z - lr d - lr weight_decay (z or y), with y = (1 - beta) z + beta x.

    Args:
        z: The fast sequence, changed.
        x: The average that y was built with.
        direction: d / scale, same shape; may have a lower precision.
        scale: A factor of the direction.
        lr: lr_t.
        weight_decay: Decoupled decay coefficient.
        at: Where the decay is taken.
        beta: The coefficient that y was built with.
    """
    decay = lr * weight_decay
    if decay != 0.0 and at == "y":
        z.mul_(1.0 - decay * (1.0 - beta)).add_(x, alpha=-decay * beta)
    elif decay != 0.0:
        z.mul_(1.0 - decay)
    z.add_(direction, alpha=-lr * scale)


def advance_(
    y: Tensor,
    z: Tensor,
    direction: Tensor,
    *,
    scale: float,
    lr: float,
    weight_decay: float,
    at: DecayAt,
    beta: float,
    c: float,
    beta_next: float,
) -> None:
    """Descend, average and interpolate in place, with no memory for x: y becomes x on the way.

    With b' the next beta, y' = (1 - b') z' + b' ((1 - c) x + c z') is identically

        y' = b'(1 - c) x + (1 - b'(1 - c)) z'

    Args:
        y: The gradient point, changed into the next one.
        z: The fast sequence, changed; same shape and dtype.
        direction: d / scale, same shape; may have a lower precision.
        scale: A factor of the direction.
        lr: lr_t.
        weight_decay: Decoupled decay coefficient.
        at: Where the decay is taken.
        beta: The coefficient that decodes y.
        c: c_t.
        beta_next: b'.
    """
    x = y.lerp_(z, 1.0 - 1.0 / beta)
    descend_(z, x, direction, scale=scale, lr=lr, weight_decay=weight_decay, at=at, beta=beta)
    x.lerp_(z, 1.0 - beta_next * (1.0 - c))
