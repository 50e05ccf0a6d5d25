"""`beta1=0`: gradients are taken at z, which the parameter holds, and the state keeps x."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, AMUSEReference, averaged, averaged_state_dict, telemetry
from amuse_optim.state import averaged_value, fast_value
from tests.amuse_optim.test_equalities import SHAPES, difference, gradients, learning_rate, start
from tests.amuse_optim.training import bits, build, random_gradient, same, take_steps, train
from tests.oracle.exact import ExactOracle

ZERO: dict[str, Any] = {"beta1": 0.0, "rho": 0.0}
DIRECTIONS: list[dict[str, Any]] = [
    {"direction": "muon", "weight_decay": 0.1},
    {"direction": "adamw", "auxiliary_momentum": 0.9, "r": 2.0},
    {"direction": "sgd", "weight_decay": 0.1, "weight_decay_at": "y", "c_warmup_steps": 5},
]


@pytest.mark.parametrize("decay_at", ["z", "y"])
@pytest.mark.parametrize("foreach", [None, False])
def test_equals_descent_with_an_average_beside_it(decay_at: str, foreach: bool | None) -> None:
    """On a quadratic, whose gradients show where they were taken."""
    theta = nn.Parameter(torch.linspace(-1.0, 2.0, 7, dtype=torch.float64))
    curvature = torch.linspace(0.5, 3.0, 7, dtype=torch.float64)
    z, x, total = theta.detach().clone(), theta.detach().clone(), 0.0
    optimizer = AMUSE(
        [theta],
        direction="sgd",
        lr=0.1,
        warmup_steps=5,
        weight_decay=0.2,
        weight_decay_at=decay_at,
        foreach=foreach,
        **ZERO,
    )
    for step in range(1, 60):
        lr = 0.1 * min(1.0, step / 5)
        z = z - lr * curvature * z - lr * 0.2 * z
        total += lr**2
        x = x + lr**2 / total * (z - x)
        theta.grad = curvature * theta.detach()
        optimizer.step()
        torch.testing.assert_close(theta.detach(), z, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(optimizer.state[theta]["x"], x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 2e-5)]
)
@pytest.mark.parametrize("options", DIRECTIONS, ids=lambda options: options["direction"])
@pytest.mark.parametrize("kind", [AMUSE, AMUSEReference])
def test_equals_the_exact_oracle(
    kind: type[AMUSE], options: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    def rounded(arrays: list[Any]) -> list[Any]:
        return [torch.tensor(array).to(dtype).double().numpy() for array in arrays]

    settings = options | ZERO | {"warmup_steps": 10, "lr": learning_rate(0)}
    values = rounded(start(SHAPES))
    parameters = [nn.Parameter(torch.tensor(value).to(dtype)) for value in values]
    optimizer = kind(parameters, orthogonalize_dtype=torch.float64, **settings)
    oracle = ExactOracle(values, **settings)
    for step in range(160):
        grads: list[Any] = rounded(gradients(step, SHAPES))
        if step % 7 == 3:
            grads[1] = None
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = None if grad is None else torch.tensor(grad).to(dtype)
        optimizer.step()
        oracle.step(grads, lr=learning_rate(step))
        for i, parameter in enumerate(parameters):
            state = optimizer.state[parameter]
            z = fast_value(parameter, state) if kind is AMUSE else state["z"]
            x = averaged_value(parameter, state) if kind is AMUSE else state["x"]
            assert difference(z, oracle.z[i]) < tolerance, ("z", step, i)
            assert difference(x, oracle.x[i]) < tolerance, ("x", step, i)
            assert torch.equal(parameter.detach(), z.to(dtype))


@pytest.mark.parametrize(
    ("dtype", "precision", "kept", "momentum"),
    [
        (torch.float32, "full", {"x": torch.float32}, torch.float32),
        (torch.float64, "full", {"x": torch.float64}, torch.float64),
        (torch.bfloat16, "full", {"z": torch.float32, "x": torch.float32}, torch.float32),
        (torch.float32, "lean", {"x": torch.float32}, torch.bfloat16),
        (torch.bfloat16, "lean", {"z": torch.bfloat16, "x": torch.float32}, torch.bfloat16),
    ],
)
def test_state_holds_x_and_no_z_beside_a_parameter_that_is_not_rounded(
    dtype: torch.dtype, precision: Any, kept: dict[str, torch.dtype], momentum: torch.dtype
) -> None:
    def state_of(**options: Any) -> dict[str, Tensor]:
        weight = nn.Parameter(torch.ones(4, 6, dtype=dtype))
        optimizer = AMUSE(
            [weight], direction="muon", warmup_steps=2, state_precision=precision, rho=0.0, **options
        )
        take_steps(optimizer, range(3))
        return {name: value for name, value in optimizer.state[weight].items() if isinstance(value, Tensor)}

    state = state_of(beta1=0.0)
    assert {name: value.dtype for name, value in state.items()} == kept | {"momentum_buffer": momentum}
    if precision == "full":  # as many bytes as with beta1 > 0
        sizes = [
            sum(value.numel() * value.element_size() for value in one.values())
            for one in (state, state_of(beta1=0.6))
        ]
        assert sizes[0] == sizes[1]


def test_lean_state_loses_nothing_of_the_average() -> None:
    """An average in bfloat16 would stand still once c is below 2^-8."""
    weight = nn.Parameter(torch.zeros(300))
    optimizer = AMUSE([weight], direction="sgd", lr=0.01, warmup_steps=0, state_precision="lean", **ZERO)
    total = torch.zeros(300, dtype=torch.float64)
    for step in range(1, 401):
        weight.grad = random_gradient(weight, step) - 1
        optimizer.step()
        total += weight.detach().double()
    torch.testing.assert_close(optimizer.state[weight]["x"].double(), total / 400, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.requirement("A12")
def test_evaluating_changes_nothing_and_shows_x(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype)) for _ in range(2)]
    plain, evaluated = (AMUSE([p], direction="muon", lr=0.01, warmup_steps=3, **ZERO) for p in parameters)
    for step in range(20):
        for optimizer in (plain, evaluated):
            take_steps(optimizer, range(step, step + 1))
        with averaged(evaluated):
            shown = parameters[1].detach().clone()
        assert torch.equal(shown, evaluated.state[parameters[1]]["x"].to(dtype))
        assert torch.equal(*parameters)
        assert "y" not in evaluated.state[parameters[1]]
    assert not torch.equal(shown, parameters[1])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_model_to_ship_is_x(mode: str) -> None:
    model, optimizer = build(**ZERO)
    train(model, optimizer, 12)
    with averaged(optimizer):
        expected = {name: value.clone() for name, value in model.state_dict().items()}
    if mode == "eval":
        optimizer.eval()
    shipped = averaged_state_dict(model, optimizer)
    assert all(torch.equal(shipped[name], value) for name, value in expected.items())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_telemetry_knows_that_y_is_z(mode: str) -> None:
    model, optimizer = build(**ZERO)
    train(model, optimizer, 12)
    weights = [p for p in model.parameters() if p is model[0].weight or p is model[2].weight]
    apart = torch.stack([(optimizer.state[p]["x"] - p.detach()).norm() for p in weights]).norm()
    if mode == "eval":
        optimizer.eval()
    values = telemetry(optimizer)
    assert float(values["0_muon/distance_xz"]) == pytest.approx(float(apart), rel=1e-5)
    assert float(values["0_muon/distance_yx"]) == pytest.approx(float(apart), rel=1e-5)
    assert float(apart) > 0


@pytest.mark.parametrize(("before", "after", "missing"), [(0.0, 0.6, "z"), (0.6, 0.0, "x")])
def test_going_from_or_to_zero_after_a_step_is_refused(before: float, after: float, missing: str) -> None:
    model, optimizer = build(beta1=before, rho=0.0)
    train(model, optimizer, 3)
    kept = bits(model, optimizer)
    for group in optimizer.param_groups:
        group["beta1"] = after
    with pytest.raises(ValueError, match=rf"needs {missing} in its state: .*decides what is kept \(beta1, "):
        optimizer.step()
    assert same(kept, bits(model, optimizer))


def test_it_may_be_changed_before_the_first_step() -> None:
    """The state follows, as it does a parameter that is converted."""
    model, changed = build(beta1=0.6, rho=0.0)
    for group in changed.param_groups:
        group["beta1"] = 0.0
    other, expected = build(**ZERO)
    train(model, changed, 5)
    train(other, expected, 5)
    assert same(bits(model, changed), bits(other, expected))


@pytest.mark.parametrize(
    ("options", "name"), [({"rho": 0.8}, "rho"), ({"rho": 0.0, "parity": "published"}, "parity")]
)
def test_what_needs_a_beta_is_refused(options: dict[str, Any], name: str) -> None:
    message = r"beta1 must be in \(0, 1\), or 0 with rho=0 and parity='exact'"
    with pytest.raises(ValueError, match=message):
        build(beta1=0.0, **options)
    model, optimizer = build(**ZERO)
    train(model, optimizer, 2)
    kept = bits(model, optimizer)
    optimizer.param_groups[0][name] = options[name]
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert same(kept, bits(model, optimizer))


def test_an_eval_state_without_y_is_refused() -> None:
    model, optimizer = build(**ZERO)
    train(model, optimizer, 3)
    optimizer.eval()
    saved = optimizer.state_dict()
    kept = bits(model, optimizer)
    lacking = saved | {
        "state": {i: {k: v for k, v in state.items() if k != "y"} for i, state in saved["state"].items()}
    }
    with pytest.raises(ValueError, match=r"holds no y for parameter '0\.weight'"):
        optimizer.load_state_dict(lacking)
    assert same(kept, bits(model, optimizer))
    for state in optimizer.state.values():
        del state["y"]
    shown = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=r"the state holds x alone.*call optimizer.eval\(\) before"):
        optimizer.train()
    assert optimizer.mode == "eval"
    assert same(shown, [parameter.detach() for parameter in model.parameters()])


@pytest.mark.parametrize(("saved", "present"), [(0.0, 0.6), (0.6, 0.0)])
def test_a_loaded_beta_comes_with_its_state(saved: float, present: float) -> None:
    model, optimizer = build(beta1=saved, rho=0.0)
    train(model, optimizer, 5)
    other_model, other = build(seed=1, beta1=present, rho=0.0)
    train(other_model, other, 2)
    other_model.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="beta1"):
        other.load_state_dict(optimizer.state_dict())
    train(model, optimizer, 5, start=5)
    train(other_model, other, 5, start=5)
    assert same(bits(model, optimizer), bits(other_model, other))
