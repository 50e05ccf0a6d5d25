"""The optimizers of the laboratory: for each a config and a thin builder over the package it comes from."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from amuse_lab.config import OptimizerConfig
from amuse_lab.errors import ConfigError
from amuse_lab.protocols import TrainingOptimizer
from amuse_lab.schedules import cosine
from amuse_optim import AMUSE, averaged, param_groups, telemetry


class Anytime:
    """AMUSE: no schedule, x and y."""

    averages = True

    def __init__(self, optimizer: AMUSE) -> None:
        self._optimizer = optimizer

    def step(self) -> None:
        """Take one step of AMUSE."""
        self._optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold x."""
        with averaged(self._optimizer):
            yield

    def telemetry(self) -> dict[str, float]:
        """Return lr, beta and the averaging weight c of the last step, then the numbers of every group."""
        group = self._optimizer.param_groups[0]
        shared = {"lr": group["lr_t"], "beta": group["beta_t"], "c": group["c_t"]}
        measured = {name: value.item() for name, value in telemetry(self._optimizer).items()}
        by_group = {
            name: value
            for name, value in measured.items()
            if name.split("/")[1] not in shared and math.isfinite(value)
        }
        return shared | by_group


class ScheduleFree:
    """Schedule-Free AdamW: no schedule, x and y."""

    averages = True

    def __init__(self, optimizer: AdamWScheduleFree) -> None:
        self._optimizer = optimizer
        self._optimizer.train()

    def step(self) -> None:
        """Take one step; the package scales the gradients in place."""
        self._optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the parameters hold x; y is kept aside, because the package's way back to it rounds."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        kept = [parameter.detach().clone() for parameter in parameters]
        self._optimizer.eval()
        try:
            yield
        finally:
            self._optimizer.train()
            with torch.no_grad():
                for parameter, y in zip(parameters, kept, strict=True):
                    parameter.copy_(y)

    def telemetry(self) -> dict[str, float]:
        """Return lr and beta of the last step."""
        group = self._optimizer.param_groups[0]
        return {"lr": float(group["scheduled_lr"]), "beta": group["betas"][0]}


class Scheduled:
    """One or more of torch's optimizers under one schedule.

    Args:
        optimizers: Together they hold every parameter once; their groups' "lr" is the peak.
        schedule: From the step, 0 for the first, to the multiplier of the peak.
    """

    averages = False

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], schedule: Callable[[int], float]) -> None:
        self._optimizers = optimizers
        self._schedule = schedule
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self._step = 0

    def step(self) -> None:
        """Set this step's learning rates and take it."""
        multiplier = self._schedule(self._step)
        for optimizer, peaks in zip(self._optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier
            optimizer.step()
        self._step += 1

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Change nothing: there is one point only."""
        yield

    def telemetry(self) -> dict[str, float]:
        """Return the lr of the first group in the last step."""
        return {"lr": self._optimizers[0].param_groups[0]["lr"]}


def _decay_split(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices decay; vectors and embeddings, with a head tied to one, do not."""
    looked_up = {
        p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()
    }
    parameters = [p for p in model.parameters() if p.requires_grad]
    still = [p for p in parameters if p in looked_up or p.dim() < 2]
    decaying = [p for p in parameters if p not in looked_up and p.dim() >= 2]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]


def _routed(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The hidden matrices and the rest, as AMUSE tells them apart."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for group in param_groups(model):
        (matrices if group["direction"] == "muon" else rest).extend(p for _, p in group["params"])
    return matrices, rest


@dataclass(frozen=True)
class Amuse(OptimizerConfig):
    """AMUSE: Muon for hidden matrices, AdamW's direction for the rest, averaged; no schedule.

    Attributes:
        warmup_steps: Steps of linear learning-rate warm-up.
        t0_steps: Steps for which beta stays at beta1; None means warmup_steps.
        c_warmup_steps: Steps before averaging starts.
        beta1: Interpolation between z (0) and x (1) up to t0_steps.
        rho: How fast beta rises afterwards; 0 keeps it.
        momentum: Of Muon, Nesterov.
        beta2: Decay of the second moment, for the rest.
        auxiliary_momentum: First moment for the rest; 0 stores none.
        weight_decay: Decoupled, on every parameter.
        r: Power of the step in the averaging weights.
    """

    name: ClassVar[str] = "amuse"

    warmup_steps: int
    t0_steps: int | None = None
    c_warmup_steps: int = 0
    beta1: float = 0.6
    rho: float = 0.8
    momentum: float = 0.95
    beta2: float = 0.999
    auxiliary_momentum: float = 0.0
    weight_decay: float = 0.0
    r: float = 0.0

    def build(self, model: nn.Module, *, steps: int) -> TrainingOptimizer:  # noqa: ARG002 - it needs no horizon
        """Build AMUSE, which checks the settings itself."""
        try:
            optimizer = AMUSE(
                param_groups(model),
                lr=self.lr,
                warmup_steps=self.warmup_steps,
                t0_steps=self.t0_steps,
                c_warmup_steps=self.c_warmup_steps,
                beta1=self.beta1,
                rho=self.rho,
                momentum=self.momentum,
                beta2=self.beta2,
                auxiliary_momentum=self.auxiliary_momentum,
                weight_decay=self.weight_decay,
                r=self.r,
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error
        return Anytime(optimizer)


@dataclass(frozen=True)
class ScheduleFreeAdamW(OptimizerConfig):
    """Schedule-Free AdamW, from the package `schedulefree`.

    Attributes:
        warmup_steps: Steps of linear learning-rate warm-up.
        beta1: Interpolation between z (0) and x (1).
        beta2: Decay of the second moment.
        weight_decay: Decoupled, at y; not on norms and embeddings.
    """

    name: ClassVar[str] = "sf-adamw"

    warmup_steps: int
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def build(self, model: nn.Module, *, steps: int) -> TrainingOptimizer:  # noqa: ARG002 - it needs no horizon
        """Build Schedule-Free AdamW."""
        groups = _decay_split(model, self.weight_decay)
        optimizer = AdamWScheduleFree(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), warmup_steps=self.warmup_steps
        )
        return ScheduleFree(optimizer)


@dataclass(frozen=True)
class Muon(OptimizerConfig):
    """Muon for hidden matrices, AdamW for the rest, both under a cosine; from torch.

    Attributes:
        lr_rest: Peak learning rate of AdamW; `lr` is Muon's, times sqrt(max(1, rows / columns)).
        warmup_steps: Steps of cosine-shaped warm-up from a hundredth of the peak.
        momentum: Of Muon, Nesterov.
        beta1: Decay of AdamW's first moment.
        beta2: Decay of AdamW's second moment.
        weight_decay: Of AdamW, on the rest only.
    """

    name: ClassVar[str] = "muon"

    lr_rest: float
    warmup_steps: int
    momentum: float = 0.95
    beta1: float = 0.8
    beta2: float = 0.999
    weight_decay: float = 0.0

    def build(self, model: nn.Module, *, steps: int) -> TrainingOptimizer:
        """Build both parts, with the matrices that AMUSE would choose."""
        matrices, rest = _routed(model)
        muon = torch.optim.Muon(
            matrices, lr=self.lr, weight_decay=0.0, momentum=self.momentum, adjust_lr_fn="original"
        )
        adamw = torch.optim.AdamW(
            rest, lr=self.lr_rest, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay
        )
        return Scheduled([muon, adamw], partial(cosine, steps=steps, warmup_steps=self.warmup_steps))


@dataclass(frozen=True)
class AdamW(OptimizerConfig):
    """AdamW under a cosine; from torch.

    Attributes:
        warmup_steps: Steps of cosine-shaped warm-up from a hundredth of the peak.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        weight_decay: Decoupled; not on norms and embeddings.
    """

    name: ClassVar[str] = "adamw"

    warmup_steps: int
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def build(self, model: nn.Module, *, steps: int) -> TrainingOptimizer:
        """Build AdamW."""
        groups = _decay_split(model, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2))
        return Scheduled([optimizer], partial(cosine, steps=steps, warmup_steps=self.warmup_steps))


OPTIMIZERS: Mapping[str, type[OptimizerConfig]] = {
    kind.name: kind for kind in (Amuse, ScheduleFreeAdamW, Muon, AdamW)
}
"""Every optimizer by its name."""
