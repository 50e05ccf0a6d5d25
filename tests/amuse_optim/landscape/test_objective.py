"""Losses over fixed batches: their mean, what they leave alone, and what they refuse."""

import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from amuse_optim.landscape import Objective, eigenpairs, gauss_newton, hessian, module_loss, spectral_density
from tests.amuse_optim.landscape.problems import PROBLEMS, cross_entropy, mlp, state_bits

BATCH = (torch.ones(4, 3), torch.tensor([0, 1, 2, 0]))


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.named_parameters()}


@pytest.mark.parametrize("name", PROBLEMS)
def test_value_and_gradient_are_those_of_all_rows_at_once(name: str) -> None:
    module, objective, parameters = PROBLEMS[name]()
    module = module.double()
    inputs, targets = (torch.cat(parts) for parts in zip(*objective.batches, strict=True))
    loss = functional.cross_entropy(module(inputs).flatten(0, -2), targets.flatten())
    loss.backward()
    torch.testing.assert_close(objective.value(parameters), loss.detach())
    gradient = objective.gradient(parameters)
    for key, parameter in module.named_parameters():
        torch.testing.assert_close(gradient[key], parameter.grad)


def test_batches_count_by_their_rows_or_by_weights() -> None:
    batches = [torch.full((1, 2), 3.0), {"x": torch.full((3,), 5.0)}]

    def loss(parameters: dict[str, Tensor], batch: Any) -> Tensor:
        return parameters["w"] * (batch if isinstance(batch, Tensor) else batch["x"]).mean()

    at = {"w": torch.tensor(2.0)}
    assert Objective(loss, batches).value(at) == 2 * (3 + 3 * 5) / 4
    assert Objective(loss, batches, weights=[6, 2]).value(at) == 2 * (6 * 3 + 2 * 5) / 8
    for wrong in ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="weights must be 2 positive numbers"):
            Objective(loss, batches, weights=wrong)
    with pytest.raises(ValueError, match="batches must not be empty"):
        Objective(loss, [])
    for unsized in (torch.tensor(1.0), "text", (), {}, [None]):
        with pytest.raises(ValueError, match="weights must be given"):
            Objective(loss, [unsized])


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_model_and_random_state_is_touched(name: str, training: bool) -> None:
    """Bits of parameters and buffers, their identity, gradients, modes, and the random state."""
    module, objective, parameters = PROBLEMS[name]()
    for layer in module.modules():
        if not isinstance(layer, nn.BatchNorm2d):
            layer.training = training
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)

    def everything() -> Any:
        tensors = (*module.named_parameters(), *module.named_buffers())
        return (
            state_bits(module),
            {key: (id(value), value.requires_grad, value._version) for key, value in tensors},
            {key: id(value.grad) for key, value in module.named_parameters()},
            [layer.training for layer in module.modules()],
            torch.get_rng_state().tolist(),
            torch.initial_seed(),
            random.getstate(),
        )

    before = everything()
    for make in (hessian, gauss_newton):
        operator = make(objective, parameters)
        eigenpairs(operator, 2, budget=10)
        spectral_density(operator, probes=2, steps=3)
    objective.value(parameters)
    objective.gradient(parameters)
    assert everything() == before
    assert all((parameter.grad == 1).all() for parameter in module.parameters())


def test_parameters_that_are_not_given_are_the_modules_own() -> None:
    module, objective, parameters = mlp()
    module = module.double()
    given = {"2.bias": parameters["2.bias"]}
    whole = hessian(objective, parameters, only="2.bias")
    part = hessian(objective, given)
    vector = torch.tensor([1.0, 2.0, -1.0]).double()
    torch.testing.assert_close(part @ vector, whole @ vector)
    assert not objective.loss(given, objective.batches[0]).requires_grad


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def test_dropout_is_an_error_until_the_model_is_in_eval_mode() -> None:
    torch.manual_seed(0)
    module = dropout()
    objective = Objective(module_loss(module, cross_entropy), [BATCH])
    state = torch.get_rng_state()
    for make in (hessian, gauss_newton):
        with pytest.raises(
            ValueError, match=r"loss must be deterministic, got a loss.*model.eval\(\).*check_det"
        ):
            make(objective, parameters_of(module))
    assert torch.equal(torch.get_rng_state(), state)
    module.eval()
    hessian(objective, parameters_of(module))


def test_without_the_check_dropout_has_one_mask() -> None:
    """Every product begins with the caller's random state, so that the operator is one matrix after all."""
    torch.manual_seed(0)
    module = dropout()
    objective = Objective(module_loss(module, cross_entropy), [BATCH])
    operator = hessian(objective, parameters_of(module), check_determinism=False)
    vector = torch.ones(operator.coordinates.size)
    once = operator @ vector
    assert torch.equal(operator @ vector, once)
    torch.rand(1)
    assert not torch.equal(operator @ vector, once)


def test_a_gradient_that_changes_is_found_where_the_loss_does_not() -> None:
    calls = iter(range(100))

    class Fickle(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Tensor:  # noqa: ARG004
            return upstream * (1 + next(calls))

    objective = Objective(lambda p, batch: Fickle.apply(p["w"]).sum() + batch.sum(), [torch.ones(1)])
    with pytest.raises(ValueError, match="got a gradient of norm"):
        hessian(objective, {"w": torch.ones(2)})


def test_data_that_are_drawn_anew_are_an_error() -> None:
    """A loss that shuffles, or augments, its own data."""
    data = torch.arange(10.0)

    def loss(parameters: dict[str, Tensor], _: Any) -> Tensor:
        return (parameters["w"] * data[torch.randperm(10)[:3]]).square().mean()

    with pytest.raises(ValueError, match="neither order nor augmentation"):
        hessian(Objective(loss, [torch.ones(1)]), {"w": torch.tensor(1.0)})


def test_a_loader_is_read_once_and_the_random_state_restored() -> None:
    loader = DataLoader(TensorDataset(torch.arange(10.0)), batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    objective = Objective(lambda p, batch: (p["w"] * batch[0]).mean(), loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(batch[0]) for batch in objective.batches] == [4, 4, 2]
    assert objective.value({"w": torch.tensor(1.0)}).item() == pytest.approx(4.5)


def batch_norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))


RANDOM_BATCH = (torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1]))


def test_batch_norm_in_train_mode_is_an_error() -> None:
    module = batch_norm()
    objective = Objective(module_loss(module, cross_entropy), [RANDOM_BATCH])
    before = state_bits(module)
    evaluations: list[Callable[[], object]] = [
        lambda: hessian(objective, parameters_of(module)),
        lambda: (
            gauss_newton(objective, parameters_of(module), check_determinism=False)
            @ torch.ones(sum(p.numel() for p in module.parameters()))
        ),
        lambda: objective.value(parameters_of(module)),
    ]
    for evaluate in evaluations:
        with pytest.raises(
            ValueError, match=r"buffer '1.running_mean' must not change.*module.eval\(\) first"
        ):
            evaluate()
    assert state_bits(module) == before


def test_the_loss_of_the_train_mode_can_be_had_and_leaves_the_statistics() -> None:
    """Its Hessian against forward over reverse mode on batch statistics written out."""
    module = batch_norm()
    inputs, targets = RANDOM_BATCH
    objective = Objective(
        module_loss(module, cross_entropy, buffers_may_change=True), [(inputs.double(), targets)]
    )
    parameters = {name: value.double() for name, value in parameters_of(module).items()}
    before = state_bits(module)
    operator = hessian(objective, parameters)

    def loss(vector: Tensor) -> Tensor:
        p = operator.coordinates.unflatten(vector)
        h = inputs.double() @ p["0.weight"].T + p["0.bias"]
        h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt() * p["1.weight"] + p["1.bias"]
        return functional.cross_entropy(h @ p["2.weight"].T + p["2.bias"], targets)

    vector = torch.linspace(-1, 1, operator.coordinates.size).double()
    at = operator.coordinates.flatten(parameters)
    expected = torch.autograd.functional.hvp(loss, at, vector)[1]
    torch.testing.assert_close(operator @ vector, expected, rtol=1e-8, atol=1e-10)
    assert state_bits(module) == before


def test_a_buffer_that_is_assigned_anew_is_found_too() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return self.weight * x

    module = Counting()
    loss = module_loss(module, lambda outputs, _: outputs.mean())
    with pytest.raises(ValueError, match="buffer 'calls' must not change"):
        loss(parameters_of(module), (torch.ones(2),))
    assert module.calls == 0


def test_a_forward_of_ones_own() -> None:
    module = nn.Bilinear(2, 3, 1)
    loss = module_loss(
        module,
        lambda outputs, batch: (outputs.squeeze(1) - batch["y"]).square().mean(),
        forward=lambda run, batch: run(batch["a"], input2=batch["b"]),
    )
    batch = {"a": torch.randn(4, 2), "b": torch.randn(4, 3), "y": torch.randn(4)}
    expected = (module(batch["a"], batch["b"]).squeeze(1) - batch["y"]).square().mean()
    assert torch.equal(loss(parameters_of(module), batch), expected)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    objective = Objective(lambda p, batch: (p["w"] * batch).log().sum(), [torch.ones(1)])
    with pytest.raises(ValueError, match=re.escape("the loss at these parameters must be finite")):
        hessian(objective, {"w": torch.tensor([-1.0])})
    with pytest.raises(ValueError, match=re.escape("the gradient at these parameters must be finite")):
        hessian(
            Objective(lambda p, batch: (p["w"] * batch).sqrt().sum(), [torch.ones(1)]), {"w": torch.zeros(1)}
        )
