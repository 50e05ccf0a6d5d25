"""The optimizers that are measured. Each takes a model's parameters and the same learning rate and decay."""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from amuse_lab.bench.naive import Naive
from amuse_optim import AMUSE, param_groups

Optimizers = list[torch.optim.Optimizer]

LR = 1e-3
WEIGHT_DECAY = 0.1
# So short that after the rounds that are not counted beta rises and the state is that of a running training.
_WARMUP_STEPS = 2


@dataclass(frozen=True)
class Contestant:
    """An optimizer, or several that share the parameters.

    Attributes:
        name: Name of the optimizer for `--only`.
        description: One-line description for the help.
        build: Makes the optimizers of a model; they are stepped one after the other.
        module: Module that must be importable; None if the laboratory's own requirements suffice.
        requirement: Package that `pip install` gets it from; None if it needs no further package.
        usual: Whether it is measured without `--only`.
    """

    name: str
    description: str
    build: Callable[[nn.Module], Optimizers]
    module: str | None = None
    requirement: str | None = None
    usual: bool = True

    @property
    def installed(self) -> bool:
        """Whether it can be built here."""
        return self.module is None or importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str | None:
        """The version of the package it comes from, if it is one of its own and installed."""
        if self.requirement is None or not self.installed:
            return None
        return importlib.metadata.version(self.requirement)


def _anytime(model: nn.Module) -> Optimizers:
    groups = param_groups(model, matrices="normuon", decaying="matrices")
    return [AMUSE.anytime(groups, lr=LR, warmup_steps=_WARMUP_STEPS, weight_decay=WEIGHT_DECAY)]


def _routed(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The hidden matrices and the rest, as AMUSE tells them apart: the same for every Muon."""
    named = [(group["direction"] == "muon", group["params"]) for group in param_groups(model)]
    matrices = [p for hidden, params in named if hidden for _, p in params]
    rest = [p for hidden, params in named if not hidden for _, p in params]
    return matrices, rest


def _beside(
    matrices: torch.optim.Optimizer, rest: list[nn.Parameter], adamw: Callable[..., torch.optim.Optimizer]
) -> Optimizers:
    return [matrices, adamw(rest, lr=LR, weight_decay=WEIGHT_DECAY)] if rest else [matrices]


def _fused_adamw(parameters: list[nn.Parameter], **options: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, fused=True, **options)


def _amuse(model: nn.Module, **options: Any) -> Optimizers:
    groups = param_groups(model)
    return [AMUSE(groups, lr=LR, weight_decay=WEIGHT_DECAY, warmup_steps=_WARMUP_STEPS, **options)]


def _amuse_adamw(model: nn.Module) -> Optimizers:
    options: dict[str, Any] = {"lr": LR, "weight_decay": WEIGHT_DECAY, "warmup_steps": _WARMUP_STEPS}
    return [AMUSE(model.parameters(), direction="adamw", rho=0.0, beta1=0.9, **options)]


def _naive(model: nn.Module) -> Optimizers:
    # `Naive` takes parameters without their names.
    groups = [{**group, "params": [p for _, p in group["params"]]} for group in param_groups(model)]
    return [Naive(groups, lr=LR, weight_decay=WEIGHT_DECAY)]


def _torch_muon(model: nn.Module) -> Optimizers:
    matrices, rest = _routed(model)
    muon = torch.optim.Muon(matrices, lr=LR, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    return _beside(muon, rest, _fused_adamw)


def _pytorch_optimizer(model: nn.Module) -> Optimizers:
    package = importlib.import_module("pytorch_optimizer")
    groups = [
        {"params": parameters, "use_muon": hidden, "lr": LR, "weight_decay": WEIGHT_DECAY}
        for hidden, parameters in zip((True, False), _routed(model), strict=True)
        if parameters
    ]
    return [package.Muon(groups, use_adjusted_lr=True)]


def _heavyball(model: nn.Module) -> Optimizers:
    package = importlib.import_module("heavyball")
    # Compiling takes 40 seconds a parameter set and gave no faster step on a CPU.
    package.utils.compile_mode = None
    matrices, rest = _routed(model)
    return _beside(package.Muon(matrices, lr=LR, weight_decay=WEIGHT_DECAY), rest, package.AdamW)


def _schedule_free(model: nn.Module) -> Optimizers:
    package = importlib.import_module("schedulefree")
    options = {"lr": LR, "weight_decay": WEIGHT_DECAY, "warmup_steps": _WARMUP_STEPS}
    optimizer = package.AdamWScheduleFree(model.parameters(), foreach=True, **options)
    optimizer.train()
    return [optimizer]


def _adamw(model: nn.Module) -> Optimizers:
    return [_fused_adamw(list(model.parameters()), lr=LR, weight_decay=WEIGHT_DECAY)]


CONTESTANTS: Mapping[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant("amuse", "this package's AMUSE, as it comes", _amuse),
        Contestant("naive", "AMUSE as its authors' code does it, matrix by matrix and unfused", _naive),
        Contestant("torch-muon", "torch's Muon with AdamW(fused=True) for the rest", _torch_muon),
        Contestant(
            "pytorch-optimizer",
            "pytorch_optimizer's Muon with its own AdamW for the rest",
            _pytorch_optimizer,
            "pytorch_optimizer",
            "pytorch_optimizer",
        ),
        Contestant(
            "heavyball",
            "heavyball's Muon with its AdamW for the rest, not compiled",
            _heavyball,
            "heavyball",
            "heavyball",
        ),
        Contestant(
            "sf-adamw",
            "schedulefree's AdamW(foreach=True) for all parameters",
            _schedule_free,
            "schedulefree",
            "schedulefree",
        ),
        Contestant("adamw", "torch's AdamW(fused=True) for all parameters", _adamw),
        Contestant(
            "amuse-lean",
            "AMUSE with its state in bfloat16",
            lambda model: _amuse(model, state_precision="lean"),
            usual=False,
        ),
        Contestant(
            "amuse-anytime",
            "AMUSE.anytime, with NorMuon's direction for the matrices",
            _anytime,
            usual=False,
        ),
        Contestant(
            "amuse-adamw",
            "AMUSE with AdamW's direction for all parameters: what sf-adamw does",
            _amuse_adamw,
            usual=False,
        ),
    )
}
"""Every contestant by its name."""
