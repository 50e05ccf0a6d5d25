"""The state of a parameter: made, followed, shown, and checked before a step."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE
from tests.amuse_optim.training import bits, build, same, take_steps, train


def test_weights_loaded_before_the_first_step_are_followed() -> None:
    model, optimizer = build()
    target = {name: torch.full_like(value, 0.25) for name, value in model.state_dict().items()}
    model.load_state_dict(target)
    train(model, optimizer, 1)
    for parameter in model.parameters():  # one warm-up step of at most lr / 4 away
        assert float((optimizer.state[parameter]["z"] - 0.25).abs().max()) < 0.02


def test_weights_loaded_in_eval_mode_before_the_first_step_stay() -> None:
    model, optimizer = build()
    optimizer.eval()
    with torch.no_grad():
        model[0].weight.fill_(0.5)
    optimizer.train()
    assert bool((model[0].weight == 0.5).all())


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


def test_huge_but_finite_gradients_are_finite() -> None:
    """The norm of these overflows float32, no entry does."""
    parameter = nn.Parameter(torch.zeros(4, 4))
    optimizer = AMUSE([parameter], direction="muon", lr=0.1, warmup_steps=0, rho=0.0)
    parameter.grad = torch.eye(4) * 1e30
    optimizer.step()
    assert bool(parameter.isfinite().all())
    assert float(parameter.detach().diagonal().mean()) < 0


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


@pytest.mark.parametrize("other", [torch.ones(3, 2), torch.ones(5, 5)])
def test_a_parameter_of_another_shape_is_refused_before_anything_moves(other: Tensor) -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 3))
    optimizer = AMUSE([{"params": [first]}, {"params": [second]}], direction="muon", lr=0.1, warmup_steps=2)
    take_steps(optimizer, range(2))
    before = first.detach().clone()
    second.data = other.clone()
    with pytest.raises(ValueError, match=r"does not fit its state, of shape \(2, 3\): it was replaced"):
        take_steps(optimizer, range(2, 3))
    assert torch.equal(first, before)


def test_a_transposed_parameter_is_noticed() -> None:
    weight = nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=2)
    take_steps(optimizer, range(2))
    weight.data = weight.data.T.contiguous()
    with pytest.raises(ValueError, match="does not fit its state"):
        take_steps(optimizer, range(2, 3))


@pytest.mark.parametrize("kappa", [None, 10.0])
def test_eval_that_fails_halfway_leaves_y_everywhere(
    monkeypatch: pytest.MonkeyPatch, kappa: float | None
) -> None:
    model, optimizer = build(averages=(10.0,))
    train(model, optimizer, 5)
    before = bits(model, optimizer)
    calls = []

    def failing(parameter: Tensor, state: dict[str, Any], _kappa: float | None = None) -> Tensor:
        calls.append(parameter)
        if len(calls) == 4:
            raise MemoryError
        return parameter.detach() + state["z"]

    monkeypatch.setattr("amuse_optim.state.averaged_value", failing)
    with pytest.raises(MemoryError):
        optimizer.eval(kappa=kappa)
    assert optimizer.mode == "train"
    assert same(before, bits(model, optimizer))


def test_what_was_interrupted_on_its_way_back_to_y_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = [nn.Parameter(torch.randn(3, 3)) for _ in range(3)]
    optimizer = AMUSE(parameters, direction="muon", lr=0.1, warmup_steps=2)
    take_steps(optimizer, range(5))
    y = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    assert not torch.equal(parameters[2], y[2])
    copy, calls = Tensor.copy_, []

    def interrupted(target: Tensor, source: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return copy(target, source)

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "copy_", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.train()
    assert optimizer.mode == "eval"
    optimizer.train()
    assert all(torch.equal(now, then) for now, then in zip(parameters, y, strict=True))


@pytest.mark.parametrize("options", [{}, {"capturable": True, "nonfinite": "ignore"}])
@pytest.mark.parametrize("loaded", [False, True])
def test_the_state_lies_in_memory_as_the_weights_do(options: dict[str, Any], loaded: bool) -> None:
    """Also where the model became channels-last after the optimizer was made, or before state was loaded."""

    def made() -> tuple[nn.Conv2d, AMUSE]:
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3, bias=False)
        return layer, AMUSE(layer.parameters(), direction="adamw", lr=0.1, warmup_steps=2, **options)

    usual, expected = made()
    take_steps(expected, range(3))
    layer, optimizer = made()
    layer.to(memory_format=torch.channels_last)
    if loaded:
        layer.load_state_dict(usual.state_dict())
        optimizer.load_state_dict(expected.state_dict())
    else:
        take_steps(optimizer, range(3))
    take_steps(optimizer, range(3, 5))
    take_steps(expected, range(3, 5))
    for name in ("z", "exp_avg_sq"):
        kept, theirs = optimizer.state[layer.weight][name], expected.state[usual.weight][name]
        assert kept.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(kept, theirs)


def test_a_warning_that_is_an_error_leaves_state_that_is_whole() -> None:
    model, optimizer = build()
    train(model, optimizer, 3)
    groups = optimizer.param_groups
    for group in groups:
        group["params"] = [nn.Parameter(parameter.detach().clone()) for parameter in group["params"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="took the place of one that has taken steps"):
            optimizer.eval()
    assert all("z" in optimizer.state[p] for group in groups for p in group["params"])
    optimizer.eval()
