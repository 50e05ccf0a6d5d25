r"""The numbers of one step: learning rate, averaging coefficient, interpolation coefficient.

Every function here is one displayed equation of arXiv 2605.22432 on plain numbers. `advance` strings them
together; `Clock` is all that has to be remembered between two steps of a parameter group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BetaClock = Literal["window", "steps"]
Parity = Literal["exact", "published"]


@dataclass(frozen=True)
class Clock:
    """What a parameter group's schedule remembers.

    Args:
        t: Steps taken by the group.
        weight_sum: Sum of the averaging weights w_i so far.
        lr_max: The largest learning rate used so far.
        reference_window: The averaging window n at T0; 0 while it is not known.
    """

    t: int = 0
    weight_sum: float = 0.0
    lr_max: float = 0.0
    reference_window: float = 0.0


@dataclass(frozen=True)
class Coefficients:
    """The numbers one step uses: lr_t, c_t and beta_t."""

    lr: float
    c: float
    beta: float


@dataclass(frozen=True)
class CoefficientsOnDevice:
    """`Coefficients` as scalars that lie on a device."""

    lr: Tensor
    c: Tensor
    beta: Tensor


def warmed_up_lr(lr: float, t: int, warmup_steps: int) -> float:
    """lr_t = lr * min(1, t / warmup_steps)."""
    return lr if t >= warmup_steps else lr * t / warmup_steps


def averaging_weight(t: int, lr: float, r: float, weight_lr_power: float) -> float:
    """w_t = t^r * lr^weight_lr_power."""
    return float(t**r * lr**weight_lr_power)


def averaging_coefficient(weight: float, weight_sum: float) -> float:
    """c_t = w_t / sum_{i<=t} w_i; 1 while all weights were zero, so that x follows z."""
    return weight / weight_sum if weight_sum > 0.0 else 1.0


def averaging_window(c: float) -> float:
    """n_t = (1 - c_t) / c_t: over how many steps x reaches back, as if all weighed the same."""
    return (1.0 - c) / c if c > 0.0 else float("inf")


def window_ratio(reference_window: float, window: float) -> float:
    """S_t = min(1, n_{T0} / n_t), the clock of the released code.

    The clamp keeps beta at beta1 when a learning rate raised after the warm-up shortens the window.
    """
    return reference_window / window if window > reference_window else 1.0


def step_ratio(t: int, t0_steps: int) -> float:
    """S_t = (T0 - 1) / (t - 1), the clock of the paper's equation 5."""
    return (t0_steps - 1) / (t - 1)


def interpolation_coefficient(beta1: float, rho: float, s: float) -> float:
    """beta_t = 1 - S_t^rho * (1 - beta1), in the form that rounding cannot take below beta1."""
    return float(beta1 + (1.0 - s**rho) * (1.0 - beta1))


def advance(
    clock: Clock,
    lr: float,
    *,
    warmup_steps: int,
    t0_steps: int,
    c_warmup_steps: int,
    beta1: float,
    rho: float,
    beta_clock: BetaClock,
    r: float,
    weight_lr_power: float,
    parity: Parity,
) -> tuple[Clock, Coefficients]:
    """Take the schedule one step on.

    Args:
        clock: The state after the previous step.
        lr: The group's learning rate at this step, before the warm-up factor.
        warmup_steps: Length of the linear learning-rate warm-up, in steps.
        t0_steps: T0: up to and including this step beta_t is beta1.
        c_warmup_steps: C: up to and including this step x follows z (c_t = 1).
        beta1: The interpolation coefficient at the start, in (0, 1).
        rho: How fast beta_t rises; 0 keeps it at beta1 (plain Schedule-Free).
        beta_clock: "window" or "steps", which S_t drives beta_t.
        r: Power of t in the averaging weight.
        weight_lr_power: Power of the learning rate in the averaging weight.
        parity: "published" weights with the current lr_t instead of the largest so far.

    Returns:
        The clock after this step, and this step's coefficients.
    """
    t = clock.t + 1
    lr_t = warmed_up_lr(lr, t, warmup_steps)
    lr_max = max(clock.lr_max, lr_t)

    if t <= c_warmup_steps:
        weight_sum, c = 0.0, 1.0
    else:
        weight = averaging_weight(t, lr_t if parity == "published" else lr_max, r, weight_lr_power)
        weight_sum = clock.weight_sum + weight
        c = averaging_coefficient(weight, weight_sum)

    window = averaging_window(c)
    reference_window = clock.reference_window
    if t >= t0_steps and reference_window == 0.0 and window < float("inf"):
        reference_window = window  # stays 0, and beta at beta1, while every learning rate was 0

    if rho == 0.0 or t <= t0_steps or reference_window == 0.0:
        beta = beta1
    elif beta_clock == "window":
        beta = interpolation_coefficient(beta1, rho, window_ratio(reference_window, window))
    else:
        beta = interpolation_coefficient(beta1, rho, step_ratio(t, t0_steps))
    return Clock(t, weight_sum, lr_max, reference_window), Coefficients(lr_t, c, beta)


def advance_on_device(
    clock: Mapping[str, Tensor],
    lr: float | Tensor,
    *,
    warmup_steps: int,
    t0_steps: int,
    c_warmup_steps: int,
    beta1: float,
    rho: float,
    beta_clock: BetaClock,
    r: float,
    weight_lr_power: float,
    parity: Parity,
) -> tuple[dict[str, Tensor], CoefficientsOnDevice]:
    """`advance` where the clock lies on a device: the same numbers, and nothing depends on reading one.

    Args:
        clock: The fields of `Clock`, scalars of float64.
        lr: As there; may be a scalar on the device.
        warmup_steps: As there, and so are the others.
        t0_steps: T0.
        c_warmup_steps: C.
        beta1: The interpolation coefficient at the start.
        rho: How fast it rises.
        beta_clock: Which S_t drives it.
        r: Power of t in the averaging weight.
        weight_lr_power: Power of the learning rate in the averaging weight.
        parity: Which learning rate weights.

    Returns:
        The fields after this step, and this step's coefficients.
    """
    t = clock["t"] + 1
    lr_t = lr * (t / warmup_steps).clamp(max=1.0) if warmup_steps > 0 else lr * torch.ones_like(t)
    lr_max = torch.maximum(clock["lr_max"], lr_t)

    averaging = t > c_warmup_steps
    weight = t**r * (lr_t if parity == "published" else lr_max) ** weight_lr_power
    weight_sum = torch.where(averaging, clock["weight_sum"] + weight, 0.0)
    c = torch.where(averaging & (weight_sum > 0), weight / weight_sum, 1.0)

    window = torch.where(c > 0, (1.0 - c) / c, torch.inf)
    at_t0 = (t >= t0_steps) & (clock["reference_window"] == 0) & (window < torch.inf)
    reference_window = torch.where(at_t0, window, clock["reference_window"])

    if beta_clock == "window":
        s = torch.where(window > reference_window, reference_window / window, 1.0)
    else:
        s = (t0_steps - 1) / (t - 1)
    rising = (t > t0_steps) & (reference_window > 0)
    beta = torch.where(rising, beta1 + (1.0 - s**rho) * (1.0 - beta1), beta1)
    advanced = {"t": t, "weight_sum": weight_sum, "lr_max": lr_max, "reference_window": reference_window}
    return advanced, CoefficientsOnDevice(lr_t, c, beta)
