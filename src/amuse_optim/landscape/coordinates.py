"""Named tensors as one vector, and back."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coordinates:
    """Where the entries of named tensors lie in one vector.

    Args:
        shapes: Shapes by name, in the order of the vector.
        dtype: dtype of the vector; `of` allows float32 and float64.
        device: Device of the vector.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Coordinates":
        """The coordinates of tensors of one dtype, float32 or float64, on one device.

        Raises:
            ValueError: If there are none, or they differ.
        """
        kinds = {(tensor.dtype, tensor.device) for tensor in tensors.values()}
        if len(kinds) != 1 or (kind := next(iter(kinds)))[0] not in (torch.float32, torch.float64):
            found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds)) or "none"
            raise ValueError(
                "parameters must be all float32 or all float64 and on one device, got "
                f"{found}: convert them, such as {{name: p.float() for name, p in parameters.items()}}"
            )
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()}, *kind)

    @property
    def size(self) -> int:
        """The number of entries."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors as one vector, shape (size,), converted to its dtype and device.

        Args:
            tensors: Tensors by name, such as a gradient. Names that have no place in the vector are left out.

        Raises:
            ValueError: If a name is missing or a shape differs.
        """
        for name, shape in self.shapes.items():
            if name not in tensors:
                raise ValueError(f"tensors must have all names of the coordinates, but {name!r} is missing")
            if tensors[name].shape != shape:
                raise ValueError(f"{name!r} must be of shape {shape}, got {tuple(tensors[name].shape)}")
        return torch.cat(
            [tensors[name].detach().to(self.device, self.dtype).flatten() for name in self.shapes]
        )

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector as named tensors, which are views of it.

        Args:
            vector: A vector of shape (size,), such as one that `flatten` returned.
        """
        parts = vector.split([torch.Size(shape).numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }
