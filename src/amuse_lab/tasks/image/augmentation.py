"""Random changes of training images: batched, on tensors, from given random numbers."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def shifted_and_flipped(
    pixels: Tensor, images: NDArray[np.int64], uniforms: NDArray[np.float64], *, padding: int, flip: bool
) -> Tensor:
    """Take images, each padded by reflection and cut out at a random place, and half of them flipped.

    With the shift d, uniform in -padding ... padding, and the reflection r(i) of a place at the edges 0 and
    n - 1, the image has at i what the original has at r(i + d), in both directions; a flip comes after that.
    Equal to `torch.nn.functional.pad(mode="reflect")`, a crop of the old size and `flip`.

    Args:
        pixels: All images, shape (n, height, width, channels), padding less than height and width.
        images: Which of them, shape (batch,).
        uniforms: In [0, 1), shape (batch, 3): for the vertical shift, the horizontal one and the flip.
        padding: Pixels that are added on every side, which is also the largest shift.
        flip: Whether images are flipped, left to right, where the third number is below 1/2.

    Returns:
        Shape (batch, channels, height, width), dtype and device of `pixels`, in the memory format
        channels_last.
    """
    _, height, width, _ = pixels.shape
    shifts = np.floor(uniforms[:, :2] * (2 * padding + 1)).astype(np.int64) - padding
    rows = _reflected(np.arange(height) + shifts[:, :1], height)
    columns = _reflected(np.arange(width) + shifts[:, 1:], width)
    if flip:
        flipped = uniforms[:, 2] < 0.5
        columns[flipped] = columns[flipped, ::-1]
    lines, places = (
        torch.from_numpy(numbers).to(pixels.device)
        for numbers in (width * (height * images[:, None] + rows), columns)
    )
    chosen = lines[:, :, None] + places[:, None, :]
    taken = pixels.flatten(0, 2).index_select(0, chosen.flatten())
    return taken.view(len(images), height, width, -1).permute(0, 3, 1, 2)


def _reflected(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold places beyond the edges back; the edge itself is not repeated."""
    last = size - 1
    folded: NDArray[np.int64] = last - np.abs(last - np.abs(places))
    return folded


def normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (images / 255 - mean) / std in float32, in the same memory format.

    Args:
        images: Shape (batch, channels, height, width), uint8.
        mean: Mean of each channel, for pixels in [0, 1], shape (channels, 1, 1).
        std: Standard deviation of each channel, for pixels in [0, 1], shape (channels, 1, 1).
    """
    return images.to(torch.float32).sub_(255 * mean).div_(255 * std)
