"""The fused move against the three equations it stands for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amuse_optim.sequences import DecayAt, advance_, average, interpolate, recover


@given(
    beta=st.floats(0.05, 0.99),
    beta_next=st.floats(0.05, 0.99),
    c=st.floats(0.0, 1.0),
    lr=st.floats(0.0, 1.0),
    weight_decay=st.sampled_from([0.0, 0.1]),
    at=st.sampled_from(["z", "y"]),
)
def test_fused_move_is_the_three_equations(
    beta: float, beta_next: float, c: float, lr: float, weight_decay: float, at: DecayAt
) -> None:
    generator = torch.Generator().manual_seed(0)
    z, x, d = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    y = interpolate(z, x, beta)

    z_next = z - lr * d - lr * weight_decay * (z if at == "z" else y)
    x_next = (1 - c) * x + c * z_next
    y_next = (1 - beta_next) * z_next + beta_next * x_next

    advance_(y, z, d, scale=1.0, lr=lr, weight_decay=weight_decay, at=at, beta=beta, c=c, beta_next=beta_next)
    torch.testing.assert_close(z, z_next, atol=1e-13, rtol=0)
    torch.testing.assert_close(y, y_next, atol=1e-12, rtol=0)


def test_exact_on_integers() -> None:
    """Powers of two and integers leave no rounding: equal forms are equal to the bit."""
    z, x, d = (torch.randint(-64, 64, (50,), generator=torch.Generator().manual_seed(i)) for i in range(3))
    z, x, d = z.float(), x.float(), d.float()
    y = interpolate(z, x, 0.5)
    assert torch.equal(recover(y, z, 0.5), x)
    z_next = z - 0.25 * d
    expected = interpolate(z_next, average(x, z_next, 0.125), 0.75)
    advance_(y, z, d, scale=1.0, lr=0.25, weight_decay=0.0, at="z", beta=0.5, c=0.125, beta_next=0.75)
    assert torch.equal(z, z_next)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("beta", [0.1, 0.6, 0.99])
def test_recover_inverts_interpolate(beta: float) -> None:
    z, x = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(recover(interpolate(z, x, beta), z, beta), x, atol=1e-14, rtol=0)
