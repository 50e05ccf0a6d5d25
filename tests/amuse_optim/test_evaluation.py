"""Reading x: the context manager, the state dict to ship, BatchNorm statistics, the tie to the model."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amuse_optim import (
    AMUSE,
    AMUSEReference,
    OptimizerModeError,
    accept_weights,
    attach,
    averaged,
    averaged_state_dict,
    param_groups,
    refresh_batch_norm,
    telemetry,
)
from tests.amuse_optim.training import take_steps


def network() -> nn.Module:
    torch.manual_seed(0)
    # A bias before BatchNorm has a gradient of rounding errors, which AdamW would blow up.
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(144, 3),
    )


def batch(seed: int) -> Tensor:
    return torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def trained(optimizer_class: type[AMUSE] = AMUSE, steps: int = 12) -> tuple[nn.Module, AMUSE]:
    model = network()
    optimizer = optimizer_class(param_groups(model), lr=0.02, warmup_steps=3)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.requirement("B8")
def test_without_train_or_eval_averaged_gives_the_references_x() -> None:
    """A user who never calls train() or eval() gets x inside the block, y after it."""
    model, optimizer = trained()
    reference_model, reference = trained(AMUSEReference)
    before = values(model)
    with averaged(optimizer):
        for parameter, other in zip(model.parameters(), reference_model.parameters(), strict=True):
            torch.testing.assert_close(parameter, reference.state[other]["x"], rtol=1e-5, atol=1e-6)
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert equal(before, values(model))
    assert optimizer.mode == "train"


def test_averaged_nests_and_restores_after_an_error() -> None:
    model, optimizer = trained()
    before = values(model)
    with pytest.raises(ZeroDivisionError), averaged(optimizer), averaged(optimizer):  # noqa: PT012
        assert optimizer.mode == "eval"
        raise ZeroDivisionError
    assert equal(before, values(model))
    optimizer.eval()
    with averaged(optimizer):
        pass
    assert optimizer.mode == "eval"


@pytest.mark.requirement("B8")
def test_step_inside_averaged_raises() -> None:
    _, optimizer = trained()
    with averaged(optimizer), pytest.raises(OptimizerModeError, match="hold the average"):
        optimizer.step()
    optimizer.step()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.requirement("B8")
def test_averaged_state_dict_reads_x_and_touches_nothing(mode: str) -> None:
    model, optimizer = trained()
    with averaged(optimizer):
        expected = values(model)
    if mode == "eval":
        optimizer.eval()
    before, state_before = values(model), copy.deepcopy(optimizer.state_dict())
    shipped = averaged_state_dict(model, optimizer)
    assert equal(shipped, expected)
    assert equal(before, values(model))
    assert repr(state_before) == repr(optimizer.state_dict())
    optimizer.train()
    optimizer.step()
    assert equal(shipped, expected)  # copies: later steps do not reach them
    network().load_state_dict(shipped)


def test_averaged_state_dict_with_tied_and_frozen_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    optimizer = AMUSE(param_groups(model), lr=0.1, warmup_steps=2)
    for _ in range(4):
        optimizer.zero_grad()
        model.head(model.frozen(model.embedding(torch.arange(5)))).square().mean().backward()
        optimizer.step()
    shipped = averaged_state_dict(model, optimizer)
    assert shipped["head.weight"] is shipped["embedding.weight"]
    assert torch.equal(shipped["frozen.weight"], model.frozen.weight)
    assert not torch.equal(shipped["head.weight"], model.head.weight)


def test_averaged_state_dict_of_another_model_is_refused() -> None:
    _, optimizer = trained()
    with pytest.raises(ValueError, match="another model's optimizer"):
        averaged_state_dict(network(), optimizer)


@pytest.mark.requirement("B10")
def test_batch_norm_statistics_are_the_mean_over_the_batches() -> None:
    model, _ = trained()
    model.eval()
    norm = model[1]
    momentum, random_state = norm.momentum, torch.get_rng_state()
    refresh_batch_norm(model, [batch(i) for i in range(5)])

    features = [model[0](batch(i)).detach() for i in range(5)]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    var = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.momentum == momentum
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.requirement("B10")
def test_batch_norm_refresh_is_undone_when_it_fails() -> None:
    model, _ = trained()
    before = values(model)
    with pytest.raises(ValueError, match="must not be empty"):
        refresh_batch_norm(model, [])
    with pytest.raises(RuntimeError):
        refresh_batch_norm(model, [batch(0), torch.zeros(1, 3, 8, 8)])
    assert equal(before, values(model))
    assert model.training
    assert model[1].momentum == 0.1


def test_batch_norm_refresh_forwards_what_it_is_told() -> None:
    model, _ = trained()
    refresh_batch_norm(model, [(batch(1), "label")])
    first = values(model)
    refresh_batch_norm(model, [{"pixels": batch(1)}], forward=lambda b: model(b["pixels"]))
    assert torch.equal(first["1.running_mean"], values(model)["1.running_mean"])
    refresh_batch_norm(nn.Linear(2, 2), iter(()))  # nothing to do


@pytest.mark.requirement("B8")
def test_attach_ties_the_modes() -> None:
    model, optimizer = trained()
    y = values(model)
    handle = attach(optimizer, model)
    assert optimizer.mode == "train"
    assert model.eval() is model
    assert (optimizer.mode, model.training) == ("eval", False)
    assert not torch.equal(model[0].weight, y["0.weight"])
    model.train()
    assert (optimizer.mode, model.training) == ("train", True)
    assert torch.equal(model[0].weight, y["0.weight"])

    with pytest.raises(ValueError, match="attached"):
        attach(optimizer, model)
    copied = copy.deepcopy(model)  # has an optimizer of its own
    copied.eval()
    assert optimizer.mode == "train"
    handle.remove()
    model.eval()
    assert optimizer.mode == "train"
    attach(optimizer, model)  # takes over the mode the model is in
    assert optimizer.mode == "eval"


def test_attach_and_averaged_agree_in_both_directions() -> None:
    model, optimizer = trained()
    optimizer.eval()
    attach(optimizer, model)  # the model is in training mode
    assert optimizer.mode == "train"
    optimizer.eval()
    with averaged(optimizer):
        optimizer.train()
    assert optimizer.mode == "eval"


def test_what_is_no_amuse_is_refused_by_name() -> None:
    weight = nn.Parameter(torch.ones(3))
    reference = AMUSEReference([weight], direction="sgd", warmup_steps=2)
    with averaged(reference):  # the one function that takes the specification too
        assert reference.mode == "eval"
    for call in (telemetry, accept_weights, lambda other: attach(other, nn.Linear(2, 2))):
        with pytest.raises(TypeError, match=r"^optimizer must be an AMUSE or hold one, got AMUSEReference"):
            call(reference)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_an_attached_model_that_is_switched_inside_averaged_stays_at_x(mode: str) -> None:
    model, optimizer = trained()
    attach(optimizer, model)
    model.train(mode == "train")
    x = averaged_state_dict(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = torch.randn(2, 2, 8, 8)
    with averaged(optimizer):
        model.eval()  # an evaluation, as users write it
        model(inputs)
        model.train()
        assert all(torch.equal(value, x[name]) for name, value in model.state_dict().items())
        with pytest.raises(OptimizerModeError):
            optimizer.step()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(inputs)
    assert optimizer.mode == "train"
    with averaged(optimizer):
        model.eval()
    model(inputs)
    assert optimizer.mode == "eval"


def test_a_state_dict_hook_that_renames_is_followed_and_one_that_rewrites_is_refused() -> None:
    model, optimizer = trained()
    with averaged(optimizer):
        expected = values(model)

    def rename(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:  # noqa: ARG001
        state["kernel"] = state.pop("0.weight")

    handle = model._register_state_dict_hook(rename)
    assert torch.equal(averaged_state_dict(model, optimizer)["kernel"], expected["0.weight"])
    handle.remove()

    def rewrite(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:  # noqa: ARG001
        state["0.weight"] = state["0.weight"] * 2

    model._register_state_dict_hook(rewrite)
    with pytest.raises(ValueError, match="do not appear in the model's state dict"):
        averaged_state_dict(model, optimizer)


def test_batch_norm_refresh_leaves_the_random_state_although_batches_are_random() -> None:
    model, _ = trained()
    state = torch.get_rng_state()
    refresh_batch_norm(model, (torch.randn(8, 2, 8, 8) for _ in range(3)))  # dropout is on, too
    assert torch.equal(torch.get_rng_state(), state)


def test_layers_without_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3)).eval()
    refresh_batch_norm(model, [torch.ones(4, 3)])
    assert not model[0].training
    assert model[0].momentum == 0.1


def test_layers_that_are_not_reached_keep_their_statistics() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm1d(3), "auxiliary": nn.BatchNorm1d(3)})
    for layer in model.values():
        layer(torch.randn(8, 3) + 5)
    before = {name: value.clone() for name, value in model["auxiliary"].state_dict().items()}
    refresh_batch_norm(model, [torch.zeros(8, 3)], forward=model["used"])
    assert all(torch.equal(value, before[name]) for name, value in model["auxiliary"].state_dict().items())
    assert not model["used"].running_mean.any()


def test_the_model_to_ship_has_the_versions_of_its_modules() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = AMUSE(param_groups(model), lr=0.1, warmup_steps=2)
    take_steps(optimizer, range(2))
    shipped = averaged_state_dict(model, optimizer)
    assert shipped._metadata == model.state_dict()._metadata
    with averaged(optimizer):
        expected = model.state_dict()
        assert all(torch.equal(shipped[name], value) for name, value in expected.items())
