"""Base classes of directions, which turn gradients into the updates d of z <- z - lr_t d."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from amuse_optim.averaging import Tensors
from amuse_optim.buckets import Bucket, Chunk
from amuse_optim.checks import Option
from amuse_optim.schedule import Number

Shape = tuple[int, ...]
# A chunk, its updates d / scale piece by piece, and their scale.
Update = tuple[Chunk, Tensors, Number]


class Direction(ABC):
    """A rule that turns gradients into updates. It holds no state; that is in the optimizer.

    Subclass `ElementwiseDirection` if the update of an entry depends on the gradients of this entry alone,
    `directions.muon.Muon` to change what is done with orthogonalized matrices, and this class for anything
    else; then add the class to `DIRECTIONS` in `amuse_optim/directions/__init__.py`.

    Attributes:
        name: The string that selects it as a group's `direction`.
        options: Options that it reads from a group, in addition to those of every group.
        for_matrices: Whether it reads the layout and the scale of matrices, as subclasses of `Muon` do. It is
            then a value of `param_groups(matrices=...)`; other directions are values of `auxiliary` and take
            the learning rate `lr_rest`.
    """

    name: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = {}
    for_matrices: ClassVar[bool] = False

    @abstractmethod
    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:
        """Names and shapes of the tensors that a parameter has in its state; they begin as zeros.

        The names y, z, x, gradient, step and beta are taken, and those that begin with average_.

        A tensor of the parameter's shape is kept in the precision of the state and cut into chunks with it.
        Any other is kept in at least float32, and whole: its shape is the parameter's leading dimensions, or
        that of the rows of its matrices (`Layout.row_shape`), which shards of the parameter cut alike.

        Args:
            group: The options of the parameter's group.
            shape: The parameter's shape; of a sharded one, the shape of the whole.

        Raises:
            ValueError: If the direction cannot take a parameter of this shape.
        """

    def may_raise(self, group: Mapping[str, Any]) -> bool:
        """True if `updates` can raise for values that cannot be checked before it.

        Its updates are then all computed before any parameter changes, and its state is restored if one
        raises.
        """
        return False

    @abstractmethod
    def updates(self, bucket: Bucket) -> Iterator[Update]:
        """Yield chunks that cover every entry of the bucket once, each with its update and scale.

        Changes the direction's state in place. The caller applies each update as it is yielded, so that only
        a few updates exist at a time.
        """


class ElementwiseDirection(Direction):
    """A direction in which every entry moves by its own gradients."""

    @abstractmethod
    def update(self, chunk: Chunk) -> tuple[Tensors, Number]:
        """The updates of a chunk as tensors and their common factor; moves the direction's state.

        `chunk.read(name)` gives lists of one-dimensional tensors: "gradient", which is not to be changed,
        and those of `state_shapes`. Change what is the state's in place, then call
        `chunk.write(name, tensors)`. `chunk.group` has the options, and `chunk.step` counts the gradients
        that these parameters have seen.
        """

    def updates(self, bucket: Bucket) -> Iterator[Update]:
        """Chunk by chunk, as `update` gives them."""
        for chunk in bucket.chunks():
            yield chunk, *self.update(chunk)


def by_name(*directions: Direction) -> dict[str, Direction]:
    """A table of directions.

    Raises:
        ValueError: If two have one name, or declare an option of one name differently.
    """
    table: dict[str, Direction] = {}
    declared: dict[str, tuple[str, Option]] = {}
    for direction in directions:
        if direction.name in table:
            raise ValueError(f"there are two directions {direction.name!r}: give {direction!r} another name")
        table[direction.name] = direction
        for name, option in direction.options.items():
            other, first = declared.setdefault(name, (direction.name, option))
            if option != first:
                raise ValueError(
                    f"option {name!r} of direction {direction.name!r} must be the Option that "
                    f"{other!r} declares, with the default {first.default!r} and the same check"
                )
    return table
