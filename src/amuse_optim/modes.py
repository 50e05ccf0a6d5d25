"""Groups, their state, and what the parameters hold: y to train, the average x to evaluate."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from . import clock, options
from .buckets import Group, State
from .options import OptimizerModeError
from .sharding import gather_anew
from .state import complete_states, initial_state, kept_tensors, show_average, show_gradient_point
from .state_dict import FORMAT
from .versions import Versions

Mode = Literal["train", "eval"]


class AveragedOptimizer(torch.optim.Optimizer):
    """Everything about `AMUSE` but the step: groups of parameters with their state, in one of two modes."""

    # What the parameters held before each block of `averaged` that is open, oldest first.
    averaged_blocks: tuple[list[Mode], ...] = ()
    # Of the parameters, when the optimizer last wrote to them; forgotten in copies and when state is loaded.
    versions = Versions()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group at any time and in any mode; its clock starts at 0. Nothing changes if it raises.

        Args:
            param_group: "params", any of the options, and "name" if you like; options that are missing
                take the optimizer's own. Its parameters may have names where those of other groups have
                none, and the other way round.

        Raises:
            ValueError: As on construction, and for parameters that are in a group already.
            TypeError: As on construction.
        """
        group = options.complete_group(param_group, self.defaults)
        group |= clock.initial_numbers(group) | {"mode": self.mode, "readout": self.readout, "format": FORMAT}
        with options.names_hidden(*self.param_groups, group):
            super().add_param_group(group)
        for parameter in group["params"]:
            self.state[parameter] = initial_state(parameter, group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of a copy or of what was loaded, without the option that torch adds to them."""
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)

    @property
    def mode(self) -> Mode:
        """What the parameters hold: y in "train", x in "eval"."""
        mode: Mode = self.param_groups[0]["mode"] if self.param_groups else "train"
        return mode

    @property
    def readout(self) -> float | None:
        """In eval mode the kappa of the average that the parameters hold; None for x, and in train mode."""
        readout: float | None = self.param_groups[0].get("readout") if self.param_groups else None
        return readout

    def members(self) -> Iterator[tuple[Group, Tensor, State]]:
        """Every parameter with its group and its state, which is made where there is none.

        Raises:
            ValueError: If the state of a parameter that has taken steps is gone.
        """
        complete_states(self.param_groups, self.state)
        for group in self.param_groups:
            for parameter in group["params"]:
                yield group, parameter, self.state[parameter]

    def eval(self, *, kappa: float | None = None) -> None:
        """Put an average into the parameters; `train()` restores y bit for bit. No effect in eval mode.

        Args:
            kappa: One of `averages`, the average to put in; None means x.

        Raises:
            ValueError: If the average is not kept.
            OptimizerModeError: In eval mode, if the parameters hold another average.
        """
        if (inner := self._inner()) is not self:
            inner.eval(kappa=kappa)
            return
        self.check_readout(kappa)
        if self.mode == "train":
            members = list(self.members())
            self.notice_edits()
            with self._recorded():
                show_average(((parameter, state) for _, parameter, state in members), kappa)
            self._set_mode("eval", kappa)

    def check_readout(self, kappa: float | None) -> None:
        """Check that an average is kept, and that the parameters hold no other one.

        Raises:
            ValueError: If the average is not kept.
            OptimizerModeError: In eval mode, if the parameters hold another average.
        """
        for group in self.param_groups:
            if kappa is not None and kappa not in group["averages"]:
                raise ValueError(
                    f"kappa must be None or one of averages={tuple(group['averages'])!r}, got {kappa!r}: "
                    f"averages=({kappa!r},) keeps that average from the first step on"
                )
            held = group.get("readout")
            if group["mode"] == "eval" and held != kappa:
                shown, wanted = (
                    "the average x" if which is None else f"the average with kappa={which:g}"
                    for which in (held, kappa)
                )
                raise OptimizerModeError(
                    f"the parameters hold {shown}, and {wanted} was asked for: leave the "
                    "`with averaged(...):` block, or call optimizer.train() first"
                )

    def train(self) -> None:
        """Put the gradient point y back into the parameters. No effect in train mode.

        `torch.distributed.checkpoint` reads only tensors that the present state has. So if a checkpoint saved
        in eval mode is read while the optimizer is in train mode, y is not read, and is recomputed here from
        x and z with rounding. Call `eval()` before `get_state_dict` to read it exactly.
        """
        if (inner := self._inner()) is not self:
            inner.train()
        elif self.mode == "eval":
            members = list(self.members())
            lent = [
                state
                for group, parameter, state in members
                if self.readout is not None and "x" not in kept_tensors(parameter, group)
            ]
            self.notice_edits()
            with self._recorded():
                show_gradient_point((parameter, state) for _, parameter, state in members)
            self._set_mode("train")
            for _, _, state in members:
                state.pop("y", None)
            for state in lent:
                state.pop("x", None)

    def _inner(self) -> "AveragedOptimizer":
        """The optimizer itself, where this is Lightning's wrapper, which has borrowed its methods alone."""
        inner: AveragedOptimizer = getattr(self, "optimizer", self)
        return inner

    def _set_mode(self, mode: Mode, readout: float | None = None) -> None:
        for group in self.param_groups:
            group["mode"] = mode
            group["readout"] = readout

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        """Context manager: what is written to parameters inside is the optimizer's, even where it fails."""
        try:
            yield
        finally:
            self.versions = self.versions.recorded(self.param_groups)
            gather_anew(parameter for group in self.param_groups for parameter in group["params"])

    def notice_edits(self) -> None:
        """Warn of parameters that were written to from outside since the optimizer last did; each once."""
        self.versions = self.versions.checked(self.param_groups, self.state)

    def _require_train_mode(self) -> None:
        if self.mode == "eval":
            raise OptimizerModeError(
                "step() in eval mode: the parameters hold the average x, not the gradient point y. "
                "Call optimizer.train() first, or leave the `with averaged(optimizer):` block. (attach() "
                "cannot always see that module.training was set by hand, as Lightning does; use the callback "
                "in amuse_optim.integrations)"
            )
