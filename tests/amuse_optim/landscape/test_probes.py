"""Probes on quadratics, where each is known."""

import math

import pytest
import torch
from torch import Tensor

from amuse_optim.landscape import (
    Objective,
    Subspace,
    cosines,
    dominant_subspace,
    effective_rank,
    eigenpairs,
    hessian,
    loss_in_plane,
    loss_on_segment,
    shares,
)
from tests.amuse_optim.landscape.problems import mlp

CURVATURES = torch.tensor([100.0, 50.0, 1.0, 0.5]).double()
VALLEY = Objective(
    lambda p, batch: (CURVATURES * p["w"].square()).sum() / 2 + 0 * batch.sum(), [torch.ones(1)]
)


def at(*entries: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(entries).double()}


def space() -> Subspace:
    return dominant_subspace(eigenpairs(hessian(VALLEY, at(0, 0, 0, 0)), 3), 2)


def test_gradients_look_at_the_walls_and_displacements_along_the_river() -> None:
    """The gradient H w of a displacement w has its larger share in the dominant subspace."""
    place = at(1, 0, 10, 0)
    found = shares(space(), {"displacement": place, "gradient": VALLEY.gradient(place)})
    assert list(found) == ["displacement", "gradient"]
    assert found["displacement"] == pytest.approx((1 / math.sqrt(101), 10 / math.sqrt(101)), abs=1e-6)
    assert found["gradient"] == pytest.approx((100 / math.hypot(100, 10), 10 / math.hypot(100, 10)), abs=1e-6)


def test_oscillation_between_the_walls_is_seen_in_the_dominant_subspace_alone() -> None:
    updates = [at(1, 0, 3, 0), at(-1, 0, 3, 0), at(0, 2, 0, 5), at(0, 0, 0, 1)]
    (one, other, last) = cosines(space(), updates)
    assert one == pytest.approx((-1, 1), abs=1e-6)
    assert other == pytest.approx((0, 0), abs=1e-6)
    assert last.bulk == pytest.approx(1, abs=1e-6)


def test_a_cosine_with_nothing_is_nan() -> None:
    assert all(math.isnan(cosine) for cosine in cosines(space(), [at(1, 0, 1, 0), at(0, 0, 0, 0)])[0])


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(4, 6)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(-3 * torch.linalg.qr(torch.randn(6, 4))[0]) == pytest.approx(4, abs=1e-5)
    # Probabilities 1/2, 1/4, 1/4: an entropy of 3/2 bits.
    assert effective_rank(torch.tensor([2.0, 1.0, 1.0, 0.0]).diag()) == pytest.approx(2**1.5)
    for wrong in (torch.zeros(2, 2), torch.ones(3)):
        with pytest.raises(ValueError, match="two-dimensional and not zero"):
            effective_rank(wrong)


def test_a_segment_across_the_valley_is_lowest_at_its_floor() -> None:
    positions = [-0.5, 0.0, 0.5, 1.0, 1.5]
    losses = loss_on_segment(VALLEY, at(-1, 0, 2, 0), at(1, 0, 2, 0), positions)
    torch.testing.assert_close(losses, torch.tensor([50 * (2 * t - 1) ** 2 + 2 for t in positions]).double())


def test_a_plane_has_its_first_direction_in_rows() -> None:
    losses = loss_in_plane(
        VALLEY,
        at(0, 0, 2, 0),
        at(1, 0, 0, 0),
        at(0, 0, 2, 0),
        first_positions=[-1, 0, 1],
        second_positions=[0, -1],
    )
    torch.testing.assert_close(losses, torch.tensor([[52.0, 50.0], [2.0, 0.0], [52.0, 50.0]]).double())


def test_segments_of_a_network_are_its_losses() -> None:
    _, objective, parameters = mlp(torch.float32)
    other = {name: value + 1 for name, value in parameters.items()}
    losses = loss_on_segment(objective, parameters, other, [0.0, 1.0])
    assert losses.dtype == torch.float64
    expected = [objective.value(point).item() for point in (parameters, other)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)
