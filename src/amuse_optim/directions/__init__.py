"""Directions by name. To add one, write its class in a file here and put it into this table."""

from .adamw import AdamW
from .base import Direction, ElementwiseDirection
from .muon import Muon
from .sgd import SGD

DIRECTIONS: dict[str, Direction] = {direction.name: direction for direction in (Muon(), AdamW(), SGD())}

__all__ = ["DIRECTIONS", "Direction", "ElementwiseDirection"]
