"""Gradient descent."""

from collections.abc import Mapping
from typing import Any

from amuse_optim.averaging import Tensors
from amuse_optim.buckets import Chunk
from amuse_optim.schedule import Number

from .base import ElementwiseDirection, Shape


class SGD(ElementwiseDirection):
    """d = g."""

    name = "sgd"

    def state_shapes(self, group: Mapping[str, Any], shape: Shape) -> dict[str, Shape]:
        """Nothing."""
        return {}

    def update(self, chunk: Chunk) -> tuple[Tensors, Number]:
        """The gradients."""
        return chunk.read("gradient"), 1.0
