"""Saving, loading, and state dicts that do not fit."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE
from tests.amuse_optim.training import bits, build, same, take_steps, train


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("through", ["torch.save", "pickle", "deepcopy"])
@pytest.mark.parametrize(
    "options", [{}, {"auxiliary_momentum": 0.9}, {"parity": "published"}, {"beta1": 0.0, "rho": 0.0}]
)
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


def test_a_scalar_s_state_is_copied_when_it_is_loaded() -> None:
    def loaded(snapshot: dict[str, object]) -> Tensor:
        scale = nn.Parameter(torch.tensor(1.0))
        optimizer = AMUSE([scale], direction="adamw", lr=0.1, warmup_steps=2)
        optimizer.load_state_dict(snapshot)
        take_steps(optimizer, range(3, 6))
        return scale.detach().clone()

    scale = nn.Parameter(torch.tensor(1.0))
    optimizer = AMUSE([scale], direction="adamw", lr=0.1, warmup_steps=2)
    take_steps(optimizer, range(3))
    snapshot = optimizer.state_dict()
    assert torch.equal(loaded(snapshot), loaded(snapshot))


@pytest.mark.requirement("B3")
def test_deepcopy_of_model_and_optimizer_together() -> None:
    model, optimizer = build()
    train(model, optimizer, 10)
    model_copy, optimizer_copy = copy.deepcopy((model, optimizer))
    train(model, optimizer, 10, start=10)
    train(model_copy, optimizer_copy, 10, start=10)
    assert same(bits(model, optimizer), bits(model_copy, optimizer_copy))


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


def test_state_of_a_scalar_does_not_fit_a_vector() -> None:
    scalar, vector = (
        AMUSE([nn.Parameter(torch.ones(shape))], direction="sgd", warmup_steps=2) for shape in ((), (3,))
    )
    take_steps(scalar, range(1))
    with pytest.raises(ValueError, match=r"holds a z of shape \(\) for"):
        vector.load_state_dict(scalar.state_dict())


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.requirement("B5")
def test_a_load_hook_sees_the_finished_state(prepend: bool) -> None:
    """Not what torch has made of it meanwhile: bfloat16, as the parameter is."""
    parameters = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4).bfloat16()) for _ in range(2)]
    optimizer, other = (AMUSE([p], direction="muon", lr=0.01, warmup_steps=2) for p in parameters)
    take_steps(optimizer, range(4))
    saved = optimizer.state_dict()
    seen: list[dict[str, Any]] = []

    def look(loaded: torch.optim.Optimizer) -> None:
        seen.append(copy.deepcopy({**loaded.state[parameters[1]], "t": loaded.param_groups[0]["t"]}))

    other.register_load_state_dict_post_hook(look, prepend=prepend)
    for attempt in range(2):  # the hooks of one call are gone at the next
        other.load_state_dict(saved)
        assert len(seen) == attempt + 1
        assert seen[-1].keys() == saved["state"][0].keys() | {"t"}
        assert (seen[-1]["step"], seen[-1]["t"]) == (4, 4)
        for name in ("z", "x", "momentum_buffer"):
            assert seen[-1][name].dtype == torch.float32
            assert torch.equal(seen[-1][name], saved["state"][0][name])


def test_hooks_of_a_load_that_was_refused_are_gone() -> None:
    model, optimizer = build()
    train(model, optimizer, 2)
    with pytest.raises(ValueError, match="same parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks
    optimizer.load_state_dict(optimizer.state_dict())
