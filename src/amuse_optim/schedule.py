r"""The schedule: learning rate, averaging coefficient and interpolation coefficient of one step.

Each rule is a small class with its equation (arXiv 2605.22432) that takes Python numbers or scalar tensors.
`Schedule` combines three of them, and `Clock` is the state of a parameter group's schedule between two
steps. `schedule_of` chooses the rules by the group's options. To add a rule, write a class, add its options
to `OPTIONS`, and extend `schedule_of`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import Option, choice, fraction, kappas, not_negative, steps

BetaClock = Literal["window", "steps"]
Parity = Literal["exact", "published"]
DecayAt = Literal["z", "y"]
Number = float | Tensor

AVERAGE = "average_"  # how the names of averages for reading begin
SHORTEST_WINDOW = 1e-3
LARGEST_BETA = 1.0 - 2.0**-24  # the largest float32 below 1


@dataclass(frozen=True)
class Clock:
    """What a parameter group's schedule remembers.

    Args:
        t: Steps taken by the group.
        relative_weight_sum: Sum of the averaging weights so far, in units of t^r lr_max^weight_lr_power: a
            ratio, which neither overflows nor vanishes.
        lr_max: The largest learning rate used so far.
        reference_window: The averaging window n at T0, or so far.
        last_window: The window at the last step that had a weight.
        idle_steps: Steps before the first that had a weight; T0 is counted from there.
    """

    t: Number = 0
    relative_weight_sum: Number = 0.0
    lr_max: Number = 0.0
    reference_window: Number = 0.0
    last_window: Number = 0.0
    idle_steps: Number = 0


@dataclass(frozen=True)
class Coefficients:
    """The numbers that one step uses: lr_t, c_t and beta_t."""

    lr: Number
    c: Number
    beta: Number


def _where(condition: Any, then: Number, otherwise: Number) -> Number:
    """One of two numbers; with a condition on a device, without reading it."""
    if isinstance(condition, Tensor):
        return torch.where(condition, then, otherwise)
    return then if condition else otherwise


@dataclass(frozen=True)
class LinearWarmup:
    """lr_t = lr min(1, t / warmup_steps)."""

    warmup_steps: int

    def __call__(self, lr: Number, t: Number) -> Number:
        """The learning rate of step t."""
        return _where(t < self.warmup_steps, lr * t / max(self.warmup_steps, 1), lr)


@dataclass(frozen=True)
class PowerDecay(LinearWarmup):
    """lr_t = lr min(1, t / warmup_steps) min(1, (t_d / t)^a): a decay without an end.

    Args:
        warmup_steps: Steps over which the learning rate rises linearly to lr; 0 means no warm-up.
        a: The exponent; 0.5 to 0.7 did best in small trials.
        t_d: The step from which on it decays.
    """

    a: float
    t_d: int

    def __call__(self, lr: Number, t: Number) -> Number:
        """The learning rate of step t."""
        return super().__call__(lr, t) * (self.t_d / _where(t > self.t_d, t, self.t_d)) ** self.a


@dataclass(frozen=True)
class PowerWeights:
    r"""w_t = t^r l_t^p after C steps; c_t = w_t / (w_{C+1} + ... + w_t), and 1 before.

    With W_t the sum in units of t^r lr_max_t^p, and l_t <= lr_max_t the learning rate that weights,

        W_t = ((t - 1) / t)^r (lr_max_{t-1} / lr_max_t)^p W_{t-1} + (l_t / lr_max_t)^p,
        c_t = (l_t / lr_max_t)^p / W_t.

    c_t is 1 while all weights were zero, so that x follows z.

    Args:
        r: Exponent of t, the group's step count; 0 does not weight by t.
        p: Exponent of the learning rate l_t; 0 does not weight by it.
        c_warmup_steps: C, the number of first steps with c_t = 1, so that x = z.
        current_lr: Whether l_t is lr_t, as in the released code, instead of lr_max_t.
    """

    r: float
    p: float
    c_warmup_steps: int
    current_lr: bool

    def vanish(self, lr_max: Number) -> Any:
        """Whether all weights so far were 0, because all learning rates were."""
        return (lr_max == 0.0) & (self.p > 0.0)

    def __call__(self, clock: Clock, t: Number, lr: Number, lr_max: Number) -> tuple[Number, Number]:
        """W_t and c_t."""
        unit = _where(lr_max > 0, lr_max, 1.0)
        weight = ((lr if self.current_lr else lr_max) / unit) ** self.p
        before = ((t - 1) / t) ** self.r * (clock.lr_max / unit) ** self.p * clock.relative_weight_sum
        total = _where(t > self.c_warmup_steps, before + weight, 0.0)
        return total, _where(total > 0, weight / _where(total > 0, total, 1.0), 1.0)


@dataclass(frozen=True)
class PowerAverage:
    r"""c_t = kappa / (t + kappa - 1): the average of z that `averages` keeps for reading.

    z_i then has the weight kappa G(i + kappa - 1) G(t) / (G(i) G(t + kappa)), with the gamma function G,
    about kappa (i / t)^(kappa - 1) / t: kappa = 1 is the plain mean, and a larger one forgets the beginning
    sooner. For large t it is the average with the weights w_t = t^r for r = kappa - 1; at t = 10 and
    kappa = 10 c_t is 0.53, with weights 0.67.

    Args:
        kappa: At least 1: the larger, the more the latest steps weigh; 1 weighs all alike.

    References:
        arXiv 2312.02696 (power-function averages).
    """

    kappa: float

    @property
    def name(self) -> str:
        """What the state of a parameter calls it, such as "average_10"."""
        return f"{AVERAGE}{self.kappa:g}"

    def __call__(self, t: Number) -> Number:
        """c_t, of a parameter with t gradients so far."""
        return self.kappa / (t + (self.kappa - 1.0))


@dataclass(frozen=True)
class ConstantBeta:
    """beta_t = beta1: plain Schedule-Free."""

    beta1: float

    def __call__(self, t: Number, window: Number, reference: Number) -> Number:
        """The interpolation coefficient t steps after the first weight, that one included."""
        return self.beta1


@dataclass(frozen=True)
class WindowBeta:
    """beta_t = 1 - S_t^rho (1 - beta1) after T0, S_t = min(1, n_T0 / n_t): the released code's clock.

    The minimum keeps beta at beta1 when a learning rate raised after the warm-up shortens the window, and
    beta stays below 1 in float32 when the window has become endless. A window of less than
    `SHORTEST_WINDOW` has not had time to grow (r is large): beta stays at beta1 until it has.
    """

    beta1: float
    rho: float
    t0_steps: int

    def s(self, t: Number, window: Number, reference: Number) -> Number:
        """S_t after T0."""
        reference = _where(reference >= SHORTEST_WINDOW, reference, float("inf"))
        return _where(window > reference, reference / _where(window > reference, window, 1.0), 1.0)

    def __call__(self, t: Number, window: Number, reference: Number) -> Number:
        """The interpolation coefficient t steps after the first weight, that one included.

        In the form that rounding cannot take below beta1.
        """
        beta = self.beta1 + (1.0 - self.s(t, window, reference) ** self.rho) * (1.0 - self.beta1)
        beta = _where(beta < LARGEST_BETA, beta, max(self.beta1, LARGEST_BETA))
        return _where(t > self.t0_steps, beta, self.beta1)


class StepsBeta(WindowBeta):
    """The same with S_t = (T0 - 1) / (t - 1): the paper's equation 5."""

    def s(self, t: Number, window: Number, reference: Number) -> Number:
        """S_t after T0."""
        return (self.t0_steps - 1) / (_where(t > self.t0_steps, t, self.t0_steps) - 1)


@dataclass(frozen=True)
class Schedule:
    """The rules of a parameter group.

    Args:
        learning_rate: lr_t from the group's learning rate and t.
        weights: W_t and c_t from the clock before the step, t, lr_t and lr_max_t.
        beta: beta_t from t less the idle steps, the averaging window n_t and that at T0.
        t0_steps: T0, the number of steps for which beta_t stays at beta1, not counting the idle steps.
    """

    learning_rate: Callable[[Number, Number], Number]
    weights: PowerWeights
    beta: Callable[[Number, Number, Number], Number]
    t0_steps: int

    def advance(self, clock: Clock, lr: Number) -> tuple[Clock, Coefficients]:
        """Take the schedule one step on.

        Args:
            clock: The state after the previous step.
            lr: The group's learning rate at this step, before the rule.

        Returns:
            The clock after this step, and the step's coefficients.
        """
        t = clock.t + 1
        lr_t = self.learning_rate(lr, t)
        lr_max = _where(lr_t > clock.lr_max, lr_t, clock.lr_max)
        weight_sum, c = self.weights(clock, t, lr_t, lr_max)
        idle = clock.idle_steps + self.weights.vanish(lr_max)
        window = averaging_window(c, clock.last_window)
        growing = (t - idle <= self.t0_steps) | (clock.reference_window < SHORTEST_WINDOW)
        reference = _where(growing, window, clock.reference_window)
        beta = self.beta(t - idle, window, reference)
        return Clock(t, weight_sum, lr_max, reference, window, idle), Coefficients(lr_t, c, beta)


def averaging_window(c: Number, last: Number) -> Number:
    """n_t = (1 - c_t) / c_t: over how many steps x reaches back, as if all weighed the same.

    A step without a weight (parity="published" and a learning rate of 0) leaves the last one.
    """
    return _where(c > 0, (1.0 - c) / _where(c > 0, c, 1.0), last)


# Every option of a rule; lengths in steps.
OPTIONS = {
    "warmup_steps": Option(None, steps),
    "lr_decay": Option(0.0, not_negative),
    "lr_decay_from": Option(None, steps),
    "t0_steps": Option(None, steps),
    "c_warmup_steps": Option(0, steps),
    "beta1": Option(0.6, fraction),
    "rho": Option(0.8, not_negative),
    "beta_clock": Option("window", choice("window", "steps")),
    "r": Option(0.0, not_negative),
    "weight_lr_power": Option(2.0, not_negative),
    "parity": Option("exact", choice("exact", "published")),
    "averages": Option((), kappas),
}
# Options that are lengths, and how many warm-ups each is by default.
LENGTHS = {"warmup_steps": None, "lr_decay_from": 6, "t0_steps": 1, "c_warmup_steps": None}


def schedule_of(group: Mapping[str, Any]) -> Schedule:
    """The schedule that a group's options stand for."""
    beta1, rho, t0_steps = group["beta1"], group["rho"], group["t0_steps"]
    warmup_steps, decay, published = group["warmup_steps"], group["lr_decay"], group["parity"] == "published"
    decaying = PowerDecay(warmup_steps, decay, group["lr_decay_from"])
    rising = WindowBeta if group["beta_clock"] == "window" else StepsBeta
    return Schedule(
        learning_rate=decaying if decay > 0 else LinearWarmup(warmup_steps),
        weights=PowerWeights(group["r"], group["weight_lr_power"], group["c_warmup_steps"], published),
        beta=rising(beta1, rho, t0_steps) if rho > 0.0 else ConstantBeta(beta1),
        t0_steps=t0_steps,
    )


def check(group: Mapping[str, Any]) -> None:
    """Check what the options of a schedule ask of each other.

    Raises:
        ValueError: If T0 is so early that beta would jump, or beta1 is 0 where it cannot be.
    """
    if group["lr_decay"] > 0 and group["lr_decay_from"] < 1:
        raise ValueError(
            f"lr_decay_from must be >= 1 with lr_decay={group['lr_decay']!r}, got {group['lr_decay_from']} "
            "(it defaults to six warm-ups): say from which step on the learning rate decays"
        )
    least = max(2, group["c_warmup_steps"] + 2)
    if group["rho"] > 0 and group["t0_steps"] < least:
        raise ValueError(
            f"t0_steps must be at least 2 and greater than c_warmup_steps + 1, here >= {least}, got "
            f"{group['t0_steps']} (it defaults to warmup_steps={group['warmup_steps']}): averaging must "
            "begin before step T0, or beta would jump to 1. Pass a larger t0_steps, or rho=0 to keep beta"
        )
    if group["beta1"] == 0 and (group["rho"] > 0 or group["parity"] == "published"):
        raise ValueError(
            "beta1 must be in (0, 1), or 0 with rho=0 and parity='exact' (gradients are then taken at z, and "
            f"x is a plain average), got beta1=0 with rho={group['rho']!r} and parity={group['parity']!r}"
        )
