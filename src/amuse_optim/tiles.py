r"""The algebra of `sequences` and `directions` on many tensors at once, a tile at a time.

A tile is a list of pieces of parameters. On a CPU it is small enough for the cache, so that only the first
operation on it waits for memory; elsewhere it is so large that few operations are launched.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import kernels
from .sequences import DecayAt

if TYPE_CHECKING:
    from .kernels.averaging import AveragingPlan

# Entries of each tensor in a tile: on a CPU, for each thread, half a dozen of this size fit in a cache of
# 2 MiB; elsewhere the bound is one of memory.
TILE_ENTRIES_ON_CPU = 2**16
TILE_ENTRIES = 2**24


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def flat(tensors: Sequence[Tensor], *, channels_last: bool = True) -> list[Tensor] | None:
    """The entries of tensors of one shape in the order they lie in memory, as one-dimensional views.

    Channels-last kernels (out, k..., in) have the columns of their matrix in another order, which the
    polar factor keeps; all else works entry by entry.

    Returns:
        None unless all are contiguous, or all are channels-last.
    """
    if all(tensor.is_contiguous() for tensor in tensors):
        return [tensor.view(-1) for tensor in tensors]
    dims = tensors[0].ndim
    last = _CHANNELS_LAST.get(dims)
    if (
        channels_last
        and last is not None
        and all(tensor.is_contiguous(memory_format=last) for tensor in tensors)
    ):
        return [tensor.permute(0, *range(2, dims), 1).view(-1) for tensor in tensors]
    return None


def tiles(*columns: Sequence[Tensor]) -> Iterator[list[list[Tensor]]]:
    """Cut lists of one-dimensional tensors alike: every tile has a piece of each, pieces of equal length.

    Args:
        columns: Lists of equal length; the i-th tensors of all have the same number of entries.

    Yields:
        Lists of pieces, one for each column.
    """
    on_cpu = columns[0][0].device.type == "cpu"
    bound = TILE_ENTRIES_ON_CPU * torch.get_num_threads() if on_cpu else TILE_ENTRIES
    tile: list[list[Tensor]] = [[] for _ in columns]
    entries = 0
    for row in zip(*columns, strict=True):
        if entries + row[0].numel() > bound and tile[0]:
            yield tile
            tile, entries = [[] for _ in columns], 0
        if row[0].numel() > bound:
            for pieces in zip(*(tensor.split(bound) for tensor in row), strict=True):
                yield [[piece] for piece in pieces]
            continue
        for column, tensor in zip(tile, row, strict=True):
            column.append(tensor)
        entries += row[0].numel()
    if tile[0]:
        yield tile


def momentum_average_(
    buffers: list[Tensor], gradients: list[Tensor], updates: list[Tensor], momentum: float, *, nesterov: bool
) -> None:
    """`directions.momentum_average_` on lists; u is written into `updates`, of any precision."""
    torch._foreach_lerp_(buffers, gradients, 1.0 - momentum)
    moved = list(torch._foreach_lerp(gradients, buffers, momentum)) if nesterov else buffers
    torch._foreach_copy_(updates, moved)


def adamw_direction(
    gradients: list[Tensor],
    second_moments: list[Tensor],
    step: int | Tensor,
    *,
    beta2: float,
    eps: float,
    first_moments: list[Tensor] | None,
    momentum: float,
) -> tuple[list[Tensor], float | Tensor]:
    """`directions.adamw_direction` on lists of one step count, which may lie on the device."""
    torch._foreach_mul_(second_moments, beta2)
    torch._foreach_addcmul_(second_moments, gradients, gradients, 1.0 - beta2)
    correction = (1.0 - beta2**step) ** 0.5
    denominators = list(torch._foreach_sqrt(second_moments))
    if isinstance(correction, Tensor):  # adding one to a list would wait for the device, dividing does not
        torch._foreach_div_(denominators, correction)
        torch._foreach_add_(denominators, eps)
        correction = torch.ones_like(correction)
    else:
        torch._foreach_add_(denominators, correction * eps)
    if first_moments is None:
        return list(torch._foreach_div(gradients, denominators)), correction
    torch._foreach_lerp_(first_moments, gradients, 1.0 - momentum)
    return list(torch._foreach_div(first_moments, denominators)), correction / (1.0 - momentum**step)


def advance_(
    ys: list[Tensor],
    zs: list[Tensor],
    directions: list[Tensor],
    *,
    scale: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    at: DecayAt,
    beta: float | Tensor,
    c: float | Tensor,
    beta_next: float | Tensor,
) -> None:
    """`sequences.advance_` on lists; the numbers may lie on the device."""
    decay = lr * weight_decay
    device = ys[0].device
    if (
        kernels.enabled(device)
        and ys[0].dtype == torch.float32
        and directions[0].dtype in (torch.float32, torch.bfloat16)
    ):
        from .kernels.averaging import MoveCoefficients

        numbers = MoveCoefficients(lr * scale, decay, beta, c, beta_next).on(device)
        plan = _plan(tuple(len(y) for y in ys), device, ys[0].data_ptr())
        plan.advance_(ys, zs, directions, numbers, at=at)
        return
    _lerp_(ys, zs, 1.0 - 1.0 / beta)
    if weight_decay != 0.0 and at == "y":
        torch._foreach_mul_(zs, 1.0 - decay * (1.0 - beta))
        _add_(zs, ys, -decay * beta)
    elif weight_decay != 0.0:
        torch._foreach_mul_(zs, 1.0 - decay)
    _add_(zs, directions, -lr * scale)
    _lerp_(ys, zs, 1.0 - beta_next * (1.0 - c))


@cache
def _plan(sizes: tuple[int, ...], device: torch.device, first: int) -> "AveragingPlan":  # noqa: ARG001
    """A plan for these sizes; one for each list of parameters, because a captured graph needs its own."""
    from .kernels.averaging import AveragingPlan

    return AveragingPlan(sizes, device)


def _lerp_(starts: list[Tensor], ends: list[Tensor], weight: float | Tensor) -> None:
    if isinstance(weight, Tensor):
        _add_(starts, list(torch._foreach_sub(ends, starts)), weight)
    else:
        torch._foreach_lerp_(starts, ends, weight)


def _add_(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> None:
    if isinstance(factor, Tensor):
        wide = [other.to(tensor.dtype) for tensor, other in zip(tensors, others, strict=True)]
        torch._foreach_add_(tensors, list(torch._foreach_mul(wide, factor)))
    else:
        torch._foreach_add_(tensors, others, alpha=factor)
