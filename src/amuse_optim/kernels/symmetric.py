r"""Symmetric products of stacks of matrices, of which half is computed and mirrored.

    G = X X^T,        a I + b G + c G G,        P Q for symmetric P and Q that commute

Each program computes one square tile on or below the diagonal, in float32, and stores it twice. `plain` has
the same functions in plain torch. No gradients flow through these.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """How a product is cut up.

    Args:
        side: Rows and columns of a tile of the result.
        depth: Columns of X that are loaded at a time.
        warps: Warps that share a tile.
        stages: How many loads are under way at a time.
        group: Rows of tiles that are computed column by column, so that what they load is still in the cache.
    """

    side: int
    depth: int
    warps: int
    stages: int
    group: int = 8


# What is worth trying in bfloat16 on a GPU of compute capability 9.0.
TILINGS = tuple(
    Tiling(side, 64, warps, stages) for side, warps in ((64, 4), (128, 4), (128, 8)) for stages in (3, 4)
)


def tiling_of(matrices: int, rows: int, dtype: torch.dtype) -> Tiling:
    """Choose a tiling by size alone.

    Not by timing: the ranks of a distributed run, and a run and its repetition, have to round alike, and
    nothing can be timed while a graph is captured.

    Args:
        matrices: How many results there are.
        rows: Rows and columns of each.
        dtype: What is multiplied.
    """
    if dtype == torch.float32:
        return Tiling(side=64, depth=32, warps=4, stages=3)
    tiles = -(-rows // 128)
    # Smaller tiles where large ones would leave many multiprocessors idle (an H100 has 132).
    if matrices * tiles * (tiles + 1) // 2 < 128:
        return Tiling(side=64, depth=64, warps=4, stages=4)
    return Tiling(side=128, depth=64, warps=8, stages=4)


def gram(x: Tensor, *, tiling: Tiling | None = None) -> Tensor:
    """Return G = X X^T for a stack.

    Args:
        x: Shape (n, rows, cols), bfloat16 or float32, any strides: for G = X^T X give `x.mT`.
        tiling: `tiling_of` chooses if None.

    Returns:
        Shape (n, rows, rows), contiguous, in the dtype of x, symmetric to the bit.

    Raises:
        ValueError: For another number of dimensions.
        TypeError: For another dtype.
    """
    _check("x", x)
    return _product(x, x, tiling, None)


def polynomial(g: Tensor, *, a: float, b: float, c: float, tiling: Tiling | None = None) -> Tensor:
    """Return a I + b G + c G G for a stack of symmetric G.

    Args:
        g: G, shape (n, rows, rows), bfloat16 or float32, any strides.
        a: Factor of the identity.
        b: Factor of G.
        c: Factor of G G.
        tiling: `tiling_of` chooses if None.

    Returns:
        A contiguous stack of the same shape and dtype.

    Raises:
        ValueError: For matrices that are not square, or another number of dimensions.
        TypeError: For another dtype.
    """
    _check("g", g, square=True)
    return _product(g, g, tiling, (a, b, c))


def commuting_product(p: Tensor, q: Tensor, *, tiling: Tiling | None = None) -> Tensor:
    """Return P Q for stacks of symmetric matrices that commute, so that P Q is symmetric.

    Args:
        p: Shape (n, rows, rows), bfloat16 or float32, any strides.
        q: Same shape, dtype and device.
        tiling: `tiling_of` chooses if None.

    Returns:
        A contiguous stack of the same shape and dtype.

    Raises:
        ValueError: For matrices that are not square, another number of dimensions, or different shapes.
        TypeError: For another dtype, or different ones.
    """
    _check("p", p, square=True)
    _check("q", q, square=True)
    if p.shape != q.shape:
        raise ValueError(f"p and q must have one shape, got {tuple(p.shape)} and {tuple(q.shape)}")
    if p.dtype != q.dtype:
        raise TypeError(f"p and q must have one dtype, got {p.dtype} and {q.dtype}")
    return _product(p, q, tiling, None)


def _check(name: str, stack: Tensor, *, square: bool = False) -> None:
    if stack.ndim != 3:
        raise ValueError(f"{name} must be a stack (n, rows, cols), got shape {tuple(stack.shape)}")
    if square and stack.shape[1] != stack.shape[2]:
        raise ValueError(f"{name} must have square matrices, got shape {tuple(stack.shape)}")
    if stack.dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"{name} must be bfloat16 or float32, got {stack.dtype}")


def _product(
    x: Tensor, w: Tensor, tiling: Tiling | None, factors: tuple[float, float, float] | None
) -> Tensor:
    """X W^T, known to be symmetric; with factors (a, b, c) a I + b X + c X W^T."""
    matrices, rows, cols = x.shape
    out = x.new_empty((matrices, rows, rows))
    if not out.numel():
        return out
    chosen = tiling or tiling_of(matrices, rows, x.dtype)
    tiles = -(-rows // chosen.side)
    a, b, c = factors or (0.0, 0.0, 1.0)
    with torch.cuda.device_of(x):
        _symmetric_product[(matrices * tiles * (tiles + 1) // 2,)](
            x,
            w,
            out,
            rows,
            cols,
            tiles,
            *x.stride(),
            *w.stride(),
            a,
            b,
            c,
            combine=factors is not None,
            # Triton's interpreter cannot multiply bfloat16; the products are exact in float32.
            widen=triton.knobs.runtime.interpret,
            side=chosen.side,
            depth=chosen.depth,
            group=chosen.group,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
    return out


@triton.jit
def _triangular_row(index: tl.tensor) -> tl.tensor:
    """The r with r (r + 1) / 2 <= index < (r + 1) (r + 2) / 2."""
    row = ((tl.sqrt(8.0 * index + 1.0) - 1.0) * 0.5).to(tl.int32)
    row += ((row + 1) * (row + 2) // 2 <= index).to(tl.int32)  # the root may be rounded either way
    row -= (row * (row + 1) // 2 > index).to(tl.int32)
    return row


@triton.jit
def _lower_tile(index: tl.tensor, tiles: tl.tensor, group: tl.constexpr) -> tl.tensor:
    """The row and column of a tile on or below the diagonal, in groups of rows, column by column in each."""
    first = _triangular_row(index) // group * group
    height = tl.minimum(group, tiles - first)
    index -= first * (first + 1) // 2
    if index < height * first:  # left of the group's own triangle
        row = first + index % height
        col = index // height
    else:
        index -= height * first
        row = _triangular_row(index)
        col = first + index - row * (row + 1) // 2
        row += first
    return row, col


@triton.jit
def _symmetric_product(
    x: tl.tensor,
    w: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    tiles: tl.tensor,
    x_matrix: tl.tensor,
    x_row: tl.tensor,
    x_col: tl.tensor,
    w_matrix: tl.tensor,
    w_row: tl.tensor,
    w_col: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    combine: tl.constexpr,
    widen: tl.constexpr,
    side: tl.constexpr,
    depth: tl.constexpr,
    group: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    tiles_in_all = tiles * (tiles + 1) // 2
    matrix = (program // tiles_in_all).to(tl.int64)  # 64 bits from here on: stacks pass 2^31 entries
    row, col = _lower_tile(program % tiles_in_all, tiles, group)
    x += matrix * x_matrix
    w += matrix * w_matrix
    out += matrix * rows * rows

    i = row * side + tl.arange(0, side)
    j = col * side + tl.arange(0, side)
    k = tl.arange(0, depth)
    i_inside = i < rows
    j_inside = j < rows
    i = i.to(tl.int64)
    j = j.to(tl.int64)
    left = x + i[:, None] * x_row + k[None, :] * x_col
    right = w + j[None, :] * w_row + k[:, None] * w_col
    total = tl.zeros((side, side), dtype=tl.float32)
    for start in range(0, cols, depth):
        k_inside = k < cols - start
        left_tile = tl.load(left, mask=i_inside[:, None] & k_inside[None, :], other=0.0)
        right_tile = tl.load(right, mask=j_inside[None, :] & k_inside[:, None], other=0.0)
        if widen:
            left_tile = left_tile.to(tl.float32)
            right_tile = right_tile.to(tl.float32)
        total = tl.dot(left_tile, right_tile, total, input_precision="ieee")
        left += depth * x_col
        right += depth * w_col

    inside = i_inside[:, None] & j_inside[None, :]
    if combine:
        here = tl.load(x + i[:, None] * x_row + j[None, :] * x_col, mask=inside, other=0.0)
        total = c * total + b * here.to(tl.float32)
        total += tl.where(i[:, None] == j[None, :], a, 0.0)
    value = total.to(out.dtype.element_ty)
    mirrored = tl.trans(value)
    if row == col:
        value = tl.where(i[:, None] >= j[None, :], value, mirrored)
    else:
        tl.store(out + j[:, None] * rows + i[None, :], mirrored, mask=j_inside[:, None] & i_inside[None, :])
    tl.store(out + i[:, None] * rows + j[None, :], value, mask=inside)
