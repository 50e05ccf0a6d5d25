"""Batches bound the memory of a step and change nothing else."""

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference, orthogonalize
from amuse_optim.directions.muon import momentum_average_
from amuse_optim.orthogonalize import batch_entries, batches

SHAPES = [(6, 4), (4, 6), (6, 4), (3, 3), (6, 4)]


def run(optimizer_class: type[AMUSE]) -> list[Tensor]:
    parameters = [nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in SHAPES]
    optimizer = optimizer_class(parameters, direction="muon", lr=0.1, warmup_steps=3)
    for step in range(6):
        for i, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * step + i)
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
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
