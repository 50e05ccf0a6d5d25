"""The kernels inside a captured CUDA graph: on a GPU alone."""

import pytest
import torch
from torch import Tensor

from amuse_optim.kernels import symmetric
from amuse_optim.kernels.averaging import AveragingPlan, MoveCoefficients

SIZES = [5, 2000, 0]
NOW = MoveCoefficients(rate=0.02, decay=0.001, beta=0.7, c=0.01, beta_next=0.71)


def random(device: torch.device) -> list[Tensor]:
    return [torch.randn(size, device=device) for size in SIZES]


def test_a_captured_move_replays_among_ordinary_ones(device: torch.device) -> None:
    """With directions in the graph's own memory, and coefficients that change on the device."""
    y, z, source = random(device), random(device), random(device)
    expected_y, expected_z = [each.clone() for each in y], [each.clone() for each in z]
    other = random(device), random(device), random(device)
    plan, ordinary = AveragingPlan(SIZES, device), AveragingPlan(SIZES, device)
    c = torch.tensor(NOW.c, device=device)
    now = NOW._replace(c=c)
    plan.advance_(*other, NOW.on(device), at="z")

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.advance_(y, z, [2.0 * each for each in source], now.on(device), at="z")
    for step in range(1, 4):
        c.fill_(1.0 / step)
        for each in source:
            each.normal_()
        plan.advance_(*other, NOW.on(device), at="z")
        graph.replay()
        doubled = [2.0 * each for each in source]
        coefficients = NOW._replace(c=1.0 / step).on(device)
        ordinary.advance_(expected_y, expected_z, doubled, coefficients, at="z")
        for ours, expected in zip([*y, *z], [*expected_y, *expected_z], strict=True):
            assert torch.equal(ours, expected)

    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        c.add_(1.0)  # an empty graph is warned of
        with pytest.raises(RuntimeError, match="make another plan"):
            plan.advance_(y, z, source, now.on(device), at="z")


def test_captured_products_replay(device: torch.device) -> None:
    x = torch.randn(2, 256, 512, device=device, dtype=torch.bfloat16)

    def both() -> Tensor:
        return symmetric.polynomial(symmetric.gram(x), a=3.0, b=-2.0, c=0.5)

    both()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    for _ in range(3):
        x.normal_()
        graph.replay()
        assert torch.equal(found, both())
