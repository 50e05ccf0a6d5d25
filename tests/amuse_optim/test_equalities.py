"""AMUSE against implementations that share no code with it: oracles in NumPy, schedulefree, torch's Muon."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import schedulefree
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from amuse_optim import AMUSE, AMUSEReference, averaged
from amuse_optim.state import averaged_value
from tests.oracle.exact import ExactOracle
from tests.oracle.published import PublishedOracle

STEPS = 220
SHAPES = [(6, 4), (3, 5), (4, 2, 3, 3)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

CASES: dict[str, dict[str, Any]] = {
    "muon": {"direction": "muon", "warmup_steps": 20, "t0_steps": 60},
    "muon_decay_at_z": {"direction": "muon", "warmup_steps": 20, "weight_decay": 0.1},
    "muon_decay_at_y": {
        "direction": "muon",
        "warmup_steps": 20,
        "weight_decay": 0.1,
        "weight_decay_at": "y",
    },
    "muon_plain_momentum": {"direction": "muon", "warmup_steps": 10, "nesterov": False, "momentum": 0.8},
    "muon_spectral": {"direction": "muon", "warmup_steps": 10, "scale": "spectral"},
    "muon_exact_polar": {"direction": "muon", "warmup_steps": 10, "orthogonalize": "exact"},
    "adamw": {"direction": "adamw", "warmup_steps": 20, "t0_steps": 50, "eps": 1e-8},
    "adamw_first_moment": {
        "direction": "adamw",
        "warmup_steps": 20,
        "auxiliary_momentum": 0.9,
        "weight_decay": 0.05,
    },
    "sgd": {"direction": "sgd", "warmup_steps": 20, "weight_decay": 0.01},
    "steps_clock": {"direction": "muon", "warmup_steps": 20, "beta_clock": "steps"},
    "recency": {"direction": "adamw", "warmup_steps": 20, "r": 2.0},
    "equal_weights": {"direction": "muon", "warmup_steps": 20, "weight_lr_power": 0.0},
    "c_warmup": {"direction": "muon", "warmup_steps": 30, "c_warmup_steps": 15},
    "no_warmup": {"direction": "muon", "warmup_steps": 0, "t0_steps": 40},
    "small_beta": {"direction": "muon", "warmup_steps": 10, "beta1": 0.1, "rho": 1.5},
    "schedule_free": {"direction": "adamw", "warmup_steps": 0, "rho": 0.0, "beta1": 0.9},
}


def gradients(step: int, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Gradients with very different scales, the same for every contestant."""
    rng = np.random.default_rng(1000 + step)
    return [rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2) for shape in shapes]


def start(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.standard_normal(shape) for shape in shapes]


def learning_rate(step: int) -> float:
    """Constant, then raised, then lowered: the clamp and the running maximum both matter."""
    return 0.02 if step < 100 else 0.05 if step < 150 else 0.01


def difference(ours: Tensor, theirs: np.ndarray | Tensor) -> float:
    """Largest difference relative to the largest entry."""
    other = torch.as_tensor(theirs, dtype=torch.float64)
    return float((ours.detach().double() - other).abs().max() / other.abs().max())


def run_against_oracle(
    optimizer_class: type[AMUSE],
    oracle_class: Callable[..., Any],
    options: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    parameters = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(SHAPES)]
    extra = {"parity": "published"} if oracle_class is PublishedOracle else {}
    if dtype != torch.float64:  # the oracle's products are float64
        extra["orthogonalize_dtype"] = torch.float64
    optimizer = optimizer_class(parameters, lr=learning_rate(0), **options, **extra)
    oracle_options = options | {"lr": learning_rate(0)}
    if options.get("orthogonalize") == "exact":
        oracle_options["orthogonalize"] = "polar_exact"
    oracle = oracle_class(start(SHAPES), **oracle_options)

    for step in range(STEPS):
        grads: list[np.ndarray | None] = list(gradients(step, SHAPES))
        if step % 7 == 3:
            grads[1] = None  # this parameter keeps everything it has
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = None if grad is None else torch.tensor(grad, dtype=dtype)
        optimizer.step()
        oracle.step(grads, lr=learning_rate(step))

        group = optimizer.param_groups[0]
        assert group["t"] == oracle.t
        assert group["beta_t"] == pytest.approx(oracle.beta, rel=1e-12)
        assert group["c_t"] == pytest.approx(oracle.c, rel=1e-12)
        for i, parameter in enumerate(parameters):
            assert difference(parameter, oracle.y[i]) < TOLERANCE[dtype], ("y", step, i)
            assert difference(optimizer.state[parameter]["z"], oracle.z[i]) < TOLERANCE[dtype], ("z", step, i)
    with averaged(optimizer):
        for i, parameter in enumerate(parameters):
            assert difference(parameter, oracle.x[i]) < TOLERANCE[dtype], ("x", i)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer_class", [AMUSE, AMUSEReference])
@pytest.mark.requirement("A1", "A2")
def test_equals_the_exact_oracle(optimizer_class: type[AMUSE], case: str, dtype: torch.dtype) -> None:
    run_against_oracle(optimizer_class, ExactOracle, CASES[case], dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer_class", [AMUSE, AMUSEReference])
@pytest.mark.requirement("A1")
def test_equals_the_published_oracle(optimizer_class: type[AMUSE], case: str, dtype: torch.dtype) -> None:
    run_against_oracle(optimizer_class, PublishedOracle, CASES[case], dtype)


@pytest.mark.parametrize("optimizer_class", [AMUSE, AMUSEReference])
@pytest.mark.parametrize("parity", ["exact", "published"])
def test_power_decay_equals_an_oracle_that_is_told_every_rate(
    optimizer_class: type[AMUSE] | type[AMUSEReference], parity: str
) -> None:
    options: dict[str, Any] = {"direction": "muon", "warmup_steps": 8, "weight_decay": 0.1}
    parameters = [torch.nn.Parameter(torch.tensor(p)) for p in start(SHAPES)]
    optimizer = optimizer_class(parameters, lr=0.05, lr_decay=0.6, parity=parity, **options)
    oracle = (ExactOracle if parity == "exact" else PublishedOracle)(start(SHAPES), lr=0.05, **options)
    for step in range(100):
        grads = gradients(step, SHAPES)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = torch.tensor(grad)
        optimizer.step()
        oracle.step(list(grads), lr=0.05 * min(1.0, (48 / (step + 1)) ** 0.6))  # from six warm-ups on
        for i, parameter in enumerate(parameters):
            assert difference(parameter, oracle.y[i]) < 1e-10, (step, i)
    optimizer.eval()
    for i, parameter in enumerate(parameters):
        assert difference(parameter, oracle.x[i]) < 1e-10, i


@pytest.mark.requirement("A1")
def test_published_and_exact_differ() -> None:
    """Guards the two tests above: the flag is not without effect."""
    ends = []
    for parity in ("exact", "published"):
        parameter = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
        optimizer = AMUSE([parameter], direction="muon", warmup_steps=5, parity=parity)
        for step in range(50):
            parameter.grad = torch.tensor(gradients(step, [(4, 4)])[0])
            optimizer.step()
        optimizer.eval()
        ends.append(parameter.detach().clone())
    assert difference(ends[0], ends[1]) > 1e-4


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("warmup_steps", [0, 20])
@pytest.mark.parametrize("r", [0.0, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_schedulefree_adamw(
    weight_decay: float, warmup_steps: int, r: float, dtype: torch.dtype, tolerance: float
) -> None:
    """rho = 0, AdamW for all, decay at y: schedulefree.AdamWScheduleFree step by step."""
    ours = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(SHAPES)]
    theirs = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(SHAPES)]
    optimizer = AMUSE(
        ours,
        lr=0.01,
        direction="adamw",
        rho=0.0,
        beta1=0.9,
        eps=1e-8,
        warmup_steps=warmup_steps,
        r=r,
        weight_decay=weight_decay,
        weight_decay_at="y",
    )
    peer = schedulefree.AdamWScheduleFree(
        theirs,
        lr=0.01,
        betas=(0.9, 0.999),
        eps=1e-8,
        warmup_steps=warmup_steps,
        r=r,
        weight_decay=weight_decay,
        foreach=False,
    )
    compare_with_schedulefree(optimizer, ours, peer, theirs, tolerance)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("warmup_steps", [0, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_schedulefree_sgd(
    weight_decay: float, warmup_steps: int, dtype: torch.dtype, tolerance: float
) -> None:
    """rho = 0, SGD for all, decay at y: schedulefree.SGDScheduleFree step by step."""
    ours = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(SHAPES)]
    theirs = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(SHAPES)]
    optimizer = AMUSE(
        ours,
        lr=0.05,
        direction="sgd",
        rho=0.0,
        beta1=0.9,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        weight_decay_at="y",
    )
    peer = schedulefree.SGDScheduleFree(
        theirs, lr=0.05, momentum=0.9, warmup_steps=warmup_steps, weight_decay=weight_decay, foreach=False
    )
    compare_with_schedulefree(optimizer, ours, peer, theirs, tolerance)


def compare_with_schedulefree(
    optimizer: AMUSE, ours: list[Any], peer: Any, theirs: list[Any], tolerance: float
) -> None:
    peer.train()
    for step in range(STEPS):
        for mine, other, grad in zip(ours, theirs, gradients(step, SHAPES), strict=True):
            mine.grad = torch.tensor(grad, dtype=mine.dtype)
            other.grad = mine.grad.clone()
        optimizer.step()
        peer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert difference(mine, other.detach()) < tolerance, ("y", step)
            assert difference(optimizer.state[mine]["z"], peer.state[other]["z"]) < tolerance, ("z", step)
    optimizer.eval()
    peer.eval()
    for mine, other in zip(ours, theirs, strict=True):
        assert difference(mine, other.detach()) < tolerance, "x"


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(
    ("scale", "torch_name"), [("match_rms", "match_rms_adamw"), ("spectral", "original")]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_z_equals_torch_muon(
    nesterov: bool, scale: str, torch_name: str, dtype: torch.dtype, tolerance: float
) -> None:
    """The z sequence for fixed gradients and decay at z is torch.optim.Muon's parameter.

    torch multiplies in bfloat16 whatever the dtype, so both run torch's own iteration: what is compared is
    everything around it. The iterations are compared in test_orthogonalize.py.
    """
    shapes: list[tuple[int, ...]] = [(6, 4), (3, 5)]

    def torch_iteration(stack: Tensor) -> Tensor:
        return torch.stack(
            [_zeropower_via_newtonschulz(m, (3.4445, -4.7750, 2.0315), 5, 1e-7) for m in stack]
        )

    ours = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(shapes)]
    theirs = [torch.nn.Parameter(torch.tensor(p, dtype=dtype)) for p in start(shapes)]
    optimizer = AMUSE(
        ours,
        lr=0.02,
        direction="muon",
        warmup_steps=0,
        t0_steps=50,
        weight_decay=0.1,
        nesterov=nesterov,
        scale=scale,
        orthogonalize=torch_iteration,
    )
    peer = torch.optim.Muon(
        theirs, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn=torch_name
    )
    for step in range(STEPS):
        for mine, other, grad in zip(ours, theirs, gradients(step, shapes), strict=True):
            mine.grad = torch.tensor(grad, dtype=dtype)
            other.grad = mine.grad.clone()
        optimizer.step()
        peer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert difference(optimizer.state[mine]["z"], other.detach()) < tolerance, step


@pytest.mark.parametrize(("r", "weight_lr_power"), [(0.0, 0.0), (0.0, 2.0), (1.0, 2.0), (2.0, 0.0)])
@pytest.mark.parametrize("rho", [0.0, 0.8])
def test_x_is_the_weighted_mean_of_z(r: float, weight_lr_power: float, rho: float) -> None:
    """x_t = sum w_i z_i / sum w_i with w_i = i^r lr_max_i^power; the plain mean for r = power = 0."""
    parameter = torch.nn.Parameter(torch.zeros(5, 3, dtype=torch.float64))
    optimizer = AMUSE(
        [parameter], lr=0.1, direction="muon", warmup_steps=9, rho=rho, r=r, weight_lr_power=weight_lr_power
    )
    weighted_sum, total = torch.zeros(5, 3, dtype=torch.float64), 0.0
    for step in range(STEPS):
        parameter.grad = torch.tensor(gradients(step, [(5, 3)])[0])
        optimizer.step()
        weight = (step + 1) ** r * (0.1 * min(1.0, (step + 1) / 9)) ** weight_lr_power
        weighted_sum += weight * optimizer.state[parameter]["z"]
        total += weight
        x = averaged_value(parameter, optimizer.state[parameter])
        assert difference(x, weighted_sum / total) < 1e-11
