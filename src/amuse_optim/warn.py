"""Warnings that point to the user's own line."""

import contextlib
import sys
import warnings
from pathlib import Path

import torch

_INSIDE = (
    *(f"{Path(file).parent}{sep}" for file in (torch.__file__, __file__) for sep in ("/", "\\")),
    contextlib.__file__,  # between a `with averaged(...)` and what it calls
)


def warn(message: str) -> None:
    """Warn of something, at the line outside of torch and this package that led here."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
