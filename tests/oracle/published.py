"""The authors' behaviour in float64 NumPy: section 2, "As published"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracle.directions import Array, Orthogonalize, State, make_direction


class PublishedOracle:
    """Section 2, "As published": x is re-read from y with the new beta, weights use the current rate."""

    def __init__(
        self,
        params: Sequence[Array],
        *,
        direction: str | Sequence[str],
        lr: float,
        warmup_steps: int,
        beta1: float = 0.6,
        rho: float = 0.8,
        momentum: float = 0.95,
        beta2: float = 0.999,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        weight_decay_at: str = "z",
        t0_steps: int | None = None,
        c_warmup_steps: int = 0,
        beta_clock: str = "window",
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        nesterov: bool = True,
        auxiliary_momentum: float = 0.0,
        scale: str = "match_rms",
        orthogonalize: str | Orthogonalize = "quintic",
        orthogonalize_steps: int = 5,
    ) -> None:
        self.t0 = t0_steps if t0_steps is not None else warmup_steps
        if beta1 <= 0 or beta1 > 1:
            raise ValueError("beta1 must be in (0, 1]")
        if rho != 0 and (self.t0 < 2 or self.t0 <= c_warmup_steps + 1):
            raise ValueError("t0_steps must be at least 2 and greater than c_warmup_steps + 1")
        if weight_decay_at not in {"z", "y"}:
            raise ValueError("weight_decay_at is z or y")
        if beta_clock not in {"window", "steps"}:
            raise ValueError("beta_clock is window or steps")
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.beta1 = beta1
        self.rho = rho
        self.weight_decay = weight_decay
        self.weight_decay_at = weight_decay_at
        self.c_warmup_steps = c_warmup_steps
        self.beta_clock = beta_clock
        self.r = r
        self.weight_lr_power = weight_lr_power

        count = len(params)
        kinds = [direction] * count if isinstance(direction, str) else list(direction)
        shared = {
            "momentum": momentum,
            "beta2": beta2,
            "eps": eps,
            "nesterov": nesterov,
            "auxiliary_momentum": auxiliary_momentum,
            "scale": scale,
            "orthogonalize": orthogonalize,
            "orthogonalize_steps": orthogonalize_steps,
        }
        self.directions = [make_direction(kind, **shared) for kind in kinds]
        self.state: list[State] = [{} for _ in range(count)]
        self.z: list[Array] = [np.array(p, dtype=np.float64) for p in params]
        self.x: list[Array] = [z.copy() for z in self.z]
        self.y: list[Array] = [z.copy() for z in self.z]
        self.betas: list[float] = [beta1] * count

        self.t = 0
        self.c = 1.0
        self.beta = beta1
        self.sum_of_weights = 0.0
        self.window_at_t0: float | None = None
        self.window = 0.0
        self.without_weight = 0

    def step(self, grads: Sequence[Array | None], lr: float | None = None) -> None:
        """Section 2, "As published": one step from gradients taken at y."""
        t = self.t = self.t + 1
        rate = self.lr if lr is None else lr
        if t < self.warmup_steps:
            rate = rate * t / self.warmup_steps

        if t <= self.c_warmup_steps:
            c = 1.0
        else:
            weight = float(t) ** self.r * rate**self.weight_lr_power  # the current rate, not the largest
            self.sum_of_weights += weight
            c = 1.0 if self.sum_of_weights == 0 else weight / self.sum_of_weights

        new = self._new_beta(t, c)

        for i, grad in enumerate(grads):
            if grad is None:
                continue
            old = self.betas[i]
            x = (old / new) * self.x[i] + (1 - old / new) * self.z[i]
            d = self.directions[i](self.state[i], np.asarray(grad, dtype=np.float64))
            decay = self.weight_decay * (self.y[i] if self.weight_decay_at == "y" else self.z[i])
            self.z[i] = np.asarray(self.z[i] - rate * (d + decay))
            self.x[i] = np.asarray(x + c * (self.z[i] - x))
            self.y[i] = np.asarray(self.z[i] + new * (self.x[i] - self.z[i]))
            self.betas[i] = new

        self.c, self.beta = c, new

    def _new_beta(self, t: int, c: float) -> float:
        """Section 2: the window `(1 - c) / c`, or the step count, against its value at T0; clamped at 1."""
        window = self.window = (1 - c) / c if c > 0 else self.window  # a rate of zero adds no weight
        if self.sum_of_weights == 0 and t > self.c_warmup_steps:
            self.without_weight += 1
        since = t - self.without_weight
        if self.window_at_t0 is None and since >= self.t0 and window > 0:
            self.window_at_t0 = window
        if since <= self.t0 or self.rho == 0:
            return self.beta1
        if self.beta_clock == "steps":
            shrink = (self.t0 - 1) / (since - 1)
        elif self.window_at_t0 is None or window <= self.window_at_t0:
            shrink = 1.0
        else:
            shrink = self.window_at_t0 / window
        return 1 - (1 - self.beta1) * shrink**self.rho
