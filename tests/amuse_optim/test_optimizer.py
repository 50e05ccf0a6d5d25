"""The optimizer: training, modes, closures, and groups that are added."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import AMUSE, OptimizerModeError, averaged
from tests.amuse_optim.training import bits, build, same, train


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


def test_a_closure_that_leaves_eval_mode_on_is_caught() -> None:
    model, optimizer = build()
    train(model, optimizer, 2)

    def closure() -> float:
        optimizer.eval()
        return 0.0

    with pytest.raises(OptimizerModeError):
        optimizer.step(closure)
