r"""Directions: a gradient and the state of one parameter in, the direction d of z <- z - lr d out.

Every function changes only the state buffers it is given; gradients are read, never written.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Direction = Literal["muon", "adamw", "sgd"]
Scale = Literal["match_rms", "spectral"]


def momentum_average_(buffer: Tensor, gradient: Tensor, momentum: float, *, nesterov: bool) -> Tensor:
    """Move m <- mu m + (1 - mu) g and return u = (1 - mu) g + mu m with Nesterov, else u = m.

    Args:
        buffer: m, changed in place.
        gradient: g, same shape.
        momentum: mu in [0, 1).
        nesterov: Whether to look one step ahead.

    Returns:
        u; the buffer itself without Nesterov, a new tensor with it.
    """
    buffer.lerp_(gradient, 1.0 - momentum)
    return gradient.lerp(buffer, momentum) if nesterov else buffer


def update_scale(rows: int, cols: int, scale: Scale) -> float:
    """The factor from the orthogonalized matrix to the direction, from that matrix's own shape.

    "match_rms": 0.2 sqrt(max(rows, cols)), entries with a root mean square near 0.2 as AdamW's
    (arXiv 2502.16982). "spectral": sqrt(max(1, rows / cols)).
    """
    if scale == "match_rms":
        return 0.2 * math.sqrt(max(rows, cols))
    return math.sqrt(max(1.0, rows / max(cols, 1)))


def adamw_direction(
    gradient: Tensor,
    second_moment: Tensor,
    step: int,
    *,
    beta2: float,
    eps: float,
    first_moment: Tensor | None = None,
    momentum: float = 0.0,
) -> tuple[Tensor, float]:
    """Return d = e_hat / (sqrt(v_hat) + eps) as a tensor and its factor; e_hat is g without a first moment.

    v <- b2 v + (1 - b2) g^2, v_hat = v / k with k = 1 - b2^s; e <- b e + (1 - b) g, e_hat = e / (1 - b^s).
    The corrections are numbers, so d = [e / (sqrt(v) + sqrt(k) eps)] * sqrt(k) / (1 - b^s).

    Args:
        gradient: g.
        second_moment: v, changed in place.
        step: s, how many gradients this parameter has seen, this one included.
        beta2: Decay of the second moment, in [0, 1).
        eps: Added to the root.
        first_moment: e, changed in place, or None.
        momentum: b, used with `first_moment`.

    Returns:
        The bracket, a new tensor, and the factor behind it.
    """
    second_moment.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    correction = math.sqrt(1.0 - beta2**step)
    denominator = second_moment.sqrt().add_(correction * eps)
    if first_moment is None:
        return torch.div(gradient, denominator, out=denominator), correction
    first_moment.lerp_(gradient, 1.0 - momentum)
    return torch.div(first_moment, denominator, out=denominator), correction / (1.0 - momentum**step)
