"""The exact algorithm in float64 NumPy: sections 1 and 2, with x, y and z all stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.oracle.directions import Array, Orthogonalize, State, make_direction


class ExactOracle:
    """Section 1, one parameter group, line by line."""

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
        t0 = warmup_steps if t0_steps is None else t0_steps
        if not 0 <= beta1 <= 1 or (beta1 == 0 and rho != 0):
            raise ValueError("beta1 must be in (0, 1], or 0 with rho = 0")
        if rho != 0 and t0 < max(2, c_warmup_steps + 2):
            raise ValueError("t0_steps must be at least 2 and greater than c_warmup_steps + 1")
        if weight_decay_at not in ("z", "y") or beta_clock not in ("window", "steps"):
            raise ValueError("unknown weight_decay_at or beta_clock")

        self.x: list[Array] = [np.array(p, dtype=np.float64) for p in params]
        self.y: list[Array] = [np.array(p, dtype=np.float64) for p in params]
        self.z: list[Array] = [np.array(p, dtype=np.float64) for p in params]
        self.state: list[State] = [{} for _ in params]
        self.betas = [beta1 for _ in params]  # the beta that each y was built with

        self.t = 0
        self.beta = beta1
        self.c = 1.0
        self.lr_max = 0.0
        self.weight_sum = 0.0
        self.reference_window = 0.0
        self.idle_steps = 0

        self.lr, self.warmup_steps = lr, warmup_steps
        self.beta1, self.rho, self.t0, self.beta_clock = beta1, rho, t0, beta_clock
        self.c_warmup_steps, self.r, self.weight_lr_power = c_warmup_steps, r, weight_lr_power
        self.weight_decay, self.weight_decay_at = weight_decay, weight_decay_at
        names = [direction] * len(self.x) if isinstance(direction, str) else list(direction)
        self.directions = [
            make_direction(
                name,
                momentum=momentum,
                beta2=beta2,
                eps=eps,
                nesterov=nesterov,
                auxiliary_momentum=auxiliary_momentum,
                scale=scale,
                orthogonalize=orthogonalize,
                orthogonalize_steps=orthogonalize_steps,
            )
            for name in names
        ]

    def step(self, grads: Sequence[Array | None], lr: float | None = None) -> None:
        """Section 1: one step from gradients taken at y; a parameter without one stays as it is."""
        self.t += 1
        lr_t = (self.lr if lr is None else lr) * self._warmup()
        self.c = c = self._averaging_coefficient(lr_t)
        self.beta = beta = self._interpolation_coefficient(c)

        for i, grad in enumerate(grads):
            if grad is None:
                continue
            x, y, z = self.x[i], self.y[i], self.z[i]
            d = self.directions[i](self.state[i], np.asarray(grad, dtype=np.float64))
            decayed = z if self.weight_decay_at == "z" else y
            z = z - lr_t * d - lr_t * self.weight_decay * decayed
            x = (1 - c) * x + c * z
            y = (1 - beta) * z + beta * x
            self.x[i], self.y[i], self.z[i] = np.asarray(x), np.asarray(y), np.asarray(z)
            self.betas[i] = beta

    def _warmup(self) -> float:
        """Section 1: `min(1, t / warmup_steps)`."""
        return 1.0 if self.t >= self.warmup_steps else self.t / self.warmup_steps

    def _averaging_coefficient(self, lr_t: float) -> float:
        """Section 1: `c_t = w_t / sum w_i`, `w_t = t**r * lr_max_t**weight_lr_power`; 1 while `t <= C`."""
        self.lr_max = max(self.lr_max, lr_t)
        if self.t <= self.c_warmup_steps:
            return 1.0
        w = self.t**self.r * self.lr_max**self.weight_lr_power
        self.weight_sum += w
        return w / self.weight_sum if self.weight_sum > 0 else 1.0

    def _interpolation_coefficient(self, c: float) -> float:
        """Section 2: `beta1` until T0 after the first weight, then `1 - S_t**rho * (1 - beta1)`."""
        if self.lr_max == 0 and self.weight_lr_power > 0:
            self.idle_steps += 1
        since = self.t - self.idle_steps
        if self.rho == 0 or since < self.t0:
            return self.beta1
        if self.beta_clock == "steps":
            s = (self.t0 - 1) / (since - 1)
        else:
            n = (1 - c) / c
            if self.reference_window == 0:
                self.reference_window = n
            s = 1.0 if n <= self.reference_window else self.reference_window / n
        return self.beta1 if s == 1 else 1 - s**self.rho * (1 - self.beta1)
