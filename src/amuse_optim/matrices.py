r"""Matrices: which matrices a parameter is made of, and the scale that their shape gives an update.

A parameter is cut into blocks, each a stack (n, rows, cols) of equally shaped matrices that are
orthogonalized one by one. Convolution kernels (out, in, *k) are one (out, in * prod(k)) matrix per group.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import Option, choice, count, flag, optional

Scale = Literal["match_rms", "spectral"]


@dataclass(frozen=True)
class Layout:
    """How one parameter decomposes into matrices.

    Args:
        shape: The parameter's shape.
        blocks: (n, rows, cols) of every block, in the order of the parameter's rows.
        stacked: Whether leading dimensions count matrices (and `blocks` is then a single one).
    """

    shape: tuple[int, ...]
    blocks: tuple[tuple[int, int, int], ...]
    stacked: bool = False

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The parameter's leading dimensions, which count the rows of all its matrices in their order."""
        return self.shape[:-1] if self.stacked else self.shape[:1]

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The blocks of a tensor of this shape, in any memory format; views where possible."""
        if self.stacked:
            return [tensor.reshape(self.blocks[0])]
        rows = tensor.reshape(self.shape[0], self.blocks[0][2])
        parts = torch.split(rows, [n * r for n, r, _ in self.blocks])
        return [part.reshape(block) for part, block in zip(parts, self.blocks, strict=True)]

    def join(self, blocks: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([block.reshape(-1, block.shape[-1]) for block in blocks]).reshape(self.shape)


@cache
def matrix_layout(
    shape: tuple[int, ...],
    *,
    split_rows: tuple[int, ...] | None = None,
    num_heads: int | None = None,
    conv_groups: int = 1,
    stacked: bool = False,
) -> Layout:
    """The layout of a parameter of this shape.

    Args:
        shape: The parameter's shape, at least two dimensions.
        split_rows: Row counts of fused projections (query, key, value; gate, up), orthogonalized apart.
        num_heads: Cuts the rows of every (split) matrix into this many equal heads.
        conv_groups: Groups of a grouped convolution: one matrix each.
        stacked: Leading dimensions count matrices, as in experts of shape (E, rows, cols).

    Raises:
        ValueError: If the shape does not allow it; the message names the option.
    """
    if len(shape) < 2:
        raise ValueError(f"matrices have at least two dimensions, got shape {shape}")
    if stacked:
        if split_rows is not None or num_heads is not None or conv_groups != 1:
            raise ValueError("stacked cannot be combined with split_rows, num_heads or conv_groups")
        return Layout(shape, ((math.prod(shape[:-2]), shape[-2], shape[-1]),), stacked=True)

    rows, cols = shape[0], math.prod(shape[1:])
    sizes = (rows,) if split_rows is None else split_rows
    if split_rows is not None and (sum(sizes) != rows or any(size < 1 for size in sizes)):
        raise ValueError(f"split_rows must be positive and sum to {rows} for shape {shape}, got {sizes}")
    parts = conv_groups * (num_heads or 1)
    if any(size % parts for size in sizes):
        option = "num_heads" if num_heads else "conv_groups"
        raise ValueError(f"{option} must divide the rows {sizes} of shape {shape}, got {parts}")
    return Layout(shape, tuple((parts, size // parts, cols) for size in sizes))


def update_scale(rows: int, cols: int, scale: Scale) -> float:
    """The factor from the orthogonalized matrix to the direction, from that matrix's own shape.

    "match_rms": 0.2 sqrt(max(rows, cols)), entries with a root mean square near 0.2 as AdamW's
    (arXiv 2502.16982). "spectral": sqrt(max(1, rows / cols)).
    """
    if scale == "match_rms":
        return 0.2 * math.sqrt(max(rows, cols))
    return math.sqrt(max(1.0, rows / max(cols, 1)))


def _row_counts(name: str, value: object) -> None:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name} must be a tuple of row counts, got {value!r}")
    for size in value:
        count(name, size)


# What every direction for matrices is told about a group's parameters.
OPTIONS: dict[str, Option] = {
    "split_rows": Option(None, optional(_row_counts)),
    "num_heads": Option(None, optional(count)),
    "conv_groups": Option(1, count),
    "stacked": Option(False, flag),
    "scale": Option("match_rms", choice("match_rms", "spectral")),
}


def layout_of(group: Mapping[str, Any], shape: tuple[int, ...]) -> Layout:
    """The layout of a parameter of a group; options that the group does not say have their defaults."""
    rows = group.get("split_rows")
    return matrix_layout(
        tuple(shape),
        split_rows=None if rows is None else tuple(rows),
        num_heads=group.get("num_heads"),
        conv_groups=group.get("conv_groups", 1),
        stacked=group.get("stacked", False),
    )
