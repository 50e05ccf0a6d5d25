"""The symmetric products against float64, against plain torch, and their order of tiles against a list."""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from amuse_optim.kernels import plain, symmetric
from amuse_optim.kernels.symmetric import TILINGS, Tiling, _lower_tile, _triangular_row, tiling_of

# Small tiles, so that small matrices have many of them, in several groups.
SMALL = Tiling(side=16, depth=16, warps=1, stages=2, group=2)
SHAPES = [(1, 48, 48), (2, 37, 20), (1, 5, 40), (2, 50, 1), (1, 1, 3)]
# Rounding to bfloat16 changes a number by at most 2^-8; the interpreter cuts instead, by at most 2^-7.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}
DTYPES = list(TOLERANCE)


def random(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def integers(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-2, 3, shape, generator=generator).to(device, dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("tiling", [SMALL, None], ids=["small tiles", "own choice"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram(
    device: torch.device, shape: tuple[int, int, int], dtype: torch.dtype, tiling: Tiling | None
) -> None:
    x = random(*shape, device=device, dtype=dtype)
    kept = x.clone()
    found = symmetric.gram(x, tiling=tiling)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert distance(found, torch.bmm(x.double(), x.double().mT)) < TOLERANCE[dtype]
    assert torch.equal(found, found.mT)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("tiling", [SMALL, None], ids=["small tiles", "own choice"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_polynomial(
    device: torch.device, shape: tuple[int, int, int], dtype: torch.dtype, tiling: Tiling | None
) -> None:
    x = random(*shape, device=device, dtype=torch.float32) / math.sqrt(shape[2])
    g = torch.bmm(x, x.mT).to(dtype)
    found = symmetric.polynomial(g, a=3.5, b=-4.75, c=2.0, tiling=tiling)
    exact = g.double()
    eye = torch.eye(shape[1], dtype=torch.float64, device=device)
    expected = 3.5 * eye - 4.75 * exact + 2.0 * torch.bmm(exact, exact)
    assert distance(found, expected) < TOLERANCE[dtype]
    assert torch.equal(found, found.mT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [5, 40])
def test_commuting_product(device: torch.device, rows: int, dtype: torch.dtype) -> None:
    """Circulant symmetric matrices commute."""
    first = random(2, rows, device=device, dtype=torch.float32)
    turned = torch.arange(rows)[:, None] - torch.arange(rows)
    p = (first[:, turned] + first[:, -turned]).to(dtype)
    q = torch.bmm(p.double(), p.double()).to(dtype)  # commutes with p up to rounding
    found = symmetric.commuting_product(p, q, tiling=SMALL)
    expected = torch.bmm(p.double(), q.double())
    assert distance(found, (expected + expected.mT) / 2) < TOLERANCE[dtype]
    assert torch.equal(found, found.mT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tiling", [SMALL, Tiling(16, 32, 1, 2, 1), Tiling(32, 16, 1, 2, 3), None])
def test_equal_to_the_bit_on_integers(
    device: torch.device, dtype: torch.dtype, tiling: Tiling | None
) -> None:
    x = integers(2, 41, 20, device=device, dtype=dtype)  # products of at most 80: bfloat16 holds them
    g = symmetric.gram(x, tiling=tiling)
    assert torch.equal(g, plain.gram(x))
    e = integers(2, 41, 41, device=device, dtype=dtype, seed=1).clamp(-1, 0)
    e = torch.maximum(e, e.mT)  # symmetric
    assert torch.equal(
        symmetric.polynomial(e, a=8.0, b=-4.0, c=0.5, tiling=tiling),
        plain.polynomial(e, a=8.0, b=-4.0, c=0.5),
    )
    eye = torch.eye(41, device=device, dtype=dtype).expand(2, 41, 41)
    assert torch.equal(
        symmetric.commuting_product(e, 2 * eye - e, tiling=tiling), plain.commuting_product(e, 2 * eye - e)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(device: torch.device, dtype: torch.dtype) -> None:
    tall = integers(2, 18, 20, device=device, dtype=dtype)
    wide = tall.mT.contiguous()
    expected = plain.gram(wide)
    assert torch.equal(symmetric.gram(tall.mT, tiling=SMALL), expected)
    assert torch.equal(symmetric.gram(torch.stack([wide, wide], 1)[:, 1], tiling=SMALL), expected)
    assert torch.equal(symmetric.gram(torch.stack([wide, wide], -1)[..., 0], tiling=SMALL), expected)
    assert torch.equal(symmetric.gram(wide[:1].expand(2, -1, -1), tiling=SMALL)[1], expected[0])
    g = expected.clamp(-1, 1)
    inside = torch.zeros(2, 30, 30, device=device, dtype=dtype)
    inside[:, 5:25, 5:25] = g
    inside = inside[:, 5:25, 5:25]
    for p, q in ((inside, g), (g, inside)):
        expected = plain.polynomial(g, a=1.0, b=2.0, c=1.0)
        assert torch.equal(symmetric.polynomial(p, a=1.0, b=2.0, c=1.0, tiling=SMALL), expected)
        expected = plain.commuting_product(g, g)
        assert torch.equal(symmetric.commuting_product(p, q, tiling=SMALL), expected)


def test_nothing_to_multiply(device: torch.device) -> None:
    assert symmetric.gram(torch.zeros(0, 3, 4, device=device)).shape == (0, 3, 3)
    assert symmetric.gram(torch.zeros(2, 0, 4, device=device)).shape == (2, 0, 0)
    assert torch.equal(
        symmetric.gram(torch.zeros(2, 3, 0, device=device)), torch.zeros(2, 3, 3, device=device)
    )


def test_bad_input_is_refused(device: torch.device) -> None:
    square = torch.zeros(2, 3, 3, device=device)
    with pytest.raises(ValueError, match="x must be a stack"):
        symmetric.gram(torch.zeros(3, 4, device=device))
    with pytest.raises(TypeError, match="x must be bfloat16 or float32"):
        symmetric.gram(square.double())
    with pytest.raises(ValueError, match="g must have square matrices"):
        symmetric.polynomial(torch.zeros(2, 3, 4, device=device), a=0.0, b=1.0, c=1.0)
    with pytest.raises(ValueError, match="p and q must have one shape"):
        symmetric.commuting_product(square, square[:1])
    with pytest.raises(TypeError, match="p and q must have one dtype"):
        symmetric.commuting_product(square, square.bfloat16())


@triton.jit
def _record_tiles(rows: tl.tensor, cols: tl.tensor, tiles: tl.tensor, group: tl.constexpr) -> None:
    row, col = _lower_tile(tl.program_id(0), tiles, group)
    tl.store(rows + tl.program_id(0), row)
    tl.store(cols + tl.program_id(0), col)


@pytest.mark.parametrize("group", [1, 3, 4])
@pytest.mark.parametrize("tiles", [1, 2, 3, 9])
def test_order_of_tiles(device: torch.device, tiles: int, group: int) -> None:
    """Groups of rows, column by column in each: every tile on or below the diagonal, once."""
    count = tiles * (tiles + 1) // 2
    rows, cols = torch.full((2, count), -1, dtype=torch.int32, device=device)
    _record_tiles[(count,)](rows, cols, tiles, group)
    found = list(zip(rows.tolist(), cols.tolist(), strict=True))
    assert sorted(found) == [(row, col) for row in range(tiles) for col in range(row + 1)]
    assert [row // group for row, _ in found] == sorted(row // group for row, _ in found)
    for first in range(0, tiles, group):
        left = [col for row, col in found if row // group == first // group and col < first]
        assert left == sorted(left)


@triton.jit
def _record_rows(indices: tl.tensor, rows: tl.tensor) -> None:
    tl.store(rows + tl.program_id(0), _triangular_row(tl.load(indices + tl.program_id(0))))


def test_rows_of_large_triangles(device: torch.device) -> None:
    """At the ends of rows, where a root rounded the wrong way leaves the row; up to 2048 tiles a side."""
    turns = [row * (row + 1) // 2 for row in (1, 2, 3, 100, 723, 1447, 2047, 2048)]
    indices = [turn + step for turn in turns for step in (-1, 0, 1)]
    rows = torch.full((len(indices),), -1, dtype=torch.int32, device=device)
    _record_rows[(len(indices),)](torch.tensor(indices, dtype=torch.int32, device=device), rows)
    assert rows.tolist() == [(math.isqrt(8 * index + 1) - 1) // 2 for index in indices]


def test_choice_of_tiling() -> None:
    assert tiling_of(1, 768, torch.bfloat16).side == 64  # 21 tiles of 128 for 132 multiprocessors
    assert tiling_of(64, 256, torch.bfloat16).side == 128
    assert tiling_of(1, 2048, torch.bfloat16).side == 128
    assert {tiling_of(n, m, torch.bfloat16) for n in (1, 64) for m in (1, 256, 4096)} <= set(TILINGS)
