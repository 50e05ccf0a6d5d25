import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from amuse_lab.tasks.image.augmentation import normalized, shifted_and_flipped
from tests.amuse_lab.tasks.image.originals import random_images


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_padding_cropping_and_flipping(flip: bool, channels: int) -> None:
    """For every shift and both orientations, against torch's operations on one image at a time."""
    padding, height, width = 2, 5, 7
    pixels = random_images(4, height, width, channels)
    cases = list(itertools.product(range(5), range(5), (0.25, 0.75)))
    images = np.arange(len(cases)) % 4
    drawn = np.array([[(y + 0.5) / 5, (x + 0.5) / 5, third] for y, x, third in cases])
    result = shifted_and_flipped(torch.from_numpy(pixels), images, drawn, padding=padding, flip=flip)
    assert result.dtype == torch.uint8
    for number, (y, x, third) in enumerate(cases):
        image = torch.from_numpy(pixels[images[number]]).permute(2, 0, 1).float()[None]
        padded = F.pad(image, (padding,) * 4, mode="reflect")
        expected = padded[0, :, y : y + height, x : x + width]
        if flip and third < 0.5:
            expected = expected.flip(-1)
        assert torch.equal(result[number].float(), expected)


def test_ends_of_the_random_range_are_the_largest_shifts() -> None:
    pixels = torch.arange(9, dtype=torch.uint8).view(1, 3, 3, 1)
    drawn = np.array([[0, 0, 0.5], [1 - 2**-53, 1 - 2**-53, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.0]])
    result = shifted_and_flipped(pixels, np.zeros(4, np.int64), drawn, padding=1, flip=True)[:, 0]
    assert result.tolist() == [
        [[4, 3, 4], [1, 0, 1], [4, 3, 4]],
        [[4, 5, 4], [7, 8, 7], [4, 5, 4]],
        [[0, 1, 2], [3, 4, 5], [6, 7, 8]],
        [[2, 1, 0], [5, 4, 3], [8, 7, 6]],
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_last_in_memory(channels: int) -> None:
    pixels = torch.from_numpy(random_images(6, 8, 8, channels))
    batch = shifted_and_flipped(pixels, np.arange(4), np.full((4, 3), 0.7), padding=1, flip=True)
    assert batch.stride() == (64 * channels, 1, 8 * channels, channels)
    values = torch.zeros(channels, 1, 1)
    assert normalized(batch, values, values + 1).stride() == batch.stride()


def test_normalized_images_are_those_of_the_formula() -> None:
    images = torch.from_numpy(random_images(2, 4, 4, 3)).permute(0, 3, 1, 2)
    mean, std = torch.tensor([125.3, 123.0, 113.9]) / 255, torch.tensor([63.0, 62.1, 66.7]) / 255
    result = normalized(images, mean.view(-1, 1, 1), std.view(-1, 1, 1))
    for channel, (m, s) in enumerate(((125.3, 63.0), (123.0, 62.1), (113.9, 66.7))):
        expected = (images[:, channel].double() - m) / s
        torch.testing.assert_close(result[:, channel].double(), expected, atol=1e-6, rtol=1e-6)
