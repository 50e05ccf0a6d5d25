"""The kernel that moves y and z against a float64 reference and against `averaging.advance_`."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton.language as tl
from torch import Tensor

from amuse_optim.averaging import StepNumbers, advance_
from amuse_optim.kernels import fused
from amuse_optim.kernels.fused import BLOCK, takes
from amuse_optim.schedule import DecayAt

SIZES = [(0,), (1,), (7,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (0,), (0,), (3, 900), (0,)]
SCALE = 2.0
USUAL = StepNumbers(lr=0.01, weight_decay=0.1, decay_at="z", beta=0.7, c=0.01, beta_next=0.71)
EDGES = {
    "usual": USUAL,
    "no decay": replace(USUAL, weight_decay=0.0),
    "first step": replace(USUAL, beta=0.6, c=1.0, beta_next=0.6),
    "late": replace(USUAL, lr=0.005, beta=0.999, c=1e-6, beta_next=0.9990001),
    "near z": replace(USUAL, lr=0.005, weight_decay=2.0, beta=0.05, c=0.3, beta_next=0.1),
    "at x": replace(USUAL, lr=0.5, weight_decay=0.0, beta=1.0, c=0.25, beta_next=1.0),
    "standing": replace(USUAL, lr=0.0, weight_decay=0.0, beta=0.9, c=0.5, beta_next=0.9),
    "published": replace(USUAL, published=True),
}
UNIT = 2.0**-24  # half a unit in the last place of float32, relative


def random(shapes: list[tuple[int, ...]], device: torch.device, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def exact(y: Tensor, z: Tensor, d: Tensor, now: StepNumbers) -> tuple[Tensor, Tensor, Tensor]:
    """The three equations in float64, with the coefficients that float32 holds; and the size of the terms."""
    told = now.lr * SCALE, now.lr * now.weight_decay, now.decode, now.c, now.beta_next
    rate, decay, beta, c, beta_next = (float(torch.tensor(value, dtype=torch.float32)) for value in told)
    y, z, d = y.double(), z.double(), d.double()
    x = (y - (1 - beta) * z) / beta
    z_next = z - rate * d - decay * (z if now.decay_at == "z" else y)
    x_next = (1 - c) * x + c * z_next
    size = (y.abs() + z.abs()) / beta + rate * d.abs()
    return (1 - beta_next) * z_next + beta_next * x_next, z_next, size


def on_device(numbers: StepNumbers, device: torch.device, dtype: torch.dtype) -> StepNumbers:
    """The same numbers as scalar tensors, as `capturable` has them."""
    names = ("lr", "beta", "c", "beta_next")
    told = {name: torch.tensor(getattr(numbers, name), dtype=dtype, device=device) for name in names}
    return replace(numbers, **told)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", ["z", "y"])
@pytest.mark.parametrize("edge", EDGES)
def test_moves_as_the_equations_say(device: torch.device, dtype: torch.dtype, at: DecayAt, edge: str) -> None:
    now = replace(EDGES[edge], decay_at=at)
    y, z, d = (random(SIZES, device, seed) for seed in range(3))
    d = [each.to(dtype) for each in d]
    expected = [exact(*each, now) for each in zip(y, z, d, strict=True)]
    plain_y, plain_z = copies(y), copies(z)
    assert takes(y, z, d, SCALE, now)
    fused.advance_(y, z, d, SCALE, now)
    for i, (y_next, z_next, size) in enumerate(expected):
        assert bool(((z[i] - z_next).abs() <= 3 * UNIT * size).all())
        assert bool(((y[i] - y_next).abs() <= 6 * UNIT * size).all())
        advance_([plain_y[i]], [plain_z[i]], [d[i]], SCALE, now)
        assert bool(((z[i] - plain_z[i]).abs() <= 6 * UNIT * size).all())
        assert bool(((y[i] - plain_y[i]).abs() <= 12 * UNIT * size).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", ["z", "y"])
def test_exact_on_integers(device: torch.device, dtype: torch.dtype, at: DecayAt) -> None:
    """Powers of two and integers leave no rounding: equal forms are equal to the bit."""
    tensors = [[(each * 20).round() for each in random(SIZES, device, seed)] for seed in range(3)]
    y, z, d = tensors[0], tensors[1], [each.to(dtype) for each in tensors[2]]
    plain_y, plain_z = copies(y), copies(z)
    now = StepNumbers(0.5, 0.25, at, beta=0.5, c=0.125, beta_next=0.75)
    fused.advance_(y, z, d, 0.5, now)
    advance_(plain_y, plain_z, d, 0.5, now)
    assert all(torch.equal(*each) for each in zip([*y, *z], [*plain_y, *plain_z], strict=True))


def test_small_averaging_weights_are_not_rounded_away(device: torch.device) -> None:
    """From x = 0 the average moves by c z; 1 - b'(1 - c) as it stands is wrong by 2.7 % here in float32."""
    c, beta = 1.75e-6, 0.875
    y, z = [torch.full((5,), 1 - beta, device=device)], [torch.ones(5, device=device)]
    now = StepNumbers(0.0, 0.0, "z", beta=beta, c=c, beta_next=beta)
    fused.advance_(y, z, [torch.zeros(5, device=device)], 1.0, now)
    x = (y[0].double() - (1 - beta)) / beta
    torch.testing.assert_close(x, torch.full_like(x, c), rtol=0.006, atol=0)


@pytest.mark.parametrize("beta_next", [0.3, 0.6, 0.97])
def test_full_weight_puts_everything_on_z(device: torch.device, beta_next: float) -> None:
    y, z, d = (random(SIZES, device, seed) for seed in range(3))
    fused.advance_(y, z, d, SCALE, replace(USUAL, c=1.0, beta_next=beta_next))
    assert all(torch.equal(*each) for each in zip(y, z, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_may_lie_on_the_device(device: torch.device, dtype: torch.dtype) -> None:
    """All of them, or some; to the bit, where float32 holds their products."""
    now = StepNumbers(0.5, 0.25, "z", beta=0.75, c=0.125, beta_next=0.625)
    tensors = on_device(now, device, dtype)
    mixed = replace(now, c=tensors.c.reshape(1), lr=tensors.lr)
    results = []
    for numbers, scale in ((now, SCALE), (tensors, torch.tensor(SCALE, device=device)), (mixed, SCALE)):
        y, z, d = (random(SIZES, device, seed) for seed in range(3))
        assert takes(y, z, d, scale, numbers)
        fused.advance_(y, z, d, scale, numbers)
        results.append([*y, *z])
    for others in results[1:]:
        assert all(torch.equal(*each) for each in zip(results[0], others, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 33])
def test_every_block_finds_its_parameter(device: torch.device, count: int) -> None:
    """Lists of every length, some tensors of several blocks: an entry of z ends as its own index."""
    sizes = [(1 + BLOCK * (i % 3),) for i in range(count)]
    y = [torch.zeros(size, device=device) for size in sizes]
    z = [torch.zeros(size, device=device) for size in sizes]
    d = [
        -torch.arange(size, dtype=torch.float32, device=device) - 10_000 * i
        for i, (size,) in enumerate(sizes)
    ]
    fused.advance_(y, z, d, 1.0, StepNumbers(1.0, 0.0, "z", beta=0.5, c=0.5, beta_next=0.5))
    assert all(torch.equal(a, -b) for a, b in zip(z, d, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_writes_its_entries_alone_wherever_they_lie(
    device: torch.device, dtype: torch.dtype, offset: int
) -> None:
    """Views into larger buffers, aligned and not: what is around them stays, and the result is the same."""
    size = BLOCK + 3
    y, z, d = (each[0] for each in (random([(size + 9,)], device, seed) for seed in range(3)))
    d = d.to(dtype)
    before = y.clone(), z.clone()
    inside = slice(offset, offset + size)
    aligned = [y[inside].clone()], [z[inside].clone()], [d[inside].clone()]
    fused.advance_(*aligned, SCALE, USUAL)
    fused.advance_([y[inside]], [z[inside]], [d[inside]], SCALE, USUAL)
    for now, old, expected in zip((y, z), before, aligned, strict=False):
        assert torch.equal(now[inside], expected[0])
        assert torch.equal(now[:offset], old[:offset])
        assert torch.equal(now[offset + size :], old[offset + size :])


def test_more_entries_than_32_bits_count(device: torch.device, tmp_path: Path) -> None:
    size = 2**31 + 5

    def zeros(name: str, dtype: torch.dtype) -> Tensor:
        if device.type == "cuda":
            return torch.zeros(size, dtype=dtype, device=device)
        # A file with a hole takes no memory.
        return torch.from_file(str(tmp_path / name), shared=True, size=size, dtype=dtype)

    y, z, d = zeros("y", torch.float32), zeros("z", torch.float32), zeros("d", torch.bfloat16)
    d[-6:] = torch.arange(1, 7)
    d[2**31 - 2**20] = 7
    if device.type == "cuda":
        fused.advance_([y], [z], [d], 1.0, StepNumbers(1.0, 0.0, "z", beta=0.5, c=1.0, beta_next=0.5))
    else:  # the last two programs alone, because all of them would take hours
        first = 2 - (size + BLOCK - 1) // BLOCK
        table = torch.tensor([first, size, *(tensor.data_ptr() for tensor in (y, z, d))])
        settings = {
            "on_device": False,
            "update_type": tl.bfloat16,
            "decay_at_y": False,
            "aligned": True,
            "block": BLOCK,
        }
        fused._advance[(2,)](table, 1, 1.0, 0.0, 0.5, 1.0, 0.5, **settings)
    assert z[-7:].tolist() == [0, -1, -2, -3, -4, -5, -6]
    assert y[-7:].tolist() == z[-7:].tolist()
    assert z[:8].tolist() == [0] * 8
    assert float(z[2**31 - 2**20]) == (-7 if device.type == "cuda" else 0)


def test_nothing_to_move(device: torch.device) -> None:
    around = torch.arange(4.0, device=device)
    empty = [around[2:2], around[3:3]]
    assert takes(empty, empty, empty, SCALE, USUAL)
    fused.advance_(empty, empty, empty, SCALE, USUAL)
    assert around.tolist() == [0, 1, 2, 3]


def test_autograd_notices_the_change(device: torch.device) -> None:
    """As with any operation in place: a gradient through the old values is refused, not wrong."""
    y, z, d = (random([(4,)], device, seed) for seed in range(3))
    y[0].requires_grad_()
    loss = y[0].square().sum()
    with torch.no_grad():
        fused.advance_(y, z, d, SCALE, USUAL)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_addresses_as_arguments_of_operations(device: torch.device) -> None:
    """Which a captured graph keeps: 64 bits, and more of them than one launch takes."""
    entries = [0, 1, 2**31, 2**53 + 1, 2**57 - 3, *range(2**47, 2**47 + 1000)]
    assert fused._written_by_operations(entries, device).tolist() == entries
    assert fused._table(entries, device).tolist() == entries


class Tagged(Tensor):
    """A subclass, whose memory may be anything."""


def test_takes_what_the_kernel_can_move(device: torch.device) -> None:
    y, z, d = ([torch.zeros(3, 4, device=device), torch.zeros(5, device=device)] for _ in range(3))
    strided = torch.zeros(4, 3, device=device).T

    def given(y: list[Tensor], z: list[Tensor], d: list[Tensor], now: StepNumbers = USUAL) -> bool:
        return takes(y, z, d, SCALE, now)

    assert given(y, z, d)
    assert given(y, z, [each.bfloat16() for each in d])
    assert given([torch.nn.Parameter(each) for each in y], z, d)
    assert given(y, z, [d[0].view(-1), d[1]])
    assert not given(y, z, [each.half() for each in d])
    assert not given(y, z, [each.double() for each in d])
    assert not given(y, z, [d[0], d[1].bfloat16()])
    assert not given([each.double() for each in y], z, d)
    assert not given(y, [z[0], z[1].bfloat16()], d)
    assert not given([strided, y[1]], z, d)
    assert not given(y, [strided, z[1]], d)
    assert not given(y, z, [strided, d[1]])
    assert not given(y, z, [d[0], torch.zeros(4, device=device)])
    assert not given(y, z, d[:1])
    assert not given(y, z, [d[0], d[1].to("meta")])
    assert not given([y[0].as_subclass(Tagged), y[1]], z, d)
    for name in ("lr", "beta", "c", "beta_next"):
        assert given(y, z, d, replace(USUAL, **{name: torch.tensor(0.5, device=device)}))
        assert not given(y, z, d, replace(USUAL, **{name: torch.tensor(0.5, device="meta")}))
        assert not given(y, z, d, replace(USUAL, **{name: torch.ones(2, device=device)}))
