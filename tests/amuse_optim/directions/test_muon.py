"""Muon: matrices in batches, momentum, layouts and scales, functions that orthogonalize."""

import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference, orthogonalize
from amuse_optim.directions.muon import momentum_average_
from amuse_optim.orthogonalize import batch_entries, batches
from tests.amuse_optim.training import take_steps

SHAPES = [(6, 4), (4, 6), (6, 4), (3, 3), (6, 4)]


def run(optimizer_class: type[AMUSE]) -> list[Tensor]:
    parameters = [nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in SHAPES]
    optimizer = optimizer_class(parameters, direction="muon", lr=0.1, warmup_steps=3)
    take_steps(optimizer, range(6))
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("entries", [1, 30, 50, 10**6])
@pytest.mark.requirement("D1")
def test_the_size_of_batches_does_not_matter(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    monkeypatch.setitem(batch_entries.__globals__, "BATCH_ENTRIES_ON_CPU", entries)
    for ours, expected in zip(run(AMUSE), run(AMUSEReference), strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([24, 24, 24], [[24, 24], [24]]),
        ([48], [[48]]),
        ([10] * 6, [[10] * 6]),
        ([10] * 7, [[10] * 4, [10] * 3]),
        ([1], [[1]]),
    ],
)
def test_batches_are_even_and_about_as_large_as_told(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], expected: list[list[int]]
) -> None:
    monkeypatch.setitem(batch_entries.__globals__, "BATCH_ENTRIES_ON_CPU", 45)
    assert list(batches(sizes, sizes, torch.device("cpu"))) == expected


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_momentum_is_the_displayed_equation(nesterov: bool, dtype: torch.dtype) -> None:
    m, g = (torch.randn(9, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2))
    expected_m = 0.9 * m + 0.1 * g
    expected_u = 0.1 * g + 0.9 * expected_m if nesterov else expected_m
    u = torch.empty(9, dtype=dtype)
    momentum_average_([m], [g], [u], 0.9, nesterov)
    torch.testing.assert_close(m, expected_m, rtol=0, atol=1e-15)
    torch.testing.assert_close(
        u, expected_u.to(dtype), rtol=0, atol=1e-15 if dtype == torch.float64 else 0.02
    )


def test_fused_projections_equal_separate_ones() -> None:
    """Rows (8, 2, 4) of one parameter move as three parameters would, each with its own scale."""
    gradient = torch.randn(14, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fused = nn.Parameter(torch.zeros(14, 6, dtype=torch.float64))
    optimizer = AMUSE([fused], direction="muon", lr=1.0, warmup_steps=0, rho=0.0, split_rows=(8, 2, 4))
    fused.grad = gradient.clone()
    optimizer.step()
    for rows, expected in zip(fused.detach().split((8, 2, 4)), gradient.split((8, 2, 4)), strict=True):
        scale = 0.2 * max(rows.shape) ** 0.5
        torch.testing.assert_close(rows, -scale * orthogonalize(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 2, 4, 5)])
def test_stacks_in_channels_last_are_the_same_matrices(shape: tuple[int, ...]) -> None:
    """As `model.to(memory_format=...)` makes them of every parameter of four or five dimensions."""
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    start = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = []
    for kind, value in (
        (AMUSEReference, start),
        (AMUSE, start),
        (AMUSE, start.contiguous(memory_format=layout)),
    ):
        parameter = nn.Parameter(value.clone(memory_format=torch.preserve_format))
        take_steps(kind([parameter], direction="muon", stacked=True, lr=0.1, warmup_steps=2), range(4))
        found.append(parameter.detach().contiguous())
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.requirement("A7")
def test_update_rms_is_the_same_for_every_layout(memory_format: torch.memory_format) -> None:
    """match_rms: entries of d have a root mean square near 0.2, whatever the kernel looks like."""
    shapes: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        ((32, 48), {}),
        ((32, 16, 3, 3), {}),
        ((32, 4, 3, 3), {"conv_groups": 4}),
        ((16, 8, 5), {}),
        ((16, 8, 2, 2, 2), {}),
        ((4, 32, 24), {"stacked": True}),
        ((96, 32), {"split_rows": (32, 32, 32)}),
        ((64, 32), {"num_heads": 4}),
    ]
    for shape, options in shapes:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        if len(shape) == 4:
            values = values.to(memory_format=memory_format)
        parameter = nn.Parameter(torch.zeros_like(values))
        optimizer = AMUSE(
            [parameter], lr=1.0, direction="muon", warmup_steps=0, rho=0.0, orthogonalize="exact", **options
        )
        parameter.grad = values
        optimizer.step()
        rms = float(optimizer.state[parameter]["z"].square().mean().sqrt())
        assert rms == pytest.approx(0.2, rel=1e-4), shape


def test_a_function_that_works_in_place_does_not_reach_the_momentum() -> None:
    def in_place(stack: Tensor) -> Tensor:
        return stack.div_(stack.norm())

    buffers = []
    for function in (in_place, lambda stack: stack / stack.norm()):
        parameter = nn.Parameter(torch.zeros(2, 3))
        optimizer = AMUSE(
            [parameter], direction="muon", warmup_steps=2, nesterov=False, orthogonalize=function
        )
        for _ in range(3):
            parameter.grad = torch.ones(2, 3)
            optimizer.step()
        buffers.append(optimizer.state[parameter]["momentum_buffer"])
    assert torch.equal(*buffers)


def test_a_function_may_answer_in_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = torch.zeros(1, 4, 4)

    def reused(stack: Tensor) -> Tensor:
        return buffer.copy_(stack)

    monkeypatch.setattr(sys.modules["amuse_optim.orthogonalize"], "BATCH_ENTRIES_ON_CPU", 16)
    parameters = [nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    optimizer = AMUSE(parameters, direction="muon", lr=1.0, warmup_steps=1, t0_steps=2, orthogonalize=reused)
    for number, parameter in enumerate(parameters, start=1):
        parameter.grad = torch.full((4, 4), float(number))
    optimizer.step()
    assert parameters[1].detach().mean() == pytest.approx(2 * parameters[0].detach().mean().item())
