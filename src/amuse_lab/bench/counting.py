"""Counts what a step asks of torch: the same on every machine, where times are not."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

# Where the two factors of a product start among its arguments.
_FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "addmm_": 1, "baddbmm_": 1}
# Views that their schemas do not call so.
_VIEWS = frozenset({"_unsafe_view", "_reshape_alias"})
_ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})
# These write into their first argument without having read it.
_OVERWRITING = frozenset({"copy_", "zero_", "fill_"})


class OperationCounter(TorchDispatchMode):
    """Counts the operations that torch dispatches inside the `with` block, whatever the device.

    An operation is what reaches the dispatcher below autograd: one `_foreach_` or fused call is one, and
    what a kernel calls inside itself is none. Triton kernels and compiled code do not pass here.

    Attributes:
        operations: All of them, views and allocations included.
        views: Operations that only make another view of the same memory.
        products: Matrix-by-matrix products in mm, bmm, addmm and baddbmm; a batch of n counts n.
        flops: Floating-point operations of these, 2 m k n for (m, k) by (k, n).
        elements: Elements moved: those of every tensor an operation reads, and again of every tensor it
            writes, by the operation's schema. Views and allocations move none.
        by_name: How often each operation came, by names such as "aten.baddbmm".

    Example:
        >>> import torch
        >>> with OperationCounter() as counter:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
        >>> counter.products, counter.flops, counter.by_name["aten.mm"]
        (1, 48, 1)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not annotated
        self.operations = 0
        self.views = 0
        self.products = 0
        self.flops = 0
        self.elements = 0
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: OpOverload[Any, Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count it."""
        named = dict(kwargs or {})
        result = func(*args, **named)
        if func.namespace != "profiler":  # marks of torch.optim, which do nothing
            self._count(func, args, named, result)
        return result

    def _count(
        self, func: OpOverload[Any, Any], args: tuple[Any, ...], named: dict[str, Any], result: Any
    ) -> None:
        name = func.overloadpacket.__name__
        self.operations += 1
        self.by_name[f"{func.namespace}.{name}"] += 1
        if func.is_view or name in _VIEWS:
            self.views += 1
        elif name not in _ALLOCATIONS:
            self.elements += _elements_moved(func, name, args, named, result)
        if name in _FACTORS:
            first = _FACTORS[name]
            left, right = args[first : first + 2]
            self.products += left.shape[0] if left.ndim == 3 else 1
            self.flops += 2 * left.numel() * right.shape[-1]


def _elements_moved(
    func: OpOverload[Any, Any], name: str, args: tuple[Any, ...], named: dict[str, Any], result: Any
) -> int:
    moved = 0
    for i, argument in enumerate(func._schema.arguments):
        size = _elements(args[i] if i < len(args) else named.get(argument.name))
        written = argument.alias_info is not None and argument.alias_info.is_write
        read = not (written and (argument.is_out or name in _OVERWRITING))
        moved += size * (int(read) + int(written))
    made = result if isinstance(result, tuple) else (result,)
    fresh = (
        value
        for value, returned in zip(made, func._schema.returns, strict=False)
        if returned.alias_info is None
    )
    return moved + sum(_elements(value) for value in fresh)


def _elements(value: Any) -> int:
    return sum(tensor.numel() for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
