"""Numerical promises: each test fails on the behaviour it guards against."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference, averaged, orthogonalize
from amuse_optim.orthogonalize import working_dtype
from amuse_optim.precision import rounding_generator, stochastic_round


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.requirement("A2")
def test_a02_x_of_a_resting_parameter_stays_where_it_is() -> None:
    """Decoding its y with the group's newer beta would move x by several per cent of ||x - z||."""
    resting, busy = (nn.Parameter(torch.ones(4, 4, dtype=torch.float64)) for _ in range(2))
    optimizer = AMUSE([resting, busy], direction="muon", lr=0.1, warmup_steps=5)
    for step in range(30):
        resting.grad = normal(4, 4, seed=step) if step < 10 else None
        busy.grad = normal(4, 4, seed=step)
        optimizer.step()
        if step == 9:
            with averaged(optimizer):
                x = resting.detach().clone()
    with averaged(optimizer):
        torch.testing.assert_close(resting.detach(), x, rtol=0, atol=1e-14)


@pytest.mark.requirement("A3")
def test_a03_the_first_update_of_a_late_parameter_has_size_one() -> None:
    """With the group's counter the correction would be missing: 31 times too large."""
    late, busy = (nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in range(2))
    optimizer = AMUSE([late, busy], direction="adamw", lr=0.1, warmup_steps=2)
    for _ in range(5000):
        busy.grad = torch.ones(3, dtype=torch.float64)
        optimizer.step()
    late.grad = torch.full((3,), 1e-3, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(
        optimizer.state[late]["z"], torch.full((3,), -0.1, dtype=torch.float64), rtol=1e-6, atol=0
    )


@pytest.mark.requirement("A4")
@pytest.mark.parametrize("factor", [5, 50])
@pytest.mark.parametrize("parity", ["exact", "published"])
def test_a04_a_raised_learning_rate_keeps_beta_and_the_sequences_sane(factor: int, parity: str) -> None:
    parameter = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    optimizer = AMUSE([parameter], direction="muon", lr=0.01, warmup_steps=10, parity=parity)
    betas = []
    for step in range(200):
        if step == 50:
            optimizer.param_groups[0]["lr"] *= factor
        parameter.grad = normal(4, 4, seed=step)
        optimizer.step()
        betas.append(optimizer.param_groups[0]["beta_t"])
    assert all(0.6 <= beta < 1 for beta in betas)
    assert bool(parameter.isfinite().all())


def quadratic_loss(dtype: torch.dtype, steps: int, **options: Any) -> float:
    """0.5 mean((w - target)^2 * curvature), noisy gradients; the loss at x in float64."""
    target = normal(16, 16, seed=1)
    curvature = torch.logspace(-1, 0, 16, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros(16, 16, dtype=dtype))
    optimizer = AMUSE([weight], lr=0.02, warmup_steps=100, t0_steps=600, **options)
    for step in range(steps):
        gradient = (weight.detach().double() - target) * curvature + 0.3 * normal(16, 16, seed=step)
        weight.grad = gradient.to(dtype)
        optimizer.step()
    with averaged(optimizer):
        return float(((weight.detach().double() - target).square() * curvature).mean() / 2)


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("direction", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a09_low_precision_solves_a_quadratic_as_well(direction: str, dtype: torch.dtype) -> None:
    """2,000 steps. The initial loss is 0.2; what is compared is the distance left, in units of it."""
    initial = float((normal(16, 16, seed=1).square() * torch.logspace(-1, 0, 16)).mean() / 2)
    full = quadratic_loss(torch.float32, 2000, direction=direction)
    low = quadratic_loss(dtype, 2000, direction=direction)
    lean = quadratic_loss(dtype, 2000, direction=direction, state_precision="lean")
    assert full < 0.02 * initial
    assert abs(low - full) < 0.01 * initial
    assert abs(lean - full) < 0.03 * initial


@pytest.mark.requirement("A9")
def test_a09_small_steps_add_up_in_lean_state() -> None:
    """1 - 1e-3 rounds to 1 in bfloat16; stochastically it moves by the right amount on average."""
    weight = nn.Parameter(torch.ones(4096))
    optimizer = AMUSE([weight], direction="sgd", lr=1e-3, warmup_steps=0, rho=0.0, state_precision="lean")
    for _ in range(100):
        weight.grad = torch.ones(4096)
        optimizer.step()
    z = optimizer.state[weight]["z"]
    assert z.dtype == torch.bfloat16
    assert float(z.float().mean()) == pytest.approx(0.9, abs=1e-3)
    with averaged(optimizer):  # the mean of 0.999, 0.998, ..., 0.9
        assert weight.mean().item() == pytest.approx(0.9495, abs=1e-3)


@pytest.mark.requirement("A9")
@pytest.mark.parametrize(
    ("dtype", "precision", "muon", "adamw", "sgd"),
    [
        (torch.float64, "full", 16, 16, 8),
        (torch.float32, "full", 8, 8, 4),
        (torch.float32, "lean", 4, 4, 2),
        (torch.bfloat16, "full", 12, 12, 8),
        (torch.bfloat16, "lean", 6, 6, 4),
        (torch.float16, "full", 12, 12, 8),
        (torch.float16, "lean", 6, 6, 4),
    ],
)
def test_a09_state_bytes_per_parameter(
    dtype: torch.dtype, precision: str, muon: int, adamw: int, sgd: int
) -> None:
    for direction, expected in (("muon", muon), ("adamw", adamw), ("sgd", sgd)):
        weight = nn.Parameter(torch.ones(8, 8, dtype=dtype))
        optimizer = AMUSE([weight], direction=direction, warmup_steps=2, state_precision=precision)
        for _ in range(3):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        tensors = [value for value in optimizer.state[weight].values() if isinstance(value, Tensor)]
        assert sum(t.numel() * t.element_size() for t in tensors) == expected * 64, direction


@pytest.mark.requirement("A9")
def test_a09_lean_rounding_repeats_itself_after_a_resume() -> None:
    def run(resume_at: int | None) -> Tensor:
        weight = nn.Parameter(torch.ones(6, 6))
        optimizer = AMUSE([weight], direction="muon", lr=0.01, warmup_steps=4, state_precision="lean")
        for step in range(20):
            if step == resume_at:
                saved = copy.deepcopy(optimizer.state_dict())
                optimizer = AMUSE([weight], direction="muon", warmup_steps=4, state_precision="lean")
                optimizer.load_state_dict(saved)
                assert optimizer.state[weight]["z"].dtype == torch.bfloat16
            weight.grad = normal(6, 6, seed=step, dtype=torch.float32)
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(None), run(11))


@pytest.mark.requirement("A9")
def test_a09_stochastic_rounding_is_unbiased_and_exact_where_it_can_be() -> None:
    value = torch.full((200_000,), 1 + 2**-7 * 0.3)  # three tenths between two neighbours in bfloat16
    rounded = stochastic_round(value, rounding_generator(value.device, 1)).float()
    assert set(rounded.tolist()) == {1.0, 1 + 2**-7}
    assert float((rounded - 1).mean() / 2**-7) == pytest.approx(0.3, abs=0.005)
    special = torch.tensor([0.0, -0.0, 1.5, -2.0, float("inf"), float("-inf"), float("nan")])
    kept = stochastic_round(special, rounding_generator(special.device, 2))
    assert torch.equal(kept.float()[:-1], special[:-1])
    assert bool(kept[-1].isnan())


@pytest.mark.requirement("A10")
def test_a10_float64_models_are_orthogonalized_in_float64() -> None:
    """bfloat16 products would leave an error of about 1e-2."""
    weight = nn.Parameter(torch.zeros(300, 300, dtype=torch.float64))
    optimizer = AMUSE([weight], direction="muon", lr=1.0, warmup_steps=0, rho=0.0, momentum=0.0)
    weight.grad = normal(300, 300, seed=1)
    optimizer.step()
    expected = -0.2 * 300**0.5 * orthogonalize(weight.grad, dtype=torch.float64)
    torch.testing.assert_close(optimizer.state[weight]["z"], expected, rtol=0, atol=1e-12)


@pytest.mark.requirement("A10")
def test_a10_float16_is_never_computed_in() -> None:
    large = (normal(8, 8, seed=1) * 1e4).to(torch.float16)  # its squares overflow in float16
    assert working_dtype(large) != torch.float16
    assert bool(orthogonalize(large).isfinite().all())


SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 5),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 9]),
    "ConstantLR": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 0.5, 5),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 10),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 20),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.001, 0.1, 5),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=31),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=2),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)],
        [10],
    ),
    "ChainedScheduler": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [torch.optim.lr_scheduler.ConstantLR(o, 0.5, 5), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.001),
}


@pytest.mark.requirement("A13")
def test_a13_all_schedulers_of_torch_are_listed() -> None:
    base = torch.optim.lr_scheduler.LRScheduler
    known = {
        name
        for name, kind in vars(torch.optim.lr_scheduler).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base and not name.startswith("_")
    }
    assert known <= {*SCHEDULERS, "LRScheduler"}


@pytest.mark.requirement("A13")
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a13_every_scheduler_acts_at_every_step(name: str, tensor_lr: bool) -> None:
    """z under the scheduler equals z of the reference whose learning rate is set by hand."""
    start = normal(4, 3, seed=0)
    weight, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    lr: Any = torch.tensor(0.05, dtype=torch.float64) if tensor_lr else 0.05
    optimizer = AMUSE([weight], direction="muon", lr=lr, warmup_steps=3)
    reference = AMUSEReference([other], direction="muon", lr=0.05, warmup_steps=3)
    scheduler = SCHEDULERS[name](optimizer)
    rates = []
    for step in range(30):
        group = optimizer.param_groups[0]
        reference.param_groups[0]["lr"] = float(group["lr"])
        reference.param_groups[0]["momentum"] = group["momentum"]  # some schedulers cycle it
        rates.append(float(group["lr"]))
        weight.grad, other.grad = normal(4, 3, seed=step), normal(4, 3, seed=step)
        optimizer.step()
        reference.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    torch.testing.assert_close(optimizer.state[weight]["z"], reference.state[other]["z"], rtol=0, atol=1e-12)
    torch.testing.assert_close(weight, other, rtol=0, atol=1e-11)
    assert len(set(rates)) > 1
