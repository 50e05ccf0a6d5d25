"""Which parameter decays, and which one moves by what."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_lab.config import OptimizerConfig
from amuse_lab.optimizers import AdamW, Amuse, DMuon, MuonSGD, ScheduleFreeAdamW
from amuse_lab.optimizers.wrappers import Packaged
from amuse_lab.protocols import NeedsCurvature, TrainingOptimizer
from amuse_lab.tasks.lm.model import Llama
from tests.amuse_lab.conftest import TINY_MODEL
from tests.amuse_lab.small import CONFIGS, Convolutional, small, train, values

DECAYING = {
    "amuse": "all",
    "sf-sgd": "all",
    "muon-sgd": "all",
    "sgd": "all",
    "muon": "rest",
    **dict.fromkeys(("sf-adamw", "d-muon", "normuon", "adamw", "ademamix", "adopt", "lion"), "matrices"),
    **dict.fromkeys(("anytime", "mars", "prodigy", "signum", "soap", "sophia"), "matrices"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_what_decays(name: str, tied: bool) -> None:
    """Without gradients only decay moves anything."""
    model = Llama(replace(TINY_MODEL, tied=tied))
    still = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = replace(CONFIGS[name], weight_decay=0.5).build(model, steps=10)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if isinstance(optimizer, NeedsCurvature) and optimizer.wants_curvature:
            optimizer.observe_curvature()
        if name == "prodigy":  # it does not even decay before it has seen a gradient
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1e-30)
        optimizer.step()
    moved = {
        name
        for name, parameter in model.named_parameters()
        if not torch.allclose(still[name], parameter, rtol=1e-9, atol=0.0)
    }
    looked_up = {name for name in still if "norm" in name or name == "embedding.weight"}
    rest = looked_up | {name for name in still if "head" in name}
    assert moved == {"all": set(still), "rest": rest, "matrices": set(still) - looked_up}[DECAYING[name]]


def one_step(config: OptimizerConfig, gradients: float = 1.0) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Before, gradient and after of every parameter, by name."""
    torch.manual_seed(0)
    model = Convolutional()
    optimizer = config.build(model, steps=10)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = gradients * torch.randn_like(parameter)
    given = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    return {name: (before[name], given[name], p.detach()) for name, p in model.named_parameters()}


def spectrum(update: Tensor) -> Tensor:
    return torch.linalg.svdvals(update.flatten(1))


def test_amuse_with_sgd_moves_kernels_by_muon_and_the_rest_by_the_gradient() -> None:
    """z moves by lr_1 = lr / 2; x and y equal it after the first step."""
    config = Amuse(lr=0.2, lr_rest=0.4, auxiliary="sgd", warmup_steps=2)
    for name, (before, gradient, after) in one_step(config).items():
        update = (before - after).div(0.1 if name in ("stem.weight", "deep.weight") else 0.2)
        if name in ("stem.weight", "deep.weight"):
            assert (spectrum(update) > 0.6).all()
            assert (spectrum(update) < 1.2).all()
        else:
            torch.testing.assert_close(update, gradient, rtol=1e-5, atol=1e-6)


def test_muon_sgd_decays_kernels_apart_from_the_gradient_and_the_rest_with_it() -> None:
    config = MuonSGD(lr=0.2, lr_rest=0.4, warmup_steps=0, weight_decay=0.5)
    for name, (before, gradient, after) in one_step(config).items():
        if name in ("stem.weight", "deep.weight"):
            update = (before * (1 - 0.2 * 0.5) - after) / 0.2
            assert (spectrum(update) > 0.6).all()
            assert (spectrum(update) < 1.2).all()
        else:
            torch.testing.assert_close(after, before - 0.4 * (gradient + 0.5 * before))


def test_the_rate_of_the_rest_is_that_of_the_matrices_unless_it_is_given() -> None:
    common = {"lr": 0.2, "auxiliary": "sgd", "warmup_steps": 2}
    plain, given = (one_step(Amuse(**common, lr_rest=rate)) for rate in (None, 0.2))
    assert all(torch.equal(plain[name][2], given[name][2]) for name in plain)


HIDDEN = ("up.weight", "down.weight")
DECAYED = (*HIDDEN, "lm_head.weight")


def grouped(model: nn.Module, rates: tuple[float, float], decay: float) -> list[dict[str, Any]]:
    """One group a parameter of the small model: hidden matrices at the first rate, the rest at the second."""
    return [
        {
            "params": [parameter],
            "lr": rates[0] if name in HIDDEN else rates[1],
            "weight_decay": decay if name in DECAYED else 0.0,
        }
        for name, parameter in model.named_parameters()
    ]


def assert_same_path(config: OptimizerConfig, model: nn.Module, optimizer: TrainingOptimizer) -> None:
    """The config takes the small model where another optimizer takes a model of the same beginning."""
    ours = small()
    built = config.build(ours, steps=10)
    for step in range(4):
        train(ours, built, range(step, step + 1))
        train(model, optimizer, range(step, step + 1))
        for mine, other in zip(values(ours), values(model), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rate", [0.05, None])
def test_adamw_has_a_rate_for_hidden_matrices_and_one_for_the_rest(rate: float | None) -> None:
    config = AdamW(lr=0.01, lr_rest=rate, warmup_steps=0, schedule="none", weight_decay=0.3)
    groups = grouped(model := small(), (0.01, rate or 0.01), 0.3)
    assert_same_path(config, model, Packaged(torch.optim.AdamW(groups, betas=(0.9, 0.999))))


@pytest.mark.parametrize("rate", [0.05, None])
def test_d_muon_has_a_rate_for_hidden_matrices_and_one_for_the_rest(rate: float | None) -> None:
    config = DMuon(lr=0.01, lr_rest=rate, warmup_steps=0, schedule="none", weight_decay=0.3)
    groups = grouped(model := small(), (0.01, rate or 0.01), 0.3)
    names = [name for name, _ in model.named_parameters()]
    matrices = [group for name, group in zip(names, groups, strict=True) if name in HIDDEN]
    rest = [group for name, group in zip(names, groups, strict=True) if name not in HIDDEN]
    muon = torch.optim.Muon(matrices, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    assert_same_path(config, model, Packaged(muon, torch.optim.AdamW(rest, betas=(0.8, 0.999))))


@pytest.mark.parametrize("rate", [0.05, None])
def test_schedule_free_adamw_has_a_rate_for_hidden_matrices_and_one_for_the_rest(rate: float | None) -> None:
    """In the first step Adam's direction is the sign of the gradient, and x and y equal z, which it moves."""
    config = ScheduleFreeAdamW(lr=0.01, lr_rest=rate, warmup_steps=2, weight_decay=0.3)
    model = small()
    optimizer = config.build(model, steps=10)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    signs = {name: parameter.grad.sign() for name, parameter in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        lr = 0.5 * (0.01 if name in HIDDEN or rate is None else rate)
        decay = 0.3 * before[name] if name in DECAYED else 0.0
        expected = before[name] - lr * (signs[name] + decay)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)
