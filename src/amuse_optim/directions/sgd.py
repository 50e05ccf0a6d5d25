"""Gradient descent."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amuse_optim.averaging import Tensors
from amuse_optim.buckets import Chunk
from amuse_optim.kernels import PLAIN
from amuse_optim.schedule import Number

from .base import ElementwiseDirection, Shape


class SGD(ElementwiseDirection):
    """d = g."""

    name = "sgd"

    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:
        """No tensors: the direction is the gradient itself."""
        return {}

    def update(self, chunk: Chunk) -> tuple[Tensors, Number]:
        """The gradients; a copy of one that lies in the parameter's memory, which is about to change."""
        gradients = zip(chunk.read("gradient"), chunk.stored("y"), strict=True)
        return [g.clone() if _share_memory(g, y) else g for g, y in gradients], 1.0


def _share_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are in one memory; buffers of tensors without storage are copies."""
    if type(one) not in PLAIN or type(other) not in PLAIN:
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
