"""Products with Hessian and Gauss-Newton matrix against the matrices themselves."""

import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from amuse_optim.landscape import (
    CompositeLoss,
    Coordinates,
    Objective,
    Operator,
    gauss_newton,
    hessian,
    module_loss,
)
from tests.amuse_optim.landscape.problems import (
    PROBLEMS,
    Problem,
    attention_written_out,
    dense_hessian,
    llama,
    matrix_of,
    mlp,
)


@pytest.mark.parametrize("name", PROBLEMS)
def test_products_are_those_of_the_whole_hessian(name: str) -> None:
    """Batches of different sizes against all rows at once, by forward over reverse mode."""
    problem = PROBLEMS[name]()
    operator = hessian(problem.objective, problem.parameters)
    torch.testing.assert_close(matrix_of(operator), dense_hessian(problem), rtol=1e-8, atol=1e-8)


def test_attention_is_taken_in_the_form_that_has_second_derivatives() -> None:
    """Where fused attention is demanded, torch has none; the products are those of attention written out."""
    problem = llama()
    vector = torch.linspace(-1, 1, hessian(problem.objective, problem.parameters).coordinates.size).double()
    with attention_written_out():
        expected = hessian(problem.objective, problem.parameters) @ vector
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with pytest.raises(RuntimeError, match="not implemented"):
            twice_differentiated(problem, vector)
        found = hessian(problem.objective, problem.parameters) @ vector
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def twice_differentiated(problem: Problem, vector: Tensor) -> None:
    """A product without what the library does about attention."""
    parameters = {name: value.clone().requires_grad_() for name, value in problem.parameters.items()}
    loss = problem.objective.loss(parameters, problem.objective.batches[0])
    gradient = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    flat = torch.cat([part.flatten() for part in gradient])
    torch.autograd.grad(flat @ vector, list(parameters.values()))


def test_float32_products_are_right_up_to_rounding() -> None:
    single, double = mlp(torch.float32), mlp()
    exact = dense_hessian(double)
    found = matrix_of(hessian(single.objective, single.parameters))
    assert found.dtype == torch.float32
    assert (found - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize(
    ("only", "names"),
    [("2.*", ["2.weight", "2.bias"]), (("*bias", "0.w*"), ["0.weight", "0.bias", "2.bias"])],
)
@pytest.mark.parametrize("make", [hessian, gauss_newton])
def test_a_filter_gives_the_block_of_its_names(
    make: Callable[..., Operator], only: str | tuple[str, ...], names: list[str]
) -> None:
    problem = mlp()
    whole, block = (make(problem.objective, problem.parameters, only=pattern) for pattern in ("*", only))
    assert list(block.coordinates.shapes) == names
    marks = {name: torch.full_like(value, name in names) for name, value in problem.parameters.items()}
    rows = whole.coordinates.flatten(marks).bool()
    torch.testing.assert_close(matrix_of(block), matrix_of(whole)[rows][:, rows], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gauss_newton_is_jacobians_around_the_softmaxs_hessian(name: str) -> None:
    """G = mean of J^T (diag(p) - p p^T) J over rows (and positions)."""
    problem = PROBLEMS[name]()
    coordinates = Coordinates.of(problem.parameters)
    inputs = torch.cat([batch[0] for batch in problem.objective.batches])

    def logits(vector: Tensor) -> Tensor:
        batch = (inputs, None)
        return problem.objective.loss.outputs(coordinates.unflatten(vector), batch).flatten(0, -2)

    at = coordinates.flatten(problem.parameters)
    with attention_written_out():
        jacobian = torch.func.jacfwd(logits)(at)
        share = logits(at).softmax(-1)
    curvature = share.diag_embed() - share.unsqueeze(2) * share.unsqueeze(1)
    dense = torch.einsum("nap,nab,nbq->pq", jacobian, curvature, jacobian) / len(share)
    found = matrix_of(gauss_newton(problem.objective, problem.parameters))
    torch.testing.assert_close(found, dense, rtol=1e-8, atol=1e-10)


def test_gauss_newton_is_the_hessian_where_the_model_is_linear() -> None:
    def outputs(parameters: dict[str, Tensor], batch: Tensor) -> Tensor:
        return batch @ parameters["w"]

    def criterion(outputs: Tensor, batch: Tensor) -> Tensor:
        return outputs.exp().mean() + batch.mean()

    objective = Objective(CompositeLoss(outputs, criterion), [torch.randn(5, 3).double()])
    at = {"w": torch.randn(3).double()}
    torch.testing.assert_close(matrix_of(gauss_newton(objective, at)), matrix_of(hessian(objective, at)))


finite = st.floats(-1e3, 1e3, width=32)
vectors = st.lists(finite, min_size=31, max_size=31).map(lambda v: torch.tensor(v, dtype=torch.float64))
OPERATORS = [make(*mlp()[1:]) for make in (hessian, gauss_newton)]


@pytest.mark.parametrize("operator", OPERATORS, ids=["hessian", "gauss_newton"])
@given(u=vectors, v=vectors, a=finite, b=finite)
def test_operators_are_linear_and_symmetric(
    operator: Operator, u: Tensor, v: Tensor, a: float, b: float
) -> None:
    hu, hv = operator @ u, operator @ v
    scale = (abs(a) * u.norm() + abs(b) * v.norm()).item()
    torch.testing.assert_close(
        operator @ (a * u + b * v), a * hu + b * hv, rtol=0, atol=1e-12 * scale + 1e-300
    )
    assert abs(u @ hv - v @ hu) <= 1e-12 * u.norm() * v.norm()


def test_the_point_is_copied() -> None:
    """Training may go on while the operator is in use."""
    problem = mlp()
    operator = hessian(problem.objective, problem.parameters)
    unit = torch.ones(operator.coordinates.size).double()
    before = operator @ unit
    for value in problem.parameters.values():
        value.add_(1.0)
    assert torch.equal(operator @ unit, before)


def test_gradients_being_off_does_not_matter() -> None:
    problem = mlp()
    operators = [make(problem.objective, problem.parameters) for make in (hessian, gauss_newton)]
    unit = torch.ones(operators[0].coordinates.size).double()
    for operator in operators:
        with torch.no_grad():
            found = operator @ unit
        assert torch.equal(found, operator @ unit)
        assert not found.requires_grad


def test_parameters_must_fit() -> None:
    problem = mlp()
    mixed = {**problem.parameters, "2.bias": problem.parameters["2.bias"].float()}
    for wrong, found in (
        (mixed, "torch.float32 on cpu, torch.float64 on cpu"),
        ({name: value.bfloat16() for name, value in problem.parameters.items()}, "torch.bfloat16 on cpu"),
        ({}, "none"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"got {found}: convert them")):
            hessian(problem.objective, wrong)


def test_a_pattern_without_a_name_is_an_error() -> None:
    problem = mlp()
    with pytest.raises(ValueError, match=re.escape("unknown name '2.wieght'; did you mean '2.weight'?")):
        hessian(problem.objective, problem.parameters, only=("*bias", "2.wieght"))


def test_gauss_newton_needs_a_loss_in_two_parts() -> None:
    objective = Objective(lambda parameters, batch: (parameters["w"] * batch).sum(), [torch.ones(1)])
    with pytest.raises(TypeError, match="CompositeLoss, got <function"):
        gauss_newton(objective, {"w": torch.ones(1)})


def test_vectors_and_products_are_checked() -> None:
    operator = Operator(lambda vector: vector / 0, Coordinates.of({"v": torch.ones(3)}))
    for wrong in (torch.ones(2), torch.ones(3).double(), torch.ones(3, 1)):
        with pytest.raises(ValueError, match="makes one of named tensors"):
            operator @ wrong
    with pytest.raises(ValueError, match="product must be finite"):
        operator @ torch.ones(3)


def test_coordinates_go_there_and_back() -> None:
    tensors = {"b": torch.randn(2, 3), "a": torch.randn(()), "c": torch.randn(4)}
    coordinates = Coordinates.of(tensors)
    vector = coordinates.flatten({**tensors, "more": torch.ones(7)})
    assert torch.equal(vector, torch.cat([tensors[name].flatten() for name in "bac"]))
    back = coordinates.unflatten(vector)
    assert list(back) == list("bac")
    assert all(torch.equal(back[name], tensors[name]) for name in "bac")
    assert (
        coordinates.flatten({name: value.bfloat16() for name, value in tensors.items()}).dtype
        == torch.float32
    )
    with pytest.raises(ValueError, match="'c' is missing"):
        coordinates.flatten({"a": tensors["a"], "b": tensors["b"]})
    with pytest.raises(ValueError, match=re.escape("'b' must be of shape (2, 3), got (3, 2)")):
        coordinates.flatten({**tensors, "b": tensors["b"].T})


def test_a_tied_weight_moves_in_all_its_places() -> None:
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    module[2].weight = module[0].weight
    inputs = torch.randn(4, 2).double()
    objective = Objective(module_loss(module, lambda outputs, _: outputs.square().mean()), [(inputs,)])
    weight = module[0].weight.detach().double()

    def loss(weight: Tensor) -> Tensor:
        return functional.linear(functional.linear(inputs, weight).tanh(), weight).square().mean()

    dense = torch.func.hessian(loss)(weight).reshape(4, 4)
    torch.testing.assert_close(matrix_of(hessian(objective, {"0.weight": weight})), dense)


def test_the_laboratory_s_chunked_loss_has_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a large vocabulary, made in chunks within the model, against that of all logits."""
    problem = llama()
    expected = dense_hessian(problem)
    inside = module_loss(problem.module, lambda loss, _: loss, forward=lambda run, batch: run(*batch))
    monkeypatch.setattr("amuse_lab.tasks.lm.loss.CHUNK_ENTRIES", 4 * 7)
    monkeypatch.setattr("amuse_lab.tasks.lm.loss.F.cross_entropy", None)  # the plain one is not used
    operator = hessian(Objective(inside, problem.objective.batches), problem.parameters)
    torch.testing.assert_close(matrix_of(operator), expected, rtol=1e-8, atol=1e-8)
