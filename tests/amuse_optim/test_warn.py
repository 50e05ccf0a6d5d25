"""Warnings point to the line of the user that led to them, not into torch or the package."""

import linecache
from collections.abc import Callable

import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, averaged


def stepped(**options: float) -> AMUSE:
    """After one step, from which the weights were changed."""
    weight = nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.ones(3, 2)
    optimizer = AMUSE([weight], direction="muon", warmup_steps=2, **options)
    optimizer.step()
    with torch.no_grad():
        weight.mul_(2.0)
    return optimizer


def steps(optimizer: AMUSE) -> None:
    optimizer.step()


def changes_mode(optimizer: AMUSE) -> None:
    optimizer.eval()


def loads(optimizer: AMUSE) -> None:
    optimizer.load_state_dict(stepped(momentum=0.5).state_dict())


def reads(optimizer: AMUSE) -> None:
    with averaged(optimizer):
        pass


@pytest.mark.parametrize(
    ("does", "line", "match"),
    [
        (steps, "optimizer.step()", "weights were changed"),
        (changes_mode, "optimizer.eval()", "weights were changed"),
        (reads, "with averaged(optimizer):", "weights were changed"),
        (loads, "optimizer.load_state_dict(", "other values than this optimizer for momentum"),
    ],
)
def test_the_line_that_led_here(does: Callable[[AMUSE], None], line: str, match: str) -> None:
    optimizer = stepped()
    with pytest.warns(UserWarning, match=match) as caught:
        does(optimizer)
    (only,) = (each for each in caught if match.split()[0] in str(each.message))
    assert only.filename == __file__
    assert linecache.getline(only.filename, only.lineno).strip().startswith(line)
