r"""The fused move: `averaging.advance_` for many parameters in one launch.

Reads y, z and d and writes y and z: five transfers, and none for x. Every parameter is cut into blocks, each
moved by one program. A table, made anew at every call, says where the parameters lie and which blocks are
whose; nothing is kept between calls, so tensors may come, go and move as they like.

A captured CUDA graph has its own table: the entries are arguments of operations within the graph, in memory
of the graph. It holds nothing of the host's, and any number of graphs may be captured.
"""

from array import array
from itertools import accumulate, chain
from operator import attrgetter

import torch
import triton
import triton.language as tl
from torch import Tensor

from amuse_optim.averaging import StepNumbers, Tensors
from amuse_optim.kernels import PLAIN
from amuse_optim.schedule import Number

# Entries moved by one program, and the warps that share them: one access of 16 bytes a thread and tensor.
# That takes 40 registers by the compiler's report, so six programs can be under way on one multiprocessor.
BLOCK = 1024
WARPS = 8

_UPDATE_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
_device, _dtype = attrgetter("device"), attrgetter("dtype")


def _coefficients(scale: Number, numbers: StepNumbers) -> tuple[Number, ...]:
    """What the kernel is told of the step: lr_t scale, lr_t weight_decay, b, c_t and b'."""
    return (
        numbers.lr * scale,
        numbers.lr * numbers.weight_decay,
        numbers.decode,
        numbers.c,
        numbers.beta_next,
    )


def takes(y: Tensors, z: Tensors, update: Tensors, scale: Number, numbers: StepNumbers) -> bool:
    """Whether the kernel can make a move; `averaging.advance_` makes every other one.

    It takes plain contiguous tensors on one device, equally many entries at the same index: y and z in
    float32, all updates in float32 or all in bfloat16. Numbers are Python's or single entries on the device.
    """
    everything = [*y, *z, *update]
    device = y[0].device
    return (
        set(map(type, everything)) <= PLAIN
        and all(map(Tensor.is_contiguous, everything))
        and set(map(_device, everything)) == {device}
        and set(map(_dtype, [*y, *z])) == {torch.float32}
        and update[0].dtype in _UPDATE_TYPES
        and set(map(_dtype, update)) == {update[0].dtype}
        and list(map(Tensor.numel, y)) == list(map(Tensor.numel, z)) == list(map(Tensor.numel, update))
        and all(
            type(number) in PLAIN and number.device == device and number.numel() == 1
            for number in _coefficients(scale, numbers)
            if isinstance(number, Tensor)
        )
    )


def advance_(y: Tensors, z: Tensors, update: Tensors, scale: Number, numbers: StepNumbers) -> None:
    """Descend, average and interpolate in place; see `averaging.advance_`.

    The host does not wait for the device. While a graph is captured, what changes from step to step has to
    be a tensor on the device; a number stays what it was then.

    Args:
        y: The gradient points, changed; `takes` has looked at all of these.
        z: The fast sequences, float32 as y is; changed.
        update: d / scale, in float32 or bfloat16; not changed.
        scale: The common factor of the update.
        numbers: The coefficients of the step.
    """
    sizes = list(map(Tensor.numel, y))
    *firsts, programs = accumulate(((size + BLOCK - 1) // BLOCK for size in sizes), initial=0)
    if not programs:
        return
    addresses = list(map(Tensor.data_ptr, chain(y, z, update)))
    coefficients = _coefficients(scale, numbers)
    on_device = any(isinstance(number, Tensor) for number in coefficients)
    with torch.cuda.device_of(y[0]):
        _advance[(programs,)](
            _table([*firsts, *sizes, *addresses], y[0].device),
            len(sizes),
            *(_on(y[0].device, number) if on_device else float(number) for number in coefficients),
            on_device=on_device,
            update_type=_UPDATE_TYPES[update[0].dtype],
            decay_at_y=numbers.decay_at == "y",
            aligned=not any(address % 16 for address in addresses),
            block=BLOCK,
            num_warps=WARPS,
        )
    torch.autograd.graph.increment_version([*y, *z])


def _on(device: torch.device, number: Number) -> Tensor:
    if isinstance(number, Tensor):
        return number
    return torch.full((), number, dtype=torch.float64, device=device)


def _table(entries: list[int], device: torch.device) -> Tensor:
    """Integers on the device, for which the host does not wait."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _written_by_operations(entries, device)
    # From ordinary memory, which has been copied away when this returns.
    return torch.frombuffer(array("q", entries), dtype=torch.int64).to(device, non_blocking=True)


def _written_by_operations(entries: list[int], device: torch.device) -> Tensor:
    """Integers on the device, written by operations that have them as arguments, so that none are copied.

    A captured copy would read the host's memory at every replay.
    """
    table = torch.zeros(len(entries), dtype=torch.int64, device=device)
    torch._foreach_add_(table.split(1), entries)
    return table


@triton.jit
def _move_block(
    y_start: tl.tensor,
    z_start: tl.tensor,
    update_start: tl.tensor,
    rate: tl.tensor,
    decay: tl.tensor,
    beta: tl.tensor,
    c: tl.tensor,
    beta_next: tl.tensor,
    count: tl.tensor,
    decay_at_y: tl.constexpr,
    partial: tl.constexpr,
    block: tl.constexpr,
) -> None:
    # y' = towards_x x + towards_z z'; in this order a small c is not rounded away beside 1.
    towards_x = tl.fma(-beta_next, c, beta_next)
    towards_z = tl.fma(beta_next, c, 1.0 - beta_next)

    entries = tl.arange(0, block)
    inside = entries < count if partial else None
    y = tl.load(y_start + entries, mask=inside)
    z = tl.load(z_start + entries, mask=inside)
    update = tl.load(update_start + entries, mask=inside).to(tl.float32)

    x = tl.fma(y - z, tl.div_rn(1.0 - beta, beta), y)
    z = tl.fma(-decay, y if decay_at_y else z, z)
    z = tl.fma(-rate, update, z)
    # From the nearer end, as torch's lerp: where a weight is 0 the result is the other end to the bit.
    near_x = towards_z < 0.5
    y = tl.fma(z - x, tl.where(near_x, towards_z, -towards_x), tl.where(near_x, x, z))

    tl.store(z_start + entries, z, mask=inside)
    tl.store(y_start + entries, y, mask=inside)


@triton.jit(do_not_specialize=["parameters"])
def _advance(
    table: tl.tensor,
    parameters: tl.tensor,
    rate: tl.tensor,
    decay: tl.tensor,
    beta: tl.tensor,
    c: tl.tensor,
    beta_next: tl.tensor,
    on_device: tl.constexpr,
    update_type: tl.constexpr,
    decay_at_y: tl.constexpr,
    aligned: tl.constexpr,
    block: tl.constexpr,
) -> None:
    # The last parameter whose first block is at or before this one; those without entries share the first
    # block of the next.
    program = tl.program_id(0)
    mine = 0
    beyond = parameters
    while beyond - mine > 1:
        middle = (mine + beyond) // 2
        before = tl.load(table + middle) <= program
        mine = tl.where(before, middle, mine)
        beyond = tl.where(before, beyond, middle)

    row = table + mine
    # In 64 bits: a parameter may have more than 2^31 entries.
    start = (program - tl.load(row)) * block
    count = tl.minimum(tl.load(row + parameters) - start, block).to(tl.int32)
    y = tl.load(row + 2 * parameters).to(tl.pointer_type(tl.float32)) + start
    z = tl.load(row + 3 * parameters).to(tl.pointer_type(tl.float32)) + start
    update = tl.load(row + 4 * parameters).to(tl.pointer_type(update_type)) + start
    if aligned:  # what a thread reads at a time: four entries
        y = tl.multiple_of(y, 16)
        z = tl.multiple_of(z, 16)
        update = tl.multiple_of(update, update_type.primitive_bitwidth // 2)
    if on_device:
        rate, decay = tl.load(rate).to(tl.float32), tl.load(decay).to(tl.float32)
        beta, beta_next = tl.load(beta).to(tl.float32), tl.load(beta_next).to(tl.float32)
        c = tl.load(c).to(tl.float32)
    else:  # the interpreter has Python's numbers here
        rate, decay = tl.full((), rate, tl.float32), tl.full((), decay, tl.float32)
        beta, beta_next = tl.full((), beta, tl.float32), tl.full((), beta_next, tl.float32)
        c = tl.full((), c, tl.float32)
    # Under a mask there are no wide accesses, so whole blocks go without.
    if count == block:
        _move_block(
            y, z, update, rate, decay, beta, c, beta_next, count, decay_at_y, partial=False, block=block
        )
    else:
        _move_block(
            y, z, update, rate, decay, beta, c, beta_next, count, decay_at_y, partial=True, block=block
        )
