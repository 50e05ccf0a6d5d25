"""The equations of the three sequences, on lists, against the displayed ones in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amuse_optim.averaging import (
    StepNumbers,
    advance_,
    average_,
    average_and_interpolate_,
    decode_,
    decode_as_published_,
    descend_,
    interpolate,
)
from amuse_optim.schedule import DecayAt

SIZES = [5, 1, 40, 7, 16, 3]


def random(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [
        torch.randn(size, generator=torch.Generator().manual_seed(100 * seed + i), dtype=dtype)
        for i, size in enumerate(SIZES)
    ]


def close(ours: Any, expected: Any, **tolerance: float) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, **({"rtol": 0, "atol": 1e-12} | tolerance))


@given(
    beta=st.floats(0.05, 0.99),
    beta_next=st.floats(0.05, 0.99),
    c=st.floats(0.0, 1.0),
    lr=st.floats(0.0, 1.0),
    weight_decay=st.sampled_from([0.0, 0.1]),
    at=st.sampled_from(["z", "y"]),
    published=st.booleans(),
    on_device=st.booleans(),
)
@pytest.mark.requirement("D2")
def test_both_forms_are_the_displayed_equations(
    beta: float,
    beta_next: float,
    c: float,
    lr: float,
    weight_decay: float,
    at: DecayAt,
    published: bool,
    on_device: bool,
) -> None:
    """Where y and z are kept, and where z and x are."""
    z, x, d = random(0), random(1), random(2)
    y = [(1 - beta) * a + beta * b for a, b in zip(z, x, strict=True)]
    expected = []
    for one_y, one_z, one_d in zip(y, z, d, strict=True):
        decode = beta_next if published else beta
        decoded = (one_y - (1 - decode) * one_z) / decode
        z_next = one_z - lr * one_d - lr * weight_decay * (one_z if at == "z" else one_y)
        x_next = (1 - c) * decoded + c * z_next
        expected.append((z_next, x_next, (1 - beta_next) * z_next + beta_next * x_next))
    z_next, x_next, y_next = (list(column) for column in zip(*expected, strict=True))

    def number(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float64) if on_device else value

    numbers = StepNumbers(
        number(lr), weight_decay, at, number(beta), number(c), number(beta_next), published=published
    )
    halves = [each / 2 for each in d]
    moved_y, moved_z = [each.clone() for each in y], [each.clone() for each in z]
    advance_(moved_y, moved_z, halves, 2.0, numbers)
    close(moved_z, z_next)
    close(moved_y, y_next, atol=1e-11)

    moved_x, moved_z = [each.clone() for each in x], [each.clone() for each in z]
    if published:
        decode_as_published_(moved_x, moved_z, numbers)
    descend_(moved_z, moved_x, halves, 2.0, numbers)
    average_(moved_x, moved_z, numbers.c)
    close(moved_z, z_next)
    close(moved_x, x_next, atol=1e-11)
    close(interpolate(moved_z, moved_x, numbers.beta_next), y_next, atol=1e-11)


def test_exact_on_integers() -> None:
    """Powers of two and integers leave no rounding: equal forms are equal to the bit."""
    z, x, d = ([each.mul(20).round().float() for each in random(seed)] for seed in range(3))
    numbers = StepNumbers(0.25, 0.0, "z", beta=0.5, c=0.125, beta_next=0.75)
    y = interpolate(z, x, 0.5)
    assert all(map(torch.equal, decode_([each.clone() for each in y], z, 0.5), x))
    z_next = [a - 0.25 * b for a, b in zip(z, d, strict=True)]
    x_next = [0.875 * a + 0.125 * b for a, b in zip(x, z_next, strict=True)]
    expected = [0.25 * a + 0.75 * b for a, b in zip(z_next, x_next, strict=True)]
    moved_y, moved_z = [each.clone() for each in y], [each.clone() for each in z]
    advance_(moved_y, moved_z, d, 1.0, numbers)
    assert all(map(torch.equal, moved_z, z_next))
    assert all(map(torch.equal, moved_y, expected))
    fused = [each.clone() for each in x]
    average_and_interpolate_(fused, z_next, numbers)
    assert all(map(torch.equal, fused, expected))


@pytest.mark.parametrize("beta", [0.1, 0.6, 0.99])
def test_decoding_inverts_interpolating(beta: float) -> None:
    z, x = random(3), random(4)
    close(decode_(interpolate(z, x, beta), z, beta), x, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", ["z", "y"])
@pytest.mark.parametrize("on_device", [False, True])
def test_lists_equal_single_tensors(at: DecayAt, dtype: torch.dtype, on_device: bool) -> None:
    """To the bit; updates may have a lower precision."""
    y, z, d = random(0, torch.float32), random(1, torch.float32), [each.to(dtype) for each in random(2)]
    values = {"lr": 0.125, "beta": 0.6, "c": 0.25, "beta_next": 0.75}
    given = {name: torch.tensor(v, dtype=torch.float64) if on_device else v for name, v in values.items()}
    numbers = StepNumbers(weight_decay=0.25, decay_at=at, **given)
    singles = [(a.clone(), b.clone()) for a, b in zip(y, z, strict=True)]
    advance_(y, z, d, 0.5, numbers)
    for (one_y, one_z), one_d, moved_y, moved_z in zip(singles, d, y, z, strict=True):
        advance_([one_y], [one_z], [one_d], 0.5, numbers)
        assert torch.equal(moved_y, one_y)
        assert torch.equal(moved_z, one_z)
