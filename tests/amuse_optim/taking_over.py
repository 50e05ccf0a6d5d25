"""What tests of state that is taken over from other optimizers share."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
SHAPES: list[tuple[int, ...]] = [(3, 5), (6, 4), (), (2, 2, 3, 3), (7,), (6, 4)]
BEFORE, AFTER = 30, 20


def start() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape) for shape in SHAPES]


def gradients(step: int) -> list[np.ndarray]:
    """Of very different sizes."""
    rng = np.random.default_rng(1000 + step)
    return [rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2) for shape in SHAPES]


def assert_equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    for name, parameter in ours.items():
        expected = theirs[name].detach().double()
        error = (parameter.detach().double() - expected).abs().max() / expected.abs().max().clamp(min=1)
        assert error < TOLERANCE[dtype], name


def set_weights(ours: Mapping[str, nn.Parameter], theirs: Mapping[str, Tensor]) -> None:
    """As loading the model's state dict does."""
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(theirs[name])


def snapshot(optimizer: AMUSE) -> str:
    return repr(optimizer.state_dict())


def edited(saved: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    saved = copy.deepcopy(saved)
    change(saved)
    return saved
