"""The numbers of a step: theorems about them, and the published runs' end values."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amuse_optim.schedule import LENGTHS, OPTIONS, BetaClock, Clock, Coefficients, Parity, schedule_of


def schedule(**options: Any) -> dict[str, Any]:
    """Options of a group's schedule, with the lengths that are not said."""
    usual = {name: option.default for name, option in OPTIONS.items()} | {"warmup_steps": 10} | options
    defaults = {name: each * usual["warmup_steps"] for name, each in LENGTHS.items() if each is not None}
    return usual | {name: length for name, length in defaults.items() if usual[name] is None}


def run(steps: int, *, lr: float | list[float] = 0.01, **options: Any) -> list[Coefficients]:
    rules = schedule_of(schedule(**options))
    clock, path = Clock(), []
    for step in range(steps):
        clock, now = rules.advance(clock, lr[step] if isinstance(lr, list) else lr)
        path.append(now)
    return path


@given(
    beta1=st.floats(0.05, 0.95),
    rho=st.floats(0.0, 3.0),
    warmup_steps=st.integers(2, 40),
    hold=st.integers(0, 40),
    r=st.floats(0.0, 3.0),
    power=st.floats(0.0, 3.0),
    lr=st.floats(1e-5, 10.0),
    beta_clock=st.sampled_from(["window", "steps"]),
)
@pytest.mark.requirement("A4")
def test_beta_rises_monotonically_inside_its_interval(
    beta1: float,
    rho: float,
    warmup_steps: int,
    hold: int,
    r: float,
    power: float,
    lr: float,
    beta_clock: BetaClock,
) -> None:
    t0 = warmup_steps + hold
    path = run(
        150,
        lr=lr,
        warmup_steps=warmup_steps,
        t0_steps=t0,
        beta1=beta1,
        rho=rho,
        r=r,
        weight_lr_power=power,
        beta_clock=beta_clock,
    )
    betas = [now.beta for now in path]
    assert all(beta == beta1 for beta in betas[:t0])
    assert all(beta1 <= beta < 1 for beta in betas)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(betas))


@given(
    lrs=st.lists(st.sampled_from([0.0, 1e-3, 0.01, 0.05, 0.5]), min_size=60, max_size=60),
    rho=st.floats(0.0, 2.0),
    parity=st.sampled_from(["exact", "published"]),
)
@pytest.mark.requirement("A4")
def test_beta_stays_in_its_interval_for_any_learning_rates(
    lrs: list[float], rho: float, parity: Parity
) -> None:
    """Without the clamp a learning rate raised after the warm-up drives beta below 0."""
    path = run(60, lr=lrs, warmup_steps=3, rho=rho, parity=parity)
    assert all(0.6 <= now.beta <= 1 for now in path)
    assert all(0 <= now.c <= 1 for now in path)
    if parity == "exact":
        assert all(now.beta < 1 for now in path)


def test_learning_rate_warm_up_is_linear_and_may_be_absent() -> None:
    assert [now.lr for now in run(5, lr=1.0, warmup_steps=4)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [now.lr for now in run(3, lr=1.0, warmup_steps=0, t0_steps=2)] == [1.0, 1.0, 1.0]


@given(a=st.floats(0.01, 2.0), start=st.integers(1, 50), warmup_steps=st.integers(2, 30))
def test_power_decay_is_the_displayed_equation(a: float, start: int, warmup_steps: int) -> None:
    rates = [now.lr for now in run(80, lr=0.5, warmup_steps=warmup_steps, lr_decay=a, lr_decay_from=start)]
    expected = [0.5 * min(1, t / warmup_steps) * min(1, (start / t) ** a) for t in range(1, 81)]
    assert rates == pytest.approx(expected, rel=1e-14)


def test_power_decay_has_no_scale_and_leaves_the_weights_alone() -> None:
    """Doubling t lowers the rate by the same factor everywhere; x weighs all later steps alike."""
    path = run(400, lr=1.0, warmup_steps=4, lr_decay=0.7, lr_decay_from=8)
    assert [path[2 * t - 1].lr / path[t - 1].lr for t in (10, 50, 200)] == pytest.approx([0.5**0.7] * 3)
    constant = run(400, lr=1.0, warmup_steps=4)
    assert [now.c for now in path] == [now.c for now in constant]


def test_first_coefficient_is_one_and_equal_weights_give_one_over_t() -> None:
    path = run(50, weight_lr_power=0.0)
    assert [now.c for now in path] == pytest.approx([1 / t for t in range(1, 51)], rel=1e-14)


def test_the_clocks_agree_for_equal_weights() -> None:
    window = [now.beta for now in run(300, weight_lr_power=0.0, beta_clock="window")]
    steps = [now.beta for now in run(300, weight_lr_power=0.0, beta_clock="steps")]
    assert window == pytest.approx(steps, rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "warmup_steps", "beta1", "rho", "by_window", "by_steps"),
    [
        (16_000, 6_000, 0.6, 0.8, 0.905, 0.818),  # Llama 124M
        (16_000, 2_000, 0.4, 0.8, 0.949, 0.886),  # Llama 720M
        (24_800, 2_000, 0.4, 0.8, 0.965, 0.920),  # Llama 1.3B
        (117_300, 5_859, 0.8, 0.3, 0.941, 0.919),  # CIFAR-10
    ],
)
def test_end_values_of_the_published_runs(
    steps: int, warmup_steps: int, beta1: float, rho: float, by_window: float, by_steps: float
) -> None:
    ends = [
        run(steps, warmup_steps=warmup_steps, beta1=beta1, rho=rho, beta_clock=clock)[-1].beta
        for clock in ("window", "steps")
    ]
    assert [round(end, 3) for end in ends] == [by_window, by_steps]


def test_x_follows_z_during_the_c_warm_up() -> None:
    path = run(20, warmup_steps=10, c_warmup_steps=6)
    assert [now.c for now in path[:7]] == [1.0] * 7  # the sum of weights starts after C
    assert path[7].c < 1.0


def test_zero_learning_rates_do_no_harm() -> None:
    """A scheduler that starts at 0: x follows z, and T0's window is the first positive one."""
    path = run(40, lr=[0.0] * 15 + [0.1] * 25, warmup_steps=5)
    assert all(now.c == 1.0 for now in path[:16])
    assert all(math.isfinite(now.beta) and 0.6 <= now.beta < 1 for now in path)
    assert path[-1].beta > 0.6


def test_rho_zero_keeps_beta_whatever_t0_is() -> None:
    assert {now.beta for now in run(30, rho=0.0, warmup_steps=0, t0_steps=0)} == {0.6}


def rates(steps: int) -> list[float]:
    """Raised, then lowered: the running maximum matters."""
    return [0.01 if step < steps // 3 else 0.03 if step < steps // 2 else 0.002 for step in range(steps)]


@pytest.mark.parametrize("parity", ["exact", "published"])
def test_steep_weights_are_right_to_the_last_digits(parity: Parity) -> None:
    """r = 100 in fractions; t^r alone is beyond float64 from t = 1,210 on."""
    path = run(3000, lr=rates(3000), r=100.0, parity=parity)
    weight_sum, lr_max = Fraction(0), Fraction(0)
    for t, now in enumerate(path, start=1):
        lr = Fraction(now.lr)
        lr_max = max(lr, lr_max)
        weight = t**100 * (lr_max if parity == "exact" else lr) ** 2
        weight_sum += weight
        assert now.c == pytest.approx(float(weight / weight_sum), rel=1e-12), t


@pytest.mark.parametrize(("r", "power"), [(33.7, 2.0), (33.7, 0.5), (0.5, 3.0)])
def test_weights_of_fractional_powers_are_right_to_the_last_digits(r: float, power: float) -> None:
    """Against a sum without rounding of the weights in units of the present one."""
    path = run(4000, lr=rates(4000), r=r, weight_lr_power=power)
    largest = list(itertools.accumulate((now.lr for now in path), max))
    for t in [*range(1, 60), *range(60, 4001, 101)]:
        ratios = [(i / t) ** r * (largest[i - 1] / largest[t - 1]) ** power for i in range(1, t + 1)]
        assert path[t - 1].c == pytest.approx(1 / math.fsum(ratios), rel=1e-12), t


@pytest.mark.parametrize("number", [float, lambda value: torch.tensor(value, dtype=torch.float64)])
@pytest.mark.parametrize("r", [0.0, 33.7, 100.0])
def test_a_clock_at_a_thousand_million_steps_still_goes(r: float, number: Callable[[float], Any]) -> None:
    """S_t is t / (r + 1) in the limit, so c_t is (r + 1) / t; t^r itself would be up to 1e900."""
    rules = schedule_of(schedule(warmup_steps=10, r=r))
    t = 10**9
    clock = Clock(*map(number, (t - 1.0, (t - 1) / (r + 1), 0.01, 9.0)))
    for step in range(3):
        clock, now = rules.advance(clock, number(0.01))
        assert float(clock.t) == t + step
        assert float(now.c) == pytest.approx((r + 1) / (t + step), rel=1e-6)
        assert 0.6 < float(now.beta) < 1.0
