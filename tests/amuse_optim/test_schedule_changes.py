"""Schedules that change under way: beta stays below 1 and does not jump, and everything stays finite."""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from amuse_optim import AMUSE, AMUSEReference, averaged
from amuse_optim.schedule import Clock, schedule_of
from tests.oracle.exact import ExactOracle

KINDS = [AMUSE, AMUSEReference]
CAPTURED = {"capturable": True, "nonfinite": "ignore"}


def betas(
    steps: int,
    *,
    kind: type[Any] = AMUSE,
    change: Callable[[int, dict[str, Any]], None] = lambda t, group: None,  # noqa: ARG005
    **options: Any,
) -> list[float]:
    """Beta at t = 1, 2, ...; `change(t, group)` edits the group before step t."""
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    settings: dict[str, Any] = {"direction": "sgd", "lr": 0.1, "warmup_steps": 5, **options}
    optimizer = kind([p], **settings)
    found = []
    for t in range(1, steps + 1):
        change(t, optimizer.param_groups[0])
        p.grad = torch.ones_like(p) / t
        optimizer.step()
        found.append(float(optimizer.param_groups[0]["beta_t"]))
    with averaged(optimizer):
        assert p.isfinite().all()
    assert all(0 <= beta < 1 for beta in found)
    return found


def largest_rise(values: list[float]) -> float:
    return max(b - a for a, b in pairwise(values))


def set_t0(at: int, t0_steps: int) -> Callable[[int, dict[str, Any]], None]:
    def change(t: int, group: dict[str, Any]) -> None:
        if t == at:
            group["t0_steps"] = t0_steps

    return change


def thaw(at: int, lr: float = 0.1) -> Callable[[int, dict[str, Any]], None]:
    def change(t: int, group: dict[str, Any]) -> None:
        group["lr"] = 0.0 if t < at else lr

    return change


@pytest.mark.requirement("A15")
@pytest.mark.parametrize("beta_clock", ["window", "steps"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, CAPTURED, {"parity": "published"}, {"r": 2.0}])
def test_t0_raised_after_t0_is_as_from_the_start(beta_clock: str, kind: Any, more: dict[str, Any]) -> None:
    if kind is AMUSEReference and "capturable" in more:
        more = {}
    options = {"kind": kind, "beta_clock": beta_clock, **more}
    raised = betas(200, change=set_t0(50, 100), t0_steps=20, **options)
    assert raised[48] > 0.7  # it had risen
    assert raised[49:] == betas(200, t0_steps=100, **options)[49:]


@pytest.mark.requirement("A15")
@pytest.mark.parametrize("kind", KINDS)
def test_t0_lowered_lets_beta_rise_from_where_it_is(kind: Any) -> None:
    lowered = betas(200, kind=kind, change=set_t0(50, 20), t0_steps=100)
    assert lowered[48] == 0.6
    assert lowered[-1] > 0.75
    assert largest_rise(lowered) < 0.02


@pytest.mark.requirement("A15")
@pytest.mark.parametrize("beta_clock", ["window", "steps"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, CAPTURED, {"parity": "published"}, {"weight_lr_power": 3.0}])
def test_t0_is_counted_from_the_first_step_with_a_weight(
    beta_clock: str, kind: Any, more: dict[str, Any]
) -> None:
    if kind is AMUSEReference and "capturable" in more:
        more = {}
    options = {"kind": kind, "beta_clock": beta_clock, "t0_steps": 20, "warmup_steps": 0, **more}
    thawed, usual = betas(160, change=thaw(61), **options), betas(100, **options)
    assert thawed[:60] == [0.6] * 60
    assert thawed[60:] == pytest.approx(usual, rel=1e-13)


@pytest.mark.requirement("A15")
@pytest.mark.parametrize("beta_clock", ["window", "steps"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_exact_oracle_through_a_thaw(beta_clock: str, kind: Any) -> None:
    options: dict[str, Any] = {"direction": "sgd", "lr": 0.0, "warmup_steps": 5, "t0_steps": 12}
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = kind([p], beta_clock=beta_clock, **options)
    oracle = ExactOracle([np.ones(3)], beta_clock=beta_clock, **options)
    rng = np.random.default_rng(0)
    for t in range(1, 101):
        gradient, lr = rng.standard_normal(3), 0.0 if t <= 30 else 0.1 if t <= 80 else 0.0
        p.grad = torch.tensor(gradient)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        oracle.step([gradient], lr=lr)
        assert optimizer.param_groups[0]["beta_t"] == pytest.approx(oracle.beta, rel=1e-13)
        np.testing.assert_allclose(p.detach().numpy(), oracle.y[0], rtol=1e-12)
    assert oracle.beta > 0.7


@pytest.mark.requirement("A15")
def test_weights_that_do_not_depend_on_the_learning_rate_count_from_the_start() -> None:
    thawed = betas(100, change=thaw(61), t0_steps=20, weight_lr_power=0.0)
    assert thawed == betas(100, t0_steps=20, weight_lr_power=0.0)


@pytest.mark.requirement("A15")
@pytest.mark.parametrize("parity", ["exact", "published"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_learning_rate_of_exactly_0_leaves_beta_where_it_is(parity: str, kind: Any) -> None:
    def gone(t: int, group: dict[str, Any]) -> None:
        group["lr"] = 0.1 if t < 100 else 0.0 if t < 150 else 0.1

    frozen, usual = (betas(200, kind=kind, parity=parity, change=change) for change in (gone, thaw(0)))
    if parity == "exact":  # all steps weigh alike
        assert frozen == usual
    else:  # those without a learning rate weigh nothing
        assert frozen[98:149] == [frozen[98]] * 51
        assert frozen[149:] == pytest.approx(usual[99:150], rel=1e-12)
    decayed = betas(100, kind=kind, parity=parity, change=lambda t, g: g.update(lr=0.1 * (1 - t / 100)))
    assert decayed[-1] >= decayed[-2]


@pytest.mark.requirement("A15")
def test_a_group_that_is_added_late_has_its_own_t0() -> None:
    first, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AMUSE([first], direction="sgd", lr=0.1, warmup_steps=5, t0_steps=20)
    path = []
    for t in range(1, 201):
        if t == 101:  # frozen at first
            optimizer.add_param_group({"params": [late], "lr": 0.0})
        if t == 131:
            optimizer.param_groups[1]["lr"] = 0.1
        for parameter in (first, late):
            parameter.grad = torch.ones(2)
        optimizer.step()
        if t > 100:
            path.append(optimizer.param_groups[1]["beta_t"])
    assert path[:50] == [0.6] * 50
    assert 0.6 < path[50] < path[-1] < optimizer.param_groups[0]["beta_t"]
    assert largest_rise(path) < 0.05


@pytest.mark.requirement("A15")
@pytest.mark.parametrize(
    "options", [{"rho": 100.0}, {"rho": 1e6}, {"r": 1e4}, {"r": 1e300}, {"rho": 1e4, "r": 1e3}]
)
@pytest.mark.parametrize("beta_clock", ["window", "steps"])
@pytest.mark.parametrize("more", [{}, CAPTURED])
def test_beta_stays_below_1_in_float32(
    options: dict[str, Any], beta_clock: str, more: dict[str, Any]
) -> None:
    found = betas(600, t0_steps=20, beta_clock=beta_clock, **options, **more)
    assert all(torch.tensor(beta, dtype=torch.float32) < 1 for beta in found)
    assert found[:20] == [0.6] * 20


@pytest.mark.requirement("A15")
@pytest.mark.parametrize("r", [100.0, 600.0, 1e3, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_that_has_not_grown_is_no_reference(r: float, kind: Any) -> None:
    if kind is AMUSEReference and r > 100:
        r = 100.0  # it sums the weights themselves, which overflow
    assert largest_rise(betas(800, kind=kind, t0_steps=20, r=r)) < 0.12


@pytest.mark.requirement("A15", "A4")
@given(
    lrs=st.lists(st.sampled_from([0.0, 1e-3, 0.01, 0.05, 0.5]), min_size=60, max_size=60),
    t0s=st.lists(st.integers(2, 40), min_size=60, max_size=60),
    rho=st.floats(0.0, 50.0),
    r=st.sampled_from([0.0, 2.0, 1e3]),
    parity=st.sampled_from(["exact", "published"]),
    beta_clock=st.sampled_from(["window", "steps"]),
)
def test_numbers_and_tensors_agree_whatever_changes(
    lrs: list[float], t0s: list[int], rho: float, r: float, parity: str, beta_clock: str
) -> None:
    group: dict[str, Any] = {"warmup_steps": 3, "lr_decay": 0.0, "lr_decay_from": 9, "c_warmup_steps": 0}
    group |= {"beta1": 0.6, "rho": rho, "beta_clock": beta_clock, "r": r, "weight_lr_power": 2.0}
    host, device = Clock(), Clock(*(torch.tensor(0.0, dtype=torch.float64) for _ in range(6)))
    for lr, t0 in zip(lrs, t0s, strict=True):
        schedule = schedule_of(group | {"parity": parity, "t0_steps": t0})
        host, now = schedule.advance(host, lr)
        device, there = schedule.advance(device, torch.tensor(lr, dtype=torch.float64))
        assert 0.6 <= now.beta <= 1 - 2**-24
        assert 0 <= now.c <= 1
        for ours, theirs in ((now.beta, there.beta), (now.c, there.c), (host.idle_steps, device.idle_steps)):
            assert float(theirs) == pytest.approx(float(ours), rel=1e-12)


@pytest.mark.requirement("A15", "B1")
def test_a_state_dict_from_before_idle_steps_were_counted_goes_on() -> None:
    def run(optimizer: AMUSE, p: nn.Parameter, steps: range) -> list[float]:
        found = []
        for t in steps:
            optimizer.param_groups[0]["lr"] = 0.0 if t <= 30 else 0.1
            p.grad = torch.ones_like(p)
            optimizer.step()
            found.append(optimizer.param_groups[0]["beta_t"])
        return found

    for saved_at in (25, 90):  # before the thaw, and after T0
        p = nn.Parameter(torch.ones(3))
        optimizer = AMUSE([p], direction="sgd", lr=0.0, warmup_steps=0, t0_steps=20)
        run(optimizer, p, range(1, saved_at + 1))
        saved = copy.deepcopy(optimizer.state_dict())
        for name in ("idle_steps", "last_window"):
            del saved["param_groups"][0][name]
        q = nn.Parameter(p.detach().clone())
        again = AMUSE([q], direction="sgd", lr=0.0, warmup_steps=0, t0_steps=20)
        again.load_state_dict(saved)
        ours, theirs = (run(o, w, range(saved_at + 1, 151)) for o, w in ((optimizer, p), (again, q)))
        assert ours == theirs


@pytest.mark.requirement("A15", "B12")
def test_an_eps_that_float32_cannot_hold_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"eps must be finite and at least 1.18e-38"):
        AMUSE([p], direction="adamw", warmup_steps=2, eps=1e-50)
    for direction in ("adamw", "normuon"):
        weight = nn.Parameter(torch.ones(3, 3))
        optimizer = AMUSE([weight], direction=direction, warmup_steps=2, eps=1.2e-38)
        weight.grad = torch.zeros(3, 3)
        optimizer.step()
        assert weight.isfinite().all()
