"""Options: one table, completed and checked, and refused in words."""

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from amuse_optim import AMUSE, param_groups
from amuse_optim.directions import DIRECTIONS
from amuse_optim.options import OPTIONS
from tests.amuse_optim.training import bits, build, same, take_steps, train


def signature() -> dict[str, inspect.Parameter]:
    """The options in the signature of the optimizer."""
    parameters = dict(inspect.signature(AMUSE).parameters)
    assert parameters.pop("params")
    assert parameters.pop("more").kind == inspect.Parameter.VAR_KEYWORD
    return parameters


def test_the_defaults_of_the_signature_are_those_of_the_table() -> None:
    given = signature()
    assert given.pop("warmup_steps").default is inspect.Parameter.empty
    assert given.pop("process_group").default is None  # of the optimizer, not of its groups, as the next one
    assert given.pop("shard_state").default is False
    defaults = {name: parameter.default for name, parameter in given.items()}
    assert defaults == {name: OPTIONS[name].default for name in defaults}


def test_every_option_can_be_found_and_is_explained() -> None:
    """In the signature and its docstring, or with the direction that declares it."""
    explained = set(re.findall(r"^ {4,8}(\w+): ", str(AMUSE.__doc__), flags=re.MULTILINE))
    assert signature().keys() <= explained
    for name in OPTIONS.keys() - signature().keys():
        owners = [direction for direction in DIRECTIONS.values() if name in direction.options]
        assert owners, name
        assert all(f"`{name}`" in str(type(direction).__doc__) for direction in owners), name


def test_lr_rest_is_for_groups_without_matrices_that_say_no_lr() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    groups = param_groups(model, overrides=[("1.bias", {"lr": 0.5})])
    optimizer = AMUSE(groups, lr=0.02, lr_rest=0.005, warmup_steps=2)
    late = [
        *({"direction": direction} for direction in ("muon", "normuon", "adamw", "sgd")),
        {"direction": "sgd", "lr": 0.3},
    ]
    for number, options in enumerate(late):
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer.add_param_group({"params": [(f"late.{number}", weight)], **options})
    assert {group["lr_rest"] for group in optimizer.param_groups} == {0.005}
    rates = [(group["direction"], group["lr"]) for group in optimizer.param_groups]
    assert sorted(rates[:3]) == [("adamw", 0.005), ("adamw", 0.5), ("muon", 0.02)]
    assert rates[3:] == [("muon", 0.02), ("normuon", 0.02), ("adamw", 0.005), ("sgd", 0.005), ("sgd", 0.3)]


def test_schedulers_act_on_lr_and_lr_rest() -> None:
    model, optimizer = build(lr=0.02, lr_rest=0.005, warmup_steps=0, t0_steps=2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(4):
        train(model, optimizer, 1, start=step)
        scheduler.step()
        assert [group["lr_t"] for group in optimizer.param_groups] == [0.02 * 0.5**step, 0.005 * 0.5**step]


@pytest.mark.parametrize("lr_rest", [-0.1, float("nan"), float("inf")])
def test_a_bad_lr_rest_is_refused_under_its_name(lr_rest: float) -> None:
    with pytest.raises(ValueError, match="lr_rest must be finite and >= 0"):
        build(lr_rest=lr_rest)
    model, optimizer = build(lr_rest=0.01)
    train(model, optimizer, 1)
    before = bits(model, optimizer)
    optimizer.param_groups[1]["lr_rest"] = lr_rest
    with pytest.raises(ValueError, match="lr_rest must be finite and >= 0"):
        optimizer.step()
    assert same(before, bits(model, optimizer))


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


def test_an_option_that_does_not_fit_a_parameter_any_more_names_it() -> None:
    model, optimizer = build()
    train(model, optimizer, 1)
    optimizer.param_groups[0]["num_heads"] = 3
    with pytest.raises(ValueError, match=r"^parameter '0.weight' of shape \(8, 6\): num_heads must divide"):
        train(model, optimizer, 1)


@pytest.mark.parametrize("name", ["beta1", "beta2", "rho", "momentum", "eps", "weight_decay", "r"])
def test_no_option_but_the_learning_rate_is_a_tensor(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must not be a tensor: only lr and lr_rest may"):
        build(**{name: torch.tensor(0.5)})
    model, optimizer = build()
    before = bits(model, optimizer)
    optimizer.param_groups[-1][name] = torch.tensor(0.5)
    with pytest.raises(TypeError, match=f"^{name} must not be a tensor"):
        train(model, optimizer, 1)
    assert same(before, bits(model, optimizer))


def test_groups_that_are_added_to_a_copy_have_the_options_and_nothing_else() -> None:
    _, optimizer = build()
    copied = copy.deepcopy(optimizer)
    _, loaded = build()
    loaded.load_state_dict(optimizer.state_dict())
    for each in (copied, loaded):
        each.add_param_group({"params": [nn.Parameter(torch.ones(2))], "direction": "sgd"})
        assert each.param_groups[-1].keys() == optimizer.param_groups[0].keys() - {"param_names"}


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


@pytest.mark.requirement("B6")
def test_order_and_names_are_the_callers() -> None:
    tensors = [nn.Parameter(torch.zeros(n)) for n in (3, 1, 2)]
    optimizer = AMUSE(
        [{"params": list(zip("cab", tensors, strict=True)), "direction": "sgd"}], warmup_steps=2
    )
    assert [p.numel() for p in optimizer.param_groups[0]["params"]] == [3, 1, 2]
    assert optimizer.param_groups[0]["param_names"] == ["c", "a", "b"]


@pytest.mark.requirement("C7")
def test_unusable_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match=r"view_as_real"):
        AMUSE([nn.Parameter(torch.ones(2, dtype=torch.complex64))], direction="sgd", warmup_steps=2)
    held = nn.Parameter(torch.view_as_real(torch.ones(2, dtype=torch.complex64)).clone())
    AMUSE([held], direction="sgd", warmup_steps=2)  # as the message says
    with pytest.raises(TypeError, match=r"has the layout torch.sparse_coo: .*to_dense"):
        AMUSE([nn.Parameter(torch.eye(2).to_sparse())], direction="sgd", warmup_steps=2)
    with pytest.raises(TypeError, match="ordered collection"):
        AMUSE({nn.Parameter(torch.ones(2))}, direction="sgd", warmup_steps=2)
    with pytest.raises(TypeError, match="params must be tensors"):
        AMUSE([1.0], direction="sgd", warmup_steps=2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: AMUSE([torch.ones(1).expand(4).requires_grad_()], direction="sgd", warmup_steps=2),
            ValueError,
            r"is expanded: several of its entries are one in memory",
        ),
        (
            lambda: AMUSE(
                [nn.Parameter(torch.ones(3))],
                direction="sgd",
                lr=torch.tensor([0.1, 0.2]),
                warmup_steps=2,
                capturable=True,
                nonfinite="ignore",
            ),
            ValueError,
            "Tensor lr must be 1-element",
        ),
    ],
)
def test_what_would_fail_in_a_step_is_refused_at_once(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_parameter_twice_in_a_group_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="twice"):
        AMUSE([parameter, parameter], direction="sgd", warmup_steps=2)
    with pytest.raises(ValueError, match="must have 'params'"):
        AMUSE([{"direction": "sgd"}], warmup_steps=2)


def test_options_changed_to_nonsense_are_caught_at_the_next_step() -> None:
    for name, value in (("beta1", 1.5), ("num_heads", 3), ("split_rows", (4.0, 4.0)), ("split_rows", 8)):
        model, optimizer = build()
        train(model, optimizer, 2)
        before = bits(model, optimizer)
        optimizer.param_groups[0][name] = value
        with pytest.raises((ValueError, TypeError), match=name):
            optimizer.step()
        assert same(before, bits(model, optimizer))


@pytest.mark.parametrize(("length", "error"), [(-5, ValueError), ("a", TypeError)])
@pytest.mark.parametrize("name", ["warmup_steps", "t0_steps", "c_warmup_steps"])
def test_lengths_that_are_changed_to_nonsense_are_refused(
    name: str, length: object, error: type[Exception]
) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = AMUSE([weight], direction="muon", lr=0.1, warmup_steps=4)
    take_steps(optimizer, range(1))
    before = weight.detach().clone()
    optimizer.param_groups[0][name] = length
    with pytest.raises(error, match=name):
        take_steps(optimizer, range(1, 2))
    assert torch.equal(weight, before)
