"""AdamW's direction against its displayed equation."""

import pytest
import torch
from torch import nn

from amuse_optim.buckets import Bucket, Slot
from amuse_optim.directions import DIRECTIONS


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("on_device", [False, True])
def test_equals_the_displayed_equation(momentum: float, on_device: bool) -> None:
    params = [nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in (5, 1, 9)]
    group = {"params": params, "stacked": False, "beta2": 0.99, "eps": 1e-3, "auxiliary_momentum": momentum}
    slots, expected = [], []
    for index, param in enumerate(params):
        g, v, e = torch.randn(
            3, len(param), dtype=torch.float64, generator=torch.Generator().manual_seed(index)
        )
        v.square_()
        param.grad = g.clone()
        step = torch.tensor(6.0, dtype=torch.float64) if on_device else 6
        state = {"exp_avg_sq": v.clone(), "exp_avg": e.clone(), "step": step, "beta": 0.5}
        slots.append(Slot.of(group, index, state, ["exp_avg_sq", *(["exp_avg"] if momentum else [])]))
        v_next, e_next = 0.99 * v + 0.01 * g**2, momentum * e + (1 - momentum) * g
        numerator = e_next / (1 - momentum**7) if momentum else g
        expected.append(
            (numerator / ((v_next / (1 - 0.99**7)).sqrt() + 1e-3), v_next, e_next if momentum else e)
        )
    ((_, update, scale),) = DIRECTIONS["adamw"].updates(Bucket(group, 0, slots))
    for ours, slot, (d, v, e) in zip(update, slots, expected, strict=True):
        torch.testing.assert_close(ours * scale, d, rtol=1e-12, atol=0)
        torch.testing.assert_close(slot.state["exp_avg_sq"], v, rtol=1e-14, atol=0)
        torch.testing.assert_close(slot.state["exp_avg"], e, rtol=1e-14, atol=1e-15)
