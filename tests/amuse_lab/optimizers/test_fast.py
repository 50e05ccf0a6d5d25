"""What `fast` returns: z, which each step moves."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from amuse_lab.config import OptimizerConfig
from amuse_lab.optimizers import Amuse, ScheduleFreeAdamW, ScheduleFreeSGD
from amuse_lab.protocols import TrainingOptimizer
from tests.amuse_lab.small import CONFIGS, Convolutional, same, small, train, trained, values

BETA = 0.7
AVERAGING = [
    Amuse(lr=0.05, warmup_steps=2, beta1=BETA, rho=0.0),
    Amuse(lr=0.05, warmup_steps=2, beta1=BETA, rho=0.0, auxiliary="sgd"),
    ScheduleFreeAdamW(lr=0.05, warmup_steps=2, beta1=BETA),
    ScheduleFreeSGD(lr=0.5, warmup_steps=2, beta1=BETA),
]


def fast(model: nn.Module, optimizer: TrainingOptimizer) -> list[Tensor]:
    return [value.detach().clone() for value in optimizer.fast(list(model.parameters()))]


def give(model: nn.Module, step: int) -> list[Tensor]:
    """Gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("config", AVERAGING, ids=["amuse", "amuse-sgd", "sf-adamw", "sf-sgd"])
def test_the_gradient_point_lies_between_z_and_x(config: OptimizerConfig) -> None:
    model, optimizer = trained(config, steps=5)
    y, z = values(model), fast(model, optimizer)
    with optimizer.averaged():
        x = values(model)
    for at_x, at_y, at_z in zip(x, y, z, strict=True):
        torch.testing.assert_close(at_y, (1 - BETA) * at_z + BETA * at_x, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(at_y, at_z, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_parameters_before_the_first_step(name: str) -> None:
    model, optimizer = trained(CONFIGS[name], steps=0)
    assert same(fast(model, optimizer), values(small()))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("amuse", "sf-adamw", "sf-sgd")])
def test_without_an_average_it_is_the_parameter_itself(name: str) -> None:
    model, optimizer = trained(CONFIGS[name])
    parameters = list(model.parameters())
    assert all(a is b for a, b in zip(optimizer.fast(parameters), parameters, strict=True))


def test_with_beta_0_it_is_the_parameter_itself() -> None:
    model, optimizer = trained(Amuse(lr=0.05, warmup_steps=2, beta1=0.0, rho=0.0))
    parameters = list(model.parameters())
    assert all(a is b for a, b in zip(optimizer.fast(parameters), parameters, strict=True))


def test_it_keeps_the_order_that_is_asked_for() -> None:
    model, optimizer = trained(CONFIGS["amuse"])
    parameters = list(model.parameters())
    backwards = optimizer.fast(parameters[::-1])
    assert all(a is b for a, b in zip(backwards[::-1], optimizer.fast(parameters), strict=True))
    assert len(optimizer.fast(parameters[2:4])) == 2


@pytest.mark.parametrize("config", [*AVERAGING, CONFIGS["adamw"], CONFIGS["sophia"]])
def test_an_ema_around_an_optimizer_leaves_its_z(config: OptimizerConfig) -> None:
    averaged = fast(*trained(replace(config, ema=0.8), steps=4))
    assert same(averaged, fast(*trained(config, steps=4)))


def test_schedule_free_sgd_moves_z_by_the_gradient() -> None:
    model = small()
    optimizer = ScheduleFreeSGD(lr=0.2, warmup_steps=2, beta1=BETA).build(model, steps=10)
    z = values(model)
    for step in range(5):
        gradients = give(model, step)
        optimizer.step()
        rate = 0.2 * min(1.0, (step + 1) / 2)
        z = [value - rate * gradient for value, gradient in zip(z, gradients, strict=True)]
        for ours, theirs in zip(z, fast(model, optimizer), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, BETA])
def test_amuse_moves_z_at_decaying_rates_and_averages_it_plainly(beta: float) -> None:
    """The rest by the gradient, at lr_rest up to step 3, then at lr_rest (3 / t)^0.5; x is the mean of z."""
    torch.manual_seed(0)
    model = Convolutional()
    decaying = {"lr_decay": 0.5, "lr_decay_from": 3}
    config = Amuse(lr=0.1, lr_rest=0.4, auxiliary="sgd", warmup_steps=0, beta1=beta, rho=0.0, **decaying)
    optimizer = config.build(model, steps=10)
    rest = [
        n
        for n, (name, _) in enumerate(model.named_parameters())
        if name not in ("stem.weight", "deep.weight")
    ]
    assert len(rest) == 5
    visited = [values(model)]
    for t in range(1, 9):
        gradients = give(model, t)
        optimizer.step()
        factor = min(1.0, (3 / t) ** 0.5)
        assert optimizer.telemetry()["lr"] in (pytest.approx(0.1 * factor), pytest.approx(0.4 * factor))
        visited.append(fast(model, optimizer))
        with optimizer.averaged():
            x = values(model)
        for n in rest:
            moved = visited[-2][n] - 0.4 * factor * gradients[n]
            torch.testing.assert_close(visited[-1][n], moved, rtol=1e-5, atol=1e-6)
        for n, average in enumerate(x):
            mean = torch.stack([z[n] for z in visited[1:]]).mean(dim=0)
            torch.testing.assert_close(average, mean, rtol=1e-4, atol=1e-5)


def test_it_is_in_use_and_moves_on() -> None:
    model, optimizer = trained(CONFIGS["sf-adamw"], steps=2)
    held = optimizer.fast(list(model.parameters()))
    before = [value.clone() for value in held]
    train(model, optimizer, range(2, 3))
    assert same(held, fast(model, optimizer))
    assert not any(torch.equal(a, b) for a, b in zip(before, held, strict=True))
