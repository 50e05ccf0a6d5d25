"""Power averages that were not kept, rebuilt afterwards from snapshots of two that were.

The average with kappa at step T weighs z_i by w_i; a linear combination of snapshots weighs it by the same
combination of their profiles. The combination nearest to w by least squares is taken, and refused where
more than `LARGEST_RESIDUAL` of the weight lies on other steps than w puts it.

References:
    arXiv 2312.02696, section 3 (post-hoc averages of power-function profiles).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GROWTH = 1.15
"""From one snapshot to the next the step grows by this factor."""

LARGEST_RESIDUAL = 0.02

_EXACT = 4096  # steps from the first on whose weights are compared one by one; later ones in blocks

Numbers = npt.NDArray[np.float64]


def profile(kappa: float, last: int, steps: Numbers) -> Numbers:
    r"""Return the weights of z_i in the average with kappa after `last` steps, for the steps i asked for.

    With c_i = kappa / (i + kappa - 1):

    .. code-block:: text

        w_i = c_i prod_{j = i + 1}^{T} (1 - c_j) = kappa G(i + kappa - 1) G(T) / (G(i) G(T + kappa))

    where G is the gamma function, and 0 for i > T.
    """
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    reached = np.minimum(steps, last)
    logs = log_gamma(reached + kappa - 1) - log_gamma(reached)
    logs += math.lgamma(last) - math.lgamma(last + kappa) + math.log(kappa)
    return np.where(steps <= last, np.exp(logs), 0.0)


def combination(kept: Sequence[tuple[float, int]], kappa: float, last: int) -> tuple[Numbers, float]:
    """Return the coefficients of the snapshots that make an average, and the residual of its profile.

    Args:
        kept: Kappa and step of each snapshot.
        kappa: Kappa of the average wanted, see `profile`.
        last: Step T of the average wanted.

    Returns:
        Coefficients, shape (snapshots,), and the residual: the share of the weight that is on other steps,
        half the sum of the absolute differences of the profiles.
    """
    edges = {*range(1, min(last, _EXACT) + 2), last + 1, *(step + 1 for _, step in kept)}
    if last > _EXACT:
        count = math.ceil(math.log(last / _EXACT) / math.log(1.002))
        edges |= {round(_EXACT * 1.002**n) for n in range(count)}
    blocks: Numbers = np.array(sorted(edge for edge in edges if edge <= last + 1), dtype=np.float64)
    starts, widths = blocks[:-1], np.sqrt(np.diff(blocks))
    profiles = np.stack([profile(k, step, starts) for k, step in kept], axis=1) * widths[:, None]
    target = profile(kappa, last, starts) * widths
    coefficients = np.asarray(np.linalg.lstsq(profiles, target, rcond=1e-10)[0], dtype=np.float64)
    residual = np.abs(profiles @ coefficients - target) @ widths / 2
    return coefficients, float(residual)


def _following(step: int) -> int:
    """The step of the snapshot after one at this step."""
    return math.ceil(step * GROWTH) if step * GROWTH > step + 1 else step + 1


def residual(kept: Sequence[float], kappa: float, last: int) -> float:
    """Return the residual of an average after so many steps that is rebuilt from those that are kept."""
    steps = [1]
    while steps[-1] < last:
        steps.append(_following(steps[-1]))
    sources = [(own, step) for own in kept for step in {*steps[:-1], last}]
    return combination(sources, kappa, last)[1]


class Snapshots:
    """Copies of averages at steps that grow by `GROWTH`, in memory.

    Attributes:
        taken: Kappa, step and tensors of each.
    """

    def __init__(self) -> None:
        self.taken: list[tuple[float, int, list[Tensor]]] = []
        self._now: dict[float, list[Tensor]] = {}
        self._next = 1

    def take(self, step: int, averages: Mapping[float, list[Tensor]]) -> None:
        """Copy the averages if it is time to; otherwise remember where they are."""
        self._now = dict(averages)
        if step >= self._next:
            self.taken += [(kappa, step, [t.clone() for t in tensors]) for kappa, tensors in averages.items()]
            self._next = _following(step)

    def rebuild(self, kappa: float, step: int) -> tuple[list[Tensor], float]:
        """Return the average with another kappa at the newest step, and the residual of its profile.

        Args:
            kappa: Kappa of the average wanted, between those that were kept.
            step: The newest step, at which the averages given to `take` last stand.

        Raises:
            ValueError: If the residual of its profile is above `LARGEST_RESIDUAL`.
        """
        sources = [source for source in self.taken if source[1] < step]
        sources += [(own, step, tensors) for own, tensors in self._now.items()]
        coefficients, left = combination([(own, at) for own, at, _ in sources], kappa, step)
        if left > LARGEST_RESIDUAL:
            kept = ", ".join(f"{own:g}" for own in self._now)
            raise ValueError(
                f"the average with kappa {kappa:g} cannot be rebuilt at step {step} from those of {kept}: "
                f"{left:.1%} of its weight would be on other steps, at most {LARGEST_RESIDUAL:.0%} may be"
            )
        total = [torch.zeros_like(tensor) for tensor in sources[0][2]]
        for coefficient, (_, _, tensors) in zip(coefficients, sources, strict=True):
            torch._foreach_add_(total, tensors, alpha=float(coefficient))
        return total, left

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshots."""
        return {"taken": [list(each) for each in self.taken], "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict()`."""
        self.taken = [(kappa, step, list(tensors)) for kappa, step, tensors in state["taken"]]
        self._next = state["next"]
