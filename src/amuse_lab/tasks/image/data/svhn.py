"""SVHN, the cropped digits: MATLAB files."""

import importlib
import io

import numpy as np

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.labelled import Labelled

SHAPE = (3, 32, 32)
CLASSES = 10


def read_svhn(content: bytes, place: str) -> Labelled:
    """Read one file: images "X", shape (height, width, channels, images), and labels "y", where 10 is zero.

    Args:
        content: Bytes of the file, in the format of MATLAB.
        place: What to call it in messages.

    Raises:
        DataError: If it holds anything else, is damaged, or scipy is not installed.
    """
    try:
        loadmat = importlib.import_module("scipy.io").loadmat  # has no types
    except ImportError as error:
        raise DataError(
            f"{place} needs the package scipy, which is not installed: pip install 'amuse-optim[image]'"
        ) from error
    try:
        held = loadmat(io.BytesIO(content), variable_names=["X", "y"])
        images, labels = held["X"], held["y"]
        if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype.kind not in "ui":
            raise ValueError("X must be bytes in four dimensions and y integers")
    except Exception as error:  # a damaged file can raise anything
        raise DataError(f"{place} is not a file of SVHN, or is damaged: {error}") from error
    pixels = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    digits = np.where(labels == 10, 0, labels).reshape(-1).astype(np.int64)
    return Labelled(pixels, digits).check(SHAPE, CLASSES, place)
