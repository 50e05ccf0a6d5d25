"""Modes, groups, the state dict, and what happens to bad input."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, OptimizerModeError, averaged, param_groups

Build = Callable[[], tuple[nn.Module, AMUSE]]


def build(seed: int = 0, **options: Any) -> tuple[nn.Module, AMUSE]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    settings: dict[str, Any] = {"lr": 0.02, "warmup_steps": 4, "weight_decay": 0.1} | options
    return model, AMUSE(param_groups(model), **settings)


def train(model: nn.Module, optimizer: AMUSE, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs[:, :3].sin()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def bits(model: nn.Module, optimizer: AMUSE) -> list[Tensor]:
    tensors = [p.detach() for p in model.parameters()]
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if isinstance(value, Tensor)]
    return [tensor.clone() for tensor in tensors]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_trains() -> None:
    model, optimizer = build(lr=0.05)
    inputs = torch.randn(256, 6, generator=torch.Generator().manual_seed(99))

    def loss() -> float:
        with averaged(optimizer), torch.no_grad():
            return float((model(inputs) - inputs[:, :3].sin()).square().mean())

    before = loss()
    train(model, optimizer, 300)
    assert loss() < 0.05 * before


@pytest.mark.requirement("A12", "B8")
def test_modes_are_idempotent_and_restore_y_bit_for_bit() -> None:
    model, optimizer = build()
    train(model, optimizer, 20)
    y = [p.detach().clone() for p in model.parameters()]
    assert optimizer.mode == "train"
    optimizer.train()
    assert same(y, [p.detach() for p in model.parameters()])
    optimizer.eval()
    x = [p.detach().clone() for p in model.parameters()]
    optimizer.eval()
    assert optimizer.mode == "eval"
    assert same(x, [p.detach() for p in model.parameters()])
    assert not same(x, y)
    optimizer.train()
    assert same(y, [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.requirement("A12")
def test_evaluating_does_not_change_the_trajectory(dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype)) for _ in range(2)]
    optimizers = [AMUSE([p], direction="muon", lr=0.01, warmup_steps=3) for p in parameters]
    for step in range(40):
        for parameter, optimizer in zip(parameters, optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            parameter.grad = torch.randn(3, 4, generator=generator).to(dtype)
            optimizer.step()
        with averaged(optimizers[1]):
            pass
        assert torch.equal(parameters[0], parameters[1])


@pytest.mark.requirement("B8")
def test_step_in_eval_mode_names_the_missing_call() -> None:
    model, optimizer = build()
    train(model, optimizer, 3)
    before = bits(model, optimizer)
    with averaged(optimizer), pytest.raises(OptimizerModeError, match=r"optimizer\.train\(\)"):
        optimizer.step()
    assert same(before, bits(model, optimizer))


@pytest.mark.requirement("A6")
def test_gradients_are_read_only() -> None:
    model, optimizer = build()
    train(model, optimizer, 2)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert same(before, [p.grad for p in model.parameters() if p.grad is not None])


@pytest.mark.requirement("B9")
def test_closure_runs_with_gradients_and_its_loss_is_returned() -> None:
    model, optimizer = build()

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 6)).square().mean()
        loss.backward()
        return loss.item()

    first = optimizer.step(closure)
    for _ in range(30):
        last = optimizer.step(closure)
    assert last < first


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("through", ["torch.save", "pickle", "deepcopy"])
@pytest.mark.parametrize("options", [{}, {"auxiliary_momentum": 0.9}, {"parity": "published"}])
@pytest.mark.requirement("B1", "B3")
def test_resumed_runs_are_bit_identical(mode: str, through: str, options: dict[str, Any]) -> None:
    model, optimizer = build(**options)
    train(model, optimizer, 20)
    if mode == "eval":
        optimizer.eval()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if through == "torch.save":
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        buffer.seek(0)
        saved = torch.load(buffer, weights_only=True)
    elif through == "pickle":
        saved = pickle.loads(pickle.dumps(saved))
    else:
        saved = copy.deepcopy(saved)
    optimizer.train()
    train(model, optimizer, 50, start=20)

    resumed, fresh = build(seed=5, **options)
    resumed.load_state_dict(saved["model"])
    fresh.load_state_dict(saved["optimizer"])
    assert fresh.mode == mode
    fresh.train()
    train(resumed, fresh, 50, start=20)
    assert same(bits(model, optimizer), bits(resumed, fresh))


def test_state_dict_is_a_snapshot_for_whoever_loads_it() -> None:
    """Loading copies: two optimizers never share a tensor."""
    model, optimizer = build()
    train(model, optimizer, 5)
    other_model, other = build()
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    before = bits(model, optimizer)
    train(other_model, other, 5)
    assert same(before, bits(model, optimizer))


@pytest.mark.requirement("B3")
def test_deepcopy_of_model_and_optimizer_together() -> None:
    model, optimizer = build()
    train(model, optimizer, 10)
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    train(model, optimizer, 10, start=10)
    train(model_copy, optimizer_copy, 10, start=10)
    assert same(bits(model, optimizer), bits(model_copy, optimizer_copy))


def test_weights_loaded_before_the_first_step_are_followed() -> None:
    model, optimizer = build()
    target = {name: torch.full_like(value, 0.25) for name, value in model.state_dict().items()}
    model.load_state_dict(target)
    train(model, optimizer, 1)
    for parameter in model.parameters():  # one warm-up step of at most lr / 4 away
        assert float((optimizer.state[parameter]["z"] - 0.25).abs().max()) < 0.02


def test_a_state_dict_from_before_an_option_existed_loads() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        del group["state_precision"], group["nonfinite"]
    other_model, other = build(seed=1, nonfinite="skip")
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(older)
    assert other.param_groups[0]["nonfinite"] == "skip"
    train(model, optimizer, 5, start=5)
    train(other_model, other, 5, start=5)
    assert same(bits(model, optimizer), bits(other_model, other))


def test_what_a_load_hook_returns_is_what_is_loaded() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)

    def without_momentum(_: Any, loaded: dict[str, Any]) -> dict[str, Any]:
        state = {
            i: {k: torch.zeros_like(v) if k == "momentum_buffer" else v for k, v in one.items()}
            for i, one in loaded["state"].items()
        }
        return loaded | {"state": state}

    optimizer.register_load_state_dict_pre_hook(without_momentum)
    optimizer.load_state_dict(optimizer.state_dict())
    assert not bool(optimizer.state[model[0].weight]["momentum_buffer"].any())


def test_functions_in_a_state_dict_must_be_at_hand() -> None:
    def same_shape(stack: Tensor) -> Tensor:
        return stack

    _, with_function = build(orthogonalize=same_shape)
    _, without = build()
    with pytest.raises(ValueError, match="build the optimizer with that function"):
        without.load_state_dict(with_function.state_dict())
    with pytest.warns(UserWarning, match="orthogonalize"):
        with_function.load_state_dict(without.state_dict())
    assert with_function.param_groups[0]["orthogonalize"] == "quintic"


@pytest.mark.requirement("B2")
def test_loaded_options_win_with_one_warning() -> None:
    model, optimizer = build(beta1=0.5)
    train(model, optimizer, 5)
    _, other = build(beta1=0.7, momentum=0.9)
    with pytest.warns(UserWarning, match=r"beta1, momentum") as caught:
        other.load_state_dict(optimizer.state_dict())
    assert len(caught) == 1
    assert other.param_groups[0]["beta1"] == 0.5


@pytest.mark.requirement("B1")
def test_state_dicts_that_do_not_fit_change_nothing() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    before = bits(model, optimizer)

    foreign = torch.optim.AdamW(model.parameters()).state_dict()
    with pytest.raises(ValueError, match="same parameter groups"):
        optimizer.load_state_dict(foreign)

    with pytest.raises(ValueError, match="it has no 'state'"):
        optimizer.load_state_dict({})

    wrong_kind = copy.deepcopy(optimizer.state_dict())
    del wrong_kind["param_groups"][0]["relative_weight_sum"]
    with pytest.raises(ValueError, match=r"not made by AMUSE.*relative_weight_sum"):
        optimizer.load_state_dict(wrong_kind)

    impossible = copy.deepcopy(optimizer.state_dict())
    impossible["param_groups"][1]["momentum"] = 7.0
    with pytest.raises(ValueError, match="momentum must be"):
        optimizer.load_state_dict(impossible)

    incomplete = copy.deepcopy(optimizer.state_dict())
    del incomplete["state"][2]["exp_avg_sq"]
    with pytest.raises(ValueError, match=r"holds no exp_avg_sq for parameter '0.bias'"):
        optimizer.load_state_dict(incomplete)

    reordered = copy.deepcopy(optimizer.state_dict())
    reordered["param_groups"][0]["param_names"] = ["2.weight", "0.weight"]
    with pytest.raises(ValueError, match=r"'2.weight' where the optimizer has '0.weight'"):
        optimizer.load_state_dict(reordered)

    wrong_shape = copy.deepcopy(optimizer.state_dict())
    wrong_shape["state"][0]["z"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"z of shape \(1,\) for parameter '0.weight'"):
        optimizer.load_state_dict(wrong_shape)
    assert same(before, bits(model, optimizer))


def test_an_orthogonalization_function_survives_the_state_dict() -> None:
    def normalized(stack: Tensor) -> Tensor:
        return stack / stack.norm(dim=(1, 2), keepdim=True)

    model, optimizer = build(orthogonalize=normalized)
    train(model, optimizer, 5)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    _, other = build(orthogonalize=normalized)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups[0]["orthogonalize"] is normalized


def test_parameters_without_gradient_keep_everything() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    skipped = next(model.parameters())
    before = [skipped.detach().clone(), *(v for v in optimizer.state[skipped].values())]
    before = [v.clone() if isinstance(v, Tensor) else v for v in before]
    skipped.grad = None
    optimizer.step()
    after = [skipped.detach(), *optimizer.state[skipped].values()]
    assert all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(before, after, strict=True)
    )


@pytest.mark.requirement("B7")
def test_groups_may_be_added_at_any_time_with_a_clock_of_their_own() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    optimizer.eval()
    late = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [("late", late)], "direction": "adamw"})
    optimizer.train()
    late.grad = torch.ones(3)
    optimizer.step()
    assert [group["t"] for group in optimizer.param_groups] == [6, 6, 1]
    assert torch.equal(optimizer.state[late]["z"], late)  # c_1 = 1: x = z = y


@pytest.mark.requirement("B6")
def test_order_and_names_are_the_callers() -> None:
    tensors = [nn.Parameter(torch.zeros(n)) for n in (3, 1, 2)]
    optimizer = AMUSE(
        [{"params": list(zip("cab", tensors, strict=True)), "direction": "sgd"}], warmup_steps=2
    )
    assert [p.numel() for p in optimizer.param_groups[0]["params"]] == [3, 1, 2]
    assert optimizer.param_groups[0]["param_names"] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -0.1}, ValueError, "lr must be finite and >= 0, got -0.1"),
        ({"lr": float("nan")}, ValueError, "lr must be finite"),
        ({"lr": "fast"}, TypeError, "lr must be a Python number, got 'fast'"),
        ({"beta1": -0.1}, ValueError, r"beta1 must be finite and in \[0, 1\), got -0.1"),
        ({"beta1": 0.0}, ValueError, r"beta1 must be in \(0, 1\), or 0 with rho=0 and parity='exact'"),
        ({"beta1": 1.0}, ValueError, "beta1 must be"),
        ({"rho": -1.0}, ValueError, "rho must be"),
        ({"momentum": 1.0}, ValueError, "momentum must be"),
        ({"beta2": 1.5}, ValueError, "beta2 must be"),
        ({"eps": 0.0}, ValueError, "eps must be"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be >= 0"),
        ({"warmup_steps": 0.1}, ValueError, "say total_steps"),
        ({"warmup_steps": 1.5, "total_steps": 10}, ValueError, "fraction in"),
        ({"warmup_steps": "10"}, TypeError, "warmup_steps must be a number of steps"),
        ({"warmup_steps": 1}, ValueError, "t0_steps must be at least 2"),
        ({"warmup_steps": 0}, ValueError, "t0_steps must be at least 2"),
        ({"warmup_steps": 10, "c_warmup_steps": 9}, ValueError, r"greater than c_warmup_steps \+ 1"),
        ({"beta_clock": "wall"}, ValueError, "beta_clock must be one of 'window', 'steps', got 'wall'"),
        ({"parity": "close"}, ValueError, "parity must be one of"),
        ({"nonfinite": "hope"}, ValueError, "nonfinite must be one of"),
        ({"scale": "big"}, ValueError, "scale must be one of"),
        ({"orthogonalize": "cubic"}, ValueError, "orthogonalize must be one of"),
        ({"orthogonalize_steps": 0}, ValueError, "orthogonalize_steps must be >= 1"),
        ({"orthogonalize_steps": 2.0}, TypeError, "orthogonalize_steps must be an integer"),
        ({"orthogonalize_dtype": torch.float16}, ValueError, "orthogonalize_dtype must be"),
        ({"nesterov": 1}, TypeError, "nesterov must be True or False"),
        ({"momentun": 0.9}, TypeError, "unknown option 'momentun'; did you mean 'momentum'"),
    ],
)
@pytest.mark.requirement("B12")
def test_bad_options_say_what_is_wrong(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(**options)
    overrides = {k: v for k, v in options.items() if k != "total_steps"}
    if error is ValueError:  # the same checks hold for a group's own values
        group = {"params": [nn.Parameter(torch.ones(2, 2))], "direction": "muon", **overrides}
        with pytest.raises(ValueError, match=message):
            AMUSE([group], lr=0.1, warmup_steps=5, total_steps=options.get("total_steps"))


@pytest.mark.requirement("A14")
def test_fractions_of_the_whole_become_steps() -> None:
    _, optimizer = build(warmup_steps=0.05, t0_steps=0.25, c_warmup_steps=0.01, total_steps=1000)
    group = optimizer.param_groups[0]
    assert (group["warmup_steps"], group["t0_steps"], group["c_warmup_steps"]) == (50, 250, 10)


@pytest.mark.requirement("A5")
def test_warm_ups_of_zero_and_one_step_work_with_a_t0() -> None:
    for warmup_steps in (0, 1):
        model, optimizer = build(warmup_steps=warmup_steps, t0_steps=5)
        train(model, optimizer, 20)
        assert 0.6 < optimizer.param_groups[0]["beta_t"] < 1


@pytest.mark.requirement("C1")
def test_parameter_lists_need_a_direction() -> None:
    model, _ = build()
    with pytest.raises(ValueError, match=r"param_groups\(model\)"):
        AMUSE(model.parameters(), warmup_steps=4)
    AMUSE(model.parameters(), warmup_steps=4, direction="adamw")


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        ({"direction": "muon"}, ValueError, r"parameter 'v' of shape \(3,\).*two dimensions"),
        ({"direction": "sgd", "weight_decy": 1.0}, ValueError, "did you mean 'weight_decay'"),
        ({"direction": "lion"}, ValueError, "direction must be one of 'muon', 'normuon', 'adamw', 'sgd'"),
    ],
)
@pytest.mark.requirement("B12", "C5")
def test_a_refused_group_leaves_the_optimizer_as_it_was(
    group: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    before, groups = bits(model, optimizer), len(optimizer.param_groups)
    mine = {"params": [("v", nn.Parameter(torch.ones(3)))], **group}
    given = dict(mine)
    with pytest.raises(error, match=message):
        optimizer.add_param_group(mine)
    assert mine == given
    assert len(optimizer.param_groups) == groups
    assert same(before, bits(model, optimizer))
    train(model, optimizer, 1, start=5)


@pytest.mark.requirement("C7")
def test_unusable_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match=r"view_as_real"):
        AMUSE([nn.Parameter(torch.ones(2, dtype=torch.complex64))], direction="sgd", warmup_steps=2)
    with pytest.raises(TypeError, match="ordered collection"):
        AMUSE({nn.Parameter(torch.ones(2))}, direction="sgd", warmup_steps=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="params must be tensors"):
        AMUSE([1.0], direction="sgd", warmup_steps=2)  # type: ignore[list-item]


@pytest.mark.requirement("A8")
def test_nonfinite_gradients_raise_by_name_and_change_nothing() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    before, t = bits(model, optimizer), optimizer.param_groups[0]["t"]
    model[2].weight.grad[1, 1] = float("nan")
    with pytest.raises(FloatingPointError, match=r"'2.weight' of shape \(8, 8\) is not finite"):
        optimizer.step()
    assert same(before, bits(model, optimizer))
    assert optimizer.param_groups[0]["t"] == t


@pytest.mark.requirement("A8")
def test_nonfinite_gradients_can_skip_the_whole_step() -> None:
    model, optimizer = build(nonfinite="skip")
    train(model, optimizer, 5)
    before = bits(model, optimizer)
    model[4].bias.grad[0] = float("inf")
    optimizer.step()
    assert same(before, bits(model, optimizer))
    assert [group["t"] for group in optimizer.param_groups] == [5, 5]
    assert [group["skipped_steps"] for group in optimizer.param_groups] == [1, 1]


@pytest.mark.requirement("A8")
def test_nonfinite_gradients_can_be_ignored() -> None:
    model, optimizer = build(nonfinite="ignore")
    train(model, optimizer, 5)
    model[4].bias.grad[0] = float("nan")
    optimizer.step()
    assert bool(model[4].bias.isnan()[0])


@pytest.mark.requirement("C7")
def test_bad_learning_rates_and_sparse_gradients_change_nothing() -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    before = bits(model, optimizer)
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr must be"):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.1
    model[4].bias.grad = model[4].bias.grad.to_sparse()
    with pytest.raises(TypeError, match=r"'4.bias' of shape \(3,\) is sparse"):
        optimizer.step()
    assert same(before, bits(model, optimizer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.requirement("A9")
def test_low_precision_parameters_keep_z_and_x_in_float32(dtype: torch.dtype) -> None:
    """1 - 1e-3 rounds to 1 in bfloat16; the state must move all the same."""
    parameter = nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = AMUSE([parameter], lr=1e-4, direction="sgd", warmup_steps=2)
    for _ in range(100):
        parameter.grad = torch.ones(4, dtype=dtype)
        optimizer.step()
    state = optimizer.state[parameter]
    assert state["z"].dtype == state["x"].dtype == torch.float32
    torch.testing.assert_close(state["z"], torch.full((4,), 1 - 1e-4 * 99.5), rtol=0, atol=4e-6)


@pytest.mark.requirement("D5")
def test_state_bytes_per_parameter() -> None:
    for direction, momentum, expected in [
        ("muon", 0.0, 8),
        ("adamw", 0.0, 8),
        ("adamw", 0.9, 12),
        ("sgd", 0, 4),
    ]:
        parameter = nn.Parameter(torch.ones(16, 16))
        optimizer = AMUSE([parameter], direction=direction, warmup_steps=2, auxiliary_momentum=momentum)
        parameter.grad = torch.ones(16, 16)
        optimizer.step()
        tensors = [v for v in optimizer.state[parameter].values() if isinstance(v, Tensor)]
        assert sum(v.numel() * v.element_size() for v in tensors) == expected * 256


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.requirement("A7")
def test_update_rms_is_the_same_for_every_layout(memory_format: torch.memory_format) -> None:
    """match_rms: entries of d have a root mean square near 0.2, whatever the kernel looks like."""
    shapes: list[tuple[tuple[int, ...], dict[str, Any]]] = [
        ((32, 48), {}),
        ((32, 16, 3, 3), {}),
        ((32, 4, 3, 3), {"conv_groups": 4}),
        ((16, 8, 5), {}),
        ((16, 8, 2, 2, 2), {}),
        ((4, 32, 24), {"stacked": True}),
        ((96, 32), {"split_rows": (32, 32, 32)}),
        ((64, 32), {"num_heads": 4}),
    ]
    for shape, options in shapes:
        values = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        if len(shape) == 4:
            values = values.to(memory_format=memory_format)
        parameter = nn.Parameter(torch.zeros_like(values))
        optimizer = AMUSE(
            [parameter], lr=1.0, direction="muon", warmup_steps=0, rho=0.0, orthogonalize="exact", **options
        )
        parameter.grad = values
        optimizer.step()
        rms = float(optimizer.state[parameter]["z"].square().mean().sqrt())
        assert rms == pytest.approx(0.2, rel=1e-4), shape


def test_empty_parameters_are_carried_along() -> None:
    """Shards of distributed parameters may be empty."""
    empty = [nn.Parameter(torch.ones(shape)) for shape in ((0, 3), (0,))]
    full = nn.Parameter(torch.ones(2, 3))
    groups = [
        {"params": [empty[0], full], "direction": "muon"},
        {"params": [empty[1]], "direction": "adamw"},
    ]
    optimizer = AMUSE(groups, warmup_steps=2)
    for parameter in (*empty, full):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with averaged(optimizer):
        assert float(full.detach().mean()) < 1


def test_a_function_that_works_in_place_does_not_reach_the_momentum() -> None:
    def in_place(stack: Tensor) -> Tensor:
        return stack.div_(stack.norm())

    buffers = []
    for function in (in_place, lambda stack: stack / stack.norm()):
        parameter = nn.Parameter(torch.zeros(2, 3))
        optimizer = AMUSE(
            [parameter], direction="muon", warmup_steps=2, nesterov=False, orthogonalize=function
        )
        for _ in range(3):
            parameter.grad = torch.ones(2, 3)
            optimizer.step()
        buffers.append(optimizer.state[parameter]["momentum_buffer"])
    assert torch.equal(*buffers)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (None, TypeError, "must return a tensor, got NoneType"),
        (torch.full((1, 2, 3), float("nan")), FloatingPointError, "not finite"),
    ],
)
def test_what_a_function_returns_is_checked(result: Any, error: type[Exception], message: str) -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    optimizer = AMUSE([parameter], direction="muon", warmup_steps=2, orthogonalize=lambda _: result)
    parameter.grad = torch.ones(2, 3)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert optimizer.state[parameter]["step"] == 0
    assert not bool(optimizer.state[parameter]["momentum_buffer"].any())


def test_eval_that_fails_halfway_leaves_y_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = build()
    train(model, optimizer, 5)
    before = bits(model, optimizer)
    calls = []

    def failing(parameter: Tensor, state: dict[str, Any]) -> Tensor:
        calls.append(parameter)
        if len(calls) == 4:
            raise MemoryError
        return parameter.detach() + state["z"]

    monkeypatch.setattr("amuse_optim.state.averaged_value", failing)
    with pytest.raises(MemoryError):
        optimizer.eval()
    assert optimizer.mode == "train"
    assert same(before, bits(model, optimizer))


def test_a_closure_that_leaves_eval_mode_on_is_caught() -> None:
    model, optimizer = build()
    train(model, optimizer, 2)

    def closure() -> float:
        optimizer.eval()
        return 0.0

    with pytest.raises(OptimizerModeError):
        optimizer.step(closure)


def test_options_changed_to_nonsense_are_caught_at_the_next_step() -> None:
    for name, value in (("beta1", 1.5), ("num_heads", 3), ("split_rows", (4.0, 4.0)), ("split_rows", 8)):
        model, optimizer = build()
        train(model, optimizer, 2)
        before = bits(model, optimizer)
        optimizer.param_groups[0][name] = value
        with pytest.raises((ValueError, TypeError), match=name):
            optimizer.step()
        assert same(before, bits(model, optimizer))


def test_a_parameter_twice_in_a_group_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="twice"):
        AMUSE([parameter, parameter], direction="sgd", warmup_steps=2)
    with pytest.raises(ValueError, match="must have 'params'"):
        AMUSE([{"direction": "sgd"}], warmup_steps=2)  # type: ignore[list-item]


def test_weights_loaded_in_eval_mode_before_the_first_step_stay() -> None:
    model, optimizer = build()
    optimizer.eval()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    optimizer.train()
    assert bool((model[0].weight == 0.5).all())


def test_huge_but_finite_gradients_are_finite() -> None:
    """The norm of these overflows float32, no entry does."""
    parameter = nn.Parameter(torch.zeros(4, 4))
    optimizer = AMUSE([parameter], direction="muon", lr=0.1, warmup_steps=0, rho=0.0)
    parameter.grad = torch.eye(4) * 1e30
    optimizer.step()
    assert bool(parameter.isfinite().all())
    assert float(parameter.detach().diagonal().mean()) < 0
