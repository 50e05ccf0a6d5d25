"""State of schedulefree's optimizers, taken over and continued."""

import copy
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import schedulefree
import torch
from torch import nn

from amuse_optim import AMUSE, from_schedulefree
from tests.amuse_optim.taking_over import (
    AFTER,
    BEFORE,
    TOLERANCE,
    assert_equal,
    edited,
    gradients,
    set_weights,
    snapshot,
    start,
)


def named(dtype: torch.dtype) -> dict[str, nn.Parameter]:
    return {f"p{i}": nn.Parameter(torch.tensor(value, dtype=dtype)) for i, value in enumerate(start())}


def groups_of(parameters: Mapping[str, nn.Parameter], *options: dict[str, Any]) -> list[dict[str, Any]]:
    """Two groups, of every second parameter."""
    members = list(parameters.items())
    return [{"params": members[i::2], **more} for i, more in enumerate(options)]


def steps(optimizer: Any, parameters: Mapping[str, nn.Parameter], numbers: range, late: str = "") -> None:
    """Steps on equal gradients; the parameter `late` has none before the state is taken over."""
    for step in numbers:
        for (name, parameter), gradient in zip(parameters.items(), gradients(step), strict=True):
            rests = name == late and step < BEFORE
            parameter.grad = None if rests else torch.tensor(gradient, dtype=parameter.dtype)
        optimizer.step()


BUILD: dict[str, Callable[..., Any]] = {
    "adamw": lambda groups, lr, beta1, **options: schedulefree.AdamWScheduleFree(
        groups, lr=lr, betas=(beta1, 0.99), eps=1e-8, **options
    ),
    "sgd": lambda groups, lr, beta1, **options: schedulefree.SGDScheduleFree(
        groups, lr=lr, momentum=beta1, **options
    ),
}
OURS: dict[str, dict[str, Any]] = {
    "adamw": {"direction": "adamw", "beta2": 0.99, "eps": 1e-8, "weight_decay_at": "y", "rho": 0.0},
    "sgd": {"direction": "sgd", "weight_decay_at": "y", "rho": 0.0},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"warmup_steps": 0},
    "within the warm-up": {"warmup_steps": 40, "r": 1.0},
    "other weights": {"warmup_steps": 10, "weight_lr_power": 1.0, "beta1": 0.7},
}


def a_run(kind: str, dtype: torch.dtype, **options: Any) -> tuple[Any, dict[str, nn.Parameter]]:
    """A run of schedulefree's after 30 steps, the last 20 at half its learning rate."""
    theirs = named(dtype)
    settings: dict[str, Any] = {"lr": 0.02, "beta1": 0.9, **options}
    optimizer = BUILD[kind](groups_of(theirs, {}, {"weight_decay": 0.1}), **settings)
    optimizer.train()
    late = "p3" if kind == "sgd" else ""
    steps(optimizer, theirs, range(10), late)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    steps(optimizer, theirs, range(10, BEFORE), late)
    return optimizer, theirs


def successor(kind: str, dtype: torch.dtype, **options: Any) -> tuple[AMUSE, dict[str, nn.Parameter]]:
    ours = named(dtype)
    settings = {"lr": 0.02, "beta1": 0.9, **OURS[kind], **options}
    return AMUSE(groups_of(ours, {}, {"weight_decay": 0.1}), **settings), ours


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_goes_on_as_schedulefree_would(kind: str, settings: str, mode: str, dtype: torch.dtype) -> None:
    peer, theirs = a_run(kind, dtype, **SETTINGS[settings])
    getattr(peer, mode)()
    optimizer, ours = successor(kind, dtype, **SETTINGS[settings])  # no warning: the same settings
    set_weights(ours, theirs)
    optimizer.load_state_dict(from_schedulefree(copy.deepcopy(peer.state_dict()), optimizer))
    assert optimizer.mode == mode
    assert_equal(ours, theirs, dtype)
    for both in (peer, optimizer):
        both.train()
    for step in range(BEFORE, BEFORE + AFTER):
        steps(peer, theirs, range(step, step + 1))
        steps(optimizer, ours, range(step, step + 1))
        assert_equal(ours, theirs, dtype)
    for both in (peer, optimizer):
        both.eval()
    assert_equal(ours, theirs, dtype)


def test_takes_over_a_run_that_has_not_begun() -> None:
    peer = BUILD["adamw"](groups_of(theirs := named(torch.float64), {}, {}), lr=0.02, beta1=0.9)
    optimizer, ours = successor("adamw", torch.float64, warmup_steps=0, weight_decay=0.0)
    with pytest.warns(UserWarning, match="other values than this optimizer for weight_decay"):
        optimizer.load_state_dict(from_schedulefree(peer.state_dict(), optimizer))
    for both, parameters in ((peer, theirs), (optimizer, ours)):
        both.train()
        steps(both, parameters, range(AFTER))
    assert_equal(ours, theirs, torch.float64)


def test_beta_rises_from_where_it_was() -> None:
    peer, theirs = a_run("adamw", torch.float64, warmup_steps=10)
    optimizer, ours = successor("adamw", torch.float64, warmup_steps=10, rho=0.8)
    set_weights(ours, theirs)
    optimizer.load_state_dict(from_schedulefree(peer.state_dict(), optimizer))
    betas = [0.9]
    for step in range(BEFORE, BEFORE + 40):
        steps(optimizer, ours, range(step, step + 1))
        betas.append(optimizer.param_groups[0]["beta_t"])
    assert all(a < b for a, b in itertools.pairwise(betas))
    assert betas[1] < 0.905
    assert betas[-1] > 0.93


SCHEDULEFREE_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "shape": (
        lambda s: s["state"][1].update(z=torch.zeros(9)),
        "holds a z of shape (9,) for parameter 'p2' of shape ()",
    ),
    "no second moment": (
        lambda s: s["state"][0].pop("exp_avg_sq"),
        "holds no exp_avg_sq for parameter 'p0' of shape (3, 5)",
    ),
    "fewer parameters": (
        lambda s: s["param_groups"][0]["params"].pop(),
        "groups of [2, 3] parameters, the optimizer of [3, 3]",
    ),
    "another optimizer": (
        lambda s: s["param_groups"][1].pop("train_mode"),
        "must be of schedulefree's AdamWScheduleFree or SGDScheduleFree: its groups lack train_mode",
    ),
    "no groups": (lambda s: s.pop("param_groups"), "it has no 'state' or 'param_groups'"),
    "two modes": (
        lambda s: s["param_groups"][1].update(train_mode=False),
        "some groups of state_dict are in train mode, others not",
    ),
    "gradients at z": (
        lambda s: s["param_groups"][1].update(betas=(0.0, 0.99)),
        "betas[0] must be > 0, got 0",
    ),
    "of SGD": (
        lambda s: [g.pop("betas") and g.update(momentum=0.9) for g in s["param_groups"]],
        "parameter 'p0' of shape (3, 5) has direction 'adamw', but its state is for 'sgd'",
    ),
    "out of range": (
        lambda s: s["param_groups"][0].update(weight_decay=-1.0),
        "weight_decay must be finite and >= 0, got -1.0",
    ),
    "another order": (
        lambda s: s["param_groups"][0].update(param_names=["p2", "p0", "p4"]),
        "has parameter 'p2' where the optimizer has 'p0'",
    ),
}


@pytest.mark.parametrize("fault", SCHEDULEFREE_FAULTS)
def test_refuses_state_of_schedulefree_that_does_not_fit(fault: str) -> None:
    change, message = SCHEDULEFREE_FAULTS[fault]
    peer, _ = a_run("adamw", torch.float64, warmup_steps=0)
    optimizer, ours = successor("adamw", torch.float64, warmup_steps=0)
    steps(optimizer, ours, range(3))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(from_schedulefree(edited(peer.state_dict(), change), optimizer))
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    "peer",
    ["RAdamScheduleFree", "AdamWScheduleFreeClosure", "SGDScheduleFreeClosure", "RAdamScheduleFreeClosure"],
)
def test_refuses_other_optimizers_of_schedulefree(peer: str) -> None:
    parameter = nn.Parameter(torch.ones(3))
    saved = getattr(schedulefree, peer)([parameter], lr=0.1).state_dict()
    optimizer = AMUSE([parameter], direction="adamw", warmup_steps=0, rho=0.0)
    with pytest.raises(ValueError, match="its groups lack"):
        from_schedulefree(saved, optimizer)


def test_refuses_to_go_on_in_a_lower_precision() -> None:
    """A rounded y could not give x back."""
    peer, _ = a_run("adamw", torch.float32, warmup_steps=0)
    optimizer, _ = successor("adamw", torch.bfloat16, warmup_steps=0)
    with pytest.raises(ValueError, match=re.escape("holds no x for parameter 'p0' of shape (3, 5)")):
        optimizer.load_state_dict(from_schedulefree(peer.state_dict(), optimizer))
