"""Learning-rate schedules: pure functions from a step to a multiplier of the peak learning rate.

Each starts at step 0, ends exactly at the last step N - 1 and stays at its end after it. Published
language-model runs warm up from, and a cosine ends at, a hundredth of the peak: `FLOOR`.
"""

import math
from collections.abc import Mapping
from typing import Literal, Protocol

ScheduleName = Literal["cosine", "wsd", "linear", "constant", "none"]

FLOOR = 0.01


class Schedule(Protocol):
    """From a step to a multiplier of the peak learning rate."""

    def __call__(self, step: int, /, *, steps: int, warmup_steps: int) -> float:
        """Return m(step), for a run of `steps` that warms up for `warmup_steps`."""


def _warmup(step: int, warmup_steps: int) -> float:
    """How much of the warm-up is done: 0 at step 0, 1 from `warmup_steps` on."""
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def _left(step: int, *, start: int, steps: int) -> float:
    """How much of the way from `start` to the last step is left: 1 up to `start`, 0 from the last step on."""
    return min(1.0, max(0.0, 1 - (step - start) / max(1, steps - 1 - start)))


def _height(step: int, *, steps: int, warmup_steps: int) -> float:
    """From 0 up to 1 at `warmup_steps`, then down to 0 at the last step, in straight lines."""
    if step < warmup_steps:
        return _warmup(step, warmup_steps)
    return _left(step, start=warmup_steps, steps=steps)


def cosine(step: int, *, steps: int, warmup_steps: int, floor: float = FLOOR) -> float:
    r"""Half a cosine up from `floor` to 1, then half a cosine down to `floor`, reached at the last step.

    With `W` warm-up steps of `N`, and `h(u) = (1 - cos(pi u)) / 2`:

    .. code-block:: text

        m(t) = floor + (1 - floor) h(t / W)                            t <  W
        m(t) = floor + (1 - floor) h(1 - (t - W) / (N - 1 - W))        t >= W

    so m(0) = floor, m(W) = 1 and m(N - 1) = floor. A run shorter than its warm-up ends inside it.

    Args:
        step: t, the number of the step, from 0.
        steps: N, the steps of the run.
        warmup_steps: W; 0 starts at the peak.
        floor: The multiplier at both ends.

    Returns:
        m(t).
    """
    height = _height(step, steps=steps, warmup_steps=warmup_steps)
    return floor + (1 - floor) * (1 - math.cos(math.pi * height)) / 2


def linear(step: int, *, steps: int, warmup_steps: int, floor: float = FLOOR) -> float:
    """`cosine` with straight lines: up from `floor` to 1 at W, down to `floor` at the last step.

    Args:
        step: t, the number of the step, from 0.
        steps: N, the steps of the run.
        warmup_steps: W; 0 starts at the peak.
        floor: The multiplier at both ends.

    Returns:
        m(t).
    """
    return floor + (1 - floor) * _height(step, steps=steps, warmup_steps=warmup_steps)


def wsd(step: int, *, steps: int, warmup_steps: int, floor: float = FLOOR, fraction: float = 0.2) -> float:
    """Warm-up, stable, decay: up in a line, hold, then one minus a square root down to 0.

    With `W` warm-up steps of `N`, of which the last `A = fraction N` are below the peak, and
    `D = max(W, N - 1 - A)`:

    .. code-block:: text

        m(t) = floor + (1 - floor) t / W                   t <  W
        m(t) = 1                                      W <= t <= D
        m(t) = 1 - sqrt((t - D) / (N - 1 - D))        D <  t

    so m(0) = floor and m(N - 1) = 0: the last step moves nothing.

    Args:
        step: t, the number of the step, from 0.
        steps: N, the steps of the run.
        warmup_steps: W; 0 starts at the peak.
        floor: The multiplier at the start.
        fraction: How much of the horizon decays.

    Returns:
        m(t).

    References:
        arXiv 2405.18392 (the shape of the decay).
    """
    if step < warmup_steps:
        return constant(step, steps=steps, warmup_steps=warmup_steps, floor=floor)
    start = max(warmup_steps, steps - 1 - round(fraction * steps))
    return 1 - math.sqrt(1 - _left(step, start=start, steps=steps))


def constant(step: int, *, steps: int, warmup_steps: int, floor: float = FLOOR) -> float:  # noqa: ARG001
    """Up in a line from `floor` to 1 at W, and 1 from there on.

    Args:
        step: t, the number of the step, from 0.
        steps: N, the horizon, which it does not need.
        warmup_steps: W; 0 starts at the peak.
        floor: The multiplier at the start.

    Returns:
        m(t).
    """
    return floor + (1 - floor) * _warmup(step, warmup_steps)


def none(step: int, *, steps: int, warmup_steps: int) -> float:  # noqa: ARG001
    """Return 1 at every step: the peak is the learning rate."""
    return 1.0


SCHEDULES: Mapping[ScheduleName, Schedule] = {
    "cosine": cosine,
    "wsd": wsd,
    "linear": linear,
    "constant": constant,
    "none": none,
}
"""Every schedule by its name."""
