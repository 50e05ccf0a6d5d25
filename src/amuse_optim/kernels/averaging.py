r"""The fused move of `averaging.advance_` for many parameters in one launch.

Reads y, z and d and writes y and z: five transfers, and none for x. Every parameter is cut into blocks. A
table of blocks, made once for a list of sizes, says which program moves what; a table of addresses, uploaded
at every step, says where that lies, so the direction may lie somewhere else each time.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from amuse_optim.schedule import DecayAt

# Entries moved by one program, and the warps that share them: one access of 16 bytes a thread and tensor.
# That takes 40 registers by the compiler's report, so six programs can be under way on one multiprocessor.
BLOCK = 1024
WARPS = 8

_DIRECTION_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


class MoveCoefficients(NamedTuple):
    """What `averaging.advance_` is told, in the order the kernel reads it: numbers or one-element tensors.

    Args:
        rate: lr_t times the scale of the directions.
        decay: lr_t times the weight decay.
        beta: The coefficient that decodes y, in (0, 1].
        c: c_t.
        beta_next: b', the beta that the new y is built with.
    """

    rate: float | Tensor
    decay: float | Tensor
    beta: float | Tensor
    c: float | Tensor
    beta_next: float | Tensor

    def on(self, device: torch.device) -> Tensor:
        """The coefficients as the kernel takes them: float32, shape (5,), on `device`.

        The host does not wait for the device. While a graph is captured, what changes from step to step has
        to be a tensor on the device; a number stays what it was then.
        """
        if not any(isinstance(value, Tensor) for value in self):
            return torch.tensor(self, dtype=torch.float32).to(device, non_blocking=True)
        return torch.stack(
            [
                value.to(device, torch.float32).reshape(())
                if isinstance(value, Tensor)
                else torch.full((), value, dtype=torch.float32, device=device)
                for value in self
            ]
        )


def movable(y: Tensor, z: Tensor, direction: Tensor) -> bool:
    """Whether the kernel can move a parameter; `averaging.advance_` moves every other one.

    It takes contiguous y and z in float32, and a contiguous direction in float32 or bfloat16, all of one
    shape and on one device.
    """
    return (
        y.dtype == z.dtype == torch.float32
        and direction.dtype in _DIRECTION_TYPES
        and y.shape == z.shape == direction.shape
        and y.device == z.device == direction.device
        and y.is_contiguous()
        and z.is_contiguous()
        and direction.is_contiguous()
    )


class AveragingPlan:
    """Moves lists of parameters of given sizes, each list in one launch.

    A plan depends on the sizes alone and holds no parameter, so one does for every list of these sizes. It
    serves any number of ordinary steps and at most one captured CUDA graph, which it has to outlive.

    Args:
        sizes: Number of entries of each parameter; 0 is allowed.
        device: Where the parameters are.

    Example:
        plan = AveragingPlan([y.numel() for y in ys], device)
        coefficients = MoveCoefficients(rate=lr * scale, decay=lr * 0.1, beta=0.6, c=c, beta_next=0.6)
        plan.advance_(ys, zs, directions, coefficients.on(device), at="z")
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = tuple(sizes)
        self._blocks = _blocks(self.sizes).to(device)
        self.device = self._blocks.device  # with its index
        shape = (3, len(self.sizes))  # the addresses of y, z and the direction
        self._addresses = torch.zeros(shape, dtype=torch.int64, device=device)
        # A graph reads its host memory at every replay, so a capture gets memory of its own.
        self._captured = torch.zeros(shape, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._was_captured = False

    def advance_(
        self,
        y: Sequence[Tensor],
        z: Sequence[Tensor],
        directions: Sequence[Tensor],
        coefficients: Tensor,
        *,
        at: DecayAt,
    ) -> None:
        """Descend, average and interpolate in place; see `averaging.advance_`.

        Args:
            y: The gradient points, changed; each `movable` with its z and direction, in the order of `sizes`.
            z: The fast sequences, changed.
            directions: d / scale, all of one dtype.
            coefficients: `MoveCoefficients.on(device)`; the device reads them when it gets there.
            at: Where the decay is taken.

        Raises:
            ValueError: If something is not as described; nothing has changed then.
            RuntimeError: If a second graph is captured with this plan.
        """
        self._check(y, z, directions, coefficients)
        if not len(self._blocks):
            return
        addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in (y, z, directions)]
        self._upload(addresses)
        with torch.cuda.device_of(self._addresses):
            _advance[(len(self._blocks),)](
                self._addresses,
                self._blocks,
                coefficients,
                len(self.sizes),
                direction_type=_DIRECTION_TYPES[directions[0].dtype],
                decay_at_y=at == "y",
                aligned=all(address % 16 == 0 for row in addresses for address in row),
                block=BLOCK,
                num_warps=WARPS,
            )
        torch.autograd.graph.increment_version([*y, *z])

    def _check(
        self, y: Sequence[Tensor], z: Sequence[Tensor], directions: Sequence[Tensor], coefficients: Tensor
    ) -> None:
        count = len(self.sizes)
        for name, column in (("y", y), ("z", z), ("directions", directions)):
            if len(column) != count:
                raise ValueError(f"{name} must have one tensor for each of {count} sizes, got {len(column)}")
        for i, tensors in enumerate(zip(y, z, directions, strict=True)):
            first, size, dtype = tensors[0], self.sizes[i], directions[0].dtype
            alike = first.numel() == size and first.device == self.device and tensors[2].dtype == dtype
            if not (alike and movable(*tensors)):
                given = ", ".join(f"{t.dtype} {tuple(t.shape)} {t.stride()} {t.device}" for t in tensors)
                raise ValueError(
                    f"y, z and direction {i} must be contiguous, of one shape with {size} entries, on "
                    f"{self.device}, in float32 with every direction in {dtype}, got {given}"
                )
        described = (coefficients.dtype, tuple(coefficients.shape), coefficients.device)
        if described != (torch.float32, (len(MoveCoefficients._fields),), self.device):
            raise ValueError(f"coefficients must be MoveCoefficients.on({self.device}), got {described}")

    def _upload(self, addresses: list[list[int]]) -> None:
        """Fill the table in one copy, for which the host does not wait."""
        host = torch.tensor(addresses)
        if self._addresses.is_cuda and torch.cuda.is_current_stream_capturing():
            if self._was_captured:
                raise RuntimeError("an AveragingPlan serves one captured CUDA graph; make another plan")
            self._was_captured = True
            host = self._captured.copy_(host)
        # Outside of a capture: from ordinary memory, which has been copied away when this returns.
        self._addresses.copy_(host, non_blocking=True)


def advance_lists_(
    y: Sequence[Tensor],
    z: Sequence[Tensor],
    directions: Sequence[Tensor],
    coefficients: MoveCoefficients,
    *,
    at: DecayAt,
) -> None:
    """Move lists with a plan of their own, made at the first call.

    Args:
        y: As for `AveragingPlan.advance_`.
        z: Likewise.
        directions: Likewise; other dtypes than float32 and bfloat16 are converted.
        coefficients: Numbers or one-element tensors.
        at: Where the decay is taken.
    """
    if directions[0].dtype not in _DIRECTION_TYPES:
        directions = [direction.float() for direction in directions]
    plan = _plan(tuple(tensor.numel() for tensor in y), y[0].device, y[0].data_ptr())
    plan.advance_(y, z, directions, coefficients.on(plan.device), at=at)


@cache
def _plan(sizes: tuple[int, ...], device: torch.device, first: int) -> AveragingPlan:  # noqa: ARG001
    """A plan for these sizes; one for each list of parameters, because a captured graph needs its own."""
    return AveragingPlan(sizes, device)


def _blocks(sizes: Sequence[int]) -> Tensor:
    """What each program moves, shape (programs, 3): the parameter, which of its blocks, entries in that."""
    entries = torch.tensor(sizes, dtype=torch.int64)
    counts = (entries + BLOCK - 1) // BLOCK
    parameter = torch.arange(len(sizes)).repeat_interleave(counts)
    block = torch.arange(len(parameter)) - (counts.cumsum(0) - counts)[parameter]
    rest = (entries[parameter] - block * BLOCK).clamp(max=BLOCK)
    return torch.stack([parameter, block, rest], dim=1).to(torch.int32)


@triton.jit
def _move_block(
    y_start: tl.tensor,
    z_start: tl.tensor,
    direction_start: tl.tensor,
    coefficients: tl.tensor,
    count: tl.tensor,
    decay_at_y: tl.constexpr,
    partial: tl.constexpr,
    block: tl.constexpr,
) -> None:
    rate = tl.load(coefficients)
    decay = tl.load(coefficients + 1)
    beta = tl.load(coefficients + 2)
    c = tl.load(coefficients + 3)
    beta_next = tl.load(coefficients + 4)
    # y' = towards_x x + towards_z z'; in this order a small c is not rounded away beside 1.
    towards_x = tl.fma(-beta_next, c, beta_next)
    towards_z = tl.fma(beta_next, c, 1.0 - beta_next)

    entries = tl.arange(0, block)
    inside = entries < count if partial else None
    y = tl.load(y_start + entries, mask=inside)
    z = tl.load(z_start + entries, mask=inside)
    direction = tl.load(direction_start + entries, mask=inside).to(tl.float32)

    x = tl.fma(y - z, tl.div_rn(1.0 - beta, beta), y)
    z = tl.fma(-decay, y if decay_at_y else z, z)
    z = tl.fma(-rate, direction, z)
    # From the nearer end, as torch's lerp: where a weight is 0 the result is the other end to the bit.
    near_x = towards_z < 0.5
    y = tl.fma(z - x, tl.where(near_x, towards_z, -towards_x), tl.where(near_x, x, z))

    tl.store(z_start + entries, z, mask=inside)
    tl.store(y_start + entries, y, mask=inside)


@triton.jit
def _advance(
    addresses: tl.tensor,
    blocks: tl.tensor,
    coefficients: tl.tensor,
    parameters: tl.tensor,
    direction_type: tl.constexpr,
    decay_at_y: tl.constexpr,
    aligned: tl.constexpr,
    block: tl.constexpr,
) -> None:
    mine = blocks + 3 * tl.program_id(0)
    y_address = addresses + tl.load(mine)
    # In 64 bits: a parameter may have more than 2^31 entries.
    start = tl.load(mine + 1).to(tl.int64) * block
    count = tl.load(mine + 2)
    y = tl.load(y_address).to(tl.pointer_type(tl.float32)) + start
    z = tl.load(y_address + parameters).to(tl.pointer_type(tl.float32)) + start
    direction = tl.load(y_address + 2 * parameters).to(tl.pointer_type(direction_type)) + start
    if aligned:  # what a thread reads at a time: four entries
        y = tl.multiple_of(y, 16)
        z = tl.multiple_of(z, 16)
        direction = tl.multiple_of(direction, direction_type.primitive_bitwidth // 2)
    # Under a mask there are no wide accesses, so whole blocks go without.
    if count == block:
        _move_block(y, z, direction, coefficients, count, decay_at_y, False, block)
    else:
        _move_block(y, z, direction, coefficients, count, decay_at_y, True, block)
