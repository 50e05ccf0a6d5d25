"""`AMUSE.anytime`: Muon with a learning rate that decays without an end, and a short average beside it."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, averaged, param_groups
from amuse_optim.options import ANYTIME
from amuse_optim.single_file import single_file

PAGE = Path(__file__).parents[2] / "docs" / "anytime.md"
WARMUP, LR, DECAY = 4, 0.02, 0.1


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal factor, by the singular value decomposition, and AdamW's size of entries."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return 0.2 * max(matrix.shape) ** 0.5 * u @ v


def test_it_is_muon_with_a_power_decay_and_the_average_with_weights_of_a_power_of_the_step() -> None:
    """Against the textbook's loops, in float64, on a quadratic whose gradients show where they were taken."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    target = torch.randn(5, 3, dtype=torch.float64)
    optimizer = AMUSE.anytime(
        [{"params": [weight], "direction": "muon"}],
        lr=LR,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        orthogonalize="exact",
    )
    z, momentum = weight.detach().clone(), torch.zeros_like(weight)
    x, total = z.clone(), 0.0
    for t in range(1, 81):
        gradient = z - target
        momentum = 0.9 * momentum + 0.1 * gradient
        direction = polar(0.9 * momentum + 0.1 * gradient)
        lr = LR * min(1.0, t / WARMUP) * min(1.0, 6 * WARMUP / t) ** 0.5
        z = z - lr * direction - lr * DECAY * z
        share = t**13 * (LR * min(1.0, t / WARMUP)) ** 2
        total += share
        x = x + share / total * (z - x)

        weight.grad = weight.detach() - target
        optimizer.step()
        torch.testing.assert_close(weight.detach(), z, rtol=1e-9, atol=1e-9)
        with averaged(optimizer):
            torch.testing.assert_close(weight.detach(), x, rtol=1e-9, atol=1e-9)


def test_the_single_file_has_the_same_preset() -> None:
    module: dict[str, object] = {"__name__": "amuse"}
    exec(compile(single_file(), "amuse.py", "exec"), module)
    kind = module["AMUSE"]
    assert isinstance(kind, type)
    groups = []
    for build in (AMUSE.anytime, kind.anytime):
        torch.manual_seed(0)
        weight, bias = nn.Parameter(torch.randn(4, 3).double()), nn.Parameter(torch.randn(4).double())
        optimizer = build(
            [{"params": [weight], "direction": "muon"}, {"params": [bias], "direction": "adamw"}],
            lr=LR,
            warmup_steps=WARMUP,
        )
        for _ in range(40):
            (weight @ torch.ones(3, dtype=torch.float64) + bias).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.eval()
        groups.append([weight.detach(), bias.detach()])
    for ours, theirs in zip(*groups, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_other_options_and_its_own_can_be_set() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = AMUSE.anytime(
        param_groups(model), 0.03, warmup_steps=7, lr_decay=0.7, weight_decay=0.2, lr_rest=0.01
    )
    matrices, rest = optimizer.param_groups
    assert (matrices["lr"], rest["lr"]) == (0.03, 0.01)
    assert {group["lr_decay"] for group in optimizer.param_groups} == {0.7}
    assert {group["lr_decay_from"] for group in optimizer.param_groups} == {42}
    assert {(group["beta1"], group["rho"], group["r"]) for group in optimizer.param_groups} == {(0, 0, 13)}
    with pytest.raises(ValueError, match="beta1 must be"):
        AMUSE.anytime(param_groups(model), warmup_steps=7, rho=0.8)
    with pytest.raises(TypeError, match="warmup_steps"):
        AMUSE.anytime(param_groups(model))
    with pytest.raises(TypeError, match="warm_up"):
        AMUSE.anytime(param_groups(model), warmup_steps=7, warm_up=3)


def test_no_step_depends_on_a_later_one() -> None:
    """A run of 30 steps is the beginning of one of 60, at z and at x."""
    ends = []
    for steps in (30, 60):
        torch.manual_seed(1)
        model = nn.Linear(4, 3)
        optimizer = AMUSE.anytime(param_groups(model), lr=0.02, warmup_steps=5)
        for step in range(1, steps + 1):
            model(torch.ones(2, 4) * step).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 30:
                with averaged(optimizer):
                    ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_the_page_says_what_the_preset_is_and_its_program_runs() -> None:
    text = PAGE.read_text()
    (said,) = re.findall(r"`AMUSE\((beta1=0, [^`]*)\)`", text)
    assert dict(pair.split("=") for pair in said.split(", ")) == {
        name: f"{value:g}" for name, value in ANYTIME.items()
    }
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, str(PAGE), "exec"), names)
    assert {group["t"] for group in names["optimizer"].param_groups} == {100}
