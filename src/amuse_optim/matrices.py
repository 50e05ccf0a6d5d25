r"""Matrices: which matrices a parameter is made of, and the scale that their shape gives an update.

A parameter is cut into blocks, each a stack (n, rows, cols) of equally shaped matrices that are
orthogonalized one by one. Rows are outputs, columns are inputs. Convolution kernels (out, in, *k) are one
(out, in * prod(k)) matrix per group. Weights that are stored the other way round, (in, out, *k), are the
transpose of theirs: the rows of their matrices are columns in memory.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from torch import Tensor

from .checks import Option, choice, count, flag, optional
from .sharding import Box

Scale = Literal["match_rms", "spectral"]


class Place(NamedTuple):
    """Where matrices of one shape lie among the entries of a parameter.

    Args:
        entries: How many entries they have.
        start: The first of them; with `width`, the first column.
        row: Number of their first row among the rows of all the parameter's matrices.
        width: None where the entries lie behind one another; else they are neighbouring columns of a matrix
            with this many.
    """

    entries: int
    start: int
    row: int = 0
    width: int | None = None

    def of(self, buffer: Tensor) -> Tensor:
        """A view of these entries: one-dimensional, or the columns, as two dimensions."""
        if self.width is not None:
            columns = self.entries // (buffer.numel() // self.width)
            return buffer.view(-1, self.width)[:, self.start : self.start + columns]
        if self.entries == buffer.numel():
            return buffer
        return buffer[self.start : self.start + self.entries]


class Single(NamedTuple):
    """One matrix of a parameter.

    Args:
        rows: Number of rows; if the parameter is transposed, they are columns in memory.
        cols: Number of columns: inputs, for a convolution times the size of its kernel.
        box: Where its entries are in the parameter.
        row_box: Where its rows are in a tensor of the layout's `row_shape`.
    """

    rows: int
    cols: int
    box: Box
    row_box: Box


@dataclass(frozen=True)
class Layout:
    """How one parameter decomposes into matrices.

    Args:
        shape: The parameter's shape, at least two dimensions; of a sharded one, the shape of the whole.
        blocks: (n, rows, cols) of every block, in the order of the parameter's rows.
        stacked: Whether leading dimensions count matrices (and `blocks` is then a single one).
        transposed: Whether every matrix is stored as its transpose, (cols, rows).
        columns: Whether the matrices are columns of a single stored one.
    """

    shape: tuple[int, ...]
    blocks: tuple[tuple[int, int, int], ...]
    stacked: bool = False
    transposed: bool = False
    columns: bool = False

    @property
    def row_shape(self) -> tuple[int, ...]:
        """A shape with one entry for every row of all the matrices, in their order."""
        if self.transposed:
            return (sum(number * rows for number, rows, _ in self.blocks),)
        return self.shape[:-1] if self.stacked else self.shape[:1]

    @cache  # noqa: B019 - layouts are kept for good as well
    def places(self, bound: int) -> tuple[tuple[tuple[int, int], Place], ...]:
        """The shapes of the matrices and where they lie, in order.

        Args:
            bound: Matrices that lie behind one another have one place, up to this many entries.
        """
        width = sum(number * rows for number, rows, _ in self.blocks) if self.columns else None
        found = []
        start = row = 0
        for number, rows, cols in self.blocks:
            size = rows * cols
            most = 1 if self.columns or size == 0 else max(1, bound // size)
            for first in range(0, number if size else 0, most):
                matrices = min(most, number - first)
                found.append(((rows, cols), Place(matrices * size, start, row, width)))
                start += matrices * (rows if self.columns else size)
                row += matrices * rows
        return tuple(found)

    @cache  # noqa: B019
    def singles(self) -> tuple[Single, ...]:
        """Every matrix by itself, in order.

        Raises:
            ValueError: If a matrix is no box of the parameter.
        """
        everything = [(0, size) for size in self.shape]
        found = []
        for (rows, cols), place in self.places(0):
            box = list(everything)
            row_box: Box = ((place.row, place.row + rows),)
            if self.stacked:
                number = place.start // (rows * cols)
                for dim in reversed(range(len(self.shape) - 2)):
                    number, index = divmod(number, self.shape[dim])
                    box[dim] = index, index + 1
                if not self.transposed:
                    row_box = (*box[:-2], (0, rows))
            else:
                cut, step = (1, math.prod(self.shape[2:])) if self.columns else (0, math.prod(self.shape[1:]))
                size = rows if self.columns else place.entries
                if place.start % step or size % step:
                    raise ValueError(
                        f"split_rows and num_heads must not cut through the kernels {self.shape[2:]} of a "
                        f"transposed parameter whose matrices are divided over ranks, got {rows} rows"
                    )
                box[cut] = place.start // step, (place.start + size) // step
            found.append(Single(rows, cols, tuple(box), row_box))
        return tuple(found)


@cache
def matrix_layout(
    shape: tuple[int, ...],
    *,
    split_rows: tuple[int, ...] | None = None,
    num_heads: int | None = None,
    conv_groups: int = 1,
    stacked: bool = False,
    transposed: bool = False,
) -> Layout:
    """The layout of a parameter of this shape.

    Args:
        shape: The parameter's shape, at least two dimensions.
        split_rows: Row counts of fused projections (query, key, value; gate, up), orthogonalized apart.
        num_heads: Cuts the rows of every (split) matrix into this many equal heads.
        conv_groups: Groups of a grouped convolution: one matrix each.
        stacked: Leading dimensions count matrices, as in experts of shape (E, rows, cols).
        transposed: The parameter is stored as (in, out, *k), or (E, in, out) if stacked: the rows of its
            matrices, which `split_rows` and `num_heads` cut, are the columns in memory.

    Raises:
        ValueError: If the shape does not allow it; the message names the option.
    """
    if len(shape) < 2:
        raise ValueError(f"matrices have at least two dimensions, got shape {shape}")
    if stacked:
        if split_rows is not None or num_heads is not None or conv_groups != 1:
            raise ValueError("stacked cannot be combined with split_rows, num_heads or conv_groups")
        rows, cols = shape[:-3:-1] if transposed else shape[-2:]
        return Layout(shape, ((math.prod(shape[:-2]), rows, cols),), stacked=True, transposed=transposed)

    stored = shape[0], math.prod(shape[1:])
    if transposed and conv_groups != 1:
        if split_rows is not None or num_heads is not None:
            raise ValueError("transposed cannot be combined with conv_groups and split_rows or num_heads")
        if stored[0] % conv_groups:
            raise ValueError(f"conv_groups must divide the inputs {stored[0]} of {shape}, got {conv_groups}")
        return Layout(shape, ((conv_groups, stored[1], stored[0] // conv_groups),), transposed=True)

    rows, cols = reversed(stored) if transposed else stored
    sizes = (rows,) if split_rows is None else split_rows
    if split_rows is not None and (sum(sizes) != rows or any(size < 1 for size in sizes)):
        raise ValueError(f"split_rows must be positive and sum to {rows} for shape {shape}, got {sizes}")
    parts = conv_groups * (num_heads or 1)
    if any(size % parts for size in sizes):
        option = "num_heads" if num_heads else "conv_groups"
        raise ValueError(f"{option} must divide the rows {sizes} of shape {shape}, got {parts}")
    blocks = tuple((parts, size // parts, cols) for size in sizes)
    columns = transposed and parts * len(sizes) > 1
    return Layout(shape, blocks, transposed=transposed, columns=columns)


def update_scale(rows: int, cols: int, scale: Scale) -> float:
    """The factor that turns an orthogonalized matrix of this shape into the direction.

    "match_rms" is 0.2 sqrt(max(rows, cols)), which gives the direction's entries a root mean square near 0.2,
    as AdamW's updates have (arXiv 2502.16982). "spectral" is sqrt(max(1, rows / cols)).
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
    "transposed": Option(False, flag),
    "scale": Option("match_rms", choice("match_rms", "spectral")),
}


def layout_of(group: Mapping[str, Any], shape: tuple[int, ...]) -> Layout:
    """The layout of a parameter of a group; options missing in the group take their defaults."""
    rows = group.get("split_rows")
    return matrix_layout(
        tuple(shape),
        split_rows=None if rows is None else tuple(rows),
        num_heads=group.get("num_heads"),
        conv_groups=group.get("conv_groups", 1),
        stacked=group.get("stacked", False),
        transposed=group.get("transposed", False),
    )
