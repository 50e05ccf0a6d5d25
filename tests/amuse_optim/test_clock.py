"""`capturable=True`: the same numbers, none of them read by the host."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference, averaged, averaged_state_dict, param_groups, telemetry
from amuse_optim.schedule import Clock, schedule_of
from tests.amuse_optim.training import take_steps

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"beta_clock": "steps"},
    {"rho": 0.0},
    {"r": 1.5, "weight_lr_power": 1.0},
    {"warmup_steps": 0, "t0_steps": 4},
    {"c_warmup_steps": 2, "t0_steps": 6},
    {"parity": "published"},
    {"lr_decay": 0.7, "lr_decay_from": 5},
    {"beta1": 0.0, "rho": 0.0},
    {"r": 100.0},
]


def schedule(**options: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"warmup_steps": 4, "t0_steps": 4, "c_warmup_steps": 0, "beta1": 0.6, "rho": 0.8}
    usual |= {"lr_decay": 0.0, "lr_decay_from": 12}
    usual |= {"beta_clock": "window", "r": 0.0, "weight_lr_power": 2.0, "parity": "exact"}
    return usual | options


@pytest.mark.parametrize("options", SCHEDULES)
def test_the_schedule_on_the_device_is_the_schedule(options: dict[str, Any]) -> None:
    clock = Clock()
    there = Clock(*(torch.zeros((), dtype=torch.float64) for _ in vars(clock)))
    rules = schedule_of(schedule(**options))
    for lr in [0.0, 0.0, 0.1, 0.1, 0.1, 0.4, 0.4, 0.05, *[0.2] * 12]:
        clock, now = rules.advance(clock, lr)
        there, now_there = rules.advance(there, torch.tensor(lr, dtype=torch.float64))
        for name, value in vars(clock).items():
            assert float(getattr(there, name)) == pytest.approx(value, rel=1e-13)
        for name, value in vars(now).items():
            assert float(getattr(now_there, name)) == pytest.approx(value, rel=1e-13)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6), nn.LayerNorm(6), nn.Linear(6, 2)
    ).double()


def build(network: nn.Module, **options: Any) -> AMUSE:
    given = {"lr": 0.05, "warmup_steps": 3, "weight_decay": 0.1, "nonfinite": "ignore"} | options
    return AMUSE(param_groups(network), **given)


@pytest.mark.parametrize("without", [None, 0, 5])
@pytest.mark.parametrize(
    "options", [{}, {"auxiliary_momentum": 0.9}, {"weight_decay_at": "y"}, *SCHEDULES[1:]]
)
def test_equals_the_schedule_on_the_host(options: dict[str, Any], without: int | None) -> None:
    ours, expected = model(), model()
    capturable = build(ours, capturable=True, **options)
    usual = build(expected, **options)
    take_steps(capturable, range(12), without=without)
    take_steps(usual, range(12), without=without)
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with averaged(capturable), averaged(usual):
        for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_learning_rate_on_the_device_is_read_at_every_step() -> None:
    ours, expected = model(), model()
    lr = torch.tensor(0.05, dtype=torch.float64)
    capturable, usual = build(ours, capturable=True, lr=lr), build(expected)
    for step in range(8):
        lr.fill_(0.05 / (1 + step))
        for group in usual.param_groups:
            group["lr"] = 0.05 / (1 + step)
        take_steps(capturable, range(step, step + 1))
        take_steps(usual, range(step, step + 1))
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.requirement("D4")
def test_nothing_is_read_from_the_device() -> None:
    """Meta tensors have no values, so that whatever looked at one would fail."""
    network = model().to("meta")
    optimizer = build(network, capturable=True, lr=torch.tensor(0.05, device="meta"))
    for _ in range(3):
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    assert optimizer.param_groups[0]["t"].device.type == "meta"
    assert telemetry(optimizer)["0_muon/distance_xz"].device.type == "meta"
    usual = build(network, nonfinite="raise")  # this test would notice: such a step looks at the gradients
    with pytest.raises(RuntimeError):
        usual.step()


@pytest.mark.requirement("D4")
def test_numbers_keep_their_place_from_step_to_step() -> None:
    """A graph replays writes to the tensors it was captured with."""
    network = model()
    optimizer = build(network, capturable=True)
    take_steps(optimizer, range(2))
    group = optimizer.param_groups[0]
    kept = [group["t"], group["beta_t"], *(optimizer.state[p]["beta"] for p in group["params"])]
    before = [float(tensor) for tensor in kept]
    take_steps(optimizer, range(2, 8))
    now = [group["t"], group["beta_t"], *(optimizer.state[p]["beta"] for p in group["params"])]
    assert all(a is b for a, b in zip(kept, now, strict=True))
    assert all(float(tensor) != value for tensor, value in zip(kept, before, strict=True))


@pytest.mark.parametrize("saved_capturable", [False, True])
@pytest.mark.parametrize("loaded_capturable", [False, True])
@pytest.mark.filterwarnings("ignore:the loaded state has other values")
def test_checkpoints_are_the_same_either_way(saved_capturable: bool, loaded_capturable: bool) -> None:
    expected = model()
    take_steps(build(expected), range(9), without=2)

    first = model()
    optimizer = build(first, capturable=saved_capturable)
    take_steps(optimizer, range(5), without=2)
    saved = copy.deepcopy({"model": first.state_dict(), "optimizer": optimizer.state_dict()})
    numbers = [value for group in saved["optimizer"]["param_groups"] for value in group.values()]
    assert not any(isinstance(value, Tensor) for value in numbers)
    take_steps(optimizer, range(5, 6), without=2)  # what was saved does not change with it

    second = model(seed=1)
    second.load_state_dict(saved["model"])
    for group in saved["optimizer"]["param_groups"]:
        group["capturable"] = loaded_capturable
    other = build(second, capturable=loaded_capturable)
    other.load_state_dict(saved["optimizer"])
    take_steps(other, range(5, 9), without=2)
    for a, b in zip(second.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    averaged_state_dict(second, other)


def test_follows_weights_loaded_before_the_first_step() -> None:
    ours, expected = model(), model(seed=3)
    capturable = build(ours, capturable=True)
    ours.load_state_dict(expected.state_dict())
    take_steps(capturable, range(4))
    take_steps(build(expected), range(4))
    for a, b in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nonfinite": "raise"}, "nonfinite must be 'ignore' with capturable=True"),
        ({"orthogonalize": "exact"}, "orthogonalize must be 'quintic' or 'polar_express'"),
        ({"orthogonalize": lambda stack: stack}, "orthogonalize must be"),
        ({"foreach": False}, "foreach must be None or True"),
    ],
)
def test_options_that_need_the_host_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(model(), capturable=True, **options)


def test_parameters_that_need_the_host_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.bfloat16: capturable=True is for float32 and float64"):
        build(model().bfloat16(), capturable=True)
    with pytest.raises(ValueError, match="state_precision must be 'full'"):
        build(model().float(), capturable=True, state_precision="lean")
    with pytest.raises(ValueError, match="capturable must be False for AMUSEReference"):
        AMUSEReference(model().parameters(), direction="sgd", warmup_steps=3, capturable=True)
    network = nn.Linear(4, 4, bias=False)
    network.weight = nn.Parameter(torch.randn(4, 4, 2)[..., 0])
    optimizer = AMUSE(
        network.parameters(), direction="sgd", warmup_steps=3, nonfinite="ignore", capturable=True
    )
    network.weight.grad = torch.ones_like(network.weight)
    before = network.weight.detach().clone()
    with pytest.raises(ValueError, match="cannot take part with capturable=True"):
        optimizer.step()
    assert torch.equal(network.weight, before)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs need a GPU; the meta-device test is its twin"
)
def test_a_captured_step_replays() -> None:
    expected = model().cuda()
    usual = build(expected)
    network = model().cuda()
    optimizer = build(network, capturable=True)
    gradients = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        parameter.grad = gradient

    def load(step: int) -> None:
        for i, (gradient, parameter) in enumerate(zip(gradients, expected.parameters(), strict=True)):
            generator = torch.Generator().manual_seed(50 * step + i)
            gradient.copy_(torch.randn(gradient.shape, generator=generator, dtype=torch.float64))
            parameter.grad = gradient.clone()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in range(3):
            load(step)
            optimizer.step()
            usual.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(3, 10):
        load(step)
        graph.replay()
        usual.step()
    for a, b in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_capturable_cannot_be_turned_off_under_way() -> None:
    weight = nn.Parameter(torch.ones(3))
    settings = {"direction": "sgd", "lr": 0.1, "warmup_steps": 2, "nonfinite": "ignore"}
    optimizer = AMUSE([weight], capturable=True, **settings)
    take_steps(optimizer, range(1))
    saved = optimizer.state_dict()
    optimizer.param_groups[0]["capturable"] = False
    with pytest.raises(ValueError, match="save the optimizer's state dict and load it into one without"):
        take_steps(optimizer, range(1, 2))
    saved["param_groups"][0]["capturable"] = False
    without = AMUSE([weight], **settings)
    without.load_state_dict(saved)
    take_steps(without, range(1, 2))
