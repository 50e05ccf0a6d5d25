"""MNIST and Fashion-MNIST: idx files, a header of big-endian numbers and then bytes."""

import struct

import numpy as np
from numpy.typing import NDArray

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.labelled import Labelled

SHAPE = (1, 28, 28)
CLASSES = 10

_BYTES = 0x08


def _read(content: bytes, dimensions: int, place: str) -> NDArray[np.uint8]:
    """The array of one file: two zeros, the type, the number of dimensions, each of them, the entries."""
    start = 4 + 4 * dimensions
    magic = bytes((0, 0, _BYTES, dimensions))
    if content[:4] != magic or len(content) < start:
        raise DataError(
            f"{place} is not an idx file of bytes in {dimensions} dimensions: it must begin with "
            f"{magic.hex()}, got {content[:4].hex()} in {len(content)} bytes"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{place} is damaged: it must have {expected} bytes, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx(images: bytes, labels: bytes, place: str) -> Labelled:
    """Read a pair of files.

    Args:
        images: Content of the file with the images, shape (images, 28, 28).
        labels: Content of the file with their labels, shape (images,).
        place: What to call them in messages.

    Raises:
        DataError: If they are anything else, or damaged.
    """
    pixels = _read(images, 3, f"images of {place}")[..., None]
    return Labelled(pixels, _read(labels, 1, f"labels of {place}").astype(np.int64)).check(
        SHAPE, CLASSES, place
    )
