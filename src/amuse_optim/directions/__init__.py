"""Directions by name. To add one, write its class in a file here and put an instance into this table."""

from .adamw import AdamW
from .base import Direction, ElementwiseDirection, by_name
from .muon import Muon
from .normuon import NorMuon
from .sgd import SGD

DIRECTIONS = by_name(Muon(), NorMuon(), AdamW(), SGD())

__all__ = ["DIRECTIONS", "Direction", "ElementwiseDirection"]
