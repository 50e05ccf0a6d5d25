"""The specification that runs: x, y and z all stored, plain loops, one equation a line."""

from typing import Any

import torch
from torch import Tensor

from .directions import adamw_direction, momentum_average_, update_scale
from .optimizer import AMUSE
from .orthogonalize import orthogonalize
from .schedule import Coefficients, CoefficientsOnDevice
from .sequences import average, interpolate
from .settings import Group, layout_of
from .state import State


class AMUSEReference(AMUSE):
    """AMUSE as it is written down, to read, and to hold `AMUSE` against.

    Takes the arguments of `AMUSE`. Stores x, y and z of every parameter (in at least float32), one
    matrix at a time, with nothing fused, batched or recovered.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As `AMUSE.add_param_group`.

        Raises:
            ValueError: As there, and for `capturable=True`.
        """
        if {**self.defaults, **param_group}["capturable"]:
            raise ValueError("capturable must be False for AMUSEReference, which is not made to be captured")
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            state = self.state[parameter]
            state["x"] = state["z"].clone()
            state["y"] = state["z"].clone()

    @torch.no_grad()
    def eval(self) -> None:
        """Put x into the parameters."""
        self._show("x", "eval")

    @torch.no_grad()
    def train(self) -> None:
        """Put y into the parameters."""
        self._show("y", "train")

    def _show(self, sequence: str, mode: str) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.state[parameter]["step"] > 0:
                    parameter.copy_(self.state[parameter][sequence])
            group["mode"] = mode

    def _move(self, groups: list[Group], schedules: list[Coefficients | CoefficientsOnDevice]) -> None:
        for group, now in zip(groups, schedules, strict=True):
            assert isinstance(now, Coefficients)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(group, parameter, self.state[parameter], now)

    def _step_parameter(self, group: Group, parameter: Tensor, state: State, now: Coefficients) -> None:
        if state["step"] == 0:  # follow weights loaded into the model before the first step
            for sequence in ("x", "y", "z"):
                state[sequence].copy_(parameter)
        state["step"] += 1
        x, y, z = state["x"], state["y"], state["z"]
        assert parameter.grad is not None
        d = _direction(group, parameter, parameter.grad.to(z.dtype), state)

        if group["parity"] == "published":  # x decoded with the new beta from a y built with the old one
            x = interpolate(z, x, state["beta"] / now.beta)
        decayed = z if group["weight_decay_at"] == "z" else y
        z_next = z - now.lr * d - now.lr * group["weight_decay"] * decayed
        x_next = average(x, z_next, now.c)
        y_next = interpolate(z_next, x_next, now.beta)

        state["z"].copy_(z_next)
        state["x"].copy_(x_next)
        state["y"].copy_(y_next)
        state["beta"] = now.beta
        parameter.copy_(y_next)


def _direction(group: Group, parameter: Tensor, gradient: Tensor, state: State) -> Tensor:
    if group["direction"] == "sgd":
        return gradient
    if group["direction"] == "adamw":
        direction, factor = adamw_direction(
            gradient,
            state["exp_avg_sq"],
            state["step"],
            beta2=group["beta2"],
            eps=group["eps"],
            first_moment=state.get("exp_avg"),
            momentum=group["auxiliary_momentum"],
        )
        return direction * factor
    update = momentum_average_(
        state["momentum_buffer"], gradient, group["momentum"], nesterov=group["nesterov"]
    )
    layout = layout_of(group, parameter)
    blocks = []
    for stack in layout.split(update):
        matrices = [
            update_scale(matrix.shape[0], matrix.shape[1], group["scale"])
            * orthogonalize(
                matrix,
                method=group["orthogonalize"],
                steps=group["orthogonalize_steps"],
                dtype=group["orthogonalize_dtype"],
            )
            for matrix in stack
        ]
        blocks.append(torch.stack(matrices))
    return layout.join(blocks)
