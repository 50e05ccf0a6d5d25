"""Learning-rate schedules: pure functions from a step to a multiplier of the peak learning rate."""

import math


def cosine(step: int, *, steps: int, warmup_steps: int, floor: float = 0.01) -> float:
    r"""Half a cosine up from `floor` to 1, then half a cosine down to `floor`, reached at the last step.

    With `W` warm-up steps of `N`, and `h(u) = (1 - cos(pi u)) / 2`:

    .. code-block:: text

        m(t) = floor + (1 - floor) h(t / W)                            t <  W
        m(t) = floor + (1 - floor) h(1 - (t - W) / (N - 1 - W))        t >= W

    so m(0) = floor, m(W) = 1 and m(N - 1) = floor. A run shorter than its warm-up ends inside it.

    Args:
        step: t, from 0.
        steps: N, the horizon.
        warmup_steps: W; 0 starts at the peak.
        floor: The multiplier at both ends.

    Returns:
        m(t).
    """
    if step < warmup_steps:
        height = step / warmup_steps
    else:
        height = 1 - (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return floor + (1 - floor) * (1 - math.cos(math.pi * height)) / 2
