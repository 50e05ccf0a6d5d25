"""Parameters below float32, and lean state, against the float64 oracle."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, accept_weights, averaged, averaged_state_dict, telemetry
from tests.amuse_optim.test_equalities import CASES, SHAPES, difference, gradients, learning_rate, start
from tests.amuse_optim.training import build_list, train_list
from tests.oracle.exact import ExactOracle
from tests.oracle.published import PublishedOracle

STEPS = 160


def rounded(arrays: list[np.ndarray], dtype: torch.dtype) -> list[np.ndarray]:
    """The values as the dtype holds them, in float64."""
    return [torch.tensor(array).to(dtype).double().numpy() for array in arrays]


def run(
    dtype: torch.dtype, options: dict[str, Any], oracle_class: Any, **more: Any
) -> tuple[list[nn.Parameter], AMUSE, Any]:
    """The optimizer on parameters of this dtype beside an oracle that is given the same rounded numbers."""
    values = rounded(start(SHAPES), dtype)
    parameters = [nn.Parameter(torch.tensor(value).to(dtype)) for value in values]
    parity = "published" if oracle_class is PublishedOracle else "exact"
    optimizer = AMUSE(
        parameters, lr=learning_rate(0), parity=parity, orthogonalize_dtype=torch.float64, **options, **more
    )
    oracle = oracle_class(values, lr=learning_rate(0), **options)
    for step in range(STEPS):
        grads: list[Any] = rounded(gradients(step, SHAPES), dtype)
        if step % 7 == 3:
            grads[1] = None
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = None if grad is None else torch.tensor(grad).to(dtype)
        optimizer.step()
        oracle.step(grads, lr=learning_rate(step))
    return parameters, optimizer, oracle


LOW_CASES = [case for case, options in CASES.items() if "orthogonalize" not in options]


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", LOW_CASES)
@pytest.mark.parametrize("oracle_class", [ExactOracle, PublishedOracle])
def test_full_state_follows_the_oracle_as_in_float32(
    dtype: torch.dtype, case: str, oracle_class: Any
) -> None:
    """z and x are kept apart from the rounded y, so low precision costs them nothing."""
    parameters, optimizer, oracle = run(dtype, CASES[case], oracle_class)
    for i, parameter in enumerate(parameters):
        assert difference(optimizer.state[parameter]["z"], oracle.z[i]) < 2e-5
        assert difference(optimizer.state[parameter]["x"], oracle.x[i]) < 2e-5
        assert difference(parameter, oracle.y[i]) < 2**-8
    y = [parameter.detach().clone() for parameter in parameters]
    with averaged(optimizer):
        for i, parameter in enumerate(parameters):
            assert difference(parameter, oracle.x[i]) < 2**-8
    assert all(torch.equal(a, b) for a, b in zip(y, parameters, strict=True))


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["muon_decay_at_z", "muon_decay_at_y", "adamw_first_moment", "sgd"])
@pytest.mark.parametrize("oracle_class", [ExactOracle, PublishedOracle])
def test_lean_state_stays_near_the_oracle(dtype: torch.dtype, case: str, oracle_class: Any) -> None:
    """Each step rounds by up to 2^-8; unbiased, so the errors do not add up to more than a few of them."""
    parameters, optimizer, oracle = run(dtype, CASES[case], oracle_class, state_precision="lean")
    for i, parameter in enumerate(parameters):
        assert optimizer.state[parameter]["z"].dtype == torch.bfloat16
        assert difference(optimizer.state[parameter]["z"], oracle.z[i]) < 20 * 2**-8
        with averaged(optimizer):
            assert difference(parameter, oracle.x[i]) < 20 * 2**-8


@pytest.mark.requirement("A9")
def test_lean_float32_parameters_hold_x_of_the_stored_z_exactly() -> None:
    """y is built from z as stored, so the decoded x is the average of the z that were stored."""
    parameter = nn.Parameter(torch.ones(300))
    optimizer = AMUSE([parameter], direction="sgd", lr=0.01, warmup_steps=0, rho=0.0, state_precision="lean")
    total = torch.zeros(300, dtype=torch.float64)
    for step in range(1, 51):
        parameter.grad = torch.randn(300, generator=torch.Generator().manual_seed(step))
        optimizer.step()
        total += optimizer.state[parameter]["z"].double()
    with averaged(optimizer):
        torch.testing.assert_close(parameter.detach().double(), total / 50, rtol=0, atol=1e-5)


@pytest.mark.requirement("A9")
def test_every_lean_tensor_is_rounded_without_bias_and_on_its_own() -> None:
    """The momentum of a constant gradient, thousands of entries, two equal parameters."""
    parameters = [nn.Parameter(torch.zeros(64, 64)) for _ in range(2)]
    for direction, name, expected in (
        ("muon", "momentum_buffer", 1 - 0.95**20),
        ("adamw", "exp_avg_sq", 1 - 0.999**20),
        ("adamw", "exp_avg", 1 - 0.9**20),
    ):
        optimizer = AMUSE(
            parameters, direction=direction, warmup_steps=2, state_precision="lean", auxiliary_momentum=0.9
        )
        for _ in range(20):
            for parameter in parameters:
                parameter.grad = torch.ones(64, 64)
            optimizer.step()
        first, second = (optimizer.state[parameter][name].float() for parameter in parameters)
        assert float(first.mean()) == pytest.approx(expected, rel=2e-3)
        assert not torch.equal(first, second)  # different random bits


def converted(step: int, convert: Any) -> tuple[nn.Linear, AMUSE]:
    """A layer converted before the first step, trained `step` steps."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4, bias=False)
    optimizer = AMUSE([layer.weight], direction="muon", lr=0.01, warmup_steps=2)
    convert(layer)
    for _ in range(step):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_converted_after_construction_gets_the_state_it_needs(dtype: torch.dtype) -> None:
    layer, optimizer = converted(3, lambda layer: layer.to(dtype))
    state = optimizer.state[layer.weight]
    assert ("x" in state) == (dtype != torch.float64)
    assert state["z"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with averaged(optimizer):
        assert bool(layer.weight.isfinite().all())


def test_a_model_converted_after_its_first_step_is_refused() -> None:
    layer, optimizer = converted(3, lambda layer: layer)
    layer.bfloat16()
    layer.weight.grad = torch.ones_like(layer.weight)
    with pytest.raises(ValueError, match="needs x in its state"):
        optimizer.step()


def test_state_of_float32_parameters_is_refused_for_lower_ones() -> None:
    _, optimizer = converted(3, lambda layer: layer)
    _, low = converted(0, lambda layer: layer.bfloat16())
    with pytest.raises(ValueError, match="holds no x"):
        low.load_state_dict(optimizer.state_dict())


def test_lean_refuses_float64() -> None:
    with pytest.raises(ValueError, match="use 'full'"):
        AMUSE(
            [nn.Parameter(torch.ones(2, dtype=torch.float64))],
            direction="sgd",
            warmup_steps=2,
            state_precision="lean",
        )


@pytest.mark.requirement("E1")
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_telemetry_measures_the_kept_sequences_not_the_rounded_ones(mode: str) -> None:
    parameters, optimizer, oracle = run(torch.bfloat16, CASES["muon"] | {"t0_steps": 30}, ExactOracle)
    if mode == "eval":
        optimizer.eval()
    values = telemetry(optimizer)

    def norm(first: list[np.ndarray], second: list[np.ndarray]) -> float:
        return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(first, second, strict=True))))

    assert float(values["0_muon/distance_xz"]) == pytest.approx(norm(oracle.x, oracle.z), rel=1e-3)
    rounded_y = [parameter.detach().double().numpy() for parameter in parameters]
    y = rounded_y if mode == "train" else oracle.y  # where the gradient is taken
    assert float(values["0_muon/distance_yx"]) == pytest.approx(norm(y, oracle.x), rel=1e-2)


@pytest.mark.skipif(
    not hasattr(Tensor, "grad_dtype"), reason="gradients of this torch have their parameter's dtype"
)
def test_gradients_more_precise_than_the_parameter_keep_their_bits() -> None:
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    parameter.grad_dtype = torch.float32
    gradient: Tensor = torch.full((2,), 1 + 2**-12)
    parameter.grad = gradient
    optimizer = AMUSE([parameter], direction="sgd", lr=1.0, warmup_steps=0, rho=0.0)
    optimizer.step()
    assert torch.equal(optimizer.state[parameter]["z"], -gradient)


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("how", ["loaded", "loaded from eval mode", "converted", "converted in eval mode"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"beta1": 0.0, "rho": 0.0}, {"state_precision": "lean"}])
def test_a_run_in_low_precision_goes_on_exactly_in_float32(
    how: str, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """As one that had float32 parameters, and the z and x that were kept, from there on."""
    model, optimizer = build_list(2, dtype, **options)
    train_list(model, optimizer, range(6))
    kept = [tuple(optimizer.state[p][name].float().clone() for name in ("z", "x")) for p in model]
    if "eval" in how:
        optimizer.eval()
    if "loaded" in how:
        other, before = build_list(2, torch.float32, **options)
        other.load_state_dict(model.state_dict())
        before.load_state_dict(optimizer.state_dict())
        model, optimizer = other, before
    else:
        model.float()
    optimizer.train()
    twin, expected = build_list(2, torch.float32, **options)
    expected.load_state_dict(optimizer.state_dict())
    needless = "z" if options.get("beta1") == 0.0 else "x"
    for ours, (z, x) in zip(twin, kept, strict=True):
        beta = expected.state[ours]["beta"]
        expected.state[ours].pop(needless, None)
        with torch.no_grad():
            ours.copy_((1.0 - beta) * z + beta * x)
    for first, last in ((6, 6), (6, 11)):  # at once, and after five steps
        train_list(twin, expected, range(first, last))
        train_list(model, optimizer, range(first, last))
        with averaged(expected), averaged(optimizer):
            for parameter, theirs in zip(model, twin, strict=True):
                torch.testing.assert_close(parameter, theirs, rtol=2e-6, atol=2e-6)
    assert all(needless not in optimizer.state[parameter] for parameter in model)
    moving = "x" if needless == "z" else "z"
    for parameter, (z, x) in zip(model, kept, strict=True):
        assert not torch.equal(optimizer.state[parameter][moving].float(), x if moving == "x" else z)


@pytest.mark.requirement("A9")
@pytest.mark.parametrize("how", ["loaded", "converted"])
def test_lean_state_cannot_go_on_in_float64(how: str) -> None:
    model, optimizer = build_list(2, torch.float32, direction="sgd", state_precision="lean")
    train_list(model, optimizer, range(3))
    if how == "loaded":
        _, other = build_list(2, torch.float64, direction="sgd")
        with pytest.raises(ValueError, match=r"lean.* got torch\.float64"):
            other.load_state_dict(optimizer.state_dict())
        return
    model.double()
    before = [parameter.detach().clone() for parameter in model]
    with pytest.raises(ValueError, match=r"lean.* got torch\.float64"):
        train_list(model, optimizer, range(3, 4))
    assert all(map(torch.equal, before, model))


@pytest.mark.requirement("A9")
def test_reading_and_refused_steps_leave_converted_state_as_it_is() -> None:
    """Only a step makes the parameters hold the exact y; an edit that is accepted before it counts."""
    model, optimizer = build_list(2, torch.bfloat16)
    train_list(model, optimizer, range(6))
    model.float()
    before = copy.deepcopy((list(model), optimizer.state_dict()["state"]))

    def same() -> bool:
        after = list(model), optimizer.state_dict()["state"]
        return all(map(torch.equal, after[0], before[0])) and all(
            torch.equal(after[1][i][name], before[1][i][name]) for i in (0, 1) for name in ("x", "z")
        )

    telemetry(optimizer)
    averaged_state_dict(model, optimizer)
    with averaged(optimizer):
        assert all(torch.equal(p, optimizer.state[p]["x"]) for p in model)
    assert same()
    for parameter in model:
        parameter.grad = torch.full_like(parameter, float("nan"))
    with pytest.raises(FloatingPointError):
        optimizer.step()
    assert same()
    with torch.no_grad():
        model[0].fill_(7.0)
    accept_weights(optimizer, [model[0]])
    assert bool((model[0] == 7.0).all() & (averaged_state_dict(model, optimizer)["0"] == 7.0).all())


@pytest.mark.requirement("A9")
@pytest.mark.parametrize(
    ("before", "after"), [(torch.float32, torch.float64), (torch.float64, torch.float32)]
)
def test_y_comes_back_as_it_was_where_the_model_was_converted_meanwhile(
    before: torch.dtype, after: torch.dtype
) -> None:
    model, optimizer = build_list(2, before)
    train_list(model, optimizer, range(4))
    y = [parameter.detach().clone() for parameter in model]
    with averaged(optimizer):
        model.to(after)
    assert optimizer.mode == "train"
    assert all(torch.equal(parameter, value.to(after)) for parameter, value in zip(model, y, strict=True))
