"""What every image model's config can do."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Self

from torch import Tensor, nn

from amuse_lab.errors import require

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

HEAD = "head"
"""What every model calls its classifier."""


@dataclass(frozen=True)
class ImageModelConfig(ABC):
    """Size and shape of a model. Its numbers, and those in its tuples, are at least 1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                positive = bool(value) and min(value) >= 1
                require(positive, field.name, "one or more numbers of at least 1", value)
            elif not isinstance(value, bool):
                require(value >= 1, field.name, "at least 1", value)

    @abstractmethod
    def reduced(self) -> Self:
        """Return the smallest model of the same kind that still has all its parts."""

    @abstractmethod
    def build(self, shape: Shape, classes: int) -> nn.Module:
        """Build the untrained model, from torch's global generator.

        Args:
            shape: Channels, height and width of the images.
            classes: How many classes there are, and so the logits of an image.

        Returns:
            A module that maps images, shape (batch, *shape), to logits, shape (batch, classes).
        """


def thinned(images: Tensor, stride: int) -> Tensor:
    """Take every stride-th row and column, so that a 1x1 convolution needs no stride.

    The result is the same. On a CPU the backward pass of such a convolution with a stride, in the memory
    format channels_last, writes beyond its memory when it has fewer than 16 channels (torch 2.13, oneDNN).

    Args:
        images: Shape (batch, channels, height, width).
        stride: Distance of the rows and columns that stay, at least 1.
    """
    return images[..., ::stride, ::stride]
