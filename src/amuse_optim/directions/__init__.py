"""Directions by name. To add one, write its class in a file here and put it into this table."""

from .adamw import AdamW
from .base import Direction, ElementwiseDirection
from .muon import Muon
from .normuon import NorMuon
from .sgd import SGD

DIRECTIONS: dict[str, Direction] = {
    direction.name: direction for direction in (Muon(), NorMuon(), AdamW(), SGD())
}

__all__ = ["DIRECTIONS", "Direction", "ElementwiseDirection"]
