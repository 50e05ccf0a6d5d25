"""Weights edited between steps: noticed, taken over, or held to a set together with z and x."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, accept_weights, averaged, averaged_state_dict, project, telemetry
from tests.amuse_optim import training
from tests.amuse_optim.training import build_list, train_list

KINDS = training.KINDS | {"published": {"direction": "sgd", "parity": "published"}}
FORMS = [
    (kind, dtype)
    for kind in KINDS
    for dtype in (torch.float32, torch.bfloat16, torch.float64)
    if not (kind == "captured" and dtype == torch.bfloat16)
    and not (kind == "lean" and dtype == torch.float64)
]
NOTICED = "accept_weights.* project"


def fill(parameter: Tensor, value: float) -> None:
    with torch.no_grad():
        parameter.fill_(value)


def fast(optimizer: AMUSE, parameter: Tensor) -> Tensor:
    """Z, from the state that the documentation names."""
    state = optimizer.state[parameter]
    return state["z"] if "z" in state else state.get("y", parameter.detach())


@pytest.mark.requirement("B17")
@pytest.mark.parametrize(("kind", "dtype"), FORMS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_accepted_weights_are_z_x_and_y_and_nothing_else_changes(
    kind: str, dtype: torch.dtype, mode: str
) -> None:
    model, optimizer = build_list(3, dtype, **KINDS[kind])
    train_list(model, optimizer, range(20))
    getattr(optimizer, mode)()
    untouched = copy.deepcopy(optimizer.state_dict())
    values = torch.arange(12.0).view(4, 3).to(dtype)  # which bfloat16 holds as well
    with torch.no_grad():
        model[0].copy_(values)
    accept_weights(optimizer, [model[0]])

    now = optimizer.state_dict()
    assert now["param_groups"] == untouched["param_groups"]
    for i, before in untouched["state"].items():
        for name, value in before.items():
            if i == 0 and name in ("z", "x", "y"):
                assert torch.equal(now["state"][i][name].to(dtype), values)
            elif isinstance(value, Tensor):
                assert torch.equal(now["state"][i][name], value)
            else:
                assert now["state"][i][name] == value
    assert torch.equal(averaged_state_dict(model, optimizer)["0"], values)
    optimizer.eval()
    assert torch.equal(model[0], values)
    optimizer.train()
    assert torch.equal(model[0], values)
    train_list(model, optimizer, range(20, 22))
    assert all(parameter.isfinite().all() for parameter in model)


@pytest.mark.requirement("B17")
def test_from_accepted_weights_training_goes_on_as_from_a_start() -> None:
    """With constant weights c_t is 1 / t, so the equations can be written down."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = AMUSE([p], direction="sgd", lr=0.5, warmup_steps=0, t0_steps=100, beta1=0.5)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    fill(p, 8.0)
    accept_weights(optimizer)
    p.grad = torch.ones_like(p)
    optimizer.step()  # t = 4: z = 8 - 0.5, x = 3/4 * 8 + 1/4 z, y = (z + x) / 2
    z, x = 7.5, 0.75 * 8 + 0.25 * 7.5
    torch.testing.assert_close(p.detach(), torch.full_like(p, (z + x) / 2), rtol=1e-14, atol=0)
    x_now = averaged_state_dict(nn.ParameterList([p]), optimizer)["0"]
    torch.testing.assert_close(x_now, torch.full_like(p, x), rtol=1e-14, atol=0)


@pytest.mark.requirement("B17")
@pytest.mark.parametrize(("kind", "dtype"), FORMS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_mask_and_a_bound_hold_for_z_x_and_y(kind: str, dtype: torch.dtype, mode: str) -> None:
    model, optimizer = build_list(3, dtype, **KINDS[kind])
    generator = torch.Generator().manual_seed(3)
    mask, kept = torch.rand(4, 3, generator=generator) > 0.5, torch.rand(4, 3, generator=generator) > 0.5
    rounding = 1e-5 if dtype != torch.bfloat16 and kind != "lean" else 2**-8
    for step in range(12):
        train_list(model, optimizer, range(step, step + 1))
        getattr(optimizer, mode)()
        untouched = averaged_state_dict(model, optimizer)["2"]
        project(optimizer, lambda tensor: tensor.mul_(mask), [model[0]])
        project(optimizer, lambda tensor: tensor.clamp_(-0.75, 0.75), model[1])
        assert torch.equal(averaged_state_dict(model, optimizer)["2"], untouched)
        x = averaged_state_dict(model, optimizer)
        optimizer.train()
        for tensor in (x["0"], model[0], fast(optimizer, model[0])):
            assert not (tensor * ~mask).any()
            assert (tensor * mask).any()
        for tensor in (x["1"], model[1], fast(optimizer, model[1])):
            assert tensor.abs().max() <= 0.75 * (1 + rounding)
    assert kept.any()


@pytest.mark.requirement("B17")
@pytest.mark.parametrize(("kind", "dtype"), [form for form in FORMS if form[0] != "lean"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_projecting_on_everything_changes_nothing(kind: str, dtype: torch.dtype, mode: str) -> None:
    model, optimizer = build_list(3, dtype, **KINDS[kind])
    train_list(model, optimizer, range(12))
    y, x = [p.detach().clone() for p in model], averaged_state_dict(model, optimizer)
    z = [fast(optimizer, p).clone() for p in model]
    getattr(optimizer, mode)()
    project(optimizer, lambda _: None)
    optimizer.train()
    precision = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float64: 1e-14}[dtype]
    for i, parameter in enumerate(model):
        assert torch.equal(fast(optimizer, parameter), z[i]) or kind == "gradients at z"
        torch.testing.assert_close(parameter.detach(), y[i], rtol=precision, atol=precision)
        ours = averaged_state_dict(model, optimizer)[str(i)]
        torch.testing.assert_close(ours, x[str(i)], rtol=precision, atol=precision)


@pytest.mark.requirement("B17")
def test_before_the_first_step_the_parameter_is_all_there_is() -> None:
    model, optimizer = build_list(3)
    fill(model[0], 2.0)
    project(optimizer, lambda tensor: tensor.clamp_(-1.0, 1.0))
    accept_weights(optimizer)
    assert torch.equal(model[0], torch.ones(4, 3))
    train_list(model, optimizer, range(1))
    assert all(state["step"] == 1 for state in optimizer.state.values())


@pytest.mark.requirement("B15", "B17")
def test_accepting_weights_makes_state_that_is_gone() -> None:
    model, optimizer = build_list(3)
    train_list(model, optimizer, range(5))
    optimizer.state.clear()
    y = model[0].detach().clone()
    accept_weights(optimizer)
    assert torch.equal(averaged_state_dict(model, optimizer)["0"], y)
    train_list(model, optimizer, range(5, 7))
    assert [(state["step"], optimizer.param_groups[0]["t"]) for state in optimizer.state.values()] == [
        (2, 7)
    ] * 3


@pytest.mark.requirement("B17")
def test_wrong_calls_are_refused_in_words() -> None:
    model, optimizer = build_list(3)
    train_list(model, optimizer, range(3))
    before = copy.deepcopy(optimizer.state_dict())
    refused = r"parameters must be the optimizer's own, got one of shape \(5,\)"
    with pytest.raises(ValueError, match=refused):
        accept_weights(optimizer, [torch.ones(5)])
    with pytest.raises(ValueError, match=refused):
        project(optimizer, lambda _: None, [torch.ones(5)])
    with pytest.raises(ValueError, match="must change the tensor in place"):
        project(optimizer, lambda tensor: tensor.clamp(-1, 1))
    for i, state in optimizer.state_dict()["state"].items():
        assert torch.equal(state["z"], before["state"][i]["z"])


def best_weights(model: nn.ParameterList, optimizer: AMUSE) -> None:
    fill(model[0], 1.0)
    with averaged(optimizer):
        pass


@pytest.mark.requirement("B17")
@pytest.mark.parametrize(
    "then",
    [
        lambda model, optimizer: train_list(model, optimizer, range(5, 6)),
        lambda _, optimizer: optimizer.eval(),
        lambda model, optimizer: averaged_state_dict(model, optimizer),
        best_weights,
    ],
    ids=["step", "eval", "averaged_state_dict", "averaged"],
)
@pytest.mark.parametrize("foreach", [None, False])
def test_edits_are_noticed_and_said_once(then: Callable[..., Any], foreach: bool | None) -> None:
    model, optimizer = build_list(3, foreach=foreach)
    fill(model[2], 1.0)  # before the first step nothing is lost
    train_list(model, optimizer, range(5))
    fill(model[0], 1.0)
    with pytest.warns(UserWarning, match=NOTICED) as seen:
        then(model, optimizer)
    assert len(seen) == 1
    assert "parameter '0' of shape (4, 3)" in str(seen[0].message)
    assert "'1'" not in str(seen[0].message)
    optimizer.train()
    fill(model[0], 2.0)
    train_list(model, optimizer, range(6, 8))  # a second warning would be an error here
    fill(model[1], 2.0)
    with pytest.warns(UserWarning, match="parameter '1'"):
        train_list(model, optimizer, range(8, 9))


@pytest.mark.requirement("B17")
def test_an_edit_of_the_average_is_noticed_before_y_comes_back() -> None:
    model, optimizer = build_list(3)
    train_list(model, optimizer, range(5))
    optimizer.eval()
    fill(model[1], 1.0)
    with pytest.warns(UserWarning, match="parameter '1'"):
        optimizer.train()


@pytest.mark.requirement("B17")
def test_many_edits_are_one_warning() -> None:
    parameters = [(f"layer {i}", nn.Parameter(torch.ones(2))) for i in range(12)]
    optimizer = AMUSE(parameters, direction="sgd", warmup_steps=2)
    for _, parameter in parameters:
        parameter.grad = torch.ones(2)
    optimizer.step()
    for _, parameter in parameters:
        fill(parameter, 1.0)
    with pytest.warns(UserWarning, match=r"'layer 7' of shape \(2,\) and 4 more") as seen:
        optimizer.step()
    assert len(seen) == 1


@pytest.mark.requirement("B17")
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_library_does_itself_is_no_edit(kind: str) -> None:
    model, optimizer = build_list(3, **KINDS[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6):
            train_list(model, optimizer, range(step, step + 1))
            optimizer.eval()
            optimizer.train()
            with averaged(optimizer), averaged(optimizer):
                telemetry(optimizer)
            accept_weights(optimizer, [model[0]])
            project(optimizer, lambda tensor: tensor.clamp_(-2, 2), [model[1]])
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            late = nn.Parameter(torch.ones(4, 3))
            optimizer.add_param_group({"params": [(f"late {step}", late)]})
            model.append(late)
        saved_model, saved = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        train_list(model, optimizer, range(6, 8))
        model.load_state_dict(saved_model)
        optimizer.load_state_dict(saved)
        train_list(model, optimizer, range(6, 8))
        optimizer.load_state_dict(saved)
        model.load_state_dict(saved_model)
        train_list(model, optimizer, range(6, 8))


@pytest.mark.requirement("B3", "B17")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_do_not_mistake_themselves_for_edits(copied: Callable[[Any], Any]) -> None:
    model, optimizer = build_list(3)
    train_list(model, optimizer, range(3))
    model, optimizer = copied((model, optimizer))
    assert not any("version" in key for state in optimizer.state_dict()["state"].values() for key in state)
    train_list(model, optimizer, range(3, 5))
    fill(model[0], 1.0)
    with pytest.warns(UserWarning, match="parameter '0'"):
        optimizer.step()


@pytest.mark.requirement("B17")
def test_edits_through_data_go_unseen_and_do_no_harm() -> None:
    """As the documentation says: those that nobody can see."""
    model, optimizer = build_list(3)
    train_list(model, optimizer, range(3))
    model[0].data.fill_(1.0)
    model[1].data = torch.ones(4, 3)
    train_list(model, optimizer, range(3, 5))
    accept_weights(optimizer)
    assert torch.equal(averaged_state_dict(model, optimizer)["1"], model[1])


@pytest.mark.requirement("B17")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projecting_while_an_average_is_shown_keeps_it_shown(dtype: torch.dtype) -> None:
    model, optimizer = build_list(2, dtype, averages=(3.0,))
    train_list(model, optimizer, range(6))
    y = [parameter.detach().clone() for parameter in model]
    with averaged(optimizer, kappa=3.0):
        shown = [parameter.detach().clone() for parameter in model]
        project(optimizer, lambda tensor: tensor.mul_(1.0))
        assert all(map(torch.equal, shown, model))
        project(optimizer, lambda tensor: tensor.mul_(2.0))
        for before, now in zip(shown, model, strict=True):
            torch.testing.assert_close(2.0 * before, now.detach())
        accept_weights(optimizer, [model[0]])
        assert torch.equal(model[0], optimizer.state[model[0]]["average_3"].to(dtype))
    torch.testing.assert_close(
        2.0 * y[1], model[1].detach(), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6
    )
    assert torch.equal(model[0], averaged_state_dict(model, optimizer)["0"])


@pytest.mark.requirement("B17")
@pytest.mark.parametrize("another", [False, True], ids=["raises", "returns another"])
def test_a_function_that_fails_leaves_its_parameter_as_it_was(another: bool) -> None:
    """And what was not reached, of which an edit is still to be said."""
    model, optimizer = build_list(3, averages=(3.0, 7.0))
    train_list(model, optimizer, range(4))
    before = copy.deepcopy(optimizer.state_dict()["state"])
    weights = [parameter.detach().clone() for parameter in model]
    calls: list[Tensor] = []

    def halve(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        tensor.mul_(0.5)
        if len(calls) == 8:  # the last of the second parameter's z, x and averages
            if another:
                return tensor.clone()
            raise RuntimeError("a mask of another shape")
        return tensor

    fill(model[2], 3.0)
    with pytest.raises(
        ValueError if another else RuntimeError, match=r"in place, it returned|of another shape"
    ):
        project(optimizer, halve)
    now = optimizer.state_dict()["state"]
    torch.testing.assert_close(now[0]["average_3"], 0.5 * before[0]["average_3"])
    assert not torch.equal(weights[0], model[0])
    assert torch.equal(weights[1], model[1])
    assert all(torch.equal(now[1][name], before[1][name]) for name in ("z", "average_3", "average_7"))
    with pytest.warns(
        UserWarning, match=r"parameter '2' .*weights were changed|weights were changed.*'2'"
    ) as caught:
        train_list(model, optimizer, range(4, 5))
    assert not any("'0'" in str(each.message) or "'1'" in str(each.message) for each in caught)
