"""On every device: the specification's numbers, AMP, FSDP2 with one rank, and state that moves.

The cases of the CPU are the twins of those of a GPU, which run where there is one: `pytest -m gpu`.
"""

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from amuse_optim import (
    AMUSE,
    AMUSEReference,
    averaged,
    averaged_state_dict,
    orthogonalize,
    param_groups,
    telemetry,
)

CPU = torch.device("cpu")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; the case cpu is its twin"),
        ],
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


class Network(nn.Module):
    """Convolution, embedding, head, norms and biases; nobody calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.convolution = nn.Conv2d(4, 6, 3)
        self.up = nn.Linear(8, 20)
        self.norm = nn.LayerNorm(20)
        self.down = nn.Linear(20, 8, bias=False)
        self.lm_head = nn.Linear(8, 11)


def network(dtype: torch.dtype = torch.float64) -> Network:
    """The same on the CPU at every call."""
    torch.manual_seed(0)
    return Network().to(dtype)


def build(model: nn.Module, **options: Any) -> AMUSE:
    given: dict[str, Any] = {"lr": 0.05, "warmup_steps": 3, "weight_decay": 0.1} | options
    return AMUSE(param_groups(model), **given)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Random gradients, which depend on the step alone."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient.to(parameter.device, parameter.dtype)
        optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().to(CPU, torch.float64) for parameter in model.parameters()]


def close(ours: nn.Module, expected: nn.Module, tolerance: float) -> None:
    for a, b in zip(values(ours), values(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)],
)
@pytest.mark.parametrize("options", [{}, {"auxiliary_momentum": 0.9, "weight_decay_at": "y"}])
def test_steps_are_the_references(
    device: torch.device, dtype: torch.dtype, tolerance: float, options: dict[str, Any]
) -> None:
    """Whose products are in float64; ours are in float32 below that, so that rounding alone differs."""
    model, expected = network(dtype).to(device), network(dtype).double()
    below = {} if dtype == torch.float64 else {"orthogonalize_dtype": torch.float32}
    optimizer = build(model, **options, **below)
    given: dict[str, Any] = {"lr": 0.05, "warmup_steps": 3, "weight_decay": 0.1} | options
    reference = AMUSEReference(param_groups(expected), **given)
    for step in range(6):
        train(model, optimizer, range(step, step + 1))
        for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            assert ours.grad is not None
            theirs.grad = ours.grad.cpu().double()  # as rounded as ours
        reference.step()
    close(model, expected, tolerance)
    with averaged(optimizer), averaged(reference):
        close(model, expected, tolerance)


@pytest.mark.parametrize("shape", [(2, 96, 160), (160, 96), (64, 64)])
def test_polar_factors_in_the_devices_own_precision(device: torch.device, shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = orthogonalize(matrices.double())
    ours = orthogonalize(matrices.to(device)).cpu().double()
    assert float((ours - expected).norm() / expected.norm()) < 0.06  # of bfloat16, where that is fast
    exact = orthogonalize(matrices.to(device), dtype=torch.float32).cpu().double()
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=1e-4)


def test_lean_state_is_right_on_average(device: torch.device) -> None:
    """Many equal entries, each rounded at random: their mean is that of float32."""
    parameter, expected = (
        nn.Parameter(torch.full((40_000,), 0.5, device=device, dtype=torch.float32)) for _ in range(2)
    )
    lean = AMUSE([parameter], direction="sgd", lr=1e-3, warmup_steps=2, state_precision="lean")
    full = AMUSE([expected], direction="sgd", lr=1e-3, warmup_steps=2)
    for _ in range(4):
        for each, optimizer in ((parameter, lean), (expected, full)):
            each.grad = torch.full_like(each, 0.3)
            optimizer.step()
    with averaged(lean), averaged(full):
        assert float(parameter.detach().mean()) == pytest.approx(float(expected.detach().mean()), abs=5e-5)
    assert lean.state[parameter]["z"].dtype == torch.bfloat16
    assert (
        float(expected.detach().mean()) < 0.5 - 3e-4
    )  # less than bfloat16's steps of 2e-3 from where it began


@pytest.mark.requirement("B9")
def test_b09_parameters_on_several_devices(device: torch.device) -> None:
    parameters = [nn.Parameter(torch.ones(4, 4, device=each)) for each in (CPU, device)]
    optimizer = AMUSE(parameters, direction="muon", warmup_steps=2, orthogonalize_dtype=torch.float32)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.eye(4, device=parameter.device)
        optimizer.step()
    torch.testing.assert_close(parameters[0], parameters[1].cpu())


def test_evaluating_changes_nothing(device: torch.device) -> None:
    model, undisturbed = (network(torch.float32).to(device) for _ in range(2))
    optimizer, plain = build(model), build(undisturbed)
    for step in range(4):
        train(model, optimizer, range(step, step + 1))
        train(undisturbed, plain, range(step, step + 1))
        with averaged(optimizer):
            shipped = averaged_state_dict(model, optimizer)
            assert all(torch.equal(shipped[name], tensor) for name, tensor in model.state_dict().items())
    for a, b in zip(model.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_gradient_that_is_not_finite_moves_nothing(device: torch.device) -> None:
    model = network(torch.float32).to(device)
    optimizer = build(model)
    train(model, optimizer, range(2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.down.weight.grad[3, 5] = torch.nan
    with pytest.raises(FloatingPointError, match=r"down\.weight"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_telemetry_is_of_the_device_and_right(device: torch.device) -> None:
    model, expected = network().to(device), network()
    optimizer, plain = build(model), build(expected)
    for each in (optimizer, plain):
        telemetry(each)
    train(model, optimizer, range(3))
    train(expected, plain, range(3))
    for name, value in telemetry(plain).items():
        torch.testing.assert_close(telemetry(optimizer)[name].cpu(), value, rtol=1e-8, atol=1e-10)


def test_grad_scaler(device: torch.device) -> None:
    """Scaled gradients give the same steps; an overflow skips one, lowers the scale and moves nothing."""
    model, expected = (nn.Linear(6, 4).to(device) for _ in range(2))
    expected.load_state_dict(model.state_dict())
    optimizer, plain = build(model), build(expected)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    for step in range(4):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(device)
        if step == 2:
            scaler.scale(model(inputs).sum() * torch.inf).backward()
            before = [parameter.detach().clone() for parameter in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
            assert scaler.get_scale() == 2.0**9
            optimizer.zero_grad()
        scaler.scale(model(inputs).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        expected(inputs).square().mean().backward()
        plain.step()
        for each in (optimizer, plain):
            each.zero_grad()
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)  # a power of two changes no bit


@pytest.fixture
def one_rank(device: torch.device) -> Iterator[None]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    yield
    gc.collect()  # torch 2.11 aborts at exit where a sharded module outlives its process group
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("options", [{}, {"foreach": False}])
def test_fsdp_with_one_rank(device: torch.device, options: dict[str, Any]) -> None:
    model, expected = network().to(device), network().to(device)
    mesh = init_device_mesh(device.type, (1,))
    fully_shard(model, mesh=mesh)
    optimizer, plain = build(model, **options), build(expected, **options)
    for step in range(5):
        train(expected, plain, range(step, step + 1))
        for sharded, whole in zip(model.parameters(), expected.parameters(), strict=True):
            assert whole.grad is not None
            sharded.grad = distributed.tensor.distribute_tensor(whole.grad, mesh, sharded.placements)
        optimizer.step()

    def equal() -> None:
        for sharded, whole in zip(model.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(sharded.detach().full_tensor(), whole.detach(), rtol=1e-9, atol=1e-10)

    equal()
    with averaged(optimizer), averaged(plain):
        equal()


@pytest.mark.parametrize("towards_the_device", [True, False])
def test_a_checkpoint_goes_on_on_another_device(device: torch.device, towards_the_device: bool) -> None:
    begin, end = (CPU, device) if towards_the_device else (device, CPU)
    expected = network()
    train(expected, build(expected), range(8))

    first = network().to(begin)
    optimizer = build(first)
    train(first, optimizer, range(4))
    saved = copy.deepcopy({"model": first.state_dict(), "optimizer": optimizer.state_dict()})
    second = network().to(end)
    second.load_state_dict(saved["model"])
    resumed = build(second)
    resumed.load_state_dict(saved["optimizer"])
    train(second, resumed, range(4, 8))
    tensors = [
        value for state in resumed.state.values() for value in state.values() if isinstance(value, Tensor)
    ]
    assert {tensor.device.type for tensor in tensors if tensor.ndim} == {end.type}
    close(second, expected, 1e-9)


def test_a_model_that_moves_before_its_first_step(device: torch.device) -> None:
    expected = network()
    train(expected, build(expected), range(4))
    model = network()
    optimizer = build(model)
    model.to(device)
    train(model, optimizer, range(4))
    close(model, expected, 1e-9)
