"""What is measured, against dense linear algebra in float64."""

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from amuse_lab.landscape.measuring import Measurement, measure
from amuse_lab.landscape.points import Parameters, Points, hidden_matrices
from amuse_lab.optimizers import Muon
from amuse_lab.trainer import Trainer
from tests.amuse_lab.landscape.runs import SETTINGS, flat, trainer

STEPS = 8


class Dense:
    """The mean loss on batches in float64 at a point, with its gradient and its whole Hessian.

    Args:
        run: Whose model and batches they are.
        point: Where.
        names: In which parameters; the others are constants.
        batches: Which of the fixed batches.
    """

    def __init__(
        self,
        run: Trainer,
        point: Parameters,
        names: list[str] | None = None,
        batches: Sequence[int] = range(SETTINGS.batches),
    ) -> None:
        double = {name: value.double() for name, value in point.items()}
        chosen = names or list(double)
        model = copy.deepcopy(run.model).double()
        self._vector = flat(double, chosen).requires_grad_()
        sizes = [double[name].numel() for name in chosen]
        parts = zip(chosen, self._vector.split(sizes), strict=True)
        state = double | {name: part.view(double[name].shape) for name, part in parts}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            losses = [functional_call(model, state, run.task.batch(run.config.steps + n)) for n in batches]
        self.loss = torch.stack(losses).mean()
        (self._gradient,) = torch.autograd.grad(self.loss, self._vector, create_graph=True)
        self.gradient = self._gradient.detach()

    def hessian(self) -> Tensor:
        parts = torch.eye(len(self._vector), dtype=torch.float64).split(128)
        how = {"retain_graph": True, "is_grads_batched": True}
        rows = [torch.autograd.grad(self._gradient, self._vector, part, **how)[0] for part in parts]
        return torch.cat(rows)


def dominant(hessian: Tensor, k: int, vector: Tensor) -> float:
    vectors = torch.linalg.eigh(hessian).eigenvectors[:, -k:]
    return float((vectors.T @ vector).norm() / vector.norm())


@cache
def measured() -> tuple[Trainer, Points, Measurement]:
    run = trainer(steps=STEPS)
    points = Points.of(run)
    return run, points, measure(run, SETTINGS)


@cache
def dense_hessian(point: str) -> Tensor:
    run, points, _ = measured()
    if point == "matrices":
        return Dense(run, points.x, hidden_matrices(run.model)).hessian()
    return Dense(run, getattr(points, point)).hessian()


@pytest.mark.parametrize("point", ["x", "y", "z", "matrices"])
def test_leading_eigenvalues_are_those_of_the_dense_hessian(point: str) -> None:
    _, _, found = measured()
    hessian = dense_hessian(point)
    spectrum = found.spectra[point]
    exact = torch.linalg.eigvalsh(hessian).flip(0)
    assert spectrum.size == len(hessian)
    shown = torch.tensor(spectrum.values[: SETTINGS.k], dtype=torch.float64)
    torch.testing.assert_close(shown, exact[: SETTINGS.k], rtol=2e-3, atol=1e-4)
    if point != "matrices":
        assert found.sharpness(point) == spectrum.values[0]


def test_losses_and_shares_of_gradients_are_those_of_the_dense_hessian() -> None:
    run, points, found = measured()
    for name, point in points.items():
        k = found.spectra[name].k
        assert k is not None
        assert found.loss[name] == pytest.approx(Dense(run, point).loss.item(), rel=1e-5)
        singles = [Dense(run, point, batches=[n]).gradient for n in range(SETTINGS.batches)]
        shares = [dominant(dense_hessian(name), k, gradient) for gradient in singles]
        assert found.gradients[name] == pytest.approx(sum(shares) / len(shares), rel=2e-2)


def test_the_segment_begins_at_z_and_passes_x() -> None:
    _, _, found = measured()
    assert found.segment is not None
    losses = dict(zip(found.segment["positions"], found.segment["losses"], strict=True))
    assert losses[0.0] == pytest.approx(found.loss["z"], rel=1e-5)
    assert losses[1.0] == pytest.approx(found.loss["x"], rel=1e-5)
    assert found.along is not None
    assert found.along["shares"][-1] == pytest.approx(found.gradients["x"], rel=1e-4)


def test_the_gradient_at_y_along_z_minus_x() -> None:
    run, points, found = measured()
    gradient = Dense(run, points.y).gradient
    away = flat(points.z).double() - flat(points.x).double()
    assert found.inner is not None
    expected = float(gradient @ away / (gradient.norm() * away.norm()))
    assert found.inner["cosine"] == pytest.approx(expected, rel=1e-3)
    parts = dict(zip(points.y, gradient.split([v.numel() for v in points.y.values()]), strict=True))
    products = [
        float(parts[name] @ (points.z[name] - points.x[name]).flatten().double())
        for name in hidden_matrices(run.model)
    ]
    assert found.inner["positive"] == sum(product > 0 for product in products) / len(products)


def test_the_plane_has_x_in_its_middle_and_z_on_its_way() -> None:
    _, points, found = measured()
    assert found.plane is not None
    middle = len(found.plane["losses"]) // 2
    assert found.plane["losses"][middle][middle] == pytest.approx(found.loss["x"], rel=1e-5)
    assert found.plane["paths"]["x"][0] == [0.0, 0.0]
    # z - x lies in the plane, so that the coordinates of z hold all of its length.
    first = found.plane["paths"]["z"][0]
    length = (flat(points.z) - flat(points.x)).norm().item()
    assert (first[0] ** 2 + first[1] ** 2) ** 0.5 == pytest.approx(length, rel=1e-3)
    assert all(len(path) == SETTINGS.window + 1 for path in found.plane["paths"].values())


@pytest.mark.parametrize(
    "optimizer", [None, Muon(lr=0.01, lr_rest=0.01, warmup_steps=2)], ids=["amuse", "muon"]
)
def test_measuring_changes_no_step(optimizer: Muon | None) -> None:
    plain = trainer(steps=STEPS + SETTINGS.window) if optimizer is None else trainer(optimizer, steps=12)
    run = trainer() if optimizer is None else trainer(optimizer)
    before = torch.get_rng_state()
    for _ in range(STEPS):
        run.advance(look=False)
    found = measure(run, SETTINGS)
    assert found.step == STEPS
    assert run.step == plain.step
    assert torch.equal(before, torch.get_rng_state())
    assert run.losses == plain.losses
    for one, other in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None


def test_without_an_average_there_is_no_segment() -> None:
    run = trainer(Muon(lr=0.01, lr_rest=0.01, warmup_steps=2), steps=4)
    found = measure(run, SETTINGS)
    assert (found.segment, found.along, found.inner) == (None, None, None)
    assert set(found.spectra) == {"x", "matrices"}
    assert set(found.gradients) == {"x"}
    assert found.sharpness("z") == found.sharpness("x")
    assert found.plane is not None
    assert found.plane["paths"]["z"][0] == [0.0, 0.0]
