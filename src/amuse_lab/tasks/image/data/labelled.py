"""Images in memory as they come out of a file, checked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amuse_lab.errors import DataError


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images and what they show.

    Attributes:
        pixels: Shape (images, height, width, channels).
        labels: Numbers of the classes, shape (images,).
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def check(self, shape: tuple[int, int, int], classes: int, place: str) -> "Labelled":
        """Return the same if it is consistent.

        Args:
            shape: Channels, height and width that the images must have.
            classes: Number of classes; a label must be at least 0 and less than this.
            place: What to call the file in the message.

        Raises:
            DataError: If it is not.
        """
        channels, height, width = shape
        count = len(self.labels)
        if self.pixels.shape != (count, height, width, channels) or count == 0:
            raise DataError(
                f"{place} must hold images of {channels} x {height} x {width}, each with a label; "
                f"got pixels {self.pixels.shape} (channels last) and {count} labels"
            )
        if self.labels.min() < 0 or self.labels.max() >= classes:
            raise DataError(
                f"{place} must have labels in [0, {classes}), got {self.labels.min()} to {self.labels.max()}"
            )
        return self

    @classmethod
    def join(cls, parts: "list[Labelled]") -> "Labelled":
        """Return the images of all parts, in order."""
        return cls(
            np.concatenate([part.pixels for part in parts]), np.concatenate([part.labels for part in parts])
        )
