"""CIFAR-10 and CIFAR-100: Python pickles, read without executing any.

Unpickling can call any function that the file names. This reader accepts only the three names with which
numpy pickles arrays, and replaces them by a class that stores its arguments and executes nothing. The arrays
are then rebuilt from the stored arguments and checked.
"""

import io
import pickle
from typing import Any

import numpy as np

from amuse_lab.errors import DataError
from amuse_lab.tasks.image.data.labelled import Labelled

SHAPE = (3, 32, 32)


class _StandIn:
    """Takes any arguments and any state, and keeps them."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_StandIn]:
        """Return the stand-in for the three known names.

        Raises:
            UnpicklingError: For any other.
        """
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of CIFAR does")
        return _StandIn


def read_cifar(content: bytes, place: str, *, labels: bytes, classes: int) -> Labelled:
    """Read one file: a dictionary with the images, one a row of three planes, and their labels.

    Args:
        content: Bytes of the file, a pickle.
        place: Name of the file in error messages.
        labels: Key of the labels in the dictionary: b"labels" or b"fine_labels".
        classes: How many classes there are, 10 or 100; labels are checked to be below it.

    Raises:
        DataError: If it holds anything else, or is damaged.
    """
    try:
        held = _Reader(io.BytesIO(content), encoding="bytes").load()
        pixels = _bytes_of(held[b"data"]).reshape(-1, *SHAPE).transpose(0, 2, 3, 1)
        found = np.array(held[labels])
        if found.dtype != np.int64 or found.ndim != 1:
            raise ValueError("its labels are not a list of integers")
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f"{place} is not a file of CIFAR, or is damaged: {error}") from error
    return Labelled(np.ascontiguousarray(pixels), found).check(SHAPE, classes, place)


def _bytes_of(array: Any) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Rebuild the uint8 array from numpy's pickle state."""
    _, shape, kind, by_columns, raw = array.state
    if kind.arguments[0] != b"u1" or not isinstance(raw, bytes):
        raise ValueError("its data is not an array of bytes")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")
