"""What a whole step does to parameters that are not alike, and under torch.compile."""

import gc
import math
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from amuse_optim import AMUSE, AMUSEReference, accept_weights


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("order", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
@pytest.mark.requirement("D4")
def test_buckets_of_a_group_decode_with_the_same_beta(
    capturable: bool, order: tuple[torch.dtype, torch.dtype]
) -> None:
    """With capturable=True they share a step and a beta on the device."""
    found = []
    for kind, more in ((AMUSE, {"capturable": capturable}), (AMUSEReference, {})):
        parameters = [nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).view(4, 3)) for dtype in order]
        optimizer = kind(
            parameters, lr=0.1, direction="adamw", warmup_steps=2, t0_steps=3, nonfinite="ignore", **more
        )
        for step in range(30):
            for parameter in parameters:
                parameter.grad = parameter.detach() - 1 + math.sin(step)
            optimizer.step()
        found.append(parameters)
    for ours, theirs in zip(*found, strict=True):
        tolerance = 1e-12 if ours.dtype == torch.float64 else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("nonfinite", "waits"), [("raise", 1), ("skip", 1), ("ignore", 0)])
def test_a_step_looks_at_gradients_once_whatever_the_number_of_groups(
    nonfinite: str, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [nn.Parameter(torch.eye(4)) for _ in range(5)]
    groups = [{"params": [w], "lr": 0.01 * n, "direction": "adamw"} for n, w in enumerate(weights, start=1)]
    optimizer = AMUSE(groups, warmup_steps=2, nonfinite=nonfinite)
    looks: list[torch.Tensor] = []
    truth = torch.Tensor.__bool__

    def looking(tensor: torch.Tensor) -> bool:
        looks.append(tensor)
        return truth(tensor)

    for step in range(1, 4):
        for weight in weights:
            weight.grad = torch.ones(4, 4)
        monkeypatch.setattr(torch.Tensor, "__bool__", looking)
        optimizer.step()
        monkeypatch.undo()
        assert len(looks) == waits * step


@pytest.mark.requirement("B9")
def test_a_compiled_step_is_the_step() -> None:
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 2))
        optimizer = AMUSE(
            [{"params": [model[2].weight], "direction": "muon"}, {"params": [model[0].weight]}],
            direction="sgd",
            lr=0.05,
            warmup_steps=2,
        )
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            step()
        assert not any(group["capturable"] for group in optimizer.param_groups)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("direction", ["sgd", "adamw"])
def test_tensors_without_storage_take_the_steps_of_those_they_hold(direction: str) -> None:
    inner = torch.ones(3)
    held, plain = nn.Parameter(TwoTensor(inner, inner.clone())), nn.Parameter(torch.ones(3))
    optimizer = AMUSE([held, plain], direction=direction, lr=0.1, warmup_steps=2)
    for _ in range(3):
        held.grad, plain.grad = TwoTensor(torch.ones(3), torch.ones(3)), torch.ones(3)
        optimizer.step()
    assert torch.equal(held.detach().a, plain.detach())


def test_a_gradient_of_another_shape_is_refused_before_anything_moves() -> None:
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
    optimizer = AMUSE([first, second], direction="sgd", lr=0.1, warmup_steps=2)
    first.grad, second.grad = torch.ones(3), torch.ones(4)
    second.data = torch.ones(2)
    with pytest.raises(ValueError, match=r"gradient of .* has the shape \(4,\): the parameter was replaced"):
        optimizer.step()
    assert torch.equal(first.detach(), torch.ones(3))


def warned(optimizer: AMUSE) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    return any("weights were changed" in str(each.message) for each in caught)


def pair() -> tuple[nn.Parameter, nn.Parameter, AMUSE]:
    a, b = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = AMUSE([a, b], direction="sgd", warmup_steps=2)
    a.grad = torch.ones(3)
    optimizer.step()
    return a, b, optimizer


def edit(parameter: nn.Parameter, value: float) -> None:
    with torch.no_grad():
        parameter.fill_(value)


@pytest.mark.requirement("B17")
def test_what_was_not_said_is_said_later() -> None:
    _, b, optimizer = pair()
    edit(b, 0.0)  # which has taken no step: it is followed
    assert not warned(optimizer)
    b.grad = torch.ones(3)
    assert not warned(optimizer)
    edit(b, 9.0)
    assert warned(optimizer)
    edit(b, 8.0)
    assert not warned(optimizer)  # once for each parameter
    accept_weights(optimizer)
    edit(b, 7.0)
    assert warned(optimizer)  # which was taken over in between


@pytest.mark.requirement("B17")
def test_a_parameter_that_was_replaced_is_let_go() -> None:
    def replace(optimizer: Any) -> "weakref.ref[nn.Parameter]":
        old = optimizer.param_groups[0]["params"][0]
        edit(old, 5.0)
        assert warned(optimizer)
        del optimizer.state[old]
        fresh = nn.Parameter(torch.ones(3))
        optimizer.param_groups[0]["params"][0] = fresh
        accept_weights(optimizer, [fresh])
        fresh.grad = torch.ones(3)
        return weakref.ref(old)

    _, _, optimizer = pair()
    old = replace(optimizer)
    del _
    optimizer.step()
    gc.collect()
    assert old() is None
