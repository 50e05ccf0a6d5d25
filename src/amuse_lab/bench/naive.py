"""AMUSE as its authors' code does it: one matrix at a time, and a pass over memory for every line.

A fixture to measure against, not an optimizer to train with: it has no modes, checks nothing and keeps no
schedule beyond what costs time.
"""

import math
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalize(update: Tensor) -> Tensor:
    """Five plain quintic steps in bfloat16: X <- a X + (b A + c A A) X with A = X X^T."""
    x = update.bfloat16()
    tall = x.size(0) > x.size(1)
    if tall:
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    result: Tensor = x.mT if tall else x
    return result


class Naive(torch.optim.Optimizer):
    """AMUSE with an unfused step, one parameter at a time.

    Args:
        groups: Parameter groups from `amuse_optim.param_groups`, whose parameters have no names.
        lr: Learning rate of every step: there is no warm-up and no decay.
        weight_decay: Decoupled weight decay, taken at z.
        beta1: Initial interpolation coefficient beta between z (0) and x (1).
        rho: Exponent of the rise of beta; 0 keeps it at beta1.
        momentum: Decay of Muon's momentum, in [0, 1); the update takes Nesterov's form of it.
        beta2: Decay of the second moment.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        beta1: float = 0.6,
        rho: float = 0.8,
        momentum: float = 0.95,
        beta2: float = 0.999,
        eps: float = 1e-10,
    ) -> None:
        settings = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "beta2": beta2, "eps": eps}
        super().__init__([{**group, **settings} for group in groups], {})
        self._beta1, self._rho, self._beta = beta1, rho, beta1
        self._steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # noqa: ARG002 - torch's signature, of which it needs nothing
        """Step every parameter by itself; writes into the gradients."""
        self._steps += 1
        c = 1.0 / self._steps
        beta = 1.0 - (1.0 - self._beta1) * min(1.0, 2 * c) ** self._rho
        for group in self.param_groups:
            lr = group["lr"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["z"] = parameter.clone()
                    state["moment"] = torch.zeros_like(parameter)
                z = state["z"]
                direction = self._direction(group, parameter.grad, state["moment"])
                # Five passes, 14 transfers an element: y to x, decay, descent, average, x to the next y.
                parameter.lerp_(z, 1.0 - 1.0 / self._beta)
                z.mul_(1.0 - lr * group["weight_decay"])
                z.add_(direction, alpha=-lr)
                parameter.lerp_(z, c)
                parameter.lerp_(z, 1.0 - beta)
        self._beta = beta

    def _direction(self, group: dict[str, Any], gradient: Tensor, moment: Tensor) -> Tensor:
        if group["direction"] == "muon":
            moment.lerp_(gradient, 1.0 - group["momentum"])
            update = gradient.lerp_(moment, group["momentum"])
            return orthogonalize(update) * (0.2 * math.sqrt(max(update.shape)))
        moment.mul_(group["beta2"]).addcmul_(gradient, gradient, value=1.0 - group["beta2"])
        corrected = moment / (1.0 - group["beta2"] ** self._steps)
        direction: Tensor = gradient / corrected.sqrt().add_(group["eps"])
        return direction
