"""Whole steps of the optimizer with the kernel, against steps without."""

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, kernels, param_groups
from amuse_optim.kernels import fused


def build(device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 48), nn.Conv2d(4, 6, 3), nn.Linear(48, 16), nn.LayerNorm(16), nn.Linear(16, 3)
    )
    return model.to(device, dtype)


def optimizer_of(model: nn.Module, **options: Any) -> AMUSE:
    given = {"lr": 0.02, "warmup_steps": 2, "weight_decay": 0.1, "orthogonalize_dtype": torch.float32}
    return AMUSE(param_groups(model), **(given | options))


def train(model: nn.Module, optimizer: AMUSE, steps: range) -> None:
    for step in steps:
        for i, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(10 * step + i)
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.to(parameter)
        optimizer.step()


def after(device: torch.device, steps: int = 5, **options: Any) -> list[torch.Tensor]:
    model = build(device)
    train(model, optimizer_of(model, **options), range(steps))
    return [parameter.detach() for parameter in model.parameters()]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Turns the kernel on wherever this runs, and counts the moves by who made them."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            counts[name] += 1
            function(*arguments)

        return call

    monkeypatch.setattr(kernels, "enabled", lambda _: True)
    monkeypatch.setattr(fused, "advance_", counted("kernel", fused.advance_))
    monkeypatch.setattr(kernels.averaging, "advance_", counted("plain", kernels.averaging.advance_))
    return counts


def without(monkeypatch: pytest.MonkeyPatch, device: torch.device, **options: Any) -> list[torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "enabled", lambda _: False)
        return after(device, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay_at": "y"},
        {"capturable": True, "nonfinite": "ignore"},
        {"capturable": True, "nonfinite": "ignore", "rho": 0.0},
        {"parity": "published", "averages": (10.0,)},
        {"foreach": False, "auxiliary_momentum": 0.9},
    ],
    ids=["usual", "decay at y", "on the device", "constant beta", "published", "one by one"],
)
def test_steps_are_equal(
    device: torch.device, options: dict[str, Any], launches: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 products, where only the averaging differs: the kernel's coefficients are float32."""
    expected = without(monkeypatch, device, **options)
    assert launches.pop("plain") >= 10
    for ours, plain in zip(after(device, **options), expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert set(launches) == {"kernel"}


@pytest.mark.parametrize(
    ("dtype", "options", "kernel"),
    [
        (torch.float32, {}, True),
        (torch.float32, {"orthogonalize_dtype": torch.float64}, False),
        (torch.float64, {}, False),
        (torch.bfloat16, {}, False),
        (torch.float32, {"state_precision": "lean"}, False),
        (torch.float32, {"beta1": 0.0, "rho": 0.0}, False),
    ],
)
def test_everything_else_is_moved_by_the_plain_form(
    device: torch.device, dtype: torch.dtype, options: dict[str, Any], kernel: bool, launches: Counter[str]
) -> None:
    """Matrices alone: what their updates are in decides."""
    model = nn.Linear(8, 8, bias=False).to(device, dtype)
    given = {"orthogonalize_dtype": torch.float32} | options
    optimizer = AMUSE(model.parameters(), direction="muon", lr=0.02, warmup_steps=2, **given)
    train(model, optimizer, range(3))
    assert launches["kernel"] == (3 if kernel else 0)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.usefixtures("launches")
def test_nothing_is_kept_that_a_copy_or_new_memory_would_make_wrong(device: torch.device) -> None:
    """Deep copies, pickles, state dicts, new groups and new storage go on as the optimizer would have."""
    model = build(device)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(3))
    pairs = [
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
    ]
    loaded = build(device)
    loaded.load_state_dict(model.state_dict())
    resumed = optimizer_of(loaded)
    resumed.load_state_dict(optimizer.state_dict())
    pairs.append((loaded, resumed))
    moved = copy.deepcopy((model, optimizer))
    for parameter in moved[0].parameters():
        parameter.data = parameter.data.clone()
    pairs.append(moved)
    train(model, optimizer, range(3, 6))
    for copied, its_optimizer in pairs:
        train(copied, its_optimizer, range(3, 6))
        for ours, expected in zip(copied.parameters(), model.parameters(), strict=True):
            assert torch.equal(ours, expected)

    extra = nn.Parameter(torch.ones(5, device=device))
    optimizer.add_param_group({"params": [extra], "direction": "sgd"})
    extra.grad = torch.ones_like(extra)
    train(model, optimizer, range(6, 8))
    lone = nn.Parameter(torch.ones(5, device=device))
    apart = optimizer_of(nn.Linear(1, 1))
    apart.add_param_group({"params": [lone], "direction": "sgd"})
    lone.grad = torch.ones_like(lone)
    for _ in range(2):
        apart.step()
    assert torch.equal(extra, lone)
    assert not torch.equal(extra, torch.ones_like(extra))
