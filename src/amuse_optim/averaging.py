r"""The equations of the three sequences, on lists of tensors; one tensor is a list of length one.

z is the fast sequence, x its weighted average, y = (1 - beta) z + beta x the point where the gradient is
taken (arXiv 2605.22432; the construction is Schedule-Free's, arXiv 2405.15682). Two of the three are kept for
each parameter and the third follows: y and z in full precision; z and x where y is rounded; and for beta = 0,
where y is z, z and x. All lists have one length, and tensors at the same index have one shape. Numbers may be
scalar tensors on the device; their values are then never copied to the host.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import DecayAt, Number

Tensors = list[Tensor] | tuple[Tensor, ...]  # as torch._foreach_* takes them


@dataclass(frozen=True)
class StepNumbers:
    """The coefficients of one step, shared by all parameters of a bucket.

    Args:
        lr: lr_t, the learning rate of this step, with warm-up and decay applied.
        weight_decay: Coefficient of the decoupled weight decay, which is multiplied by `lr`; 0 means none.
        decay_at: The sequence that the decay is proportional to, "z" or "y".
        beta: b, the coefficient that y was built with.
        c: c_t in [0, 1], the weight of the new z in the average x.
        beta_next: b', the coefficient that the next y is built with.
        published: Whether x is decoded with b' instead of b, as in the released code.
        averages: Name and c of each average of z that is kept for reading.
    """

    lr: Number
    weight_decay: float
    decay_at: DecayAt
    beta: Number
    c: Number
    beta_next: Number
    published: bool = False
    averages: tuple[tuple[str, Number], ...] = ()

    @property
    def decode(self) -> Number:
        """The coefficient that x is decoded from y with."""
        return self.beta_next if self.published else self.beta


def decode_(y: Tensors, z: Tensors, beta: Number) -> Tensors:
    """Turn y into x = z + (y - z) / beta, in place: the inverse of y = (1 - beta) z + beta x."""
    _lerp_(y, z, 1.0 - 1.0 / beta)
    return y


def decode_as_published_(x: Tensors, z: Tensors, numbers: StepNumbers) -> None:
    """Turn x into z + (b / b') (x - z), in place: what the released code decodes from y.

    It takes b' for a y that was built with b.
    """
    _lerp_(x, z, 1.0 - numbers.beta / numbers.decode)


def descend_(
    z: Tensors,
    x: Tensors,
    update: Tensors,
    scale: Number,
    numbers: StepNumbers,
) -> None:
    """Move z <- z - lr d - lr weight_decay (z or y) in place, with y = (1 - beta) z + beta x.

    Args:
        z: The fast sequence of each parameter, or of a piece of one; changed in place.
        x: The average that y was built with.
        update: d / scale; may have a lower precision.
        scale: The factor that `update` is divided by: d = scale * update.
        numbers: lr, weight_decay, decay_at and decode, which is the beta of y.
    """
    decay = numbers.lr * numbers.weight_decay
    if numbers.weight_decay != 0.0 and numbers.decay_at == "y":
        torch._foreach_mul_(z, 1.0 - decay * (1.0 - numbers.decode))
        _add_(z, x, -decay * numbers.decode)
    elif numbers.weight_decay != 0.0:
        torch._foreach_mul_(z, 1.0 - decay)
    _add_(z, update, -numbers.lr * scale)


def average_(x: Tensors, z: Tensors, c: Number) -> None:
    """Move x <- (1 - c) x + c z in place."""
    _lerp_(x, z, c)


def interpolate(z: Tensors, x: Tensors, beta: Number) -> Tensors:
    """Return y = (1 - beta) z + beta x."""
    if isinstance(beta, Tensor):
        y = [tensor.clone() for tensor in z]
        _lerp_(y, x, beta)
        return y
    return list(torch._foreach_lerp(z, x, beta))


def average_and_interpolate_(x: Tensors, z: Tensors, numbers: StepNumbers) -> None:
    """Turn x into the next y, in place, with no memory for the next x.

    With b' = beta_next, y' = (1 - b') z + b' ((1 - c) x + c z) is identically
    y' = b' (1 - c) x + (1 - b' (1 - c)) z.
    """
    _lerp_(x, z, 1.0 - numbers.beta_next * (1.0 - numbers.c))


def advance_(
    y: Tensors,
    z: Tensors,
    update: Tensors,
    scale: Number,
    numbers: StepNumbers,
) -> None:
    """Take the whole step of parameters that keep y and z, in place.

    Args:
        y: The gradient points, overwritten by the next ones; x is held there in between.
        z: The fast sequence, changed; same dtype.
        update: d / scale; may have a lower precision.
        scale: The common factor of the update.
        numbers: The coefficients of the step.
    """
    x = decode_(y, z, numbers.decode)
    descend_(z, x, update, scale, numbers)
    average_and_interpolate_(x, z, numbers)


def _lerp_(starts: Tensors, ends: Tensors, weight: Number) -> None:
    """Move starts <- starts + weight (ends - starts)."""
    if isinstance(weight, Tensor):
        _add_(starts, torch._foreach_sub(ends, starts), weight)
    else:
        torch._foreach_lerp_(starts, ends, weight)


def _add_(tensors: Tensors, others: Tensors, factor: Number) -> None:
    """Move tensors <- tensors + factor others."""
    if isinstance(factor, Tensor):
        wide = [other.to(tensor.dtype) for tensor, other in zip(tensors, others, strict=True)]
        torch._foreach_add_(tensors, torch._foreach_mul(wide, factor))
    else:
        torch._foreach_add_(tensors, others, alpha=factor)
