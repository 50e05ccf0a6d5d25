"""Labelled images, wherever they are: what the task asks of them, and those that fit into memory."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amuse_lab.tasks.image.augmentation import shifted_and_flipped
from amuse_lab.tasks.image.data.labelled import Labelled
from amuse_lab.tasks.image.order import Visits, uniforms


class Source(Protocol):
    """Images and what they show.

    What it returns has shape (batch, channels, height, width), uint8, in the memory format channels_last.
    """

    @property
    def labels(self) -> NDArray[np.int64]:
        """Numbers of the classes of all images, shape (images,)."""

    def augmented(self, visits: Visits, upcoming: Iterable[Visits] = ()) -> Tensor:
        """Return images as training sees them: a pure function of the visits.

        Args:
            visits: Images that are asked for, each with its epoch.
            upcoming: What will be asked for next, most likely.

        Raises:
            DataError: If an image cannot be read.
        """

    def plain(self, images: NDArray[np.int64], upcoming: Iterable[NDArray[np.int64]] = ()) -> Tensor:
        """Return images as evaluations see them.

        Args:
            images: Numbers of the images that are asked for.
            upcoming: What will be asked for next, most likely.

        Raises:
            DataError: If an image cannot be read.
        """


class InMemory:
    """Images in the memory of the device, shifted and perhaps flipped for training.

    Args:
        held: Images and labels as they come out of the files.
        padding: Largest shift, in pixels; what is shifted in is reflected.
        flip: Whether half of them are flipped, left to right.
        device: Device in whose memory all images are kept.
    """

    def __init__(self, held: Labelled, *, padding: int, flip: bool, device: torch.device) -> None:
        self.labels = held.labels
        self._pixels = torch.from_numpy(np.require(held.pixels, requirements="W")).to(device)
        self._padding = padding
        self._flip = flip

    def augmented(self, visits: Visits, upcoming: Iterable[Visits] = ()) -> Tensor:  # noqa: ARG002
        """Return images as training sees them; what comes next makes no difference."""
        drawn = uniforms(visits, 3)
        return shifted_and_flipped(self._pixels, visits.images, drawn, padding=self._padding, flip=self._flip)

    def plain(
        self,
        images: NDArray[np.int64],
        upcoming: Iterable[NDArray[np.int64]] = (),  # noqa: ARG002
    ) -> Tensor:
        """Return images as they are; what comes next makes no difference."""
        chosen = torch.from_numpy(images).to(self._pixels.device)
        return self._pixels.index_select(0, chosen).permute(0, 3, 1, 2)
