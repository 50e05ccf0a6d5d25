"""Whole steps of the optimizer with the kernels, against steps without."""

from typing import Any

import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, kernels, param_groups
from amuse_optim.orthogonalize import iterate, segments


def train(device: torch.device, **options: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 16), nn.LayerNorm(16), nn.Linear(16, 3)).to(device)
    optimizer = AMUSE(param_groups(model), lr=0.02, warmup_steps=2, weight_decay=0.1, **options)
    for step in range(5):
        for i, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(10 * step + i)
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
        optimizer.step()
    return [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "options", [{}, {"weight_decay_at": "y"}, {"capturable": True, "nonfinite": "ignore"}]
)
def test_steps_are_equal(
    device: torch.device, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 products, where only the averaging is a kernel's: its coefficients are float32."""
    monkeypatch.setattr(kernels, "enabled", lambda _: False)
    expected = train(device, orthogonalize_dtype=torch.float32, **options)
    monkeypatch.setattr(kernels, "enabled", lambda _: True)
    for ours, plain in zip(
        train(device, orthogonalize_dtype=torch.float32, **options), expected, strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 16, 64), (2, 64, 16), (1, 32, 32)])
@pytest.mark.parametrize("steps", [1, 5])
def test_iterations_are_equal(
    device: torch.device, shape: tuple[int, int, int], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    form = segments("quintic", steps, gram_form=True)
    monkeypatch.setattr(kernels, "enabled", lambda _: False)
    expected = iterate(stack, form).float()
    monkeypatch.setattr(kernels, "enabled", lambda _: True)
    assert float((iterate(stack, form).float() - expected).norm() / expected.norm()) < 0.06
